package topology

import (
	"bytes"
	"cmp"
	"hash/fnv"
	"math/bits"
	"slices"
	"time"

	"weft/mesh/peer"
)

// maxRelays is how many relays a path may have, one after the other.
const maxRelays = 3

// usualRTT stands for a round trip of which neither end says anything.
const usualRTT = 30 * time.Millisecond

// Relays returns the relays between two peers, in the order from a to b. It returns none if they reach each other, or
// if no relay reaches both. As few relays as possible are used; of these the nearest ones; and of those that are about
// as near, each pair takes others, so that the load is spread.
//
// peers are all who may take part: neither banned nor dead. The result follows from the arguments alone. So all hosts
// that have heard the same agree, and the way back is the way there.
func Relays(a, b peer.ID, peers []peer.ID, links map[peer.ID]Links) []peer.ID {
	return NewGraph(peers, links).Relays(a, b)
}

// Graph answers Relays for many pairs. Of what it was made of, the caller may only change the Links of those that are not
// among its peers.
type Graph struct {
	links  map[peer.ID]Links
	relays []peer.ID // those that do not refuse
	told   []Links   // by relay
	cut    []set     // the relays that a relay does not reach; nil: it reaches all
}

// NewGraph returns the graph of links between peers.
func NewGraph(peers []peer.ID, links map[peer.ID]Links) *Graph {
	g := &Graph{links: links, relays: make([]peer.ID, 0, len(peers)), told: make([]Links, 0, len(peers))}
	index := make(map[peer.ID]int, len(peers))
	for _, p := range peers {
		if l := links[p]; !l.Refuses {
			index[p] = len(g.relays)
			g.relays, g.told = append(g.relays, p), append(g.told, l)
		}
	}
	g.cut = make([]set, len(g.relays))
	add := func(i, k int) {
		if g.cut[i] == nil {
			g.cut[i] = newSet(len(g.relays))
		}
		g.cut[i].add(k)
	}
	for i, l := range g.told {
		for id := range l.Cut {
			if k, ok := index[id]; ok {
				add(i, k)
				add(k, i)
			}
		}
	}
	return g
}

// Relays is the function Relays.
func (g *Graph) Relays(a, b peer.ID) []peer.ID {
	if bytes.Compare(a[:], b[:]) > 0 {
		out := g.Relays(b, a)
		slices.Reverse(out)
		return out
	}
	if reach(a, b, g.links[a], g.links[b]) {
		return nil
	}
	s := search{Graph: g, a: a, b: b, steps: make([]step, len(g.relays)), rest: newSet(len(g.relays)), far: newSet(len(g.relays))}
	last := newSet(len(g.relays)) // the relays that the last round has reached
	for i, p := range g.relays {
		if p == a || p == b {
			continue
		}
		if reach(p, b, g.told[i], g.links[b]) {
			s.far.add(i)
		}
		if reach(a, p, g.links[a], g.told[i]) {
			last.add(i)
			s.steps[i] = step{before: -1, distance: distance(a, p, g.links[a], g.told[i])}
		} else {
			s.rest.add(i)
		}
	}
	for round := 1; ; round++ {
		if out := s.end(last); out != nil || round == maxRelays {
			return out
		}
		last = s.next(last)
	}
}

// search is a search for relays between two peers, from a to b.
type search struct {
	*Graph
	a, b  peer.ID
	steps []step // by relay
	rest  set    // the relays that were not reached yet
	far   set    // the relays that reach b
}

// step is how a relay is reached. Its distance is at least 1, so that the zero value is none.
type step struct {
	before   int // the relay before; -1: a
	distance int
	tie      uint64
}

// next does a round: it returns the relays that those of the last round reach.
func (s *search) next(last set) set {
	out := newSet(len(s.relays))
	reached := func(i int) bool { return last.without(s.cut[i]) }
	some := false
	s.rest.each(func(i int) { some = some || s.far.has(i) && reached(i) })
	ties := make([]uint64, len(s.relays))
	last.each(func(k int) { ties[k] = tie(s.a, s.b, s.relays[k]) })
	s.rest.each(func(i int) {
		if some && !s.far.has(i) || !reached(i) { // if this round reaches b, other relays do not matter
			return
		}
		out.add(i)
		last.each(func(k int) {
			if !s.cut[i].has(k) {
				d := s.steps[k].distance + distance(s.relays[k], s.relays[i], s.told[k], s.told[i])
				s.steps[i] = s.better(s.steps[i], step{k, d, ties[k]})
			}
		})
	})
	out.each(func(i int) { s.rest.remove(i) })
	return out
}

// end returns the relays to b if one of the last round reaches it.
func (s *search) end(last set) (out []peer.ID) {
	var end step
	last.each(func(i int) {
		if s.far.has(i) {
			d := s.steps[i].distance + distance(s.relays[i], s.b, s.told[i], s.links[s.b])
			if end.distance == 0 || d <= end.distance {
				end = s.better(end, step{i, d, tie(s.a, s.b, s.relays[i])})
			}
		}
	})
	if end.distance == 0 {
		return nil
	}
	for i := end.before; i >= 0; i = s.steps[i].before {
		out = append(out, s.relays[i])
	}
	slices.Reverse(out)
	return out
}

func (s *search) better(a, b step) step {
	switch {
	case a.distance == 0:
		return b
	case b.distance == 0:
		return a
	}
	if c := cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.tie, b.tie)); c < 0 || c == 0 && bytes.Compare(s.relays[a.before][:], s.relays[b.before][:]) <= 0 {
		return a
	}
	return b
}

// reach reports whether two peers reach each other. If one says that it does not, the link is cut for both.
func reach(a, b peer.ID, one, other Links) bool { return !one.Cut[b] && !other.Cut[a] }

// distance is a round trip, in units of half a millisecond and rounded to a power of two.
func distance(a, b peer.ID, one, other Links) int {
	return 1 << min(Order(cmp.Or(max(one.to(b), other.to(a), 0), usualRTT)), maxOrder)
}

// to returns the round trip to a peer; 0 if l does not say it.
func (l Links) to(id peer.ID) time.Duration { return cmp.Or(l.RTT[id], l.Usual) }

// tie decides between relays that are about as near. Each pair has another order of them.
func tie(a, b, relay peer.ID) uint64 {
	h := fnv.New64a()
	for _, id := range []peer.ID{a, b, relay} {
		_, _ = h.Write(id[:])
	}
	return h.Sum64()
}

// set is a set of numbers, as bits. A nil set is empty.
type set []uint64

func newSet(n int) set       { return make(set, (n+63)/64) }
func (s set) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s set) remove(i int)   { s[i/64] &^= 1 << (i % 64) }
func (s set) has(i int) bool { return s != nil && s[i/64]&(1<<(i%64)) != 0 }

// without reports whether s has an element that is not in o.
func (s set) without(o set) bool {
	for i, word := range s {
		if o == nil && word != 0 || o != nil && word&^o[i] != 0 {
			return true
		}
	}
	return false
}

// each calls f with each element.
func (s set) each(f func(int)) {
	for i, word := range s {
		for ; word != 0; word &= word - 1 {
			f(i*64 + bits.TrailingZeros64(word))
		}
	}
}
