package measure

import (
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
)

// Relayed has the ways of this host's tunnels over relays, and the hosts for which this host is the relay.
type Relayed struct {
	Ways  []path.Way
	Pairs []path.Pair
}

// relays chooses the relays to a peer that this host does not reach. The caller holds the lock.
func (m *Measure) relays(to peer.ID, avoid func(peer.ID) bool) []peer.ID {
	var peers []peer.ID
	for _, t := range m.tunnels {
		if !avoid(t.Peer) {
			peers = append(peers, t.Peer)
		}
	}
	return topology.Relays(m.cfg.Self, to, peers, map[peer.ID]topology.Links{m.cfg.Self: {Cut: map[peer.ID]bool{to: true}}})
}
