package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"weft/prog/api"
)

// What goes on is said again only when its event is gone by now, whatever its numbers.
func TestWarningsAreSaidOnce(t *testing.T) {
	said, now := told{}, time.Now()
	for _, c := range []struct {
		w     warning
		after time.Duration
		want  bool
	}{
		{warning{reason: reasonAddress, about: "stuck", text: "3 freed addresses wait since 10s"}, 0, true},
		{warning{reason: reasonAddress, about: "stuck", text: "4 freed addresses wait since 20s"}, time.Minute, false},
		{warning{reason: reasonHost, about: "stuck", text: "another thing"}, time.Minute, true},
		{warning{reason: reasonPolicy, text: "shop/allow-80"}, time.Minute, true},
		{warning{reason: reasonPolicy, text: "shop/allow-443"}, time.Minute, true},
		{warning{reason: reasonAddress, about: "stuck", text: "4 freed addresses wait since 50m"}, sayAgain, true},
	} {
		if got := said.due(c.w, now.Add(c.after)); got != c.want {
			t.Errorf("%+v after %v: %v", c.w, c.after, got)
		}
	}
	for i := range 2 * maxTold {
		said.due(warning{reason: reasonPolicy, text: fmt.Sprint(i)}, now)
	}
	if len(said) > maxTold {
		t.Errorf("it remembers %d", len(said))
	}
}

// Under Kubernetes nobody is told to launch an agent: pods are started, and settings are keys
// of a ConfigMap.
func TestMessagesUnderKubernetes(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	rings := []api.Ring{{ID: "a", Peers: []string{"n1", "n2"}}, {ID: "b", Peers: []string{"n3"}}}
	for name, text := range map[string]string{
		"several rings": apart(rings, true),
		"no agent":      (&api.NotRunningError{Socket: "/run/weft/weft.sock"}).Error(),
	} {
		if strings.Contains(text, "weft launch") || !strings.Contains(text, "pod") {
			t.Errorf("%s: %s", name, text)
		}
	}
	if text := apart(rings, false); !strings.Contains(text, "weft launch --token - HOST") || !strings.HasSuffix(text, "on n3") {
		t.Error(text)
	}
}
