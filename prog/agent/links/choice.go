package links

import (
	"maps"
	"slices"

	"weft/mesh/peer"
	"weft/mesh/topology"
)

// choice chooses relays, and keeps the results until what they follow from has changed.
type choice struct {
	peers  []peer.ID
	links  map[peer.ID]topology.Links
	relays map[peer.ID][]peer.ID // by the other peer
	// islands are the groups of peers that reach each other by relays; nil: not computed yet.
	islands [][]peer.ID
}

// set sets from what relays are chosen, and reports whether that may change a choice. told means that what peers tell
// has changed.
func (c *choice) set(self peer.ID, peers []peer.ID, links map[peer.ID]topology.Links, told bool) bool {
	one := func(_, _ topology.Links) bool { return true }
	same := !told && slices.Equal(peers, c.peers) && maps.EqualFunc(links, c.links, one) && links[self].Equal(c.links[self])
	c.peers, c.links = peers, links
	if !same {
		c.relays, c.islands = map[peer.ID][]peer.ID{}, nil
	}
	return !same
}

// to returns the relays between this host and another peer, without those to avoid. The link between the two counts as
// cut.
func (c *choice) to(self, other peer.ID, avoid func(peer.ID) bool) []peer.ID {
	if cut := c.links[self].Cut; !cut[other] {
		cut[other] = true
		defer delete(cut, other)
	}
	relays, known := c.relays[other]
	if !known {
		relays = c.among(c.peers, self, other)
		c.relays[other] = relays
	}
	if avoid == nil || !slices.ContainsFunc(relays, avoid) {
		return relays
	}
	return c.among(slices.DeleteFunc(slices.Clone(c.peers), avoid), self, other)
}

// among returns the relays between two peers, of those given.
func (c *choice) among(peers []peer.ID, a, b peer.ID) []peer.ID {
	if !c.possible(a, b) {
		return nil
	}
	return topology.Relays(a, b, peers, c.links)
}

// possible reports whether some relays may join two peers. It is much faster than the search for the best ones, which is
// slow where there are none.
func (c *choice) possible(a, b peer.ID) bool {
	cutA, cutB := c.links[a].Cut, c.links[b].Cut
	reachesA := func(p peer.ID) bool { return p != a && p != b && !cutA[p] && !c.links[p].Cut[a] }
	reachesB := func(p peer.ID) bool { return p != a && p != b && !cutB[p] && !c.links[p].Cut[b] }
	if slices.ContainsFunc(c.peers, func(p peer.ID) bool { return !c.links[p].Refuses && reachesA(p) && reachesB(p) }) {
		return true
	}
	if c.islands == nil {
		c.islands = topology.Islands(c.peers, c.links)
	}
	return slices.ContainsFunc(c.islands, func(island []peer.ID) bool {
		return slices.ContainsFunc(island, reachesA) && slices.ContainsFunc(island, reachesB)
	})
}
