// Package space keeps the free slots of one peer: what it owns, less what is
// allocated. It says which slot is handed out next and which block is given away.
//
// A Space belongs to one goroutine. It reads no clock and asks nobody.
package space

import (
	"slices"

	"weft/ipam/slot"
)

// Space is the free slots of one peer.
type Space struct {
	usable slot.Range   // outside it nothing is handed out
	free   []slot.Range // sorted, disjoint, neighbours joined
	next   slot.Slot    // where the search for a free slot goes on
}

// New makes the space of a peer that owns some ranges and has allocated some
// slots in them. Slots outside usable are owned like others, but never handed out.
func New(usable slot.Range, owned []slot.Range, used []slot.Slot) *Space {
	s := &Space{usable: usable}
	for _, r := range owned {
		s.add(r)
	}
	for _, u := range used {
		s.TakeExactly(u)
	}
	return s
}

// Resize makes s the space of a peer that now owns other ranges. Where it goes on
// searching stays: a slot freed a moment ago is not handed out again at once.
func (s *Space) Resize(usable slot.Range, owned []slot.Range, used []slot.Slot) {
	next := s.next
	*s = *New(usable, owned, used)
	s.next = next
}

// Free counts the slots that can be handed out.
func (s *Space) Free() (n uint64) {
	for _, r := range s.free {
		n += r.Intersect(s.usable).Len()
	}
	return n
}

// Take hands out a free slot, the next one after the last that was handed out, so
// that a slot rests for as long as possible before it is used again.
func (s *Space) Take() (slot.Slot, bool) {
	for _, from := range []slot.Slot{s.next, 0} {
		for _, r := range s.free {
			r = r.Intersect(slot.Range{Start: max(from, s.usable.Start), End: s.usable.End})
			if r.Len() > 0 {
				s.next = r.Start + 1
				return r.Start, s.TakeExactly(r.Start)
			}
		}
	}
	return 0, false
}

// TakeExactly hands out one slot, if it is free.
func (s *Space) TakeExactly(want slot.Slot) bool {
	return s.remove(slot.Range{Start: want, End: uint64(want) + 1})
}

// Give takes back a slot that was handed out.
func (s *Space) Give(back slot.Slot) { s.add(slot.Range{Start: back, End: uint64(back) + 1}) }

// Donate gives away about half of what is free: the largest block that one CIDR
// can name, or the upper half of it where it is most of what is free. A single
// slot goes whole. What is given is no longer free.
func (s *Space) Donate() (slot.Range, bool) {
	var best slot.Range
	for _, r := range s.free {
		for _, b := range r.Blocks() {
			if b.Len() >= best.Len() && b.Intersect(s.usable).Len() > 0 {
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
		if gift.Intersect(s.usable).Len() == 0 {
			gift = slot.Range{Start: best.Start, End: uint64(best.Start) + half}
		}
	}
	return gift, s.remove(gift)
}

// add makes r free; what was free already stays so.
func (s *Space) add(r slot.Range) {
	if r.Len() == 0 {
		return
	}
	// The first range that r touches, and the first behind it that it does not.
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

// remove makes r not free, if all of it is.
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
