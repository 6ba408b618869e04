package ring

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

var universe = slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/24"), V6: netip.MustParsePrefix("fd00:1::/96")}

func id(n int) peer.ID { return peer.ID{byte(n)} }

func founded() Ring { return Found(ID{1}, [16]byte{2}, universe, id(1)) }

// anyRing draws an arbitrary ring, even one that no sequence of grants could produce.
func anyRing(t *rapid.T, label string) Ring {
	r := Ring{ID: ID{1}, Cluster: [16]byte{2}, Universe: universe}
	at := uint64(0)
	for at < universe.Range().End {
		n := rapid.Uint64Range(1, universe.Range().End-at).Draw(t, label+" length")
		c := Claim{rapid.Uint32Range(1, 3).Draw(t, "generation"), rapid.Uint32Range(1, 4).Draw(t, "version"), id(rapid.IntRange(1, 4).Draw(t, "owner"))}
		if rapid.Bool().Draw(t, "claimed") {
			r.segments = push(r.segments, Segment{slot.Range{Start: slot.Slot(at), End: at + n}, c})
		}
		at += n
	}
	return r
}

func merged(t *rapid.T, a, b Ring) Ring {
	m, news, err := a.Merge(b)
	if err != nil {
		t.Fatal(err)
	}
	if again, _, _ := a.Merge(news); !again.Equal(m) {
		t.Fatalf("merging only the news gives another ring:\n%v\nwant\n%v", again.segments, m.segments)
	}
	return m
}

// Invariant 4: merges are total, commutative, associative and idempotent.
func TestInvariant4MergeIsCommutativeAssociativeAndIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := anyRing(t, "a"), anyRing(t, "b"), anyRing(t, "c")
		ab := merged(t, a, b)
		if ba := merged(t, b, a); !ab.Equal(ba) {
			t.Fatalf("Merge is not commutative; want the same ring in both orders:\n%v\n%v", ab.segments, ba.segments)
		}
		if x, y := merged(t, ab, c), merged(t, a, merged(t, b, c)); !x.Equal(y) {
			t.Fatalf("Merge is not associative; want the same ring in both groupings:\n%v\n%v", x.segments, y.segments)
		}
		if _, news, _ := ab.Merge(a); !news.IsZero() {
			t.Fatalf("Merge is not idempotent: merging an input again returned the news %v, want none", news.segments)
		}
		for s := range universe.Range().End { // compare each slot with the definition of Merge
			want := claimAt(a, slot.Slot(s))
			if o := claimAt(b, slot.Slot(s)); o.Compare(want) > 0 {
				want = o
			}
			if got := claimAt(ab, slot.Slot(s)); got != want {
				t.Fatalf("the claim of slot %d is %v; want %v", s, got, want)
			}
		}
		back, err := Decode(ab.Encode())
		if err != nil || !back.Equal(ab) || !bytes.Equal(back.Encode(), ab.Encode()) {
			t.Fatalf("decoding the encoded ring returned another ring or error %v; want the same ring", err)
		}
	})
}

func claimAt(r Ring, s slot.Slot) Claim {
	for _, g := range r.segments {
		if g.Contains(s) {
			return g.Claim
		}
	}
	return Claim{}
}

