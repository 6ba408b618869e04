package ring

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

var wide = slot.Universe{V4: slot.DefaultV4, V6: universe.V6}

// broken returns a ring of n one-slot segments, with one segment every step slots. Each segment has
// the largest generation and version that are still valid, so its encoding is as long as it can be.
func broken(n int, from, step uint64) Ring {
	r := Ring{ID: ID{1}, Cluster: [16]byte{2}, Universe: wide}
	for i := range uint64(n) {
		at := from + i*step
		r.segments = append(r.segments, Segment{slot.Range{Start: slot.Slot(at), End: at + 1}, Claim{spent - 1, spent - uint32(i%2), peer.ID{255, byte(i)}}})
	}
	return r
}

// A ring that Merge returns can be stored, sent and loaded, whatever the order of merges.
func TestMergedRingsCanBeDecoded(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			rings := []Ring{Found(ID{1}, [16]byte{2}, wide, id(1), id(2))}
			for range 6 {
				n := 1 + rng.IntN(MaxSegments)
				rings = append(rings, broken(n, rng.Uint64N(1<<19), 1+rng.Uint64N(7)))
			}
			have, refused := Ring{}, 0
			for range 20 {
				o := rings[rng.IntN(len(rings))]
				next, news, err := have.Merge(o)
				var many *TooManyError
				switch {
				case errors.As(err, &many):
					if refused++; !next.Equal(have) || !news.IsZero() {
						t.Fatal("Merge refused a ring, but changed its receiver or returned news; want neither")
					}
				case err != nil:
					t.Fatal(err)
				}
				back, err := Decode(next.Encode())
				if err != nil || !back.Equal(next) {
					t.Fatalf("decoding the merged ring of %d segments returned another ring or error %v; want the same ring", len(next.segments), err)
				}
				if _, news, err := next.Merge(have); !news.IsZero() || err != nil {
					t.Fatalf("merging an input again returned news or error %v; want neither", err)
				}
				have = next
			}
			if refused == 0 {
				t.Error("no merge was refused; want some: the test draws too few segments")
			}
		})
	}
}

// The largest allowed ring fits MaxEncoded, and push/pull accepts messages of that size.
func TestLargestRingFitsMaxEncoded(t *testing.T) {
	last := broken(MaxSegments, 1<<32-2*MaxSegments, 2)
	if n := len(last.Encode()); n > MaxEncoded || MaxEncoded > 2<<20 {
		t.Errorf("the largest ring encodes to %d bytes, want at most MaxEncoded = %d", n, MaxEncoded)
	}
	if one := len(broken(2, 1<<32-4, 2).Encode()) - len(broken(1, 1<<32-4, 2).Encode()); one > maxSegment {
		t.Errorf("a segment encodes to %d bytes, want at most maxSegment = %d", one, maxSegment)
	}
}

// Earlier releases could store a ring above MaxSegments. It can be restored, is sent in parts, and
// can only become shorter.
func TestOversizedRingCanBeRestoredAndOnlyShrinks(t *testing.T) {
	long := broken(3*MaxSegments, 0, 2)
	if _, err := Decode(long.Encode()); err == nil {
		t.Fatal("Decode accepted an oversized ring from the network; want an error")
	}
	r, err := Restore(long.Encode())
	if err != nil || !r.Equal(long) || r.Excess() == nil {
		t.Fatalf("Restore of an oversized ring from the disk returned error %v or another ring; want that ring, and Excess to report it", err)
	}
	var parts Ring
	for _, place := range []uint64{0, MaxSegments, 2 * MaxSegments, 1 << 40} {
		part, err := Decode(r.Part(place).Encode())
		if err != nil {
			t.Fatal(err)
		}
		if parts.IsZero() {
			parts = part
		}
		parts.segments = append(parts.segments, part.segments...)
		if _, news, err := r.Merge(part); err != nil || !news.IsZero() {
			t.Errorf("merging a part of the ring into the ring returned news or error %v; want neither", err)
		}
	}
	if want := r.segments[MaxSegments]; parts.segments[2*MaxSegments] != want {
		t.Error("the parts together lack a segment of the ring; want all of them")
	}
	if _, _, err := r.Merge(broken(1, 6*MaxSegments+1, 1)); err == nil {
		t.Error("an oversized ring accepted a segment that makes it longer; want an error")
	}
	cure := Ring{ID: r.ID, Cluster: r.Cluster, Universe: r.Universe, segments: []Segment{{slot.Range{Start: 0, End: 5 * MaxSegments}, Claim{spent, 1, id(1)}}}}
	if r, _, err = r.Merge(cure); err != nil || r.Excess() != nil || len(r.segments) != MaxSegments/2+1 {
		t.Errorf("after a merge that shortens the oversized ring, it has %d segments, error %v; want less than the maximum", len(r.segments), err)
	}
}

