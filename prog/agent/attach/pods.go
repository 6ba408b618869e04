package attach

import (
	"context"

	"weft/prog/api"
)

// NoPods is the Pods without Kubernetes: no pod is known.
type NoPods struct{}

// Complete leaves the request as it is.
func (NoPods) Complete(context.Context, *api.AttachRequest) error { return nil }

// Current knows no pod.
func (NoPods) Current(string, string, string) (map[string]string, []api.Port, bool) {
	return nil, nil, false
}

// Ended reports no end.
func (NoPods) Ended(string, string, string) bool { return false }
