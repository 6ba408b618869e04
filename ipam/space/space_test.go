package space

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/ipam/slot"
)

// A model of the space is a set of free slots; every step must keep both alike.
func TestSpaceAgreesWithItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 64
		usable := []slot.Range{{Start: 1, End: 40}, {Start: 44, End: size - 1}} // 40 to 43 are excluded
		owned := slot.Range{Start: slot.Slot(rapid.Uint32Range(0, 20).Draw(t, "start")), End: rapid.Uint64Range(30, size).Draw(t, "end")}
		s := New(usable, []slot.Range{owned}, nil)
		free := map[slot.Slot]bool{}
		for i := owned.Start; uint64(i) < owned.End; i++ {
			free[i] = true
		}
		taken, resting, now := map[slot.Slot]bool{}, map[slot.Slot]int64{}, int64(0)
		for range 80 {
			now += rapid.Int64Range(0, 3).Draw(t, "time")
			for _, r := range s.Wake(now) {
				if resting[r.Slot] > now || resting[r.Slot] == 0 {
					t.Fatalf("%d woke at %d, it rests until %d", r.Slot, now, resting[r.Slot])
				}
				delete(resting, r.Slot)
				free[r.Slot] = true
			}
			switch rapid.IntRange(0, 6).Draw(t, "step") {
			case 0:
				got, ok := s.Take()
				if ok && (!free[got] || !contains(usable, got)) {
					t.Fatalf("took %d, which is not free or not usable", got)
				}
				if !ok && countUsable(free, usable) > 0 {
					t.Fatalf("nothing to take, but %d are free", countUsable(free, usable))
				}
				if ok {
					delete(free, got)
					taken[got] = true
				}
			case 1:
				want := slot.Slot(rapid.Uint32Range(0, size-1).Draw(t, "exactly"))
				there := free[want] || resting[want] > 0
				if ok := s.TakeExactly(want); ok != there {
					t.Fatalf("take %d: %v, want %v", want, ok, there)
				}
				if there {
					delete(free, want)
					delete(resting, want)
					taken[want] = true
				}
			case 2:
				for back := range taken {
					s.Give(back)
					delete(taken, back)
					free[back] = true
					break
				}
			case 3:
				if rapid.IntRange(0, 9).Draw(t, "rarely") > 0 {
					continue
				}
				gift, ok := s.Donate()
				if !ok {
					if countUsable(free, usable) > 0 {
						t.Fatal("nothing to give, but something is free")
					}
					continue
				}
				if len(gift.Blocks()) != 1 || s.within(gift) == 0 {
					t.Fatalf("gift %v is no CIDR, or useless", gift)
				}
				for i := gift.Start; uint64(i) < gift.End; i++ {
					if !free[i] {
						t.Fatalf("gave away %d, which is not free", i)
					}
					delete(free, i)
				}
			case 4:
				for back := range taken {
					s.Give(back)
					s.Rest(Resting{back, now + 4})
					delete(taken, back)
					resting[back] = now + 4
					break
				}
			case 5:
				got, ok := s.TakeResting()
				for r, until := range resting {
					if contains(usable, r) && (!ok || until < resting[got]) {
						t.Fatalf("took %v, %v; %d rests since before", got, ok, r)
					}
				}
				if ok {
					delete(resting, got)
					taken[got] = true
				}
			case 6:
				used := slices.Collect(maps.Keys(taken))
				s.Resize(usable, []slot.Range{owned}, used)
				for i := owned.Start; uint64(i) < owned.End; i++ { // what was given away came back
					if !taken[i] && resting[i] == 0 {
						free[i] = true
					}
				}
			}
			if len(s.Resting()) != len(resting) {
				t.Fatalf("%d rest, want %d", len(s.Resting()), len(resting))
			}
			if got, want := s.Free(), countUsable(free, usable); got != want {
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
