package attach

import (
	"strings"
	"testing"

	"weft/prog/api"
)

// long is a name that no DNS label has room for.
var long = strings.Repeat("x", 71)

// Whatever a runtime calls a container, it gets a network; what people type is refused.
func TestNamesThatDoNotFitAreRefusedOfPeopleOnly(t *testing.T) {
	named := func(source, name, namespace string) api.AttachRequest {
		r := request("c0ffee")
		r.Source, r.Name, r.Namespace = source, name, namespace
		return r
	}
	for _, name := range []string{long, "My Pod", "a..b", strings.Repeat("a.", 126) + "a"} {
		if err := validate(named(api.SourceCNI, name, "shop")); err != nil {
			t.Errorf("CNI, %q: %v", name, err)
		}
		if err := validate(named(api.SourceAttach, name, "shop")); err == nil {
			t.Errorf("by hand, %q is not refused", name)
		}
	}
	if validate(named(api.SourceCNI, "web", "no namespace")) != nil || validate(named(api.SourceAttach, "web", "no namespace")) == nil {
		t.Error("an unusable namespace is refused of a runtime, or is not of people")
	}
}

func TestWhatTheDirectoryHasNoRoomForIsAProblem(t *testing.T) {
	f := newFixture(t, nil, nil)
	for _, id := range []string{"c0ffee", "c0ffef"} {
		req := request(id)
		req.Namespace, req.Name, req.Labels = "shop", long, map[string]string{"app": "web"}
		if _, err := f.Attach(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	f.attach(t, "fits")
	list := f.Problems()
	if len(list) != 1 || !strings.Contains(list[0].What, "shop/"+long+" and 1 more") || !strings.Contains(list[0].What, "DNS name") {
		t.Errorf("%+v", list)
	}
	for _, e := range f.Get() {
		if e.Owns(long) || e.Owns("") {
			t.Errorf("%s has a name that does not fit", e.Key())
		}
	}
}
