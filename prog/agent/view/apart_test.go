package view

import (
	"strings"
	"testing"

	"weft/prog/api"
)

// Under Kubernetes nobody is told to launch an agent: pods are started anew.
func TestSeveralRingsAreToldWithWhatMakesThemOne(t *testing.T) {
	rings := []api.Ring{{ID: "a", Peers: []string{"n1", "n2"}}, {ID: "b", Peers: []string{"n3"}}}
	if text := apart(rings, true).String(); strings.Contains(text, "weft launch") || !strings.Contains(text, "pod") {
		t.Errorf("under Kubernetes: %s", text)
	}
	if text := apart(rings, false).String(); !strings.Contains(text, "weft launch --token - HOST") || !strings.HasSuffix(text, "on n3") {
		t.Error(text)
	}
}
