package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// voter starts a peer that takes part in the election.
func (c *cluster) voter(n, expect int) *host { return c.voterOn(n, expect, &disk{}) }

func (c *cluster) voterOn(n, expect int, d *disk) *host {
	m := &host{c: c, id: peerID(n), disk: d, done: make(chan error, 1)}
	m.Allocator = New(Config{
		Self: m.id, Store: m.disk, Mesh: m, Log: slog.New(slog.DiscardHandler), Changed: func() {},
		Elect: &Election{
			Terms:     paxos.Terms{Expect: expect},
			Candidate: func() (ring.ID, [16]byte, slot.Universe) { return ring.ID{byte(n)}, [16]byte{byte(n)}, universe },
			Elsewhere: func() bool { return false },
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	c.put(m)
	go func() { m.done <- m.Run(ctx) }()
	return m
}

// Peers that start together agree on one ring and found it; a peer that starts alone waits for a quorum.
func TestVotersAgreeOnOneRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.lose.Store(30)
		first := c.voter(1, 5)
		time.Sleep(10 * time.Second)
		if s := snapshot(t, first); !s.Ring.IsZero() || s.Vote == nil || s.Vote.Quorum != 3 || len(s.Vote.Known) != 1 {
			t.Fatalf("one voter of a quorum of 3 has ring %v and vote %+v; want no ring, and one known voter", s.Ring.ID, s.Vote)
		}
		for n := 2; n <= 5; n++ {
			c.voter(n, 5)
		}
		for range 60 {
			time.Sleep(500 * time.Millisecond)
			for _, a := range c.hosts {
				for _, b := range c.hosts {
					if full := a.Votes().Full(); full != nil && a != b {
						_, _ = b.Votes().Merge(full)
					}
				}
			}
			c.gossip()
		}
		ids := map[ring.ID]int{}
		for _, m := range c.hosts {
			ids[snapshot(t, m).Ring.ID]++
			if _, err := m.Allocate(t.Context(), "a", nil); err != nil {
				t.Error(err)
			}
		}
		if len(ids) != 1 || ids[ring.ID{}] != 0 {
			t.Errorf("the members have rings %v, want one", ids)
		}
		c.check()
		c.end()
	})
}

// Voters find each other although their first announcements were lost, without push/pull.
func TestVotersRepeatAnnouncements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.lose.Store(100)
		a, b := c.voter(1, 2), c.voter(2, 2)
		time.Sleep(5 * time.Second)
		c.lose.Store(0)
		time.Sleep(20 * time.Second)
		if x, y := snapshot(t, a).Ring.ID, snapshot(t, b).Ring.ID; x.IsZero() || x != y {
			t.Errorf("the voters have rings %v and %v, want one", x, y)
		}
		c.end()
	})
}

// The votes of peers that expect different numbers of voters do not count together, and the
// conflict is reported.
func TestVotersThatExpectDifferentNumbersAreReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		a, b := c.voter(1, 2), c.voter(2, 3)
		_, err := a.Votes().Merge(b.Votes().Full())
		if _, ok := errors.AsType[*paxos.TermsError](err); !ok || snapshot(t, a).Conflict == nil {
			t.Errorf("Merge gave %v, status shows conflict %v; want a TermsError", err, snapshot(t, a).Conflict)
		}
		time.Sleep(10 * time.Second)
		if !snapshot(t, a).Ring.IsZero() || !snapshot(t, b).Ring.IsZero() {
			t.Error("two voters with different options founded a ring; want none")
		}
		c.end()
	})
}

// founded waits until all members have the same ring, and returns its id.
func (c *cluster) founded(within time.Duration, members ...*host) (id ring.ID) {
	c.t.Helper()
	eventually.Nil(c.t, within, "all have the same ring", func() error {
		rings := map[ring.ID]int{}
		for _, m := range members {
			id = snapshot(c.t, m).Ring.ID
			rings[id]++
		}
		if len(rings) != 1 || id.IsZero() {
			return fmt.Errorf("the rings are %v", rings)
		}
		return nil
	})
	return id
}

// ballot returns the highest ballot that a voter knows.
func ballot(t *testing.T, m *host) (b paxos.Ballot) {
	t.Helper()
	if err := m.do(t.Context(), func() { b = m.election.votes.Ballot() }); err != nil {
		t.Fatal(err)
	}
	return b
}

