package attach

import (
	"strings"
	"testing"

	"weft/prog/api"
)

// long is a name that no DNS label has room for.
var long = strings.Repeat("x", 71)

// A runtime's container is attached even if its name fits no DNS label. A user's name is refused.
func TestInvalidDNSNamesAreRefusedFromUsersOnly(t *testing.T) {
	named := func(source, name, namespace string) api.AttachRequest {
		r := request("c0ffee")
		r.Source, r.Name, r.Namespace = source, name, namespace
		return r
	}
	for _, name := range []string{long, "My Pod", "a..b", strings.Repeat("a.", 126) + "a"} {
		if err := validate(named(api.SourceCNI, name, "shop")); err != nil {
			t.Errorf("a runtime's name %q: error %v, want none", name, err)
		}
		if err := validate(named(api.SourceAttach, name, "shop")); err == nil {
			t.Errorf("a user's name %q was accepted, want an error", name)
		}
	}
	if validate(named(api.SourceCNI, "web", "no namespace")) != nil || validate(named(api.SourceAttach, "web", "no namespace")) == nil {
		t.Error("want an unusable namespace refused if a user gives it, and accepted if a runtime does")
	}
}

func TestPropertiesThatTheDirectoryOmitsAreReported(t *testing.T) {
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
		t.Errorf("problems %+v, want one that names both endpoints and the DNS name", list)
	}
	for _, e := range f.Get() {
		if e.Owns(long) || e.Owns("") {
			t.Errorf("%s owns a name that does not fit, or an empty name; want neither", e.Key())
		}
	}
}
