// Package space keeps the free slots of one peer: what it owns, less what is
// allocated. It says which slot is handed out next and which block is given away.
//
// A slot that is given back rests for a while, so that late packets and conntrack
// entries meet nobody. A Space belongs to one goroutine. It reads no clock and asks
// nobody: times are the caller's, in seconds.
package space

import (
	"cmp"
	"slices"

	"weft/ipam/slot"
)

// Space is the free slots of one peer.
type Space struct {
	usable  []slot.Range // sorted, disjoint; outside them nothing is handed out
	free    []slot.Range // sorted, disjoint, neighbours joined
	resting []Resting    // the oldest first
	next    slot.Slot    // where the search for a free slot goes on
	held    func(slot.Slot) bool
}

// Resting is a slot that was given back, and when it is free again.
type Resting struct {
	Slot  slot.Slot
	Until int64
}

// New makes the space of a peer that owns some ranges and has allocated some
// slots in them. Slots outside usable are owned like others, but handed out only
// to who asks for them by name.
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

// Hold makes slots rest for as long as held reports true of them, also under pressure and
// past their time.
func (s *Space) Hold(held func(slot.Slot) bool) { s.held = held }

func (s *Space) holds(r Resting) bool { return s.held != nil && s.held(r.Slot) }

// Resize makes s the space of a peer that now owns other ranges. What rests goes on
// resting, and where it goes on searching stays.
func (s *Space) Resize(usable, owned []slot.Range, used []slot.Slot) {
	next, resting, held := s.next, s.resting, s.held
	*s = *New(usable, owned, used)
	s.next, s.held = next, held
	for _, r := range resting {
		s.Rest(r)
	}
}

// Free counts the slots that can be handed out.
func (s *Space) Free() (n uint64) {
	for _, r := range s.free {
		n += s.within(r)
	}
	return n
}

// Resting lists the slots that rest, the oldest first. The caller must not change it.
func (s *Space) Resting() []Resting { return s.resting }

// within counts the usable slots of r.
func (s *Space) within(r slot.Range) (n uint64) {
	for _, u := range s.usable {
		n += r.Intersect(u).Len()
	}
	return n
}

// Take hands out a free slot, the next one after the last that was handed out, so
// that a slot rests for as long as possible before it is used again.
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

// TakeResting hands out the slot that rests for longest, for when nothing else is left.
func (s *Space) TakeResting() (slot.Slot, bool) {
	i := slices.IndexFunc(s.resting, func(r Resting) bool { return s.within(single(r.Slot)) > 0 && !s.holds(r) })
	if i < 0 {
		return 0, false
	}
	taken := s.resting[i].Slot
	s.resting = slices.Delete(s.resting, i, i+1)
	return taken, true
}

// TakeExactly hands out one slot, if it is free or rests and is not held: who asks for an
// address by name has it back at once.
func (s *Space) TakeExactly(want slot.Slot) bool {
	if i := slices.IndexFunc(s.resting, func(r Resting) bool { return r.Slot == want && !s.holds(r) }); i >= 0 {
		s.resting = slices.Delete(s.resting, i, i+1)
		return true
	}
	return s.remove(single(want))
}

func single(s slot.Slot) slot.Range { return slot.Range{Start: s, End: uint64(s) + 1} }

// Give takes back a slot that was never used.
func (s *Space) Give(back slot.Slot) { s.add(single(back)) }

// Rest takes a slot that is free out of use until its time; one that is not free stays as it is.
func (s *Space) Rest(r Resting) {
	if !s.remove(single(r.Slot)) {
		return
	}
	i, _ := slices.BinarySearchFunc(s.resting, r.Until+1, func(x Resting, until int64) int { return cmp.Compare(x.Until, until) })
	s.resting = slices.Insert(s.resting, i, r)
}

// Wake makes free what has rested until now and is not held, and returns it.
func (s *Space) Wake(now int64) (woken []Resting) {
	s.resting = slices.DeleteFunc(s.resting, func(r Resting) bool {
		over := r.Until <= now && !s.holds(r)
		if over {
			woken = append(woken, r)
		}
		return over
	})
	for _, r := range woken {
		s.Give(r.Slot)
	}
	return woken
}

// Donate gives away about half of what is free: the largest block that one CIDR
// can name, or the upper half of it where it is most of what is free. A single
// slot goes whole. What is given is no longer free.
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

// DonateResting gives away the slot that rests for longest, for when nobody has another one.
func (s *Space) DonateResting() (slot.Range, bool) {
	taken, ok := s.TakeResting()
	return single(taken), ok
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
