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

// three is a cluster of three of which each owns something, and holds one slot.
func three(t *testing.T) (*cluster, [4]*member, [4]slot.Slot) {
	c := newCluster(t, 1)
	var m [4]*member
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
func (m *member) kill() {
	m.down.Store(true)
	m.end()
}

// revive starts it again from its disk.
func (m *member) revive() *member { return m.c.start(int(m.id[0]), m.disk) }

func snapshot(t *testing.T, m *member) Snapshot {
	t.Helper()
	s, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A dead peer's slots are taken over; when it comes back, it hears of that before it hands
// out anything, says what it lost, and starts anew with nothing.
func TestRemovedPeerIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, held := three(t)
		m[3].kill()
		if n, err := m[1].RemovePeer(t.Context(), m[3].id, false); err != nil || n == 0 {
			t.Fatalf("took over %d, %v", n, err)
		}
		synctest.Wait()
		if owned := snapshot(t, m[2]).Ring.Owned(); len(owned[m[3].id]) > 0 {
			t.Errorf("another peer believes that it owns %v", owned[m[3].id])
		}
		if err := m[1].Claim(t.Context(), "heir", held[3], nil); err != nil {
			t.Fatal(err)
		}
		back := m[3].revive()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if s, err := back.Allocate(ctx, "b", nil); err != nil || s == held[3] {
			t.Errorf("back, it gives %d, %v", s, err)
		}
		snap := snapshot(t, back)
		if len(snap.Lost) != 1 || snap.Lost["a"] != held[3] {
			t.Errorf("it lost %v, want %d", snap.Lost, held[3])
		}
		if err := back.Free(t.Context(), "a"); err != nil || snapshot(t, back).Resting != 0 {
			t.Errorf("what is another's rests here: %v", err)
		}
		c.end()
	})
}

// Who is alive is not removed, nor who may be alive on the other side of a partition,
// unless by force.
func TestRemovalNeedsAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		refused := func(err error, why string) {
			t.Helper()
			if e, ok := errors.AsType[*RemovalError](err); !ok || !strings.Contains(e.Why, why) {
				t.Errorf("got %v, want %q", err, why)
			}
		}
		_, err := m[1].RemovePeer(t.Context(), m[3].id, true)
		refused(err, "alive")
		c.cut = func(a, b peer.ID) bool {
			return a != b && (a == m[3].id || b == m[3].id) && (a == m[1].id || b == m[1].id)
		}
		_, err = m[1].RemovePeer(t.Context(), m[3].id, true) // only h2 reaches it
		refused(err, "h2")
		// Gossip reaches it from nowhere, but a tunnel works, here or there: no force takes over what it has.
		c.split(func(a, b peer.ID) bool { return a != b && (a == m[3].id || b == m[3].id) })
		for n := 1; n <= 2; n++ {
			m[n].hear.Store(&m[3].id)
			for _, force := range []bool{false, true} {
				_, err = m[1].RemovePeer(t.Context(), m[3].id, force)
				refused(err, "its tunnel works")
				if strings.Contains(err.Error(), "--force") {
					t.Errorf("force is advised: %v", err)
				}
			}
			m[n].hear.Store(nil)
		}
		c.split(func(a, b peer.ID) bool { return a != b })
		_, err = m[1].RemovePeer(t.Context(), m[3].id, false)
		refused(err, "only 1 of 3 peers")
		_, err = m[1].RemovePeer(t.Context(), m[1].id, true)
		refused(err, "weft reset")
		if n, err := m[1].RemovePeer(t.Context(), m[3].id, true); err != nil || n == 0 {
			t.Errorf("by force: %d, %v", n, err)
		}
		_, err = m[1].RemovePeer(t.Context(), m[3].id, true)
		refused(err, "owns nothing")
		c.end()
	})
}

// Of two hosts that remove the same peer at once, one takes everything.
func TestRivalsHaveOneWinner(t *testing.T) {
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
			t.Errorf("they took %d and %d slots", first, second)
		}
		c.gossip()
		synctest.Wait()
		c.hosts[m[3].id] = m[2] // the dead one is not checked
		delete(c.hosts, m[3].id)
		c.check()
		c.end()
	})
}

// A peer that leaves is not gone before another has its space on disk.
func TestLeavingHasAnHeir(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		all := func(a, b peer.ID) bool { return a != b }
		none := func(a, b peer.ID) bool { return false }
		c.split(all)
		if _, err := m[3].Leave(t.Context()); !errors.Is(err, ErrNoHeir) {
			t.Errorf("cut off: %v", err)
		}
		if _, err := m[3].Allocate(t.Context(), "b", nil); err != nil {
			t.Errorf("it stays, but: %v", err)
		}
		c.split(none)
		c.lose.Store(100) // gossip does not help
		heir, err := m[3].Leave(t.Context())
		if err != nil || heir.IsZero() {
			t.Fatalf("heir %v, %v", heir, err)
		}
		r, err := ring.Decode(c.hosts[heir].disk.state.Ring)
		if err != nil || len(r.Owned()[m[3].id]) != 0 || len(r.Owned()) != 2 {
			t.Errorf("on the heir's disk: %v, %v", r.Owned(), err)
		}
		if _, err := m[3].Allocate(t.Context(), "c", nil); !errors.Is(err, ErrLeaving) {
			t.Errorf("after it left: %v", err)
		}
		c.end()
	})
}

