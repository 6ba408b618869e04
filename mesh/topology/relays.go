package topology

import (
	"bytes"
	"cmp"
	"hash/fnv"
	"maps"
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
	if bytes.Compare(a[:], b[:]) > 0 {
		out := Relays(b, a, peers, links)
		slices.Reverse(out)
		return out
	}
	if reach(a, b, links) {
		return nil
	}
	last := map[peer.ID]step{a: {}} // the peers that the last round has reached
	seen := map[peer.ID]step{}
	for range maxRelays {
		next := map[peer.ID]step{}
		for _, p := range peers {
			if _, known := seen[p]; known || p == a || p == b || links[p].Refuses {
				continue
			}
			for before, s := range last {
				if reach(before, p, links) {
					next[p] = better(next[p], step{before, s.distance + distance(before, p, links), tie(a, b, before)})
				}
			}
		}
		maps.Copy(seen, next)
		var end step
		for p, s := range next {
			if reach(p, b, links) {
				end = better(end, step{p, s.distance + distance(p, b, links), tie(a, b, p)})
			}
		}
		if end.distance != 0 {
			var out []peer.ID
			for p := end.before; p != a; p = seen[p].before {
				out = append(out, p)
			}
			slices.Reverse(out)
			return out
		}
		last = next
	}
	return nil
}

// step is how a peer is reached. Its distance is at least 1, so that the zero value is none.
type step struct {
	before   peer.ID
	distance int
	tie      uint64
}

func better(a, b step) step {
	switch {
	case a.distance == 0:
		return b
	case b.distance == 0:
		return a
	}
	if cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.tie, b.tie), slices.Compare(a.before[:], b.before[:])) <= 0 {
		return a
	}
	return b
}

// reach reports whether two peers reach each other. If one says that it does not, the link is cut for both.
func reach(a, b peer.ID, links map[peer.ID]Links) bool { return !links[a].Cut[b] && !links[b].Cut[a] }

// distance is the order of magnitude of a round trip, from 1: in powers of two of a millisecond.
func distance(a, b peer.ID, links map[peer.ID]Links) int {
	return 1 + Order(cmp.Or(max(links[a].to(b), links[b].to(a), 0), usualRTT))
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

// Islands returns the groups of peers that reach each other, directly or by way of other peers in the group. Those that
// refuse to relay are in none.
func Islands(peers []peer.ID, links map[peer.ID]Links) (out [][]peer.ID) {
	rest := make([]peer.ID, 0, len(peers))
	for _, p := range peers {
		if !links[p].Refuses {
			rest = append(rest, p)
		}
	}
	for len(rest) > 0 {
		island := []peer.ID{rest[0]}
		rest = rest[1:]
		for i := 0; i < len(island); i++ { // most links work, so each round leaves few
			one, own := island[i], links[island[i]].Cut
			next := rest[:0]
			for _, p := range rest {
				if own[p] || links[p].Cut[one] {
					next = append(next, p)
				} else {
					island = append(island, p)
				}
			}
			rest = next
		}
		out = append(out, island)
	}
	return out
}
