// Package space keeps the free slots of one peer: the slots that it owns, without the allocated
// slots. It chooses the slot to allocate next, and the block to donate to another peer.
//
// A released slot stays in quarantine for a while before it is allocated again. So late packets and
// conntrack entries of the old endpoint do not reach a new endpoint. A Space belongs to one
// goroutine. It does no I/O and reads no clock: callers pass times in Unix seconds.
package space

import (
	"cmp"
	"slices"

	"weft/ipam/slot"
)

// Space holds the free slots of one peer.
type Space struct {
	usable      []slot.Range  // sorted, disjoint; Take allocates nothing outside them
	free        []slot.Range  // sorted, disjoint, and neighbours are joined
	quarantined []Quarantined // sorted by Until
	next        slot.Slot     // where the search for a free slot continues
	held        func(slot.Slot) bool
}

// Quarantined is a released slot, and the time at which it becomes free.
type Quarantined struct {
	Slot  slot.Slot
	Until int64
}

// New returns the space of a peer that owns the ranges owned and has allocated the slots used.
// Slots outside usable are only allocated by TakeExactly.
func New(usable, owned []slot.Range, used []slot.Slot) *Space {
	s := &Space{usable: usable}
	for _, r := range owned {
		s.add(r)
	}
	for _, u := range used {
		s.TakeExactly(u)
	}
	return s
}

// Hold sets a predicate. A slot stays in quarantine as long as held returns true for it. That is so
// even after the time of its release, and even if no other slot is free.
func (s *Space) Hold(held func(slot.Slot) bool) { s.held = held }

func (s *Space) holds(r Quarantined) bool { return s.held != nil && s.held(r.Slot) }

// Resize updates s after the owned ranges changed. Quarantined slots stay in quarantine, and the
// search for free slots continues where it was.
func (s *Space) Resize(usable, owned []slot.Range, used []slot.Slot) {
	next, quarantined, held := s.next, s.quarantined, s.held
	*s = *New(usable, owned, used)
	s.next, s.held = next, held
	for _, r := range quarantined {
		s.Quarantine(r)
	}
}

// Free returns the number of slots that Take can allocate.
func (s *Space) Free() (n uint64) {
	for _, r := range s.free {
		n += s.within(r)
	}
	return n
}

// Quarantined returns the slots in quarantine, sorted by Until. The caller must not change the
// slice.
func (s *Space) Quarantined() []Quarantined { return s.quarantined }

// within returns the number of usable slots in r.
func (s *Space) within(r slot.Range) (n uint64) {
	for _, u := range s.usable {
		n += r.Intersect(u).Len()
	}
	return n
}

// Take allocates the next free slot after the last one that it returned. So a released slot stays
// unused for as long as possible.
func (s *Space) Take() (slot.Slot, bool) {
	for _, from := range []slot.Slot{s.next, 0} {
		for _, r := range s.free {
			for _, u := range s.usable {
				if r := r.Intersect(slot.Range{Start: max(from, u.Start), End: u.End}); r.Len() > 0 {
					s.next = r.Start + 1
					return r.Start, s.TakeExactly(r.Start)
				}
			}
		}
	}
	return 0, false
}

// TakeQuarantined allocates the slot that leaves quarantine first, for use when no slot is free.
func (s *Space) TakeQuarantined() (slot.Slot, bool) {
	i := slices.IndexFunc(s.quarantined, func(r Quarantined) bool { return s.within(single(r.Slot)) > 0 && !s.holds(r) })
	if i < 0 {
		return 0, false
	}
	taken := s.quarantined[i].Slot
	s.quarantined = slices.Delete(s.quarantined, i, i+1)
	return taken, true
}

// TakeExactly allocates the slot want if it is free, or in quarantine and not held. So a container
// that requests its former address gets it back without waiting.
func (s *Space) TakeExactly(want slot.Slot) bool {
	if i := slices.IndexFunc(s.quarantined, func(r Quarantined) bool { return r.Slot == want && !s.holds(r) }); i >= 0 {
		s.quarantined = slices.Delete(s.quarantined, i, i+1)
		return true
	}
	return s.remove(single(want))
}

func single(s slot.Slot) slot.Range { return slot.Range{Start: s, End: uint64(s) + 1} }

// Give makes a slot free at once, without quarantine.
func (s *Space) Give(back slot.Slot) { s.add(single(back)) }

// Quarantine takes a free slot out of use until r.Until. A slot that is not free stays as it is.
func (s *Space) Quarantine(r Quarantined) {
	if !s.remove(single(r.Slot)) {
		return
	}
	i, _ := slices.BinarySearchFunc(s.quarantined, r.Until+1, func(x Quarantined, until int64) int { return cmp.Compare(x.Until, until) })
	s.quarantined = slices.Insert(s.quarantined, i, r)
}

// Release frees and returns the quarantined slots whose quarantine should end at now or earlier,
// and that are not held.
func (s *Space) Release(now int64) (released []Quarantined) {
	s.quarantined = slices.DeleteFunc(s.quarantined, func(r Quarantined) bool {
		over := r.Until <= now && !s.holds(r)
		if over {
			released = append(released, r)
		}
		return over
	})
	for _, r := range released {
		s.Give(r.Slot)
	}
	return released
}

// Donate takes about half of the free slots out of s, to give them to another peer. It chooses the
// largest free CIDR block, or its upper half if that block is most of the free space. The last free
// slot is given away as well.
func (s *Space) Donate() (slot.Range, bool) {
	var best slot.Range
	for _, r := range s.free {
		for _, b := range r.Blocks() {
			if b.Len() >= best.Len() && s.within(b) > 0 {
				best = b
			}
		}
	}
	if best.Len() == 0 {
		return slot.Range{}, false
	}
	gift := best
	if half := best.Len() / 2; half > 0 && 3*best.Len() > 2*s.Free() {
		gift.Start += slot.Slot(half)
		if s.within(gift) == 0 {
			gift = slot.Range{Start: best.Start, End: uint64(best.Start) + half}
		}
	}
	return gift, s.remove(gift)
}

// DonateQuarantined is Donate for the slot that leaves quarantine first, for use when no peer has a
// free slot.
func (s *Space) DonateQuarantined() (slot.Range, bool) {
	taken, ok := s.TakeQuarantined()
	return single(taken), ok
}

// add makes r free; parts of it may be free already.
func (s *Space) add(r slot.Range) {
	if r.Len() == 0 {
		return
	}
	// Find the first free range that r touches, and the first range after that one that r does not
	// touch.
	i, _ := slices.BinarySearchFunc(s.free, uint64(r.Start), func(f slot.Range, start uint64) int {
		if f.End < start {
			return -1
		}
		return 1
	})
	j := i
	for ; j < len(s.free) && uint64(s.free[j].Start) <= r.End; j++ {
		r.Start, r.End = min(r.Start, s.free[j].Start), max(r.End, s.free[j].End)
	}
	s.free = slices.Replace(s.free, i, j, r)
}

// remove makes r not free, and reports whether all of it was free.
func (s *Space) remove(r slot.Range) bool {
	i := slices.IndexFunc(s.free, func(f slot.Range) bool { return f.Start <= r.Start && r.End <= f.End })
	if i < 0 {
		return false
	}
	f := s.free[i]
	var rest []slot.Range
	for _, part := range []slot.Range{{Start: f.Start, End: uint64(r.Start)}, {Start: slot.Slot(r.End), End: f.End}} {
		if part.Len() > 0 {
			rest = append(rest, part)
		}
	}
	s.free = slices.Replace(s.free, i, i+1, rest...)
	return true
}
