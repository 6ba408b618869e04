package plan

import (
	"net/netip"
	"slices"
	"testing"

	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/router/policy"
)

// Containers cannot reach the ports that each host's own record names. What a record claims about
// other hosts does not count.
func TestContainersCannotReachHostPorts(t *testing.T) {
	u := agenttest.Universe()
	own, two, three := agenttest.Record(1), agenttest.Record(2), agenttest.Record(3)
	r := agenttest.ViewOf(own, nil, own.ID(), two.ID()).Ring
	slotOf := func(p peer.Record) slot.Slot { return r.Owned()[p.ID()][0].Start + 5 }
	own.Node, two.Node = slotOf(own), slotOf(two)
	four, six := u.Addr4(two.Node), u.Addr6(two.Node)
	under := netip.MustParseAddr("192.0.2.2")
	for name, c := range map[string]struct {
		change         func(p *mesh.Peer)
		addrs          []netip.Addr // the addresses in the other peer's record
		gossip, tunnel uint16
		node           bool
	}{
		"it owns slots": {func(*mesh.Peer) {}, []netip.Addr{under, four, six}, 6783, 6784, true},
		"other ports, no node address": {func(p *mesh.Peer) {
			p.Record.Gossip, p.Record.Port, p.Record.Node = 7000, 7001, 0
		}, []netip.Addr{under}, 7000, 7001, false},
		"gossip sees another address": {func(p *mesh.Peer) {
			p.Record.Node, p.Addr = 0, netip.MustParseAddr("2001:db8::2")
		}, []netip.Addr{netip.MustParseAddr("2001:db8::2"), under}, 6783, 6784, false},
		"it was stopped": {func(p *mesh.Peer) {
			p.Record.Node, p.Record.State = 0, peer.Stopped
		}, []netip.Addr{under}, 6783, 6784, false},
		"it left":                             {func(p *mesh.Peer) { p.Record.State = peer.Left }, nil, 0, 0, false},
		"only the peer's name is known":       {func(p *mesh.Peer) { p.Record = peer.Record{} }, nil, 0, 0, false},
		"the peer is new, and proved nothing": {func(p *mesh.Peer) { p.Record = three }, nil, 0, 0, false},
		"it is new":                           {func(p *mesh.Peer) { p.Record, p.Met = three, true }, three.Underlay, 6783, 6784, false},
		"the peer claims the node address of another peer, and the address of a container": {func(p *mesh.Peer) {
			p.Record.Node, p.Record.Underlay = own.Node, append(p.Record.Underlay, u.Addr4(own.Node+1))
		}, []netip.Addr{under}, 6783, 6784, false},
	} {
		for status, shut := range map[uint16]bool{0: true, 9000: true, 6784: false} {
			p := mesh.Peer{Record: two}
			c.change(&p)
			self := guarded(agenttest.ViewOf(own, []mesh.Peer{{Record: own}}, own.ID(), two.ID()), status)
			got := guarded(agenttest.ViewOf(own, []mesh.Peer{{Record: own}, p}, own.ID(), two.ID()), status)
			var want []policy.Service
			for _, a := range c.addrs {
				want = append(want, policy.Service{Addr: a, Protocol: policy.TCP, Port: c.gossip})
				if shut || c.tunnel != 6784 {
					want = append(want, policy.Service{Addr: a, Protocol: policy.TCP, Port: c.tunnel})
				}
				want = append(want, policy.Service{Addr: a, Protocol: policy.UDP, Port: c.gossip}, policy.Service{Addr: a, Protocol: policy.UDP, Port: c.tunnel})
			}
			if peers := got.Peers[len(self.Peers):]; !slices.Equal(peers, want) || (len(got.Nodes) > len(self.Nodes)) != c.node {
				t.Errorf("%s, status served on port %d: the guarded ports are %v, the node addresses %v; want the ports %v", name, status, peers, got.Nodes, want)
			}
			if !slices.Equal(got.UDP, []uint16{6783, 6784}) || slices.Contains(got.TCP, 6784) != shut || len(self.Peers) < 9 {
				t.Errorf("%s, status at %d: guarded TCP ports %v, UDP ports %v, peers %v; want this host's and the other peer's only", name, status, got.TCP, got.UDP, self.Peers)
			}
		}
	}
}
