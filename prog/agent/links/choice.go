package links

import (
	"maps"
	"slices"

	"weft/mesh/peer"
	"weft/mesh/topology"
)

// choice chooses relays, and keeps the results until what they follow from has changed.
type choice struct {
	peers []peer.ID
	links map[peer.ID]topology.Links
	graph *topology.Graph       // nil: not made yet
	known map[peer.ID][]peer.ID // the relays by the other peer
}

// set sets from what relays are chosen, and reports whether that may change a choice. told means that what peers tell
// has changed.
func (c *choice) set(self peer.ID, peers []peer.ID, links map[peer.ID]topology.Links, told bool) bool {
	anything := func(_, _ topology.Links) bool { return true }
	others := told || !slices.Equal(peers, c.peers) || !maps.EqualFunc(links, c.links, anything)
	switch {
	case others:
		c.peers, c.links, c.graph = peers, links, nil
	case links[self].Equal(c.links[self]):
		return false
	default: // the graph, which takes long to make, stays: this host is not among the peers
		c.links[self] = links[self]
	}
	c.known = map[peer.ID][]peer.ID{}
	return true
}

// relays returns the relays between this host and another peer, without those to avoid. The link between the two counts
// as cut.
func (c *choice) relays(self, other peer.ID, avoid func(peer.ID) bool) []peer.ID {
	if c.links == nil { // no view was read yet
		return nil
	}
	if cut := c.links[self].Cut; !cut[other] {
		cut[other] = true
		defer delete(cut, other)
	}
	relays, known := c.known[other]
	if !known {
		if c.graph == nil {
			c.graph = topology.NewGraph(c.peers, c.links)
		}
		relays = c.graph.Relays(self, other)
		c.known[other] = relays
	}
	if avoid == nil || !slices.ContainsFunc(relays, avoid) {
		return relays
	}
	return topology.Relays(self, other, slices.DeleteFunc(slices.Clone(c.peers), avoid), c.links)
}
