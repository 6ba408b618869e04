package ipam

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"testing"

	"weft/ipam/ring"
)

// No request and no votes of another peer cause a panic or change this peer's allocations.
func FuzzRequests(f *testing.F) {
	found := ring.Found(ring.ID{1}, [16]byte{1}, universe, peerID(1), peerID(2))
	f.Add(uint8(0), []byte(nil))
	f.Add(uint8(1), []byte{0, 0, 0, 7})
	f.Add(uint8(2), append(make([]byte, 7), 2, 0))
	f.Add(uint8(3), found.Encode())
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		c := newCluster(nil, 1)
		m := &host{c: c, id: peerID(1), disk: &disk{}}
		m.Allocator = New(Config{Self: m.id, Store: m.disk, Mesh: m, Log: slog.New(slog.DiscardHandler), Found: &found, Changed: func() {}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		s, err := m.Allocate(ctx, "mine", nil)
		if err != nil {
			t.Fatal(err)
		}
		handlers := m.Handlers()
		name := slices.Sorted(maps.Keys(handlers))[int(kind)%len(handlers)]
		_, _ = handlers[name](ctx, peerID(3), payload)
		_, _ = m.Votes().Merge(payload)
		snap, err := m.Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if snap.Allocations["mine"] != s {
			t.Errorf("after request %s with payload %x allocations are %v, want slot %d", name, payload, snap.Allocations, s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
