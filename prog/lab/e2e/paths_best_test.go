package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// moving is a lab of two hosts with flows between their containers, whose path changes.
type moving struct {
	*lab.Lab
	t        *testing.T
	udp, tcp flows
}

func move(t *testing.T, second bool) moving {
	t.Helper()
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	labtest.Need(t, "ip", "iproute2")
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	measured(t, l)
	if second {
		for _, h := range l.Hosts() {
			if err := l.AddLink(t.Context(), h, 200); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range l.Hosts() {
			eventually.True(t, 10*time.Second, h+" knows that each host has four addresses", func() bool {
				for _, p := range report(t, l, h).Router.Peers {
					if len(p.Underlay) != 4 {
						return false
					}
				}
				return true
			})
		}
	}
	staysSilent(t, l)
	listen(t, l, "h2/c1")
	return moving{l, t, startFlow(t, l, "udp", "h1/c1", "h2/c1"), startFlow(t, l, "tcp", "h1/c1", "h2/c1")}
}

// follows changes the network, so that the tunnel must leave its path. It waits until both hosts send to
// addresses that fit, and say that the tunnel works.
func (m moving) follows(what string, change func(), fits func(host string, a netip.Addr) bool) {
	m.t.Helper()
	change()
	start := time.Now()
	var at [2]api.Connection
	if !within(3*time.Second+busyMachine, func() bool {
		at = [2]api.Connection{connection(m.t, m.Lab, "h1"), connection(m.t, m.Lab, "h2")}
		for i, c := range at {
			if c.State != api.ConnDirect || !fits(m.Hosts()[i], c.Address.Addr()) {
				return false
			}
		}
		return true
	}) {
		m.t.Errorf("%s: after 3 s h1 sends to %v (%s) and h2 to %v (%s), want another path that works", what, at[0].Address, at[0].State, at[1].Address, at[1].State)
	}
	m.t.Logf("%s: after %v h1 sends to %v and h2 to %v", what, time.Since(start), at[0].Address, at[1].Address)
	// Packets arrive again: the address alone proves nothing.
	args := append([]string{"weft", "probe", "udp", "--count", "3", "--interval", "20ms", "--timeout", "500ms"}, addrs(m.t, m.Lab, "h2/c1")...)
	if !within(3*time.Second, func() bool { _, err := m.Exec(m.t.Context(), "h1/c1", nil, args...); return err == nil }) {
		m.t.Errorf("%s: no probes come back from the other container, want all", what)
	}
}

// end stops the flows. No UDP flow waited for longer than 3 s, and TCP connections survived.
func (m moving) end() {
	m.t.Helper()
	for _, s := range m.udp.stop(m.t) {
		if most := s.longest(time.Time{}); most > 3*time.Second+busyMachine {
			m.t.Errorf("the flow to %s stopped for %v, want at most 3 s: %v", s.Addr, most, s.Gaps)
		}
	}
	for _, s := range m.tcp.stop(m.t) { // TCP waits longer and longer before it sends again: up to twice the time
		if most := s.longest(time.Time{}); most > 7*time.Second {
			m.t.Errorf("the connection to %s stopped for %v, want at most 7 s: %v", s.Addr, most, s.Gaps)
		}
	}
}

// network returns whether addresses are those of the hosts' first or of their second links.
func network(second bool) func(string, netip.Addr) bool {
	return func(_ string, a netip.Addr) bool {
		on2 := netip.MustParsePrefix("198.51.100.0/24").Contains(a) || netip.MustParsePrefix("2001:db8:1::/64").Contains(a)
		return on2 == second
	}
}

// Between two hosts with two networks the tunnel leaves the network that fails within 3 s, whether it is cut in
// the middle or a host's link goes down.
func TestTheTunnelLeavesANetworkThatFails(t *testing.T) {
	m := move(t, true)
	link := func(up bool) func() {
		return func() {
			if err := m.Link(t.Context(), "h1", "h2", up); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.follows("the first network is cut", link(false), network(true))
	link(true)()
	settled(m)
	m.follows("the second network is cut", func() { between(t, m.Lab, `iifname { "h1-2", "h2-2" } drop`) }, network(false))
	between(t, m.Lab)
	settled(m)
	m.follows("the link of h1 is down", func() { run(t, m.Lab, "h1", "ip", "link", "set", "eth0", "down") }, network(true))
	run(t, m.Lab, "h1", "sh", "-c", "ip link set eth0 up; ip address replace 2001:db8::1/64 dev eth0 nodad")
	settled(m)
	m.follows("the second link of h2 is down", func() { run(t, m.Lab, "h2", "ip", "link", "set", "eth1", "down") }, network(false))
	m.end()
}

// settled waits until both hosts know each other's four addresses, and all tunnels work.
func settled(m moving) {
	m.t.Helper()
	direct(m.t, m.Lab, 5*time.Second, "the tunnels work")
	for _, h := range m.Hosts() {
		eventually.True(m.t, 10*time.Second, h+" knows four addresses of each host", func() bool {
			for _, p := range report(m.t, m.Lab, h).Router.Peers {
				if len(p.Underlay) != 4 {
					return false
				}
			}
			return true
		})
	}
}

// If one family fails on the way, the tunnel uses the other one, and comes back when that one fails.
func TestTheTunnelChangesItsFamily(t *testing.T) {
	m := move(t, false)
	is := func(v4 bool) func(string, netip.Addr) bool {
		return func(_ string, a netip.Addr) bool { return a.Unmap().Is4() == v4 }
	}
	m.follows("IPv4 is cut", func() { between(t, m.Lab, "ether type ip drop") }, is(false))
	m.follows("IPv6 is cut", func() { between(t, m.Lab, "ether type ip6 drop") }, is(true))
	m.follows("IPv4 is cut again", func() { between(t, m.Lab, "ether type ip drop") }, is(false))
	m.end()
}

// The tunnel follows a host whose addresses are replaced, before any record has told so.
func TestTheTunnelFollowsARenumberedHost(t *testing.T) {
	labtest.Waits(t)
	for _, both := range []bool{false, true} {
		name := map[bool]string{false: "h1 sends and h2 answers", true: "h2 sends as well"}[both]
		t.Run(name, func(t *testing.T) {
			m := move(t, false)
			if both {
				listen(t, m.Lab, "h1/c1")
				back := startFlow(t, m.Lab, "udp", "h2/c1", "h1/c1")
				defer back.stop(t)
			}
			renumber := func(was, is string) func() {
				return func() {
					run(t, m.Lab, "h2", "sh", "-c", strings.NewReplacer("WAS", was, "IS", is).Replace(
						"ip address del 192.0.2.WAS/24 dev eth0; ip address del 2001:db8::WAS/64 dev eth0; ip address add 192.0.2.IS/24 dev eth0; ip address add 2001:db8::IS/64 dev eth0 nodad"))
				}
			}
			at := func(four, six string) func(string, netip.Addr) bool {
				return func(host string, a netip.Addr) bool {
					return host == "h2" || a == netip.MustParseAddr(four) || a == netip.MustParseAddr(six)
				}
			}
			m.follows("h2 has a new address", renumber("2", "77"), at("192.0.2.77", "2001:db8::77"))
			m.follows("h2 has another address", renumber("77", "78"), at("192.0.2.78", "2001:db8::78"))
			m.end()
		})
	}
}

// If packets go by one network and come back by the other, the tunnel works, and the hosts do not move
// to and fro between addresses.
func TestAsymmetricRoutesAreStable(t *testing.T) {
	m := move(t, true)
	// h1 sends to h2's first address by its second link, with the source address of that link.
	run(t, m.Lab, "h1", "ip", "route", "add", "192.0.2.2/32", "dev", "eth1")
	direct(t, m.Lab, 5*time.Second, "the tunnels work")
	stays(m, 20*time.Second)
	m.end()
}
