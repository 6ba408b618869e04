package api

import (
	"strings"
	"testing"
)

// Under Kubernetes the error does not suggest to launch an agent, since pods start it.
func TestNotRunningErrorNamesTheFix(t *testing.T) {
	err := &NotRunningError{Socket: "/run/weft/weft.sock"}
	if text := err.Error(); !strings.Contains(text, "weft launch") {
		t.Errorf("on a host, the error is %s; want it to name weft launch", text)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	if text := err.Error(); strings.Contains(text, "weft launch") || !strings.Contains(text, "pod") {
		t.Errorf("in a pod, the error is %s; want it to name the pod, and not weft launch", text)
	}
}
