package agent

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/api"
	"weft/prog/dns"
	"weft/router/endpoint"
)

// named is an agent with one endpoint, called Web in namespace Prod, and its slot.
func named(t *testing.T) (*Agent, slot.Slot) {
	t.Helper()
	a := partial(t)
	a.opts.DNS.Domain = "weft.internal"
	s, err := a.ipam.Allocate(t.Context(), "0123456789ab/eth0", nil)
	if err != nil {
		t.Fatal(err)
	}
	a.setEndpoint("0123456789ab/eth0", &endpointRecord{Slot: s, AttachRequest: api.AttachRequest{
		ContainerID: "0123456789ab", Interface: "eth0", Name: "Web", Namespace: "Prod",
		Labels: map[string]string{"app": "web"}, Ports: []api.Port{{Name: "http", Protocol: "tcp", Number: 80}},
	}})
	return a, s
}

func TestNamesThatPeopleGive(t *testing.T) {
	a, s := named(t)
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	outside := netip.MustParseAddr("192.0.2.17")
	for _, req := range []api.NameRequest{
		{Name: "Shop.weft.internal.", Container: "0123456"},
		{Name: "front", Container: "Web"},
		{Name: "front", Addresses: []netip.Addr{snap.Ring.Universe.Addr6(s)}}, // again, by its address
		{Name: "printer.floor2", Addresses: []netip.Addr{outside}},
	} {
		if err := a.AddName(t.Context(), req); err != nil {
			t.Errorf("%+v: %v", req, err)
		}
	}
	want := []directory.Endpoint{
		{
			ID: "0123456789ab/eth0", Slots: []slot.Slot{s}, Name: "web", Namespace: "prod", Labels: map[string]string{"app": "web"},
			Aliases: []string{"front", "shop"}, Ports: []directory.Port{{Name: "http", Protocol: "tcp", Number: 80}}, IPv4Only: true,
		},
		{ID: "outside/printer.floor2", Aliases: []string{"printer.floor2"}, Outside: []netip.Addr{outside}},
	}
	compareAddr := cmp.Comparer(func(x, y netip.Addr) bool { return x == y })
	if d := cmp.Diff(want, a.published(snap), compareAddr); d != "" {
		t.Errorf("published (-want +got):\n%s", d)
	}
	var kept settings
	if err := a.store.Settings(&kept); err != nil || len(kept.Names) != 3 {
		t.Errorf("kept %+v, %v", kept.Names, err)
	}
	if err := a.RemoveName(t.Context(), api.NameRequest{Name: "shop", Container: "0123456789ab"}); err != nil {
		t.Error(err)
	}
	if err := a.RemoveName(t.Context(), api.NameRequest{Addresses: []netip.Addr{outside}}); err != nil {
		t.Error(err)
	}
	if got := a.published(snap); len(got) != 1 || !slices.Equal(got[0].Aliases, []string{"front"}) {
		t.Errorf("after dns-remove: %+v", got)
	}
	if err := a.forgetNames("0123456789ab/eth0"); err != nil || len(a.settings.Names) != 0 {
		t.Errorf("after the endpoint: %+v, %v", a.settings.Names, err)
	}
}

