package reclaim

import (
	"bytes"
	"slices"
	"time"

	"weft/mesh/peer"
	"weft/prog/kube"
)

// silence is how long a peer must have been silent before it can count as gone. Gossip needs up to
// ten seconds to notice, and the replacement of an agent's pod takes less than silence. silence is
// longer than the time for which a founder trusts its unanswered request (trust in prog/kube).
const silence = 30 * time.Second

// Peers try one after the other: the first peer takes over, and later peers find nothing left to do.
const (
	turn     = 5 * time.Second
	maxTurns = 12
)

// census holds the facts from which evaluate decides whose addresses to take over. It is a value, and
// evaluate is pure.
type census struct {
	Self    peer.ID
	Peers   []resident
	Nodes   []kube.Node      // all current Nodes
	Founder peer.ID          // named by the Secret
	Host    string           // UID of the founder's Node; gossip may never have reached that founder
	Owners  map[peer.ID]bool // peers that own addresses
}

// resident is a peer whose record is known.
type resident struct {
	ID     peer.ID
	Host   string // UID of its Node; empty if the peer does not announce the UID
	Here   bool   // whether gossip reaches it, or it is this peer
	Silent time.Duration
}

// gone is a peer whose addresses are to be taken over, and why.
type gone struct {
	ID   peer.ID
	Host string
	Why  string
}

// verdict is the result of evaluate.
type verdict struct {
	Gone      []gone
	Answering []resident // reachable peers whose Nodes were deleted
	Turn      int        // number of peers that try before this one
	Cut       bool       // too few Nodes are reachable to decide, or this peer's own Node was deleted
}

// evaluate decides which peers are gone: peers that own addresses, have been silent for a while, and
// whose Node no longer exists or now has another peer. A Node has one agent, so in the latter case
// the silent peer's disk was lost. A peer that does not announce its Node is never gone. It is pure.
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

// sinceStart returns how long this peer has run, and so how long a peer that it never heard has been
// silent.
func (c census) sinceStart() time.Duration {
	for _, p := range c.Peers {
		if p.ID == c.Self {
			return p.Silent
		}
	}
	return 0
}

// silent returns how long a peer has been silent.
func (c census) silent(id peer.ID) time.Duration {
	for _, p := range c.Peers {
		if p.ID == id {
			return p.Silent
		}
	}
	return c.sinceStart()
}
