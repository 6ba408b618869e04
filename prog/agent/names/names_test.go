package names

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/attach"
	"weft/prog/agent/live"
	"weft/prog/agent/resolver"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
	"weft/prog/api"
)

const key = "0123456789ab/eth0"

// attached is a list of endpoints. Find matches a name or the beginning of an id.
type attached []attach.Endpoint

func (a attached) Get() []attach.Endpoint { return a }

func (a attached) Find(word string) (keys []string, err error) {
	for _, e := range a {
		if strings.EqualFold(e.Name, word) || strings.HasPrefix(e.ContainerID, word) && word != "" {
			keys = append(keys, e.Key())
		}
	}
	if keys == nil {
		err = &api.Error{Code: api.CodeNotFound, Message: word + " is not attached to this host"}
	}
	return keys, err
}

// nothing is an empty directory.
type nothing struct{}

func (nothing) Entries(directory.Ring) []directory.Entry                { return nil }
func (nothing) Stuck() (int, time.Time, error)                          { return 0, time.Time{}, nil }
func (nothing) Lookup(string, directory.Ring) ([]directory.Entry, bool) { return nil, false }
func (nothing) At(slot.Slot, directory.Ring) (directory.Entry, bool)    { return directory.Entry{}, false }
func (nothing) Named(directory.Ring) int                                { return 0 }

type fixture struct {
	*Service
	settings *settings.Settings
	store    *agenttest.Settings
	addr6    netip.Addr // the IPv6 address of the endpoint
}

// newFixture is a host with one endpoint, called Web in namespace Prod, and further ones.
func newFixture(t *testing.T, further ...attach.Endpoint) *fixture {
	t.Helper()
	web := attach.Endpoint{Slot: 10}
	web.ContainerID, web.Interface, _ = strings.Cut(key, "/")
	web.Name, web.Namespace = "Web", "Prod"
	f := &fixture{store: &agenttest.Settings{}, addr6: agenttest.Universe().Addr6(10)}
	var err error
	if f.settings, err = settings.Load(f.store, nil); err != nil {
		t.Fatal(err)
	}
	seen, node := &live.Value[*view.View]{}, &live.Value[slot.Slot]{}
	seen.Set(agenttest.View())
	node.Set(1)
	f.Service = New(Config{
		Domain: "weft.internal", Directory: nothing{}, Resolver: resolver.Names{Directory: nothing{}, View: seen}, Attached: attached(append(further, web)),
		Settings: f.settings, NodeAddr: node, View: seen, PeerName: peer.ID.String,
	})
	return f
}

func TestNamesThatOperatorsGaveAreKept(t *testing.T) {
	f := newFixture(t)
	outside := netip.MustParseAddr("192.0.2.17")
	for _, req := range []api.NameRequest{
		{Name: "Shop.weft.internal.", Container: "0123456"},
		{Name: "front", Container: "Web"},
		{Name: "front", Addresses: []netip.Addr{f.addr6}}, // the same endpoint, now by its address
		{Name: "printer.floor2", Addresses: []netip.Addr{outside}},
		{Name: "gate", Addresses: []netip.Addr{agenttest.Universe().Addr4(1)}}, // this host
	} {
		if err := f.AddName(t.Context(), req); err != nil {
			t.Errorf("AddName(%+v) returned %v, want nil", req, err)
		}
	}
	var kept settings.Values
	if err := f.store.Settings(&kept); err != nil || len(kept.Names) != 4 || !slices.Equal(kept.Aliases(key), []string{"front", "shop"}) || !slices.Equal(kept.Aliases(settings.NodeKey), []string{"gate"}) {
		t.Errorf("stored names %+v, error %v; want all four", kept.Names, err)
	}
	for _, req := range []api.NameRequest{{Name: "shop", Container: "0123456789ab"}, {Addresses: []netip.Addr{outside}}} {
		if err := f.RemoveName(t.Context(), req); err != nil {
			t.Errorf("RemoveName(%+v) returned %v, want nil", req, err)
		}
	}
	if v := f.settings.Get(); !slices.Equal(v.Aliases(key), []string{"front"}) || v.Outside("printer.floor2") != 0 {
		t.Errorf("names after RemoveName: %+v, want front and gate", v.Names)
	}
}