// What a peer asked for before it began to leave goes to the heir too, and is not lost
// with a peer that is gone.
func TestNothingIsGrantedToWhoHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		synctest.Wait()
		c.lose.Store(100)
		c.replyLate = true
		owned := snapshot(t, m[1]).Ring.Owned()[m[1].id]
		claimed := make(chan error)
		go func() {
			time.Sleep(50 * time.Millisecond) // while Leave hears who needs space
			claimed <- m[3].Claim(t.Context(), "late", slot.Slot(owned[0].End-2), nil)
		}()
		if heir, err := m[3].Leave(t.Context()); err != nil {
			t.Errorf("heir %v, %v", heir, err)
		}
		if err := <-claimed; !errors.Is(err, ErrLeaving) {
			t.Errorf("the claim: %v", err)
		}
		if left := snapshot(t, m[3]).Ring.Owned()[m[3].id]; len(left) > 0 {
			t.Errorf("it is gone, and owns %v", left)
		}
		c.end()
	})
}

// A peer whose disk was put back to an older copy hears what it gave away since, before it
// gives anything away again.
func TestRestoredStateIsBroughtUpToDateFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		m := c.start(1, &disk{})
		synctest.Wait()
		old := m.disk.copy() // owns everything
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
				t.Logf("it gives %v to %v", ranges, id)
			}
		} else if !errors.Is(err, ErrBehind) {
			t.Error(err)
		}
		for n := range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := m.Allocate(ctx, string(rune('A'+n)), nil)
			cancel()
			if err != nil {
				t.Fatalf("after %d: %v", n, err)
			}
			c.check()
		}
		c.end()
	})
}

func (d *disk) copy() *disk {
	s, _ := d.Load()
	return &disk{state: s}
}

// A slot that is freed rests, also over a restart; when nothing else is left, the one
// that has rested longest is given first, and who asks for one by name has it at once.
func TestFreedSlotsRest(t *testing.T) {
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
			t.Errorf("%d free, %d rest", s.Free, s.Resting)
		}
		if err := m.Claim(t.Context(), "by name", all[9], nil); err != nil {
			t.Error(err)
		}
		if first, second := get("new x"), get("new y"); first != all[7] || second != all[3] {
			t.Errorf("under pressure %d and %d, want %d and %d", first, second, all[7], all[3])
		}
		if err := m.Free(t.Context(), "new x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(DefaultRest + time.Second)
		if s := snapshot(t, m); s.Free != 1 || s.Resting != 0 {
			t.Errorf("rested: %d free, %d rest", s.Free, s.Resting)
		}
		c.end()
	})
}

// A slot that is asked for by name comes from whoever owns it, or the refusal says who has it.
func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, held := three(t)
		refused := func(err error, why string) {
			t.Helper()
			if e, ok := errors.AsType[*ClaimError](err); !ok || !strings.Contains(e.Why, why) {
				t.Errorf("got %v, want %q", err, why)
			}
		}
		free := held[3] + 1
		if err := m[1].Claim(t.Context(), "x", free, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		c.check()
		if err := m[1].Claim(t.Context(), "x", free, nil); err != nil {
			t.Errorf("a second time: %v", err)
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

// What stands in the way is said by name.
func TestShortageNamesWhoHasNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		c.split(func(a, b peer.ID) bool { return a != b && (a == m[3].id || b == m[3].id) })
		var err error
		for n := 0; err == nil; n++ {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err = m[1+n%2].Allocate(ctx, "n"+string(rune('A'+n)), nil)
			cancel()
		}
		for _, want := range []string{"h3 cannot be reached", "has nothing free"} {
			if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		c.end()
	})
}

// Excluded ranges are handed out only by name; the cut may lie anywhere.
func TestExcludedRangesAreSpared(t *testing.T) {
	a := New(Config{Excluded: nil})
	a.ring = ring.Found(ring.ID{1}, [16]byte{1}, universe, peerID(1))
	whole := a.usable()
	a.cfg.Excluded = append(a.cfg.Excluded, universe.Prefixes(slot.Range{Start: 16, End: 32})...)
	want := []slot.Range{{Start: 1, End: 16}, {Start: 32, End: 255}}
	if got := a.usable(); !slices.Equal(got, want) || !slices.Equal(whole, []slot.Range{{Start: 1, End: 255}}) {
		t.Errorf("usable: %v, want %v", got, want)
	}
}

// Who asks about peers that nobody knows makes this one hold nothing.
func TestPromisesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, _ := three(t)
		for n := range 100 {
			if _, err := m[1].Handlers()[requestRemoval](t.Context(), m[2].id, removalAsked(peer.ID{200, byte(n)})); err != nil {
				t.Fatal(err)
			}
		}
		if err := m[1].do(t.Context(), func() {
			if len(m[1].removals) != 0 {
				t.Errorf("%d promises are held", len(m[1].removals))
			}
		}); err != nil {
			t.Error(err)
		}
		c.end()
	})
}
