package ipam

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// While other peers map a slot to its former endpoint, the slot is not allocated: not after its
// quarantine, not if no other slot is free, and not to a claim by address.
func TestSlotMappedToFormerEndpointIsNotAllocated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		var held atomic.Bool
		held.Store(true)
		var freed atomic.Uint32
		c.tune = func(cfg *Config) {
			cfg.Held = func(s slot.Slot) bool { return held.Load() && uint32(s) == freed.Load() }
		}
		m := c.start(1, &disk{})
		get := func(key string) (slot.Slot, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			return m.Allocate(ctx, key, nil)
		}
		for n := range int(universe.Usable().Len()) {
			s, err := get(string(rune('A' + n)))
			if err != nil {
				t.Fatal(err)
			}
			freed.Store(uint32(s)) // the last slot of the loop is freed below
			if n == int(universe.Usable().Len())-1 {
				if err := m.Free(t.Context(), string(rune('A'+n))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if s, err := get("no other is free"); !errors.Is(err, ErrNoSpace) {
			t.Errorf("no other slot is free, and peers still have the old name of the freed slot: got slot %d, error %v; want ErrNoSpace", s, err)
		}
		time.Sleep(2 * DefaultRest)
		if s, err := get("after quarantine"); !errors.Is(err, ErrNoSpace) {
			t.Errorf("after the quarantine peers still map the slot: got slot %d, %v; want ErrNoSpace", s, err)
		}
		want := slot.Slot(freed.Load())
		claim, ok := errors.AsType[*ClaimError](m.Claim(t.Context(), "by address", want, nil))
		if !ok || !claim.Held || claim.Why != whyHeld {
			t.Errorf("claim of a slot that peers still map to its former endpoint: got %+v; want it refused for that reason", claim)
		}
		held.Store(false)
		if s, err := get("no longer held"); err != nil || s != want {
			t.Errorf("the peers no longer map the slot: got slot %d, %v; want %d", s, err, want)
		}
		c.end()
	})
}

// The slots that a removed peer used are allocated last, even after a restart.
func TestRemovedPeersSlotsAreAllocatedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, held := three(t)
		used := []slot.Slot{held[3], held[3] + 1}
		c.tune = func(cfg *Config) {
			cfg.Listed = func(id peer.ID) []slot.Slot {
				if id == peerID(3) {
					return append(used, held[1]) // by mistake, the list contains a slot of another peer
				}
				return nil
			}
		}
		m[1].kill()
		m[1] = m[1].revive()
		m[3].kill()
		time.Sleep(3 * time.Second)
		if _, err := m[1].RemovePeer(t.Context(), m[3].id, true); err != nil {
			t.Fatal(err)
		}
		if s := snapshot(t, m[1]); s.Resting != len(used) {
			t.Errorf("%d slots are in quarantine; want %d", s.Resting, len(used))
		}
		m[1].kill()
		m[1] = m[1].revive()
		time.Sleep(3 * time.Second)
		for n := snapshot(t, m[1]).Free; n > 0; n-- {
			s, err := m[1].Allocate(t.Context(), string(rune('A'+n)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if s == used[0] || s == used[1] {
				t.Errorf("slot %d of the removed peer was allocated while %d other slots were free; want one of those", s, n-1)
			}
		}
		if s := snapshot(t, m[1]); s.Resting != len(used) {
			t.Errorf("after a restart %d slots are in quarantine, want %d", s.Resting, len(used))
		}
		// Another peer gets the slots of the removed peer when the mesh has no other free slots,
		// and not before.
		for n := 0; ; n++ {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			s, err := m[2].Allocate(ctx, string(rune('A'+n)), nil)
			cancel()
			if err != nil {
				break
			}
			used = slices.DeleteFunc(used, func(u slot.Slot) bool { return u == s && snapshot(t, m[2]).Free == 0 })
		}
		if len(used) > 0 {
			t.Errorf("no other slot was free, but %d slots of the removed peer were not allocated; want 0", len(used))
		}
		m[3].revive()
		c.end()
	})
}
