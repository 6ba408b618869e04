package directory

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/ipam/slot"
)

// Fit turns any endpoint into one that can be published, and leaves a valid endpoint unchanged.
func TestFitReturnsValidEndpoints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.StringMatching(`[a-z0-9.-]{0,260}`), rapid.String(), rapid.StringN(0, 400, 700))
		e := Endpoint{ID: "c/eth0", Slots: []slot.Slot{7}, Name: text.Draw(t, "name"), Namespace: rapid.SampledFrom([]string{"", "shop", strings.Repeat("n", 63), "No Namespace"}).Draw(t, "namespace")}
		e.Labels = rapid.MapOf(text, text).Draw(t, "labels")
		for i := range rapid.SampledFrom([]int{0, maxLabels, maxLabels + 2}).Draw(t, "more labels") {
			e.Labels[fmt.Sprintf("%0*d", rapid.SampledFrom([]int{3, 100, 200}).Draw(t, "size"), i)] = "v"
		}
		for range rapid.SampledFrom([]int{0, 1, maxPorts, maxPorts + 2}).Draw(t, "ports") {
			name := rapid.SampledFrom([]string{"http", "HTTP", "", "a-port-of-16-bytes"}).Draw(t, "port")
			e.Ports = append(e.Ports, Port{name, "tcp", rapid.Uint16().Draw(t, "number")})
		}
		fits, left := e.Fit()
		if err := fits.Check(); err != nil {
			t.Fatalf("Check of the endpoint that Fit returned: error %v, want none", err)
		}
		if whole := e.Check() == nil; whole != (len(left) == 0) || whole && !fits.Same(e) {
			t.Fatalf("Check returned %v, but Fit left out %q and changed %+v to %+v; want a change only if Check returns an error", e.Check(), left, e, fits)
		}
		if len(fits.Slots) > 0 && (!maps.Equal(fits.Labels, e.Labels) || fits.Namespace != e.Namespace) {
			t.Fatalf("Fit kept the addresses but changed labels or namespace: %+v became %+v; want all of them or none", e, fits)
		}
	})
}

// Pods accepted by the API server can have names of 253 bytes without a dot, and more labels and
// ports than allowed here.
func TestEndpointsOfKubernetesPodsAreFittedToTheBounds(t *testing.T) {
	long := strings.Repeat("a", 253)
	many, large := map[string]string{}, map[string]string{}
	for i := range maxLabels + 1 {
		many[fmt.Sprintf("key-%03d", i)] = "v"
		if i < maxLabels {
			large[fmt.Sprintf("%0200d", i)] = "v"
		}
	}
	for name, c := range map[string]struct {
		pod  Endpoint
		want func(Endpoint) bool
		left string
	}{
		"a long name":                 {Endpoint{ID: "a", Name: long, Namespace: "shop", Labels: map[string]string{"app": "web"}}, func(e Endpoint) bool { return e.Name == "" && e.Labels["app"] == "web" }, "DNS name"},
		"name of 63 bytes":            {Endpoint{ID: "a", Name: long[:63], Namespace: "shop"}, func(e Endpoint) bool { return e.Name == long[:63] }, ""},
		"name and namespace too long": {Endpoint{ID: "a", Name: strings.Repeat("a.", 90) + "a", Namespace: long[:63]}, func(e Endpoint) bool { return e.Name == "" && e.Namespace != "" }, "at most 230"},
		"not a DNS name":              {Endpoint{ID: "a", Name: "my pod", Namespace: "shop"}, func(e Endpoint) bool { return e.Name == "" }, "only letters"},
		// Without some of its labels, the endpoint could match a selector that excludes them.
		"many labels":                  {Endpoint{ID: "a", Name: "web", Slots: []slot.Slot{7}, Labels: many}, func(e Endpoint) bool { return e.Same(Endpoint{ID: "a"}) }, "257 labels"},
		"large labels":                 {Endpoint{ID: "a", Name: "web", Slots: []slot.Slot{7}, Labels: large}, func(e Endpoint) bool { return e.Same(Endpoint{ID: "a"}) }, "bytes"},
		"invalid namespace":            {Endpoint{ID: "a", Name: "web", Slots: []slot.Slot{7}, Namespace: "a/b"}, func(e Endpoint) bool { return e.Same(Endpoint{ID: "a"}) }, "namespace"},
		"invalid port":                 {Endpoint{ID: "a", Name: "web", Ports: []Port{{"Web", "tcp", 80}, {"ok", "tcp", 81}}}, func(e Endpoint) bool { return slices.Equal(e.Ports, []Port{{"ok", "tcp", 81}}) }, "port name"},
		"valid":                        {Endpoint{ID: "a", Name: "web", Labels: map[string]string{"app": "web"}}, func(e Endpoint) bool { return maps.Equal(e.Labels, map[string]string{"app": "web"}) }, ""},
		"no name in another namespace": {Endpoint{ID: "a", Name: "srv.other", Namespace: "evil"}, func(e Endpoint) bool { return slices.Equal(e.Names(), []string{"srv.other.evil"}) }, ""},
	} {
		got, left := c.pod.Fit()
		if !c.want(got) || (len(left) > 0) != (c.left != "") || !strings.Contains(strings.Join(left, "\n"), c.left) {
			t.Errorf("%s: Fit returned %+v and left out %q; want to leave out %q", name, got, left, c.left)
		}
	}
}
