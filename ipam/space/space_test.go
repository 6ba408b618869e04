package space

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/ipam/slot"
)

// model is a space as sets of slots.
type model struct {
	*rapid.T
	s      *Space
	usable []slot.Range
	owned  slot.Range
	now    int64

	free, taken map[slot.Slot]bool
	resting     map[slot.Slot]int64
}

const size = 64

func newModel(t *rapid.T) *model {
	m := &model{
		T: t, usable: []slot.Range{{Start: 1, End: 40}, {Start: 44, End: size - 1}}, // 40 to 43 are excluded
		owned: slot.Range{Start: slot.Slot(rapid.Uint32Range(0, 20).Draw(t, "start")), End: rapid.Uint64Range(30, size).Draw(t, "end")},
		free:  map[slot.Slot]bool{}, taken: map[slot.Slot]bool{}, resting: map[slot.Slot]int64{},
	}
	m.s = New(m.usable, []slot.Range{m.owned}, nil)
	m.own()
	return m
}

// own makes free what is owned and neither taken nor at rest.
func (m *model) own() {
	for i := m.owned.Start; uint64(i) < m.owned.End; i++ {
		if !m.taken[i] && m.resting[i] == 0 {
			m.free[i] = true
		}
	}
}

func (m *model) wake() {
	m.now += rapid.Int64Range(0, 3).Draw(m.T, "time")
	for _, r := range m.s.Wake(m.now) {
		if m.resting[r.Slot] > m.now || m.resting[r.Slot] == 0 {
			m.Fatalf("%d woke at %d, it rests until %d", r.Slot, m.now, m.resting[r.Slot])
		}
		delete(m.resting, r.Slot)
		m.free[r.Slot] = true
	}
}

func (m *model) take() {
	got, ok := m.s.Take()
	switch {
	case ok && (!m.free[got] || !contains(m.usable, got)):
		m.Fatalf("took %d, which is not free or not usable", got)
	case !ok && countUsable(m.free, m.usable) > 0:
		m.Fatalf("nothing to take, but %d are free", countUsable(m.free, m.usable))
	case ok:
		delete(m.free, got)
		m.taken[got] = true
	}
}

func (m *model) takeExactly() {
	want := slot.Slot(rapid.Uint32Range(0, size-1).Draw(m.T, "exactly"))
	there := m.free[want] || m.resting[want] > 0
	if ok := m.s.TakeExactly(want); ok != there {
		m.Fatalf("take %d: %v, want %v", want, ok, there)
	}
	if there {
		delete(m.free, want)
		delete(m.resting, want)
		m.taken[want] = true
	}
}

func (m *model) takeResting() {
	got, ok := m.s.TakeResting()
	for r, until := range m.resting {
		if contains(m.usable, r) && (!ok || until < m.resting[got]) {
			m.Fatalf("took %v, %v; %d rests since before", got, ok, r)
		}
	}
	if ok {
		delete(m.resting, got)
		m.taken[got] = true
	}
}

// give gives back one slot, at once or after a rest.
func (m *model) give(rests bool) {
	for back := range m.taken {
		delete(m.taken, back)
		m.s.Give(back)
		if rests {
			m.s.Rest(Resting{back, m.now + 4})
			m.resting[back] = m.now + 4
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
			m.Fatal("nothing to give, but something is free")
		}
		return
	}
	if len(gift.Blocks()) != 1 || m.s.within(gift) == 0 {
		m.Fatalf("gift %v is no CIDR, or useless", gift)
	}
	for i := gift.Start; uint64(i) < gift.End; i++ {
		if !m.free[i] {
			m.Fatalf("gave away %d, which is not free", i)
		}
		delete(m.free, i)
	}
}

// resize brings back what was given away.
func (m *model) resize() {
	m.s.Resize(m.usable, []slot.Range{m.owned}, slices.Collect(maps.Keys(m.taken)))
	m.own()
}

// Every step keeps the space and its model alike.
func TestSpaceAgreesWithItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		steps := []func(){
			m.take, m.take, m.takeExactly, m.takeResting, func() { m.give(false) }, func() { m.give(true) },
			func() {
				if rapid.IntRange(0, 4).Draw(t, "rarely") == 0 {
					m.donate()
				}
			}, m.resize,
		}
		for range 80 {
			m.wake()
			steps[rapid.IntRange(0, len(steps)-1).Draw(t, "step")]()
			if len(m.s.Resting()) != len(m.resting) {
				t.Fatalf("%d rest, want %d", len(m.s.Resting()), len(m.resting))
			}
			if got, want := m.s.Free(), countUsable(m.free, m.usable); got != want {
				t.Fatalf("%d free, want %d", got, want)
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

func TestFreedSlotRestsLongest(t *testing.T) {
	s := New([]slot.Range{{Start: 0, End: 8}}, []slot.Range{{Start: 0, End: 8}}, nil)
	first, _ := s.Take()
	s.Give(first)
	for range 7 {
		if next, _ := s.Take(); next == first {
			t.Fatalf("slot %d came back before all others were used", first)
		}
	}
	if next, ok := s.Take(); !ok || next != first {
		t.Errorf("last of all: %v %v, want %v", next, ok, first)
	}
}

func TestDonationIsAboutHalf(t *testing.T) {
	universe := slot.Range{Start: 0, End: 1 << 20}
	s := New([]slot.Range{{Start: 1, End: 1<<20 - 1}}, []slot.Range{universe}, []slot.Slot{1})
	for _, want := range []slot.Range{{Start: 1 << 19, End: 1 << 20}, {Start: 1 << 18, End: 1 << 19}} {
		if got, ok := s.Donate(); !ok || got != want {
			t.Errorf("gave %v %v, want %v", got, ok, want)
		}
	}
	untouched := New([]slot.Range{universe}, []slot.Range{universe}, nil)
	if got, ok := untouched.Donate(); !ok || got != (slot.Range{Start: 1 << 19, End: 1 << 20}) {
		t.Errorf("gave %v %v of all that there is", got, ok)
	}
}
