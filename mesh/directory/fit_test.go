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

// Whatever a runtime says of an endpoint, something of it can be published; what can be
// published as it is stays as it is.
func TestFit(t *testing.T) {
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
			t.Fatalf("what is left cannot be published: %v", err)
		}
		if whole := e.Check() == nil; whole != (len(left) == 0) || whole && !fits.Same(e) {
			t.Fatalf("%v: %q is left out: %+v became %+v", e.Check(), left, e, fits)
		}
		if len(fits.Slots) > 0 && (!maps.Equal(fits.Labels, e.Labels) || fits.Namespace != e.Namespace) {
			t.Fatalf("with an address, and another one: %+v became %+v", e, fits)
		}
	})
}

// The API server accepts names of 253 bytes without a dot, and more labels and ports than fit.
func TestFitOfPods(t *testing.T) {
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
		"a long name":    {Endpoint{ID: "a", Name: long, Namespace: "shop", Labels: map[string]string{"app": "web"}}, func(e Endpoint) bool { return e.Name == "" && e.Labels["app"] == "web" }, "DNS name"},
		"63 bytes":       {Endpoint{ID: "a", Name: long[:63], Namespace: "shop"}, func(e Endpoint) bool { return e.Name == long[:63] }, ""},
		"long together":  {Endpoint{ID: "a", Name: strings.Repeat("a.", 90) + "a", Namespace: long[:63]}, func(e Endpoint) bool { return e.Name == "" && e.Namespace != "" }, "at most 230"},
		"no name of DNS": {Endpoint{ID: "a", Name: "my pod", Namespace: "shop"}, func(e Endpoint) bool { return e.Name == "" }, "only letters"},
		// Without the last of its labels it would be somebody whom "without that label" means.
		"many labels":       {Endpoint{ID: "a", Name: "web", Slots: []slot.Slot{7}, Labels: many}, func(e Endpoint) bool { return e.Same(Endpoint{ID: "a"}) }, "257 labels"},
		"large labels":      {Endpoint{ID: "a", Name: "web", Slots: []slot.Slot{7}, Labels: large}, func(e Endpoint) bool { return e.Same(Endpoint{ID: "a"}) }, "bytes"},
		"no namespace":      {Endpoint{ID: "a", Name: "web", Slots: []slot.Slot{7}, Namespace: "a/b"}, func(e Endpoint) bool { return e.Same(Endpoint{ID: "a"}) }, "namespace"},
		"an unusable port":  {Endpoint{ID: "a", Name: "web", Ports: []Port{{"Web", "tcp", 80}, {"ok", "tcp", 81}}}, func(e Endpoint) bool { return slices.Equal(e.Ports, []Port{{"ok", "tcp", 81}}) }, "port name"},
		"nothing is amiss":  {Endpoint{ID: "a", Name: "web", Labels: map[string]string{"app": "web"}}, func(e Endpoint) bool { return maps.Equal(e.Labels, map[string]string{"app": "web"}) }, ""},
		"nobody else's one": {Endpoint{ID: "a", Name: "srv.other", Namespace: "evil"}, func(e Endpoint) bool { return slices.Equal(e.Names(), []string{"srv.other.evil"}) }, ""},
	} {
		got, left := c.pod.Fit()
		if !c.want(got) || (len(left) > 0) != (c.left != "") || !strings.Contains(strings.Join(left, "\n"), c.left) {
			t.Errorf("%s: %+v, left out: %q", name, got, left)
		}
	}
}