// Invariants 2 and 3: whatever the order of messages, at most one peer considers itself the owner
// of a slot. The reason is that only the owner gives a slot away.
func TestInvariant2NoSlotHasTwoOwners(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const peers = 4
		rings := make([]Ring, peers+1)
		for i := 1; i <= peers; i++ {
			rings[i] = founded()
		}
		var inFlight []Ring
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			p := rapid.IntRange(1, peers).Draw(t, "peer")
			switch owned := rings[p].Owned()[id(p)]; {
			case rapid.Bool().Draw(t, "grant") && len(owned) > 0:
				o := owned[rapid.IntRange(0, len(owned)-1).Draw(t, "range")]
				from := rapid.Uint64Range(uint64(o.Start), o.End-1).Draw(t, "from")
				g := slot.Range{Start: slot.Slot(from), End: rapid.Uint64Range(from+1, o.End).Draw(t, "to")}
				next, delta, err := rings[p].Grant(id(p), id(rapid.IntRange(1, peers).Draw(t, "receiver")), g)
				if err != nil {
					t.Fatal(err)
				}
				rings[p] = next
				inFlight = append(inFlight, delta, next)
			case len(inFlight) > 0: // any message reaches any peer, in any order, any number of times
				rings[p] = merged(t, rings[p], inFlight[rapid.IntRange(0, len(inFlight)-1).Draw(t, "message")])
			}
			for s := range universe.Range().End {
				owners := 0
				for i := 1; i <= peers; i++ {
					if o, _ := rings[i].Owner(slot.Slot(s)); o == id(i) {
						owners++
					}
				}
				if owners > 1 {
					t.Fatalf("slot %d: %d peers consider themselves its owner; want at most one", s, owners)
				}
			}
		}
	})
}

// Invariant 3: a peer grants only slots that it owns.
func TestInvariant3OnlyTheOwnerGrants(t *testing.T) {
	r := founded()
	r, _, err := r.Grant(id(1), id(2), slot.Range{Start: 64, End: 128})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []slot.Range{{Start: 64, End: 65}, {Start: 0, End: 128}, {Start: 200, End: 300}, {Start: 5, End: 5}} {
		if _, _, err := r.Grant(id(1), id(3), g); !errors.Is(err, ErrNotOwner) {
			t.Errorf("granting %v returned %v; want ErrNotOwner", g, err)
		}
	}
	if o, ok := r.Owner(64); !ok || o != id(2) {
		t.Errorf("the owner of slot 64 is %v; want peer 2", o)
	}
}

func TestRingsOfTwoFoundersNeverMerge(t *testing.T) {
	a, b := founded(), Found(ID{9}, [16]byte{2}, universe, id(2))
	got, news, err := a.Merge(b)
	var other *OtherRingError
	if !errors.As(err, &other) || !got.Equal(a) || !news.IsZero() {
		t.Errorf("merging another ring returned %v, %v; want the same ring and an OtherRingError", got, err)
	}
}

func TestDecodeRefusesInvalidRings(t *testing.T) {
	for name, segments := range map[string][]Segment{
		"overlap":      {{slot.Range{Start: 0, End: 10}, Claim{1, 1, id(1)}}, {slot.Range{Start: 5, End: 20}, Claim{1, 1, id(2)}}},
		"outside":      {{slot.Range{Start: 0, End: 1000}, Claim{1, 1, id(1)}}},
		"empty":        {{slot.Range{Start: 7, End: 7}, Claim{1, 1, id(1)}}},
		"no owner":     {{slot.Range{Start: 0, End: 10}, Claim{1, 1, peer.ID{}}}},
		"no version":   {{slot.Range{Start: 0, End: 10}, Claim{1, 0, id(1)}}},
		"out of order": {{slot.Range{Start: 20, End: 30}, Claim{1, 1, id(1)}}, {slot.Range{Start: 0, End: 10}, Claim{1, 1, id(1)}}},
	} {
		r := founded()
		r.segments = segments
		if _, err := Decode(r.Encode()); err == nil {
			t.Errorf("Decode accepted a ring with the fault %q; want an error", name)
		}
	}
}

