package ipam

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/secret"
)

// claimed returns a ring in which peer 2 owns slots 10 and 20, under two generations.
func claimed(t *testing.T, version, generation, other uint32) []byte {
	t.Helper()
	id := peerID(2)
	return madeUp(t, [][5]any{{10, 11, generation, version, id[:]}, {20, 21, other, version, id[:]}})
}

// pieces returns an invented, encoded ring of n single slots, starting at from.
func pieces(t *testing.T, n int, from slot.Slot) []byte {
	t.Helper()
	segments := make([][5]any, n)
	for i := range segments {
		at := from + 3*slot.Slot(i)
		id := peerID(2 + i%2)
		segments[i] = [5]any{at, at + 1, 9, 9, id[:]}
	}
	return madeUp(t, segments)
}

func madeUp(t *testing.T, segments [][5]any) []byte {
	t.Helper()
	u := slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}
	var m map[int]cbor.RawMessage
	if err := cbor.Unmarshal(ring.Found(ring.ID{1}, [16]byte{1}, u, peerID(1)).Encode(), &m); err != nil {
		t.Fatal(err)
	}
	m[5] = must(cbor.Marshal(segments))
	return must(cbor.Marshal(m))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// alone runs a founding allocator on d until f returns.
func alone(t *testing.T, d *disk, f func(*Allocator)) {
	t.Helper()
	c := newCluster(t, 1)
	m := &host{c: c, id: peerID(1), disk: d}
	u := slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}
	found := ring.Found(ring.ID{1}, [16]byte{1}, u, peerID(1))
	a := New(Config{Self: m.id, Store: d, Mesh: m, Log: slog.New(slog.DiscardHandler), Found: &found, Changed: func() {}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	f(a)
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("Run returned %v after its context ended; want no error", err)
	}
}

// Rings that each have at most MaxSegments can have more once they are merged. The agent refuses such
// a merge, reports that in status, and can restart from its disk.
func TestMergeBeyondMaxSegmentsIsRefusedAndReported(t *testing.T) {
	d := &disk{}
	alone(t, d, func(a *Allocator) {
		var many *ring.TooManyError
		if _, err := a.Merge(pieces(t, ring.MaxSegments/4, 1)); err != nil {
			t.Fatal(err)
		}
		for i := range slot.Slot(3) {
			if _, err := a.Merge(pieces(t, ring.MaxSegments/2, 2+400_000*i)); i > 0 && !errors.As(err, &many) {
				t.Errorf("merge beyond MaxSegments: got %v, want a TooManyError", err)
			}
		}
		if s := snapshot(t, &host{Allocator: a}); !errors.As(s.Conflict, &many) {
			t.Errorf("the status shows the conflict %v; want a TooManyError", s.Conflict)
		}
	})
	alone(t, d, func(a *Allocator) {
		if _, err := a.Allocate(t.Context(), "after", nil); err != nil {
			t.Error(err)
		}
		if r, err := ring.Decode(a.Full()); err != nil || len(r.Segments()) < ring.MaxSegments/4 {
			t.Errorf("decoding the ring that peers receive: error %v; want its first segments", err)
		}
	})
}

// Claims under an incredible generation are ignored; the other claims of the same ring count.
func TestGenerationsThatAreTooHighAreIgnored(t *testing.T) {
	alone(t, &disk{}, func(a *Allocator) {
		if _, err := a.Merge(claimed(t, 5, 7, ^uint32(0))); err != nil {
			t.Fatal(err)
		}
		r := snapshot(t, &host{Allocator: a})
		first, _ := r.Ring.Owner(10)
		second, _ := r.Ring.Owner(20)
		if first != peerID(2) || second != peerID(1) || r.Conflict == nil {
			t.Errorf("the owners of slots 10 and 20 are %v and %v, and the conflict is %v; want peers 2 and 1, and a conflict", first, second, r.Conflict)
		}
	})
}

// Earlier releases could store a ring of more than MaxSegments. The agent starts with such a ring,
// reports that in status, and sends the ring in parts.
func TestAgentStartsWithOversizedStoredRing(t *testing.T) {
	alone(t, &disk{state: State{Ring: pieces(t, 2*ring.MaxSegments, 1)}}, func(a *Allocator) {
		var many *ring.TooManyError
		if s := snapshot(t, &host{Allocator: a}); !errors.As(s.Conflict, &many) {
			t.Errorf("the status shows the conflict %v; want a TooManyError", s.Conflict)
		}
		if r, err := ring.Decode(a.Full()); err != nil || len(r.Segments()) != ring.MaxSegments {
			t.Errorf("decoding the ring that peers receive: error %v; want the largest allowed ring", err)
		}
	})
}
