// Package ring says who owns which slots of the universe.
//
// A ring is a function from slot to claim (generation, version, owner), stored as
// ranges. Merge is the pointwise maximum of two such functions, by generation,
// then version, then owner. That order is total, so Merge is commutative,
// associative and idempotent: whatever order news travels in, and however often
// it comes, all peers that heard the same have the same ring.
//
// Why no peer loses slots by that: only the owner of a slot raises its version,
// and it does so exactly when it gives the slot away. A higher generation is for
// taking over what a dead peer owned, over the dead peer's own word.
//
// A Ring is an immutable value: every change returns a new one.
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

// ID names a ring. Two founders make two rings, which never merge.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports that there is no ring.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText writes id as people see it.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// Claim is the ring's value at one slot.
type Claim struct {
	Generation uint32 // raised by a take-over
	Version    uint32 // raised by the owner when it gives the slot away
	Owner      peer.ID
}

// fault is a bug to be found, set by the linker, by prog/soak's tests only:
// -ldflags '-X weft/ipam/ring.fault=tie'.
var fault string

// Compare orders claims; the higher one holds.
func (c Claim) Compare(o Claim) int {
	if fault == "tie" { // not total: of two claims, the first one heard stays
		return cmp.Or(cmp.Compare(c.Generation, o.Generation), cmp.Compare(c.Version, o.Version))
	}
	return cmp.Or(cmp.Compare(c.Generation, o.Generation), cmp.Compare(c.Version, o.Version), bytes.Compare(c.Owner[:], o.Owner[:]))
}

// Segment is a run of slots with one claim.
type Segment struct {
	slot.Range
	Claim
}

// Ring is who owns what. The zero Ring claims nothing and belongs to no cluster.
type Ring struct {
	ID       ID
	Cluster  [16]byte
	Universe slot.Universe
	segments []Segment // sorted, disjoint, neighbours with one claim joined; a gap is not claimed
}

// Found makes a ring that the owners share: each has one block that a CIDR can name,
// and nobody's is more than twice another's. Owners beyond the number of slots get none.
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

// Generation is the highest of any slot: 1, and one more for each time that slot was taken over.
func (r Ring) Generation() (highest uint32) {
	for _, s := range r.segments {
		highest = max(highest, s.Generation)
	}
	return highest
}

// IsZero reports that there is no ring yet.
func (r Ring) IsZero() bool { return r.ID.IsZero() }

// Segments lists the claims in the order of slots. The caller must not change it.
func (r Ring) Segments() []Segment { return r.segments }

// Equal reports whether r and o say the same.
func (r Ring) Equal(o Ring) bool {
	return r.ID == o.ID && r.Cluster == o.Cluster && r.Universe == o.Universe && slices.Equal(r.segments, o.segments)
}

// Owned lists the ranges of every owner, neighbouring segments joined.
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

// Owner is who owns s, if anybody does.
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

// Errors of Grant, TakeOver and Merge.
var (
	ErrNotOwner = errors.New("ring: only the owner of a slot gives it away")
	ErrSpent    = errors.New("ring: the number of the claim cannot be raised any further: somebody lied about it")
	ErrNothing  = errors.New("ring: the peer owns nothing")
)

// spent is the last number of a generation or a version.
const spent = ^uint32(0)

// OtherRingError says that a state belongs to another ring, which never merges with ours.
type OtherRingError struct {
	Ours, Theirs ID
}

func (e *OtherRingError) Error() string {
	return fmt.Sprintf("ring: %v is another ring than ours, %v: two peers founded one each; run `weft reset` on the side to give up", e.Theirs, e.Ours)
}

// UniverseError says that a state of our ring speaks of another universe.
type UniverseError struct {
	Ours, Theirs slot.Universe
}

func (e *UniverseError) Error() string {
	return fmt.Sprintf("ring: its universe is %v, ours is %v", e.Theirs, e.Ours)
}

// TooManyError says that a ring has more segments than MaxSegments, or would have with what
// was to be merged into it.
type TooManyError struct {
	Segments int
	Merging  bool
}

func (e *TooManyError) Error() string {
	what := "the ring has"
	if e.Merging {
		what = "with what a peer says the ring would have"
	}
	return fmt.Sprintf("ring: %s %d segments, at most %d are allowed, and no honest host makes so many: find who owns them in `weft status ipam`, "+
		"run `weft reset` there, and `weft rmpeer` for each owner that is no host of yours", what, e.Segments, MaxSegments)
}

