package reclaim

import (
	"bytes"
	"slices"
	"time"

	"weft/mesh/peer"
	"weft/prog/kube"
)

// silence is how long a peer must not have been heard before it can be taken for gone: gossip
// needs up to ten seconds to notice that a peer is silent, and a pod of the agent less than
// that to be another one. It is longer than the trust of a founder in its own last word
// (prog/kube).
const silence = 30 * time.Second

// Peers try one after the other, so that one of them does it and the others find it done.
const (
	turn     = 5 * time.Second
	maxTurns = 12
)

// census is what is known when it is decided whose addresses are reclaimed. It is a value, and
// what follows from it a pure function: see evaluate.
type census struct {
	Self    peer.ID
	Peers   []resident
	Nodes   []kube.Node      // that there are at this moment
	Founder peer.ID          // as the Secret names it, and
	Host    string           // the UID of its Node; it may never have been heard of
	Owners  map[peer.ID]bool // peers that own addresses
}

// resident is a peer whose record is here.
type resident struct {
	ID     peer.ID
	Host   string // the UID of its Node; empty if it does not say
	Here   bool   // gossip reaches it, or it is this one
	Silent time.Duration
}

// gone is a peer whose addresses are to be reclaimed, and why.
type gone struct {
	ID   peer.ID
	Host string
	Why  string
}

// verdict is what follows from a census.
type verdict struct {
	Gone      []gone
	Answering []resident // peers that can be reached, though their Nodes were deleted
	Turn      int        // how many others try before this one
	Cut       bool       // too few Nodes can be reached to decide, or this peer's own was deleted
}

// evaluate decides which peers are gone: a peer that owns addresses, has been silent for a while,
// and whose Node does not exist any more, or has another peer by now. There is one agent on a
// Node, so that the silent one's disk was lost. A peer that does not say on which Node it runs is
// never gone. It is pure.
func (c census) evaluate() (v verdict) {
	exists, here := map[string]bool{}, map[string]peer.ID{}
	for _, n := range c.Nodes {
		exists[n.UID] = true
	}
	known := map[peer.ID]bool{}
	for _, p := range c.Peers {
		known[p.ID] = true
		if p.Here && p.Host != "" {
			here[p.Host] = p.ID
		}
	}
	reached := 0
	for uid, id := range here {
		if !exists[uid] {
			continue
		}
		reached++
		if bytes.Compare(id[:], c.Self[:]) < 0 {
			v.Turn++
		}
	}
	v.Cut = 2*reached <= len(c.Nodes) || !slices.ContainsFunc(c.Nodes, func(n kube.Node) bool { return here[n.UID] == c.Self })
	all := c.Peers
	if !c.Founder.IsZero() && !known[c.Founder] && c.Founder != c.Self {
		all = append(slices.Clone(all), resident{ID: c.Founder, Host: c.Host, Silent: c.sinceStart()})
	}
	for _, p := range all {
		other, replaced := here[p.Host]
		switch {
		case p.Host == "" || !c.Owners[p.ID]:
		case p.Here:
			if !exists[p.Host] && p.ID != c.Self {
				v.Answering = append(v.Answering, p)
			}
		case v.Cut || p.Silent < silence:
		case !exists[p.Host]:
			v.Gone = append(v.Gone, gone{p.ID, p.Host, "its Node was deleted"})
		case replaced && other != p.ID:
			v.Gone = append(v.Gone, gone{p.ID, p.Host, "its Node has another peer, " + other.String() + ": its disk was lost"})
		}
	}
	return v
}

// sinceStart returns for how long this peer has run: for that long it has heard nothing of a peer
// that it never heard of.
func (c census) sinceStart() time.Duration {
	for _, p := range c.Peers {
		if p.ID == c.Self {
			return p.Silent
		}
	}
	return 0
}

// silent returns for how long a peer has been silent.
func (c census) silent(id peer.ID) time.Duration {
	for _, p := range c.Peers {
		if p.ID == id {
			return p.Silent
		}
	}
	return c.sinceStart()
}
