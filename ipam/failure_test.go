package ipam

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
)

// three returns a cluster of three peers that each own slots and have allocated one.
func three(t *testing.T) (*cluster, [4]*host, [4]slot.Slot) {
	c := newCluster(t, 1)
	var m [4]*host
	var held [4]slot.Slot
	for n := 1; n <= 3; n++ {
		m[n] = c.start(n, &disk{})
	}
	c.gossip()
	for n := 1; n <= 3; n++ {
		s, err := m[n].Allocate(t.Context(), "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		held[n] = s
		synctest.Wait()
	}
	c.gossip()
	synctest.Wait()
	return c, m, held
}

// kill makes a member unreachable and stops it.
func (m *host) kill() {
	m.down.Store(true)
	m.end()
}

// revive starts a member again from its disk.
func (m *host) revive() *host { return m.c.start(int(m.id[0]), m.disk) }

func snapshot(t *testing.T, m *host) Snapshot {
	t.Helper()
	s, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A dead peer's slots are taken over. When the peer returns, it learns of the take-over before it
// allocates anything. It reports its lost allocations, and gets new space.
func TestRemovedPeerIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, held := three(t)
		m[3].kill()
		if n, err := m[1].RemovePeer(t.Context(), m[3].id, false); err != nil || n == 0 {
			t.Fatalf("RemovePeer took over %d slots, %v; want more than 0 and no error", n, err)
		}
		synctest.Wait()
		if owned := snapshot(t, m[2]).Ring.Owned(); len(owned[m[3].id]) > 0 {
			t.Errorf("in a third peer's ring the removed peer still owns %v; want nothing", owned[m[3].id])
		}
		if err := m[1].Claim(t.Context(), "heir", held[3], nil); err != nil {
			t.Fatal(err)
		}
		back := m[3].revive()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if s, err := back.Allocate(ctx, "b", nil); err != nil || s == held[3] {
			t.Errorf("the returned peer allocated slot %d, %v; want one that was not taken over", s, err)
		}
		snap := snapshot(t, back)
		if len(snap.Lost) != 1 || snap.Lost["a"] != held[3] {
			t.Errorf("the returned peer reports lost allocations %v, want slot %d", snap.Lost, held[3])
		}
		if err := back.Free(t.Context(), "a"); err != nil || snapshot(t, back).Resting != 0 {
			t.Errorf("Free failed, or put another peer's slot in quarantine: %v; want neither", err)
		}
		c.end()
	})
}

// A peer that is alive, or may be alive behind a partition, is only removed by force. A peer that
// proves to be alive is not removed, even by force.
func TestRemovalNeedsAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		refused := func(err error, why string) {
			t.Helper()
			if e, ok := errors.AsType[*RemovalError](err); !ok || !strings.Contains(e.Why, why) {
				t.Errorf("the removal returned %v; want a RemovalError that contains %q", err, why)
			}
		}
		_, err := m[1].RemovePeer(t.Context(), m[3].id, true)
		refused(err, "alive")
		c.cut = func(a, b peer.ID) bool {
			return a != b && (a == m[3].id || b == m[3].id) && (a == m[1].id || b == m[1].id)
		}
		_, err = m[1].RemovePeer(t.Context(), m[3].id, true) // of the living peers, only h2 reaches h3
		refused(err, "h2")
		// Gossip does not reach h3, but the tunnel of h1 or of h2 to it works. Then even a removal
		// by force is refused.
		c.split(func(a, b peer.ID) bool { return a != b && (a == m[3].id || b == m[3].id) })
		for n := 1; n <= 2; n++ {
			m[n].tunnel.Store(&m[3].id)
			for _, force := range []bool{false, true} {
				_, err = m[1].RemovePeer(t.Context(), m[3].id, force)
				refused(err, "its tunnel works")
				if strings.Contains(err.Error(), "--force") {
					t.Errorf("the peer is alive, but the error advises --force: %v; want no such advice", err)
				}
			}
			m[n].tunnel.Store(nil)
		}
		c.split(func(a, b peer.ID) bool { return a != b })
		_, err = m[1].RemovePeer(t.Context(), m[3].id, false)
		refused(err, "only 1 of 3 peers")
		_, err = m[1].RemovePeer(t.Context(), m[1].id, true)
		refused(err, "weft reset")
		if n, err := m[1].RemovePeer(t.Context(), m[3].id, true); err != nil || n == 0 {
			t.Errorf("removal by force took over %d slots, error %v; want more than 0", n, err)
		}
		_, err = m[1].RemovePeer(t.Context(), m[3].id, true)
		refused(err, "owns no addresses")
		c.end()
	})
}

