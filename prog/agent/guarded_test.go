package agent

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"testing"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/router/policy"
)

// Containers are kept from what each host that counts says of itself, and from nothing that a
// record claims of others.
func TestGuarded(t *testing.T) {
	u := slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}
	record := func(n byte) peer.Record {
		key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{n}, ed25519.SeedSize))
		return peer.Record{
			Identity: key.Public().(ed25519.PublicKey), Gossip: 6783, Port: 6784,
			Underlay: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, n})},
		}
	}
	own, two, three := record(1), record(2), record(3)
	r := ring.Found(ring.ID{1}, [16]byte{1}, u, own.ID(), two.ID())
	slotOf := func(p peer.Record) slot.Slot { return r.Owned()[p.ID()][0].Start + 5 }
	own.Node, two.Node = slotOf(own), slotOf(two)
	four, six := u.Addr4(two.Node), u.Addr6(two.Node)
	under := netip.MustParseAddr("192.0.2.2")
	for name, c := range map[string]struct {
		change         func(p *mesh.Peer)
		addrs          []netip.Addr // of the other peer
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
		"it left":                       {func(p *mesh.Peer) { p.Record.State = peer.Left }, nil, 0, 0, false},
		"it is known by name only":      {func(p *mesh.Peer) { p.Record = peer.Record{} }, nil, 0, 0, false},
		"it is new, and proved nothing": {func(p *mesh.Peer) { p.Record = three }, nil, 0, 0, false},
		"it is new":                     {func(p *mesh.Peer) { p.Record, p.Met = three, true }, three.Underlay, 6783, 6784, false},
		"it claims another's node address, and a container's": {func(p *mesh.Peer) {
			p.Record.Node, p.Record.Underlay = own.Node, append(p.Record.Underlay, u.Addr4(own.Node+1))
		}, []netip.Addr{under}, 6783, 6784, false},
	} {
		for status, shut := range map[string]bool{"127.0.0.1:6784": true, "": true, ":9000": true, ":6784": false, "192.0.2.1:6784": false} {
			p := mesh.Peer{Record: two}
			c.change(&p)
			self := guarded(own, []mesh.Peer{{Record: own}}, r, status)
			got := guarded(own, []mesh.Peer{{Record: own}, p}, r, status)
			var want []policy.Service
			for _, a := range c.addrs {
				want = append(want, policy.Service{Addr: a, Protocol: policy.TCP, Port: c.gossip})
				if shut || c.tunnel != 6784 {
					want = append(want, policy.Service{Addr: a, Protocol: policy.TCP, Port: c.tunnel})
				}
				want = append(want, policy.Service{Addr: a, Protocol: policy.UDP, Port: c.gossip}, policy.Service{Addr: a, Protocol: policy.UDP, Port: c.tunnel})
			}
			if peers := got.Peers[len(self.Peers):]; !slices.Equal(peers, want) || (len(got.Nodes) > len(self.Nodes)) != c.node {
				t.Errorf("%s, status at %q: %v, nodes %v; want %v", name, status, peers, got.Nodes, want)
			}
			if !slices.Equal(got.UDP, []uint16{6783, 6784}) || slices.Contains(got.TCP, 6784) != shut || len(self.Peers) < 9 {
				t.Errorf("%s, status at %q: of this host, %v, %v and %v", name, status, got.TCP, got.UDP, self.Peers)
			}
		}
	}
}