// If the voter that proposes first fails in any way, another voter founds the ring soon.
func TestElectionSurvivesFailedProposers(t *testing.T) {
	for name, fails := range map[string]func(c *cluster, m []*host){
		"no failure": func(*cluster, []*host) {},
		"first voter is dead": func(_ *cluster, m []*host) {
			m[0].down.Store(true)
			m[0].loseGossip.Store(true)
		},
		"first voter is reachable but silent": func(_ *cluster, m []*host) { m[0].loseGossip.Store(true) },
		"first voter goes silent after its ballot": func(c *cluster, m []*host) {
			for ballot(c.t, m[3]) == (paxos.Ballot{}) {
				time.Sleep(time.Millisecond)
			}
			m[0].loseGossip.Store(true)
		},
		"first three voters are silent": func(_ *cluster, m []*host) {
			for i := range 3 {
				m[i].loseGossip.Store(true)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3)
				var m []*host
				for n := 1; n <= 7; n++ {
					m = append(m, c.voterOn(n, 7, slowDisk(20*time.Millisecond)))
				}
				time.Sleep(10 * time.Millisecond) // wait until all voters know each other
				fails(c, m)
				c.founded(6*time.Second, m[3:]...)
				c.end()
			})
		})
	}
}

// If the first voter is silent, the other voters do not all propose at once, which would void their
// ballots.
func TestProposersDoNotOutbidEachOther(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, seed)
			var m []*host
			for n := 1; n <= 20; n++ {
				m = append(m, c.voterOn(n, 20, slowDisk(time.Duration(50+10*n)*time.Millisecond)))
			}
			time.Sleep(10 * time.Millisecond)
			m[0].loseGossip.Store(true)
			c.founded(20*time.Second, m[1:]...)
			writes := 0
			for _, v := range m[1:] {
				writes += v.disk.Writes()
			}
			if writes > 8*len(m) {
				t.Errorf("%d disk writes of %d voters; want at most 8 per voter", writes, len(m))
			}
			c.end()
		})
	}
}

// Voters that start one by one found the ring once there is a quorum, in any order of ids. Later
// voters receive that ring.
func TestRingIsFoundedWhenQuorumHasStarted(t *testing.T) {
	for _, step := range []int{1, -1} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3)
			var m []*host
			for i := range 9 {
				if m = append(m, c.voter(5+step*(i-4), 9)); len(m) < 5 && !snapshot(t, m[0]).Ring.IsZero() {
					t.Fatalf("%d of 9 voters founded a ring; want none before a quorum of 5", len(m))
				}
				time.Sleep(700 * time.Millisecond)
			}
			c.founded(time.Second, m...)
			c.end()
		})
	}
}

// A voter that restarts after any of its writes keeps its promises, and the ring is founded.
func TestElectionSurvivesRestartAfterAnyWrite(t *testing.T) {
	for who := 1; who <= 2; who++ {
		for write := 1; write <= 2; write++ { // the third write stores the ring
			t.Run(fmt.Sprintf("voter %d after write %d", who, write), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newCluster(t, 3)
					m := map[int]*host{}
					for n := 1; n <= 2; n++ {
						m[n] = c.voterOn(n, 2, slowDisk(20*time.Millisecond))
					}
					eventually.True(t, 5*time.Second, "the voter stored its vote", func() bool { return m[who].disk.Writes() >= write })
					m[who].kill()
					restored := m[who].disk.copy()
					restored.Delay = 20 * time.Millisecond
					time.Sleep(time.Second)
					m[who] = c.voterOn(who, 2, restored)
					c.founded(8*time.Second, m[1], m[2])
					c.end()
				})
			})
		}
	}
}

// A minority never founds a ring. After the partition it gets the ring of the majority.
func TestMinorityFoundsNoRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.split(func(a, b peer.ID) bool { return (a[0] <= 2) != (b[0] <= 2) })
		var m []*host
		for n := 1; n <= 5; n++ {
			m = append(m, c.voter(n, 5))
		}
		id := c.founded(6*time.Second, m[2:]...)
		time.Sleep(time.Minute)
		if a, b := snapshot(t, m[0]).Ring.ID, snapshot(t, m[1]).Ring.ID; !a.IsZero() || !b.IsZero() {
			t.Errorf("the minority founded the rings %v and %v; want none", a, b)
		}
		c.split(func(a, b peer.ID) bool { return false })
		if got := c.founded(5*time.Second, m...); got != id {
			t.Errorf("after the partition the ring is %v, want the majority's %v", got, id)
		}
		c.end()
	})
}

// With half of all messages lost and without push/pull, the election still ends.
func TestElectionEndsDespiteMessageLoss(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, seed)
			c.lose.Store(50)
			var m []*host
			for n := 1; n <= 9; n++ {
				m = append(m, c.voterOn(n, 9, slowDisk(20*time.Millisecond)))
			}
			c.founded(40*time.Second, m...)
			c.end()
		})
	}
}
