// Package ring records which peer owns which slots of the universe.
//
// A ring is a function from slot to claim (generation, version, owner), stored as ranges. Merge is
// the pointwise maximum of two such functions: by generation, then version, then owner. That order
// is total, so Merge is commutative, associative and idempotent. Peers that received the same
// updates hold the same ring, whatever the order and number of deliveries.
//
// A merge never takes slots from a live owner. Only the owner of a slot raises its version, and
// only when it gives the slot away. A take-over of a dead peer's slots raises the generation, which
// overrides any version that the dead peer wrote.
//
// A Ring is an immutable value: every change returns a new Ring. The package does no I/O and reads
// no clock.
package ring

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// ID identifies a ring. Rings of two founders have different IDs and never merge.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is unset, which means that there is no ring.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText returns id in hexadecimal.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// Claim is the ring's value at one slot.
type Claim struct {
	Generation uint32 // a take-over raises it
	Version    uint32 // raised by the owner when it gives the slot away
	Owner      peer.ID
}

// fault selects a deliberate bug, to prove that prog/soak's tests detect it. Only those tests set
// it: -ldflags '-X weft/ipam/ring.fault=tie'.
var fault string

// Compare orders claims; of two claims to one slot, the higher claim is valid.
func (c Claim) Compare(o Claim) int {
	if fault == "tie" { // the order is not total: the claim that arrived first stays
		return cmp.Or(cmp.Compare(c.Generation, o.Generation), cmp.Compare(c.Version, o.Version))
	}
	return cmp.Or(cmp.Compare(c.Generation, o.Generation), cmp.Compare(c.Version, o.Version), bytes.Compare(c.Owner[:], o.Owner[:]))
}

// Segment is a sequence of consecutive slots with the same claim.
type Segment struct {
	slot.Range
	Claim
}

// Ring maps slots to owners. The zero Ring claims nothing and belongs to no cluster.
type Ring struct {
	ID       ID
	Cluster  [16]byte
	Universe slot.Universe
	segments []Segment // sorted, disjoint, equal neighbours joined; slots in gaps are unclaimed
}

// Found returns a ring that divides the universe among owners. Each owner gets one CIDR-aligned
// block, and no block is more than twice as large as another. If there are more owners than blocks,
// the last owners get none.
func Found(id ID, cluster [16]byte, u slot.Universe, owners ...peer.ID) Ring {
	return Ring{ID: id, Cluster: cluster, Universe: u, segments: share(nil, u.Range(), owners)}
}

func share(list []Segment, g slot.Range, owners []peer.ID) []Segment {
	if len(owners) == 1 || g.Len() == 1 {
		return push(list, Segment{g, Claim{Generation: 1, Version: 1, Owner: owners[0]}})
	}
	middle, half := g.Start+slot.Slot(g.Len()/2), (len(owners)+1)/2
	list = share(list, slot.Range{Start: g.Start, End: uint64(middle)}, owners[:half])
	return share(list, slot.Range{Start: middle, End: g.End}, owners[half:])
}

// Generation returns the highest generation of any slot: 1, plus the number of its take-overs.
func (r Ring) Generation() (highest uint32) {
	for _, s := range r.segments {
		highest = max(highest, s.Generation)
	}
	return highest
}

// IsZero reports whether r is the zero Ring: no ring is known yet.
func (r Ring) IsZero() bool { return r.ID.IsZero() }

// Segments returns the claims in slot order. The caller must not change them.
func (r Ring) Segments() []Segment { return r.segments }

// Equal reports whether r and o hold the same claims for the same cluster.
func (r Ring) Equal(o Ring) bool {
	return r.ID == o.ID && r.Cluster == o.Cluster && r.Universe == o.Universe && slices.Equal(r.segments, o.segments)
}

// Owned returns each owner's ranges, with neighbouring segments joined.
func (r Ring) Owned() map[peer.ID][]slot.Range {
	out := map[peer.ID][]slot.Range{}
	for _, s := range r.segments {
		have := out[s.Owner]
		if n := len(have); n > 0 && have[n-1].End == uint64(s.Start) {
			have[n-1].End = s.End
		} else {
			out[s.Owner] = append(have, s.Range)
		}
	}
	return out
}

// Owner returns the owner of s, and false if s is unclaimed.
func (r Ring) Owner(s slot.Slot) (peer.ID, bool) {
	i, ok := slices.BinarySearchFunc(r.segments, s, func(g Segment, s slot.Slot) int {
		switch {
		case g.End <= uint64(s):
			return -1
		case g.Start > s:
			return 1
		}
		return 0
	})
	if !ok {
		return peer.ID{}, false
	}
	return r.segments[i].Owner, true
}