// Segments of a newer version may have extra elements, which Decode ignores. Segments with missing
// or invalid elements are refused.
func TestDecodeIgnoresExtraSegmentElements(t *testing.T) {
	r, _, err := founded().Grant(id(1), id(2), slot.Range{Start: 64, End: 128})
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func([]cbor.RawMessage) []cbor.RawMessage) []byte {
		var w struct {
			head
			Segments [][]cbor.RawMessage `cbor:"5,keyasint"`
		}
		if err := decoding.Unmarshal(r.Encode(), &w); err != nil {
			t.Fatal(err)
		}
		w.Segments[1] = change(w.Segments[1])
		return must(encoding.Marshal(w))
	}
	got, err := Decode(with(func(s []cbor.RawMessage) []cbor.RawMessage { return append(s, must(encoding.Marshal("more"))) }))
	if err != nil || !got.Equal(r) {
		t.Errorf("decoding a segment with an additional element returned %v, %v; want the ring", got.segments, err)
	}
	for name, change := range map[string]func([]cbor.RawMessage) []cbor.RawMessage{
		"too few elements": func(s []cbor.RawMessage) []cbor.RawMessage { return s[:4] },
		"extra element, but start is a string": func(s []cbor.RawMessage) []cbor.RawMessage {
			s[0] = must(encoding.Marshal("x"))
			return append(s, s[0])
		},
		"start is a string": func(s []cbor.RawMessage) []cbor.RawMessage { s[0] = must(encoding.Marshal("x")); return s },
	} {
		if got, err := Decode(with(change)); err == nil {
			t.Errorf("%s: Decode accepted the ring as %v; want an error", name, got.segments)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(founded().Encode())
	r, delta, _ := founded().Grant(id(1), id(2), slot.Range{Start: 64, End: 128})
	f.Add(r.Encode())
	f.Add(delta.Encode())
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Decode(r.Encode())
		if err != nil || !again.Equal(r) {
			t.Fatalf("encoding and decoding again returned another ring or error %v; want the same ring", err)
		}
		if _, _, err := r.Merge(founded()); err == nil && r.ID != founded().ID {
			t.Fatal("Merge accepted a ring with another ID; want an error")
		}
	})
}

func BenchmarkMergeThousandPeers(b *testing.B) {
	u := slot.Universe{V4: slot.DefaultV4, V6: universe.V6}
	r := Found(ID{1}, [16]byte{2}, u, id(1))
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 1000 {
		var p peer.ID
		copy(p[:], fmt.Sprintf("%08d", i))
		start := slot.Slot(rng.IntN(1<<12) << 8)
		if owner, _ := r.Owner(start); owner == id(1) {
			r, _, _ = r.Grant(id(1), p, slot.Range{Start: start, End: uint64(start) + 256})
		}
	}
	for b.Loop() {
		if _, _, err := founded0(u).Merge(r); err != nil {
			b.Fatal(err)
		}
	}
}

func founded0(u slot.Universe) Ring { return Found(ID{1}, [16]byte{2}, u, id(1)) }

func TestFoundingGivesEachOwnerOneBlock(t *testing.T) {
	for n := 1; n <= 20; n++ {
		var owners []peer.ID
		for i := 1; i <= n; i++ {
			owners = append(owners, id(i))
		}
		r := Found(ID{1}, [16]byte{2}, universe, owners...)
		owned := r.Owned()
		if len(owned) != n {
			t.Errorf("%d of %d founders own slots; want all", len(owned), n)
		}
		least, most := ^uint64(0), uint64(0)
		for o, ranges := range owned {
			if len(ranges) != 1 || len(ranges[0].Blocks()) != 1 {
				t.Errorf("of %d founders, %v owns %v; want one block", n, o, ranges)
			}
			least, most = min(least, ranges[0].Len()), max(most, ranges[0].Len())
		}
		if most > 2*least {
			t.Errorf("of %d founders, the smallest block has %d slots and the largest %d; want at most twice as many", n, least, most)
		}
	}
	tiny := slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/28"), V6: universe.V6}
	var many []peer.ID
	for i := 1; i <= 40; i++ {
		many = append(many, id(i))
	}
	if r := Found(ID{1}, [16]byte{2}, tiny, many...); len(r.Segments()) != 16 {
		t.Errorf("a universe of 16 slots with 40 founders has the segments %v; want 16", r.Segments())
	}
}

