package ipam

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// owned is how much of the universe a peer owns, as another one knows.
func owned(t *testing.T, m *member, of peer.ID) (n uint64) {
	t.Helper()
	for _, r := range snapshot(t, m).Ring.Owned()[of] {
		n += r.Len()
	}
	return n
}

// A peer that no answer and no word of the ring reaches asks again and again: it is given
// space once by each donor, and a donor keeps half of what it had. Once one answer comes
// through, it has what it was given first.
func TestLostAnswersGiveNothingTwice(t *testing.T) {
	for name, pressed := range map[string]bool{"space": false, "under pressure": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				donor := c.start(1, &disk{})
				asker := c.start(2, &disk{})
				c.gossip()
				if pressed { // all but one slot is used, and that one rests
					for n := range int(universe.Usable().Len()) {
						if _, err := donor.Allocate(t.Context(), string(rune('A'+n)), nil); err != nil {
							t.Fatal(err)
						}
					}
					for _, key := range []string{"B", "D", "F"} {
						if err := donor.Free(t.Context(), key); err != nil {
							t.Fatal(err)
						}
					}
				}
				before := owned(t, donor, donor.id)
				asker.mute.Store(true)
				asker.deaf.Store(true)
				for range 8 {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					if _, err := asker.Allocate(ctx, "a", nil); !errors.Is(err, ErrNoSpace) {
						t.Fatalf("without any answer: %v", err)
					}
					cancel()
				}
				given := owned(t, donor, asker.id)
				if kept := owned(t, donor, donor.id); given == 0 || kept < before/2 || pressed && given != 1 {
					t.Errorf("the donor keeps %d of %d, and gave %d", kept, before, given)
				}
				asker.deaf.Store(false)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				s, err := asker.Allocate(ctx, "a", nil)
				if owner, _ := snapshot(t, donor).Ring.Owner(s); err != nil || owner != asker.id || owned(t, donor, asker.id) != given {
					t.Errorf("slot %d of %v, %v; it owns %d, was given %d", s, owner, err, owned(t, donor, asker.id), given)
				}
				c.end()
			})
		})
	}
}

// Who uses up what it was given, or gives it away, is given more.
func TestWhoKnowsWhatItHasIsGivenMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		donor := c.start(1, &disk{})
		asker := c.start(2, &disk{})
		c.gossip()
		if _, err := asker.Allocate(t.Context(), "a", nil); err != nil {
			t.Fatal(err)
		}
		first := owned(t, asker, asker.id)
		donor.mute.Store(true) // it does not hear what the asker gives away
		if _, err := asker.Handlers()[requestSpace](t.Context(), peerID(3), nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for n := range int(first) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := asker.Allocate(ctx, string(rune('A'+n)), nil)
			cancel()
			if err != nil {
				t.Fatalf("after %d of %d: %v", n, first, err)
			}
		}
		c.end()
	})
}

// A claim whose answer was lost is answered again, and the slot changes hands once.
func TestAClaimMayBeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		donor := c.start(1, &disk{})
		asker := c.start(2, &disk{})
		c.gossip()
		asker.mute.Store(true)
		asker.deaf.Store(true)
		const want = slot.Slot(77)
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if err := asker.Claim(ctx, "a", want, nil); err == nil {
				t.Fatal("claimed without an answer")
			}
			cancel()
		}
		asker.deaf.Store(false)
		if err := asker.Claim(t.Context(), "a", want, nil); err != nil || owned(t, donor, asker.id) != 1 {
			t.Errorf("%v; it owns %d", err, owned(t, donor, asker.id))
		}
		c.end()
	})
}