// Excess is a TooManyError if r has more segments than MaxSegments, which only the disk of an
// earlier release can bring.
func (r Ring) Excess() error {
	if n := len(r.segments); n > MaxSegments {
		return &TooManyError{Segments: n}
	}
	return nil
}

// Part is as much of r as others accept in one message: all of it, unless it is above the
// bound; then that many segments, from any place on. Who merges all parts has all of r.
func (r Ring) Part(place uint64) Ring {
	if extra := len(r.segments) - MaxSegments; extra > 0 {
		from := int(place % uint64(extra+1))
		r.segments = r.segments[from : from+MaxSegments]
	}
	return r
}

// soonest is how many take-overs of one slot there can be at any time; of more there is one in
// a minute since 1970, and clocks differ by a day at most.
const (
	soonest = 1 << 16
	minute  = 60
	skew    = 24 * 60
)

// Credible is r without the claims whose generation nobody can have come to at a time, in Unix
// seconds. Who takes over numbers on from what the dead peer said: without an end that moves on,
// a liar could claim the last generation, and nothing could ever take that back. So the one
// above it is there a minute later. An honest mesh stays below the number that needs no clock.
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
	return r, fmt.Errorf("ring: %v is said to be taken over %d times, which cannot be: somebody lies about it, or this host's clock is far behind",
		lie.Range, lie.Generation)
}

// Grant gives g, which from owns, to another peer. It returns the new ring and
// the part that is news.
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
		if s.Version == spent { // somebody lied about it; it goes on in the next generation
			claim = Claim{s.Generation + 1, 1, to}
		}
		if claim.Generation == 0 {
			return Ring{}, Ring{}, ErrSpent
		}
		covered += part.Len()
		delta.segments = push(delta.segments, Segment{part, claim})
	}
	if covered != g.Len() || covered == 0 {
		return Ring{}, Ring{}, fmt.Errorf("%w: %v is not wholly ours", ErrNotOwner, g)
	}
	next, _, err = r.Merge(delta)
	return next, delta, err
}

// TakeOver gives all that a dead peer owns to another, under a higher generation: what
// the dead peer gave away without our knowledge is overruled. It returns the new ring
// and the part that is news.
func (r Ring) TakeOver(dead, to peer.ID) (next, delta Ring, err error) {
	delta = Ring{ID: r.ID, Cluster: r.Cluster, Universe: r.Universe}
	owned := slices.DeleteFunc(slices.Clone(r.segments), func(s Segment) bool { return s.Owner != dead })
	if len(owned) == 0 {
		return Ring{}, Ring{}, ErrNothing
	}
	// What is in the last generation, which only a liar reaches, stays; it does not keep the rest.
	owned = slices.DeleteFunc(owned, func(s Segment) bool { return s.Generation == spent })
	if len(owned) == 0 {
		return Ring{}, Ring{}, ErrSpent
	}
	highest := uint32(0) // one for all, so that what the dead peer had in pieces becomes whole
	for _, s := range owned {
		highest = max(highest, s.Generation)
	}
	for _, s := range owned {
		delta.segments = push(delta.segments, Segment{s.Range, Claim{highest + 1, 1, to}})
	}
	next, _, err = r.Merge(delta)
	return next, delta, err
}

// Merge is the pointwise maximum of r and o, and the part of it that r did not
// have: what to pass on. The zero Ring adopts any other.
//
// A maximum with more than MaxSegments is refused, all of it: nothing that two peers hold
// alike depends on which half came first, and what could not be stored, sent or loaded is
// never there. Below the bound the laws of a merge hold; at the bound r stays as it was, so
// that it never falls, and takes in the same o later, once the segments have become fewer. A
// ring that is above the bound already takes in what does not make it longer.
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

// push appends s, joined with its neighbour where both claim alike.
func push(list []Segment, s Segment) []Segment {
	if n := len(list); n > 0 && list[n-1].End == uint64(s.Start) && list[n-1].Claim == s.Claim {
		list[n-1].End = s.End
		return list
	}
	return append(list, s)
}

// pair is a run of slots over which both a and b are constant; a zero claim stands for none.
type pair struct {
	slot.Range
	a, b Claim
}

// overlay walks two segment lists at once and yields every run that at least one of them claims.
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