// If two hosts remove the same peer at once, one of them takes over all its slots.
func TestConcurrentRemovalsHaveOneWinner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		m[3].kill()
		taken := make(chan uint64, 2)
		for n := 1; n <= 2; n++ {
			go func() {
				slots, _ := m[n].RemovePeer(t.Context(), m[3].id, false)
				taken <- slots
			}()
		}
		first, second := <-taken, <-taken
		if (first == 0) == (second == 0) {
			t.Errorf("the two removals took over %d and %d slots, want one of them to get all", first, second)
		}
		c.gossip()
		synctest.Wait()
		c.hosts[m[3].id] = m[2] // check must skip the dead member
		delete(c.hosts, m[3].id)
		c.check()
		c.end()
	})
}

// A peer only leaves once another peer has stored its space on disk.
func TestLeavingPeerWaitsUntilAnotherPeerStoredItsSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		all := func(a, b peer.ID) bool { return a != b }
		none := func(a, b peer.ID) bool { return false }
		c.split(all)
		if _, err := m[3].Leave(t.Context()); !errors.Is(err, ErrNoHeir) {
			t.Errorf("Leave while partitioned: got %v, want ErrNoHeir", err)
		}
		if _, err := m[3].Allocate(t.Context(), "b", nil); err != nil {
			t.Errorf("Allocate after a failed Leave returned %v; want an address", err)
		}
		c.split(none)
		c.lose.Store(100) // gossip is lost: the heir must learn of its new slots by request
		heir, err := m[3].Leave(t.Context())
		if err != nil || heir.IsZero() {
			t.Fatalf("Leave returned heir %v and error %v; want an heir", heir, err)
		}
		r, err := ring.Decode(c.hosts[heir].disk.state.Ring)
		if err != nil || len(r.Owned()[m[3].id]) != 0 || len(r.Owned()) != 2 {
			t.Errorf("the ring on the heir's disk has the owners %v, error %v; want two, without the peer that left", r.Owned(), err)
		}
		if _, err := m[3].Allocate(t.Context(), "c", nil); !errors.Is(err, ErrLeaving) {
			t.Errorf("Allocate after Leave: got %v, want ErrLeaving", err)
		}
		c.end()
	})
}

// Slots that a peer requested before it began to leave go to the heir too, and are not lost.
func TestPendingGrantsOfALeavingPeerAreNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		synctest.Wait()
		c.lose.Store(100)
		c.replyLate.Store(int64(100 * time.Millisecond))
		owned := snapshot(t, m[1]).Ring.Owned()[m[1].id]
		claimed := make(chan error)
		go func() {
			time.Sleep(50 * time.Millisecond) // by now Leave is asking the others for their usage
			claimed <- m[3].Claim(t.Context(), "late", slot.Slot(owned[0].End-2), nil)
		}()
		if heir, err := m[3].Leave(t.Context()); err != nil {
			t.Errorf("Leave during a claim returned heir %v and error %v; want an heir", heir, err)
		}
		if err := <-claimed; !errors.Is(err, ErrLeaving) {
			t.Errorf("the pending claim: got %v, want ErrLeaving", err)
		}
		if left := snapshot(t, m[3]).Ring.Owned()[m[3].id]; len(left) > 0 {
			t.Errorf("the peer that left still owns %v; want nothing", left)
		}
		c.end()
	})
}

// A peer whose disk was restored from an older copy learns of its later grants before it changes
// the ring again.
func TestPeerWithRestoredDiskCatchesUpBeforeGranting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		m := c.start(1, &disk{})
		synctest.Wait()
		old := m.disk.copy() // this copy says that the peer owns all slots
		for n := 2; n <= 4; n++ {
			c.start(n, &disk{})
		}
		c.gossip()
		for n := 2; n <= 4; n++ {
			if _, err := c.hosts[peerID(n)].Allocate(t.Context(), "a", nil); err != nil {
				t.Fatal(err)
			}
		}
		m.kill()
		m = c.start(1, old)
		if data, err := m.space(t.Context(), peerID(2)); err == nil {
			delta, _ := ring.Decode(data)
			for id, ranges := range delta.Owned() {
				t.Logf("the donor granted %v to %v", ranges, id)
			}
		} else if !errors.Is(err, ErrBehind) {
			t.Error(err)
		}
		for n := range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := m.Allocate(ctx, string(rune('A'+n)), nil)
			cancel()
			if err != nil {
				t.Fatalf("after %d allocations, Allocate returned %v; want an address", n, err)
			}
			c.check()
		}
		c.end()
	})
}

