package resolver

import (
	"net/netip"
	"testing"

	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/config"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/dns"
)

// Clients with a link-local address are identified by interface. Other clients have an address of the
// network, or are this host.
func TestOnlyClientsOfTheNetworkAreAnswered(t *testing.T) {
	other := peer.ID{9}
	seen := &live.Value[*view.View]{}
	seen.Set(agenttest.View(other))
	r := &server{cfg: Config{Self: agenttest.Self, Names: Names{View: seen}}}
	u := agenttest.Universe()
	ours, theirs := seen.Get().Owners[agenttest.Self][0].Start+7, seen.Get().Owners[other][0].Start+7
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
		client, ok := r.client(netip.AddrPortFrom(netip.MustParseAddr(c.addr), 4000), c.zone)
		if ok != c.ok || ok && client != c.client {
			t.Errorf("%s%%%s: %+v, %v; want %+v, %v", c.addr, c.zone, client, ok, c.client, c.ok)
		}
	}
}

func TestWithoutANameServerContainersKeepTheirResolvConf(t *testing.T) {
	r, err := New(Config{DNS: config.DNS{Off: true}})
	if err != nil || r.Container("shop") != nil || !r.Status(nil).Off {
		t.Errorf("resolver %+v, error %v; want it off, without a resolv.conf", r, err)
	}
}
