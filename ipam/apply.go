package ipam

import (
	"maps"
	"slices"

	"weft/ipam/slot"
	"weft/ipam/space"
)

// Apply makes one change in memory. It defines what Update means for any Store: prog/state is tested
// against it, and the disks of simulated hosts consist of it.
func (s *State) Apply(c Change) {
	if c.Ring != nil {
		s.Ring = c.Ring
	}
	if c.Vote != nil {
		s.Vote = c.Vote
	}
	for _, q := range c.Quarantined {
		s.quarantine(q)
	}
	switch {
	case c.Key == "":
	case c.Delete:
		delete(s.Allocations, c.Key)
		if c.QuarantineUntil != 0 {
			s.Quarantined = slices.DeleteFunc(s.Quarantined, func(q space.Quarantined) bool { return q.Until <= c.Now })
			s.quarantine(space.Quarantined{Slot: c.Slot, Until: c.QuarantineUntil})
		}
	default:
		s.release(c.Slot)
		if s.Allocations == nil {
			s.Allocations = map[string]slot.Slot{}
		}
		s.Allocations[c.Key] = c.Slot
	}
}

func (s *State) quarantine(q space.Quarantined) {
	s.release(q.Slot)
	s.Quarantined = append(s.Quarantined, q)
}

func (s *State) release(n slot.Slot) {
	s.Quarantined = slices.DeleteFunc(s.Quarantined, func(q space.Quarantined) bool { return q.Slot == n })
}

// Clone returns a copy that later changes do not affect.
func (s *State) Clone() State {
	c := *s
	c.Allocations, c.Quarantined = maps.Clone(s.Allocations), slices.Clone(s.Quarantined)
	return c
}