// These are the errors of Grant, TakeOver and Merge.
var (
	ErrNotOwner = errors.New("ring: only the owner of a slot can give it away")
	ErrSpent    = errors.New("ring: generation or version is at its maximum, which only a faulty or malicious peer writes: the owner of these addresses cannot change again")
	ErrNothing  = errors.New("ring: the peer owns no addresses")
)

// spent is the largest generation and version; a claim in which both have this value cannot be raised.
const spent = ^uint32(0)

// OtherRingError reports a state of another ring, which never merges with ours.
type OtherRingError struct {
	Ours, Theirs ID
}

func (e *OtherRingError) Error() string {
	return fmt.Sprintf("ring: received ring %v, but this mesh has ring %v: two founders created separate meshes, which cannot merge; run `weft reset` on the hosts of the mesh to give up", e.Theirs, e.Ours)
}

// UniverseError reports a state of our ring with another universe or cluster.
type UniverseError struct {
	Ours, Theirs slot.Universe
}

func (e *UniverseError) Error() string {
	return fmt.Sprintf("ring: received a ring with universe %v, want %v", e.Theirs, e.Ours)
}

// TooManyError reports a ring with more segments than MaxSegments. Merging is set if a merge would
// have led to such a ring, and was refused.
type TooManyError struct {
	Segments int
	Merging  bool
}

func (e *TooManyError) Error() string {
	what := "the ring has"
	if e.Merging {
		what = "merging a peer's ring would give"
	}
	return fmt.Sprintf("ring: %s %d segments, at most %d are allowed: a faulty or malicious peer splits its addresses; find the owner in `weft status ipam`, "+
		"run `weft reset` there, and `weft rmpeer` for each owner that is not one of your hosts", what, e.Segments, MaxSegments)
}

// Excess returns a TooManyError if r has more segments than MaxSegments. Only a ring that an
// earlier release stored on disk can have so many.
func (r Ring) Excess() error {
	if n := len(r.segments); n > MaxSegments {
		return &TooManyError{Segments: n}
	}
	return nil
}

// Part returns the part of r that peers accept in one message. That part is r itself, or, if r has
// more segments, MaxSegments of them from a position derived from place. Merging all parts yields
// all of r.
func (r Ring) Part(place uint64) Ring {
	if extra := len(r.segments) - MaxSegments; extra > 0 {
		from := int(place % uint64(extra+1))
		r.segments = r.segments[from : from+MaxSegments]
	}
	return r
}

// Generations up to soonest are credible at any time. Above soonest, one more generation becomes
// credible per minute since 1970. skew, in minutes, is how far clocks may differ.
const (
	soonest = 1 << 16
	minute  = 60
	skew    = 24 * 60
)

// Credible returns r without claims whose generation is too high for the time now, in Unix seconds.
// A take-over raises the generation that the dead peer wrote. Without a limit, a malicious peer
// could claim the highest generation for ever. The limit grows by one a minute, so a take-over of
// the highest credible claim becomes credible a minute later. Rings of correct peers stay below
// soonest and do not depend on the clock.
func (r Ring) Credible(now int64) (credible Ring, err error) {
	most := uint64(soonest)
	if now > 0 {
		most = max(most, uint64(now/minute)+skew)
	}
	beyond := func(s Segment) bool { return uint64(s.Generation) > most }
	first := slices.IndexFunc(r.segments, beyond)
	if first < 0 {
		return r, nil
	}
	lie := r.segments[first]
	r.segments = slices.DeleteFunc(slices.Clone(r.segments), beyond)
	return r, fmt.Errorf("ring: %v has generation %d, which is too high: a peer sends false claims, or this host's clock is far behind: the claims are ignored; check this host's clock",
		lie.Range, lie.Generation)
}

// Grant gives the range g of the peer from to the peer to. It returns the new ring, and the delta
// to send to other peers.
func (r Ring) Grant(from, to peer.ID, g slot.Range) (next, delta Ring, err error) {
	delta = Ring{ID: r.ID, Cluster: r.Cluster, Universe: r.Universe}
	covered := uint64(0)
	for _, s := range r.segments {
		part := s.Intersect(g)
		if part.Len() == 0 {
			continue
		}
		if s.Owner != from {
			return Ring{}, Ring{}, fmt.Errorf("%w: %v belongs to %v", ErrNotOwner, part, s.Owner)
		}
		claim := Claim{s.Generation, s.Version + 1, to}
		if s.Version == spent { // only a malicious peer writes it; continue in the next generation
			claim = Claim{s.Generation + 1, 1, to}
		}
		if claim.Generation == 0 {
			return Ring{}, Ring{}, ErrSpent
		}
		covered += part.Len()
		delta.segments = push(delta.segments, Segment{part, claim})
	}
	if covered != g.Len() || covered == 0 {
		return Ring{}, Ring{}, fmt.Errorf("%w: parts of %v are unclaimed", ErrNotOwner, g)
	}
	next, _, err = r.Merge(delta)
	return next, delta, err
}