// A take-over overrides grants of the dead peer that were not yet known, its old state, and the
// peer itself if it returns. Of two take-overs of the same peer, all peers choose the same winner.
func TestTakeOverOverrulesTheDeadPeer(t *testing.T) {
	r, _, err := founded().Grant(id(1), id(2), slot.Range{Start: 128, End: 256})
	if err != nil {
		t.Fatal(err)
	}
	dead, unheard, err := r.Grant(id(2), id(3), slot.Range{Start: 192, End: 256})
	if err != nil {
		t.Fatal(err)
	}
	taken, delta, err := r.TakeOver(id(2), id(1))
	if err != nil || taken.Generation() != 2 || len(taken.Owned()) != 1 {
		t.Fatalf("after the take-over the segments are %v, error %v; want one owner in generation 2", taken.Segments(), err)
	}
	rival, _, err := r.TakeOver(id(2), id(4))
	if err != nil {
		t.Fatal(err)
	}
	for _, late := range []Ring{unheard, dead, r, delta} {
		if after, news, err := taken.Merge(late); err != nil || !news.IsZero() || !after.Equal(taken) {
			t.Errorf("merging %v after the take-over led to %v, error %v; want no change", late.Segments(), after.Segments(), err)
		}
	}
	if back, _, _ := dead.Merge(delta); len(back.Owned()[id(2)]) != 0 || len(back.Owned()[id(3)]) != 0 {
		t.Errorf("when the dead peer returned, it still owned slots: %v; want none", back.Owned())
	}
	a, _, _ := taken.Merge(rival)
	b, _, _ := rival.Merge(taken)
	if !a.Equal(b) || len(a.Owned()[id(1)]) > 0 && len(a.Owned()[id(4)]) > 0 && len(a.Owned()[id(2)]) > 0 {
		t.Errorf("two rival take-overs led to %v and %v; want the same ring in both orders, and one winner", a.Segments(), b.Segments())
	}
	if _, _, err := taken.TakeOver(id(2), id(1)); !errors.Is(err, ErrNothing) {
		t.Errorf("second take-over of the same peer: got %v, want ErrNothing", err)
	}
}

// Grants and take-overs end in one ring, whatever the order of messages, even if peers occasionally
// restart from an older stored state.
func TestGrantsAndTakeOversConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const peers = 4
		rings, kept := make([]Ring, peers+1), make([]Ring, peers+1)
		for i := range rings {
			rings[i], kept[i] = founded(), founded()
		}
		var said []Ring
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			p := rapid.IntRange(1, peers).Draw(t, "peer")
			other := id(rapid.IntRange(1, peers).Draw(t, "other"))
			var delta Ring
			next, err := rings[p], error(nil)
			switch owned := rings[p].Owned()[id(p)]; rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				if len(owned) > 0 {
					next, delta, err = rings[p].Grant(id(p), other, owned[0].Blocks()[0])
				}
			case 1:
				if next, delta, err = rings[p].TakeOver(other, id(p)); errors.Is(err, ErrNothing) {
					next, err = rings[p], nil
				}
			case 2:
				kept[p] = rings[p]
			case 3:
				next = kept[p]
			default:
				if len(said) > 0 {
					next = merged(t, rings[p], said[rapid.IntRange(0, len(said)-1).Draw(t, "message")])
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			rings[p] = next
			if !delta.IsZero() {
				said = append(said, delta)
			}
		}
		all := slices.Concat(said, rings[1:])
		one, two := founded(), founded()
		for i := range all {
			one, two = merged(t, one, all[i]), merged(t, two, all[len(all)-1-i])
		}
		if !one.Equal(two) {
			t.Fatalf("merging in two orders led to two rings; want one:\n%v\n%v", one.segments, two.segments)
		}
		covered := uint64(0)
		for _, s := range one.Segments() {
			covered += s.Len()
		}
		if covered != universe.Range().Len() {
			t.Fatalf("%d slots have no owner; want 0", universe.Range().Len()-covered)
		}
	})
}