// A container that is about to end can lose its own name while it runs. The name stays removed over a
// restart of the agent, and comes back on request.
func TestAContainersOwnNameIsRemovedUntilItIsAddedAgain(t *testing.T) {
	f := newFixture(t)
	for _, step := range []struct {
		what      string
		do        func() error
		withdrawn bool
		aliases   []string
	}{
		{"a further name", func() error { return f.AddName(t.Context(), api.NameRequest{Name: "shop", Container: "Web"}) }, false, []string{"shop"}},
		{"a further name goes alone", func() error { return f.RemoveName(t.Context(), api.NameRequest{Name: "shop", Container: "Web"}) }, false, nil},
		{"all names", func() error { return f.RemoveName(t.Context(), api.NameRequest{Container: "Web"}) }, true, nil},
		{"another name does not restore the container's own name", func() error {
			return f.AddName(t.Context(), api.NameRequest{Name: "shop", Container: "Web"})
		}, true, []string{"shop"}},
		{"its own does", func() error { return f.AddName(t.Context(), api.NameRequest{Name: "WEB", Container: "Web"}) }, false, []string{"shop"}},
		{"by its name with the namespace, at its address", func() error {
			return f.RemoveName(t.Context(), api.NameRequest{Name: "web.prod", Addresses: []netip.Addr{f.addr6}})
		}, true, []string{"shop"}},
	} {
		err := step.do()
		if v := f.settings.Get(); err != nil || slices.Contains(v.Withdrawn, key) != step.withdrawn || !slices.Equal(v.Aliases(key), step.aliases) {
			t.Errorf("%s: settings %+v, error %v; want the step's names", step.what, v, err)
		}
	}
	if err := f.RemoveName(t.Context(), api.NameRequest{Name: "web", Container: "Web"}); err == nil {
		t.Error("a withdrawn name was withdrawn again, want an error")
	}
	var kept settings.Values
	if err := f.store.Settings(&kept); err != nil || !slices.Equal(kept.Withdrawn, []string{key}) {
		t.Errorf("stored settings %+v, error %v; want the name withdrawn after a restart, too", kept, err)
	}
}

func TestBadNameRequestsAreRefused(t *testing.T) {
	f := newFixture(t)
	for says, req := range map[string]api.NameRequest{
		"outside the domain":            {Name: "www.example.com.", Container: "Web"},
		"the domain of this network":    {Name: "Weft.internal", Container: "Web"},
		"hyphen":                        {Name: "-x", Container: "Web"},
		"not attached":                  {Name: "x", Container: "db"},
		"is no address of Web":          {Name: "x", Container: "Web", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.17")}},
		"name a container":              {Name: "x"},
		"no address that several hosts": {Name: "x", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
		"nothing on this host has":      {Name: "x", Addresses: []netip.Addr{agenttest.Universe().Addr4(99)}},
	} {
		err := f.AddName(t.Context(), req)
		if e, ok := errors.AsType[*api.Error](err); !ok || !strings.Contains(e.Message, says) {
			t.Errorf("%+v: %v, want %q", req, err, says)
		}
	}
	if err := f.RemoveName(t.Context(), api.NameRequest{Name: "never", Container: "Web"}); err == nil {
		t.Error("a name that was never given was removed, want an error")
	}
	if got := f.settings.Get(); len(got.Names) != 0 {
		t.Errorf("names %+v after refused requests, want none", got.Names)
	}
}

func TestAnAddressSelectsTheInterfaceOfAContainer(t *testing.T) {
	second := attach.Endpoint{Slot: 11}
	second.ContainerID, second.Interface, second.Name = "0123456789ab", "eth1", "Web"
	f := newFixture(t, second)
	if err := f.AddName(t.Context(), api.NameRequest{Name: "x", Container: "web"}); err == nil || !strings.Contains(err.Error(), "several") {
		t.Errorf("a container with two interfaces: error %v, want one that says several", err)
	}
	if err := f.AddName(t.Context(), api.NameRequest{Name: "x", Container: "web", Addresses: []netip.Addr{f.addr6}}); err != nil {
		t.Error(err)
	}
}

func TestExposeAddsItsNameAndHideRemovesIt(t *testing.T) {
	f := newFixture(t)
	for _, on := range []bool{true, false} {
		if err := f.Expose(t.Context(), api.ExposeRequest{On: on, Name: "gate"}); err != nil {
			t.Fatal(err)
		}
		if v := f.settings.Get(); v.Exposed != on || (len(v.Aliases(settings.NodeKey)) == 1) != on {
			t.Errorf("after expose %v: %+v; want that, with a name while exposed", on, v)
		}
	}
}

func TestLookupOfUnknownNamesFails(t *testing.T) {
	f := newFixture(t)
	for name, says := range map[string]string{"192.0.2.1": "has the address 192.0.2.1 and a name", "": "1 to 63", "gone": "gone is no name in weft.internal"} {
		if _, err := f.Lookup(t.Context(), api.LookupRequest{Name: name}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Lookup(%q) returned %v, want the row's error", name, err)
		}
	}
}

func TestShortRemovesTheDomain(t *testing.T) {
	f := newFixture(t)
	for name, want := range map[string]string{
		"Web": "Web", "web.weft.internal": "web", "Web.Shop.Weft.Internal.": "Web.Shop",
		"web.": "web.", "weft.internal": "weft.internal", ".weft.internal": ".weft.internal", "xweft.internal": "xweft.internal", "": "",
	} {
		if got := f.Short(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