// TakeOver gives everything that a dead peer owns to another peer, under a higher generation. The
// generation overrides grants of the dead peer that have not reached us. TakeOver returns the
// new ring, and the delta to send to other peers.
func (r Ring) TakeOver(dead, to peer.ID) (next, delta Ring, err error) {
	delta = Ring{ID: r.ID, Cluster: r.Cluster, Universe: r.Universe}
	owned := slices.DeleteFunc(slices.Clone(r.segments), func(s Segment) bool { return s.Owner != dead })
	if len(owned) == 0 {
		return Ring{}, Ring{}, ErrNothing
	}
	// Only a malicious peer reaches the largest generation. Segments with that generation stay; the
	// others move.
	owned = slices.DeleteFunc(owned, func(s Segment) bool { return s.Generation == spent })
	if len(owned) == 0 {
		return Ring{}, Ring{}, ErrSpent
	}
	highest := uint32(0) // one generation for all, so that neighbouring segments join
	for _, s := range owned {
		highest = max(highest, s.Generation)
	}
	for _, s := range owned {
		delta.segments = push(delta.segments, Segment{s.Range, Claim{highest + 1, 1, to}})
	}
	next, _, err = r.Merge(delta)
	return next, delta, err
}

// Merge returns the pointwise maximum of r and o, and the part of it that r lacked: the news to
// pass on to other peers. The zero Ring adopts any other ring.
//
// Merge refuses a result of more than MaxSegments as a whole, since it could not be stored, sent or
// loaded. Merging only a part would make the result depend on the order of arrival. After a refusal r
// stays as it was, and accepts o later, once r has fewer segments. An r that is above the bound already
// accepts every merge that does not make it longer.
func (r Ring) Merge(o Ring) (merged, news Ring, err error) {
	switch {
	case o.IsZero():
		return r, Ring{}, nil
	case r.IsZero():
		return o, o, nil
	case r.ID != o.ID:
		return r, Ring{}, &OtherRingError{r.ID, o.ID}
	case r.Universe != o.Universe || r.Cluster != o.Cluster:
		return r, Ring{}, &UniverseError{r.Universe, o.Universe}
	}
	merged = Ring{ID: r.ID, Cluster: r.Cluster, Universe: r.Universe}
	news = merged
	for part := range overlay(r.segments, o.segments) {
		switch {
		case part.b == Claim{} || part.a.Compare(part.b) >= 0:
			merged.segments = push(merged.segments, Segment{part.Range, part.a})
		default:
			merged.segments = push(merged.segments, Segment{part.Range, part.b})
			news.segments = push(news.segments, Segment{part.Range, part.b})
		}
	}
	switch n := len(merged.segments); {
	case len(news.segments) == 0:
		return r, Ring{}, nil
	case n > max(MaxSegments, len(r.segments)):
		return r, Ring{}, &TooManyError{n, true}
	}
	return merged, news, nil
}

// push appends s to list, joined with the last segment if they touch and have equal claims.
func push(list []Segment, s Segment) []Segment {
	if n := len(list); n > 0 && list[n-1].End == uint64(s.Start) && list[n-1].Claim == s.Claim {
		list[n-1].End = s.End
		return list
	}
	return append(list, s)
}

// pair is a sequence of slots over which the claims a and b are constant; a zero claim means that
// the slots are unclaimed.
type pair struct {
	slot.Range
	a, b Claim
}

// overlay walks two segment lists in parallel and yields every pair in which at least one list
// claims the slots.
func overlay(a, b []Segment) func(yield func(pair) bool) {
	return func(yield func(pair) bool) {
		at := uint64(0)
		for len(a) > 0 || len(b) > 0 {
			next, p := uint64(1)<<32, pair{}
			for _, side := range []struct {
				list  *[]Segment
				claim *Claim
			}{{&a, &p.a}, {&b, &p.b}} {
				if len(*side.list) == 0 {
					continue
				}
				if s := (*side.list)[0]; uint64(s.Start) > at {
					next = min(next, uint64(s.Start))
				} else {
					next, *side.claim = min(next, s.End), s.Claim
				}
			}
			p.Range = slot.Range{Start: slot.Slot(at), End: next}
			if (p.a != Claim{} || p.b != Claim{}) && !yield(p) {
				return
			}
			at = next
			for _, list := range []*[]Segment{&a, &b} {
				if len(*list) > 0 && (*list)[0].End <= at {
					*list = (*list)[1:]
				}
			}
		}
	}
}
