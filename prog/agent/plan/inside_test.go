package plan

import (
	"net/netip"
	"slices"
	"testing"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/agenttest"
)

// Gossip uses a peer's node addresses only if a tunnel to that peer exists and the ring gives the peer that
// slot.
func TestGossipUsesOnlyNodeAddressesThatArePeersOwn(t *testing.T) {
	u := agenttest.Universe()
	own, two := agenttest.Record(1), agenttest.Record(2)
	owned := agenttest.ViewOf(own, nil, own.ID(), two.ID()).Ring.Owned()
	own.Node, two.Node = owned[own.ID()][0].Start+5, owned[two.ID()][0].Start+5
	both := []netip.Addr{u.Addr4(two.Node), u.Addr6(two.Node)}
	tunnels := []topology.Tunnel{{Peer: two.ID()}}
	for name, tt := range map[string]struct {
		change  func(*peer.Record)
		tunnels []topology.Tunnel
		ipv6    bool
		want    []netip.Addr
	}{
		"it is in order":           {func(*peer.Record) {}, tunnels, true, both},
		"this host lacks IPv6":     {func(*peer.Record) {}, tunnels, false, both[:1]},
		"there is no tunnel":       {func(*peer.Record) {}, nil, true, nil},
		"there is another tunnel":  {func(*peer.Record) {}, []topology.Tunnel{{Peer: own.ID()}}, true, nil},
		"it has no node address":   {func(r *peer.Record) { r.Node = 0 }, tunnels, true, nil},
		"it claims another's slot": {func(r *peer.Record) { r.Node = own.Node }, tunnels, true, nil},
	} {
		r := two
		tt.change(&r)
		v := agenttest.ViewOf(own, []mesh.Peer{{Record: own}, {Record: r}}, own.ID(), two.ID())
		if got := Inside(v, tt.tunnels, two.ID(), tt.ipv6); !slices.Equal(got, tt.want) {
			t.Errorf("%s: the addresses inside the tunnel are %v, want %v", name, got, tt.want)
		}
		if got := Inside(v, append(tt.tunnels, topology.Tunnel{Peer: own.ID()}), own.ID(), true); got != nil {
			t.Errorf("%s: this host reaches itself through a tunnel at %v, want no address", name, got)
		}
	}
	if got := Inside(nil, tunnels, two.ID(), true); got != nil {
		t.Errorf("before the first view the addresses are %v, want none", got)
	}
}