// A malicious peer uses the largest version and generation. Its neighbours can still grant their
// slots, and its own slots can be taken over.
func TestLargestVersionAndGenerationBlockNoSlots(t *testing.T) {
	r := founded()
	r.segments = []Segment{
		{slot.Range{Start: 0, End: 64}, Claim{1, spent, id(1)}},
		{slot.Range{Start: 64, End: 128}, Claim{3, spent, id(2)}},
		{slot.Range{Start: 128, End: 130}, Claim{spent, spent, id(2)}},
		{slot.Range{Start: 130, End: 256}, Claim{7, 2, id(2)}},
	}
	given, _, err := r.Grant(id(1), id(3), slot.Range{Start: 0, End: 32})
	if owner, _ := given.Owner(0); err != nil || owner != id(3) {
		t.Errorf("after a grant at the largest version the owner is %v, error %v; want peer 3", owner, err)
	}
	taken, _, err := r.TakeOver(id(2), id(1))
	if owned := taken.Owned(); err != nil || len(owned[id(2)]) != 1 || owned[id(2)][0].Len() != 2 {
		t.Errorf("after the take-over the dead peer owns %v, error %v; want one range of two slots", taken.Owned()[id(2)], err)
	}
	if _, _, err := taken.TakeOver(id(2), id(1)); !errors.Is(err, ErrSpent) {
		t.Errorf("take-over of the largest generation: got %v, want ErrSpent", err)
	}
}

// A take-over joins neighbouring segments of the dead peer into one.
func TestTakeOverJoinsNeighbouringSegments(t *testing.T) {
	r := founded()
	r.segments = nil
	for i := range uint64(256) {
		r.segments = push(r.segments, Segment{slot.Range{Start: slot.Slot(i), End: i + 1}, Claim{uint32(1 + i%3), uint32(1 + i), id(2)}})
	}
	if taken, _, err := r.TakeOver(id(2), id(1)); err != nil || len(taken.segments) != 1 {
		t.Errorf("take-over left %d segments, want 1; error %v", len(taken.segments), err)
	}
}

// A malicious peer claims the highest generation that is credible now. One minute later a take-over
// with a higher generation is credible too. Rings with low generations are credible whatever the
// clock says.
func TestSlotsOfAnyCredibleGenerationCanBeTakenOver(t *testing.T) {
	claimed := func(generation uint32) Ring {
		r := founded()
		r.segments = []Segment{{slot.Range{Start: 0, End: 9}, Claim{1, 1, id(1)}}, {slot.Range{Start: 9, End: 256}, Claim{generation, spent, id(2)}}}
		return r
	}
	for _, now := range []int64{-1, 0, 1_800_000_000, 1 << 36} {
		if r, err := claimed(soonest).Credible(now); err != nil || !r.Equal(claimed(soonest)) {
			t.Errorf("at time %d a ring with a low generation was refused or changed, error %v; want it credible and unchanged", now, err)
		}
		if r, err := claimed(spent).Credible(now); err == nil || len(r.segments) != 1 {
			t.Errorf("at time %d the largest generation is credible; want an error, and the other segment", now)
		}
	}
	now := int64(1_800_000_000)
	last := uint32(now/minute + skew)
	lie, err := claimed(last).Credible(now)
	if err != nil || len(lie.segments) != 2 {
		t.Fatal(err)
	}
	taken, delta, err := lie.TakeOver(id(2), id(1))
	if err != nil {
		t.Fatal(err)
	}
	if believed, err := delta.Credible(now + minute); err != nil || !believed.Equal(delta) || len(taken.Owned()) != 1 {
		t.Errorf("one minute later the take-over is not credible or not complete: error %v; want one owner", err)
	}
}
