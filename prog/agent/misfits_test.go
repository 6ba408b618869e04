package agent

import (
	"strings"
	"testing"

	"weft/prog/api"
	"weft/router/endpoint"
)

// Whatever a runtime calls a container, it gets a network; what people type is refused.
func TestNamesThatDoNotFit(t *testing.T) {
	a := shop(t)
	long := strings.Repeat("x", 71)
	request := func(source, name, namespace string) api.AttachRequest {
		return api.AttachRequest{
			ContainerID: "c0ffee", Interface: "eth0", HostLink: endpoint.HostLink("c0ffee", "eth0"), MAC: "02:00:00:00:00:01",
			Source: source, Name: name, Namespace: namespace,
		}
	}
	for _, name := range []string{long, "My Pod", "a..b", strings.Repeat("a.", 126) + "a"} {
		if err := validAttach(request(SourceCNI, name, "shop")); err != nil {
			t.Errorf("CNI, %q: %v", name, err)
		}
		if err := validAttach(request(SourceAttach, name, "shop")); err == nil {
			t.Errorf("by hand, %q is not refused", name)
		}
	}
	if validAttach(request(SourceCNI, "web", "no namespace")) != nil || validAttach(request(SourceAttach, "web", "no namespace")) == nil {
		t.Error("an unusable namespace is refused of a runtime, or is not of people")
	}
	ref := a.give(t, "c0ffee")
	e := a.endpoint(ref.Key())
	e.Namespace, e.Name, e.Labels = "shop", long, map[string]string{"app": "web"}
	if w := a.misfits(); len(w) != 1 || !strings.Contains(w[0], "shop/"+long) || !strings.Contains(w[0], "DNS name") {
		t.Errorf("warnings: %q", w)
	}
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range a.published(snap) {
		if err := d.Check(); err != nil || d.ID == ref.Key() && (d.Name != "" || d.Labels["app"] != "web") {
			t.Errorf("%v: %+v", err, d)
		}
	}
}
