package space

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/ipam/slot"
)

// model is a simple reimplementation of a Space: sets of slots.
type model struct {
	*rapid.T
	s      *Space
	usable []slot.Range
	owned  slot.Range
	now    int64

	free, taken map[slot.Slot]bool
	quarantined map[slot.Slot]int64
}

const size = 64

func newModel(t *rapid.T) *model {
	m := &model{
		T: t, usable: []slot.Range{{Start: 1, End: 40}, {Start: 44, End: size - 1}}, // slots 40 to 43 are excluded
		owned: slot.Range{Start: slot.Slot(rapid.Uint32Range(0, 20).Draw(t, "start")), End: rapid.Uint64Range(30, size).Draw(t, "end")},
		free:  map[slot.Slot]bool{}, taken: map[slot.Slot]bool{}, quarantined: map[slot.Slot]int64{},
	}
	m.s = New(m.usable, []slot.Range{m.owned}, nil)
	m.own()
	return m
}

// own marks as free the owned slots that are neither taken nor in quarantine.
func (m *model) own() {
	for i := m.owned.Start; uint64(i) < m.owned.End; i++ {
		if !m.taken[i] && m.quarantined[i] == 0 {
			m.free[i] = true
		}
	}
}

func (m *model) release() {
	m.now += rapid.Int64Range(0, 3).Draw(m.T, "time")
	for _, r := range m.s.Release(m.now) {
		if m.quarantined[r.Slot] > m.now || m.quarantined[r.Slot] == 0 {
			m.Fatalf("slot %d left quarantine at time %d; want %d", r.Slot, m.now, m.quarantined[r.Slot])
		}
		delete(m.quarantined, r.Slot)
		m.free[r.Slot] = true
	}
}

func (m *model) take() {
	got, ok := m.s.Take()
	switch {
	case ok && (!m.free[got] || !contains(m.usable, got)):
		m.Fatalf("Take returned slot %d; want a slot that is free and usable", got)
	case !ok && countUsable(m.free, m.usable) > 0:
		m.Fatalf("Take found no slot; want one of the %d free slots", countUsable(m.free, m.usable))
	case ok:
		delete(m.free, got)
		m.taken[got] = true
	}
}

func (m *model) takeExactly() {
	want := slot.Slot(rapid.Uint32Range(0, size-1).Draw(m.T, "exactly"))
	there := m.free[want] || m.quarantined[want] > 0
	if ok := m.s.TakeExactly(want); ok != there {
		m.Fatalf("TakeExactly(%d) returned %v; want %v", want, ok, there)
	}
	if there {
		delete(m.free, want)
		delete(m.quarantined, want)
		m.taken[want] = true
	}
}

func (m *model) takeQuarantined() {
	got, ok := m.s.TakeQuarantined()
	for r, until := range m.quarantined {
		if contains(m.usable, r) && (!ok || until < m.quarantined[got]) {
			m.Fatalf("TakeQuarantined returned %v, %v; want slot %d, which leaves quarantine first", got, ok, r)
		}
	}
	if ok {
		delete(m.quarantined, got)
		m.taken[got] = true
	}
}

// give releases one slot, with or without quarantine.
func (m *model) give(quarantine bool) {
	for back := range m.taken {
		delete(m.taken, back)
		m.s.Give(back)
		if quarantine {
			m.s.Quarantine(Quarantined{back, m.now + 4})
			m.quarantined[back] = m.now + 4
		} else {
			m.free[back] = true
		}
		return
	}
}

func (m *model) donate() {
	gift, ok := m.s.Donate()
	if !ok {
		if countUsable(m.free, m.usable) > 0 {
			m.Fatal("Donate found no slot; want some of the free ones")
		}
		return
	}
	if len(gift.Blocks()) != 1 || m.s.within(gift) == 0 {
		m.Fatalf("Donate returned %v; want a single CIDR with a usable slot", gift)
	}
	for i := gift.Start; uint64(i) < gift.End; i++ {
		if !m.free[i] {
			m.Fatalf("Donate returned slot %d, which is not free; want free slots", i)
		}
		delete(m.free, i)
	}
}

// resize makes the donated slots owned again.
func (m *model) resize() {
	m.s.Resize(m.usable, []slot.Range{m.owned}, slices.Collect(maps.Keys(m.taken)))
	m.own()
}

// After every step, Space and model hold the same slots.
func TestSpaceMatchesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		steps := []func(){
			m.take, m.take, m.takeExactly, m.takeQuarantined, func() { m.give(false) }, func() { m.give(true) },
			func() {
				if rapid.IntRange(0, 4).Draw(t, "rarely") == 0 {
					m.donate()
				}
			}, m.resize,
		}
		for range 80 {
			m.release()
			steps[rapid.IntRange(0, len(steps)-1).Draw(t, "step")]()
			if len(m.s.Quarantined()) != len(m.quarantined) {
				t.Fatalf("%d slots are in quarantine; want %d", len(m.s.Quarantined()), len(m.quarantined))
			}
			if got, want := m.s.Free(), countUsable(m.free, m.usable); got != want {
				t.Fatalf("%d slots are free; want %d", got, want)
			}
		}
	})
}

func contains(list []slot.Range, s slot.Slot) bool {
	return slices.ContainsFunc(list, func(r slot.Range) bool { return r.Contains(s) })
}

func countUsable(free map[slot.Slot]bool, usable []slot.Range) (n uint64) {
	for s := range free {
		if contains(usable, s) {
			n++
		}
	}
	return n
}

func TestFreedSlotIsReusedLast(t *testing.T) {
	s := New([]slot.Range{{Start: 0, End: 8}}, []slot.Range{{Start: 0, End: 8}}, nil)
	first, _ := s.Take()
	s.Give(first)
	for range 7 {
		if next, _ := s.Take(); next == first {
			t.Fatalf("slot %d was allocated again at once; want another slot first", first)
		}
	}
	if next, ok := s.Take(); !ok || next != first {
		t.Errorf("the last slot is %v, %v; want the one freed first, %v", next, ok, first)
	}
}

func TestDonateGivesAboutHalfOfTheFreeSlots(t *testing.T) {
	universe := slot.Range{Start: 0, End: 1 << 20}
	s := New([]slot.Range{{Start: 1, End: 1<<20 - 1}}, []slot.Range{universe}, []slot.Slot{1})
	for _, want := range []slot.Range{{Start: 1 << 19, End: 1 << 20}, {Start: 1 << 18, End: 1 << 19}} {
		if got, ok := s.Donate(); !ok || got != want {
			t.Errorf("Donate returned %v, %v; want %v", got, ok, want)
		}
	}
	untouched := New([]slot.Range{universe}, []slot.Range{universe}, nil)
	if got, ok := untouched.Donate(); !ok || got != (slot.Range{Start: 1 << 19, End: 1 << 20}) {
		t.Errorf("Donate from an untouched universe gave %v, %v; want its upper half", got, ok)
	}
}