// A freed slot stays in quarantine, across restarts too. If no other slot is free, the slot that
// leaves quarantine first is allocated. A claim by address gets its slot at once.
func TestFreedSlotsStayInQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		m := c.start(1, &disk{})
		get := func(key string) slot.Slot {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			s, err := m.Allocate(ctx, key, nil)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		var all []slot.Slot
		for n := range int(universe.Usable().Len()) {
			all = append(all, get(string(rune('A'+n))))
		}
		for _, n := range []int{7, 3, 9} {
			if err := m.Free(t.Context(), string(rune('A'+n))); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		m.end()
		m = c.start(1, m.disk)
		if s := snapshot(t, m); s.Free != 0 || s.Resting != 3 {
			t.Errorf("after a restart %d slots are free and %d in quarantine, want 0 and 3", s.Free, s.Resting)
		}
		if err := m.Claim(t.Context(), "by name", all[9], nil); err != nil {
			t.Error(err)
		}
		if first, second := get("new x"), get("new y"); first != all[7] || second != all[3] {
			t.Errorf("with no free slot, got slots %d and %d; want %d and %d", first, second, all[7], all[3])
		}
		if err := m.Free(t.Context(), "new x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(DefaultRest + time.Second)
		if s := snapshot(t, m); s.Free != 1 || s.Resting != 0 {
			t.Errorf("after the quarantine %d slots are free and %d in quarantine, want 1 and 0", s.Free, s.Resting)
		}
		c.end()
	})
}

// A claim gets its slot from whichever peer owns it; a refusal names the holder.
func TestClaimGetsSlotFromItsOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, held := three(t)
		refused := func(err error, why string) {
			t.Helper()
			if e, ok := errors.AsType[*ClaimError](err); !ok || !strings.Contains(e.Why, why) {
				t.Errorf("Claim returned %v; want a ClaimError that contains %q", err, why)
			}
		}
		free := held[3] + 1
		if err := m[1].Claim(t.Context(), "x", free, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.check()
		if err := m[1].Claim(t.Context(), "x", free, nil); err != nil {
			t.Errorf("repeating a successful claim returned %v; want no error", err)
		}
		refused(m[1].Claim(t.Context(), "x", free+1, nil), "has 10.32.0.")
		refused(m[2].Claim(t.Context(), "y", free, nil), "x on h1 holds it")
		refused(m[1].Claim(t.Context(), "y", held[2], nil), "a on h2 holds it")
		refused(m[1].Claim(t.Context(), "y", 0, nil), "the first or the last")
		c.split(func(a, b peer.ID) bool { return a != b })
		refused(m[1].Claim(t.Context(), "y", held[2]+1, nil), "cannot be reached")
		c.end()
	})
}

// The error of a failed allocation names each peer and why it gave no space.
func TestErrorOfFailedAllocationNamesEachPeersReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		c.split(func(a, b peer.ID) bool { return a != b && (a == m[3].id || b == m[3].id) })
		var err error
		for n := 0; err == nil; n++ {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err = m[1+n%2].Allocate(ctx, "n"+string(rune('A'+n)), nil)
			cancel()
		}
		for _, want := range []string{"h3 cannot be reached", "has no free address"} {
			if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), want) {
				t.Errorf("Allocate returned %v; want ErrNoSpace with the text %q", err, want)
			}
		}
		c.end()
	})
}

// Excluded ranges are removed from the usable slots.
func TestExcludedRangesDoNotCountAsFree(t *testing.T) {
	a := New(Config{Excluded: nil})
	a.ring = ring.Found(ring.ID{1}, [16]byte{1}, universe, peerID(1))
	whole := a.usable()
	a.cfg.Excluded = append(a.cfg.Excluded, universe.Prefixes(slot.Range{Start: 16, End: 32})...)
	want := []slot.Range{{Start: 1, End: 16}, {Start: 32, End: 255}}
	if got := a.usable(); !slices.Equal(got, want) || !slices.Equal(whole, []slot.Range{{Start: 1, End: 255}}) {
		t.Errorf("the usable ranges are %v; want %v", got, want)
	}
}

// A peer that is asked to confirm the removal of an unknown peer stores no promise.
func TestNoPromiseIsStoredForRemovalOfUnknownPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		for n := range 100 {
			if _, err := m[1].Handlers()[requestRemoval](t.Context(), m[2].id, removalAsked(peer.ID{200, byte(n)})); err != nil {
				t.Fatal(err)
			}
		}
		if err := m[1].do(t.Context(), func() {
			if len(m[1].removals) != 0 {
				t.Errorf("after requests to confirm the removal of unknown peers, %d promises are stored; want none", len(m[1].removals))
			}
		}); err != nil {
			t.Error(err)
		}
		c.end()
	})
}