// A container that is about to end loses its own name while it runs, over a restart of the
// agent too, and has it again when somebody says so or when it is attached anew.
func TestOwnNamesAreWithdrawn(t *testing.T) {
	a, s := named(t)
	const key = "0123456789ab/eth0"
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own := func() string { return a.published(snap)[0].Name }
	if err := a.AddName(t.Context(), api.NameRequest{Name: "shop", Container: "Web"}); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		what    string
		do      func() error
		own     string
		aliases []string
	}{
		{"a further name is its own business", func() error {
			return a.RemoveName(t.Context(), api.NameRequest{Name: "shop", Container: "Web"})
		}, "web", nil},
		{"all names", func() error { return a.RemoveName(t.Context(), api.NameRequest{Container: "Web"}) }, "", nil},
		{"another name does not bring it back", func() error {
			return a.AddName(t.Context(), api.NameRequest{Name: "shop", Container: "Web"})
		}, "", []string{"shop"}},
		{"its own does", func() error { return a.AddName(t.Context(), api.NameRequest{Name: "WEB", Container: "Web"}) }, "web", []string{"shop"}},
		{"by its name with the namespace, at its address", func() error {
			return a.RemoveName(t.Context(), api.NameRequest{Name: "web.prod", Addresses: []netip.Addr{snap.Ring.Universe.Addr4(s)}})
		}, "", []string{"shop"}},
	}
	for _, step := range steps {
		if err := step.do(); err != nil || own() != step.own || !slices.Equal(a.published(snap)[0].Aliases, step.aliases) {
			t.Errorf("%s: %+v, %v", step.what, a.published(snap)[0], err)
		}
	}
	if e := a.describe(a.endpoint(key), snap); !e.Withdrawn || e.Name != "Web" {
		t.Errorf("it is described as %+v", e)
	}
	if d := a.published(snap)[0]; d.Namespace != "prod" || d.Labels["app"] != "web" || d.Check() != nil {
		t.Errorf("policies would see another endpoint: %+v, %v", d, d.Check())
	}
	if err := a.RemoveName(t.Context(), api.NameRequest{Name: "web", Container: "Web"}); err == nil {
		t.Error("a name that is withdrawn was withdrawn again")
	}
	var kept settings
	if err := a.store.Settings(&kept); err != nil || !slices.Equal(kept.Withdrawn, []string{key}) {
		t.Errorf("a restart would give it back: %+v, %v", kept, err)
	}
	if err := a.forgetNames(key); err != nil || own() != "web" {
		t.Errorf("attached anew: %q, %v", own(), err)
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	a, _ := named(t)
	for says, req := range map[string]api.NameRequest{
		"outside the domain":            {Name: "www.example.com.", Container: "Web"},
		"the domain of this network":    {Name: "Weft.internal", Container: "Web"},
		"hyphen":                        {Name: "-x", Container: "Web"},
		"not attached":                  {Name: "x", Container: "db"},
		"is no address of Web":          {Name: "x", Container: "Web", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.17")}},
		"name a container":              {Name: "x"},
		"no address that several hosts": {Name: "x", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
	} {
		err := a.AddName(t.Context(), req)
		if e, ok := errors.AsType[*api.Error](err); !ok || !strings.Contains(e.Message, says) {
			t.Errorf("%+v: %v, want %q", req, err, says)
		}
	}
	if err := a.RemoveName(t.Context(), api.NameRequest{Name: "never", Container: "Web"}); err == nil {
		t.Error("a name that nobody gave was removed")
	}
}

func TestWhichEndpointAWordNames(t *testing.T) {
	a, s := named(t)
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for key, name := range map[string]string{"0123456789ab/eth1": "Web", "0123ff/eth0": "db", "dbdbdb/eth0": "01234"} {
		id, iface, _ := strings.Cut(key, "/")
		a.setEndpoint(key, &endpointRecord{AttachRequest: api.AttachRequest{ContainerID: id, Interface: iface, Name: name}})
	}
	for word, want := range map[string][]string{
		"web": {"0123456789ab/eth0", "0123456789ab/eth1"}, "db": {"0123ff/eth0"}, "dbd": {"dbdbdb/eth0"},
		"0123ff": {"0123ff/eth0"}, "01234": {"dbdbdb/eth0"}, "012345": {"0123456789ab/eth0", "0123456789ab/eth1"}, "x": nil,
	} {
		got, err := a.findEndpoints(word)
		if slices.Sort(got); !slices.Equal(got, want) || (err != nil) != (want == nil) {
			t.Errorf("%s: %v, %v", word, got, err)
		}
	}
	if err := a.AddName(t.Context(), api.NameRequest{Name: "x", Container: "web"}); err == nil || !strings.Contains(err.Error(), "several") {
		t.Errorf("a container of two interfaces: %v", err)
	}
	if err := a.AddName(t.Context(), api.NameRequest{Name: "x", Container: "web", Addresses: []netip.Addr{snap.Ring.Universe.Addr4(s)}}); err != nil {
		t.Error(err)
	}
}

func TestLookupOfNothing(t *testing.T) {
	a, _ := named(t)
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.view.Store(&view{ring: snap.Ring})
	for name, says := range map[string]string{"192.0.2.1": "has the address 192.0.2.1 and a name", "": "1 to 63"} {
		if _, err := a.Lookup(t.Context(), api.LookupRequest{Name: name}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestEndpointsCallThemselvesWithoutTheDomain(t *testing.T) {
	a, _ := named(t)
	for name, want := range map[string]string{
		"Web": "Web", "web.weft.internal": "web", "Web.Shop.Weft.Internal.": "Web.Shop",
		"web.": "web.", "weft.internal": "weft.internal", ".weft.internal": ".weft.internal", "xweft.internal": "xweft.internal", "": "",
	} {
		if got := a.short(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestBadNamesAreNotAttached(t *testing.T) {
	for says, change := range map[string]func(*api.AttachRequest){
		"only letters": func(r *api.AttachRequest) { r.Name = "a b" },
		"port name":    func(r *api.AttachRequest) { r.Ports = []api.Port{{Name: "HTTP!", Protocol: "tcp", Number: 1}} },
		"protocol":     func(r *api.AttachRequest) { r.Ports = []api.Port{{Name: "http", Protocol: "quic", Number: 1}} },
		"label":        func(r *api.AttachRequest) { r.Labels = map[string]string{"": "x"} },
		"hyphen":       func(r *api.AttachRequest) { r.Name, r.Namespace = "a", "b-" },
	} {
		req := api.AttachRequest{ContainerID: "c", Interface: "eth0", Source: SourceAttach, HostLink: endpoint.HostLink("c", "eth0"), MAC: "02:00:00:00:00:01"}
		if err := validAttach(req); err != nil {
			t.Fatal(err)
		}
		change(&req)
		if err := validAttach(req); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// Clients are told apart by interface where their address is link-local; nobody else's is
// one of the network's.
func TestWhoMayAskForNames(t *testing.T) {
	a, _ := named(t)
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u, other := snap.Ring.Universe, peer.ID{9}
	r := ring.Found(ring.ID{1}, [16]byte{1}, u, a.self(), other)
	a.view.Store(&view{ring: r})
	ours, theirs := r.Owned()[a.self()][0].Start+7, r.Owned()[other][0].Start+7
	for _, c := range []struct {
		addr, zone string
		client     dns.Client
		ok         bool
	}{
		{"fe80::a", "weft-0123456789", dns.Client{Name: "weft-0123456789"}, true},
		{"fe80::a", "weft-9876543210", dns.Client{Name: "weft-9876543210"}, true},
		{"fe80::a", "eth0", dns.Client{}, false},
		{"fe80::a", "", dns.Client{}, false},
		{"169.254.9.9", "", dns.Client{}, false},
		{u.Addr4(ours).String(), "", dns.Client{Name: u.Addr4(ours).String()}, true},
		{"::ffff:" + u.Addr4(ours).String(), "", dns.Client{Name: u.Addr4(ours).String()}, true},
		{u.Addr6(ours).String(), "", dns.Client{Name: u.Addr4(ours).String()}, true},
		{u.Addr6(theirs).String(), "", dns.Client{Name: u.Addr4(theirs).String(), Host: other.String()}, true},
		{"127.0.0.1", "", dns.Client{Name: "127.0.0.1"}, true},
		{"192.0.2.1", "", dns.Client{}, false},
		{"2001:db8::1", "", dns.Client{}, false},
	} {
		client, ok := a.dnsClient(netip.AddrPortFrom(netip.MustParseAddr(c.addr), 4000), c.zone)
		if ok != c.ok || ok && client != c.client {
			t.Errorf("%s%%%s: %+v, %v; want %+v, %v", c.addr, c.zone, client, ok, c.client, c.ok)
		}
	}
}
