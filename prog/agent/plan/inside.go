package plan

import (
	"net/netip"
	"slices"

	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/view"
)

// Inside returns the node addresses of a peer if there is a tunnel to it; tunnels are sorted by peer. As in
// guarded, a node address is the peer's only if the peer owns that slot according to the ring: WireGuard
// then takes packets with that source from the peer alone, and sends those with that destination to it.
func Inside(v *view.View, tunnels []topology.Tunnel, id peer.ID, ipv6 bool) []netip.Addr {
	if v == nil || v.Ring.IsZero() {
		return nil
	}
	node := v.Records[id].Node
	_, exists := slices.BinarySearchFunc(tunnels, id, func(t topology.Tunnel, id peer.ID) int { return slices.Compare(t.Peer[:], id[:]) })
	if owner, ok := v.Ring.Owner(node); !exists || !ok || owner != id || id == v.Self {
		return nil
	}
	return v.NodeAddrs(node, ipv6)
}
