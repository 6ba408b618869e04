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

// owned returns how many slots a peer owns, according to the ring of m.
func owned(t *testing.T, m *host, of peer.ID) (n uint64) {
	t.Helper()
	for _, r := range snapshot(t, m).Ring.Owned()[of] {
		n += r.Len()
	}
	return n
}

// A peer that receives neither replies nor gossip keeps asking. Each donor gives it space once, and
// keeps half of its slots. Once a reply arrives, the peer has the slots of the first grant.
func TestLostRepliesCauseOneGrantOnly(t *testing.T) {
	for name, pressed := range map[string]bool{"free slots": false, "only quarantined slots": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				donor := c.start(1, &disk{})
				asker := c.start(2, &disk{})
				c.gossip()
				if pressed { // all slots are used, except those freed below, which are in quarantine
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
				asker.loseGossip.Store(true)
				asker.loseReplies.Store(true)
				for range 8 {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					if _, err := asker.Allocate(ctx, "a", nil); !errors.Is(err, ErrNoSpace) {
						t.Fatalf("Allocate without replies: got %v, want ErrNoSpace", err)
					}
					cancel()
				}
				given := owned(t, donor, asker.id)
				if kept := owned(t, donor, donor.id); given == 0 || kept < before/2 || pressed && given != 1 {
					t.Errorf("the donor kept %d of its %d slots, and gave %d; want one grant, of at most half", kept, before, given)
				}
				asker.loseReplies.Store(false)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				s, err := asker.Allocate(ctx, "a", nil)
				if owner, _ := snapshot(t, donor).Ring.Owner(s); err != nil || owner != asker.id || owned(t, donor, asker.id) != given {
					t.Errorf("got slot %d, owned by %v, error %v; the requester owns %d slots, want %d", s, owner, err, owned(t, donor, asker.id), given)
				}
				c.end()
			})
		})
	}
}

// A peer that uses up a grant, or gives it away, gets another grant.
func TestPeerThatUsedUpAGrantGetsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		donor := c.start(1, &disk{})
		asker := c.start(2, &disk{})
		c.gossip()
		if _, err := asker.Allocate(t.Context(), "a", nil); err != nil {
			t.Fatal(err)
		}
		first := owned(t, asker, asker.id)
		donor.loseGossip.Store(true) // so that the donor does not learn that the requester gives slots away
		if _, err := asker.Handlers()[requestSpace](t.Context(), peerID(3), nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for n := range int(first) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := asker.Allocate(ctx, string(rune('A'+n)), nil)
			cancel()
			if err != nil {
				t.Fatalf("after %d of the %d slots that the asker got, Allocate returned %v; want an address", n, first, err)
			}
		}
		c.end()
	})
}

// A claim whose reply was lost can be repeated; the slot is still granted only once.
func TestRepeatedClaimGrantsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		donor := c.start(1, &disk{})
		asker := c.start(2, &disk{})
		c.gossip()
		asker.loseGossip.Store(true)
		asker.loseReplies.Store(true)
		const want = slot.Slot(77)
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if err := asker.Claim(ctx, "a", want, nil); err == nil {
				t.Fatal("Claim without a reply of the owner returned no error, want one")
			}
			cancel()
		}
		asker.loseReplies.Store(false)
		if err := asker.Claim(t.Context(), "a", want, nil); err != nil || owned(t, donor, asker.id) != 1 {
			t.Errorf("repeated claim: %v; the requester owns %d slots, want 1", err, owned(t, donor, asker.id))
		}
		c.end()
	})
}
