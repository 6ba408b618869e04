package ipam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

var universe = slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/24"), V6: netip.MustParsePrefix("fd00:1::/96")}

func peerID(n int) peer.ID { return peer.ID{byte(n)} }

// disk is a Store in memory.
type disk struct {
	meshtest.Disk
	state State
}

// slowDisk is a disk on which each write takes a while.
func slowDisk(write time.Duration) *disk { return &disk{Disk: meshtest.Disk{Delay: write}} }

func (d *disk) Load() (s State, err error) {
	d.Read(func() { s = d.state.Clone() })
	return s, nil
}

func (d *disk) Update(c Change) error { return d.Write(func() { d.state.Apply(c) }) }

func (d *disk) copy() *disk {
	s, _ := d.Load()
	return &disk{state: s}
}

// cluster is a set of allocators, with a network that can lose deltas and partition.
type cluster struct {
	t    *testing.T
	lose atomic.Int64 // percentage of lost deltas

	mu    sync.Mutex
	rand  *rand.Rand
	hosts map[peer.ID]*host
	cut   func(a, b peer.ID) bool

	replyLate atomic.Int64 // delays replies, in nanoseconds, for example so that gossip arrives first
	tune      func(*Config)
}

// host is one run of a peer, with an allocator. Its mesh delivers a message at once and in the sender's
// goroutine, never loses a request, and can separate two single hosts: tests here go step by
// step. Package soak runs the allocator on meshtest.Cluster, where time passes.
type host struct {
	c    *cluster
	id   peer.ID
	disk *disk
	*Allocator
	stop        context.CancelFunc
	done        chan error
	down        atomic.Bool
	loseGossip  atomic.Bool             // gossip of and to this member is lost
	loseReplies atomic.Bool             // replies to this member are lost
	tunnel      atomic.Pointer[peer.ID] // the peer whose tunnel to this member works
}

func newCluster(t *testing.T, seed uint64) *cluster {
	return &cluster{
		t: t, rand: rand.New(rand.NewPCG(seed, 1)), hosts: map[peer.ID]*host{},
		cut: func(a, b peer.ID) bool { return false },
	}
}

func (c *cluster) split(cut func(a, b peer.ID) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
}

func (c *cluster) put(m *host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hosts[m.id] = m
}

// members returns all peers that ever started, sorted by id.
func (c *cluster) members() []*host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Values(c.hosts), func(a, b *host) int { return bytes.Compare(a.id[:], b.id[:]) })
}

// lost reports whether the next delta is lost.
func (c *cluster) lost() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.Int64N(100) < c.lose.Load()
}

func (m *host) Broadcast(replica string, delta []byte) {
	for _, other := range m.c.members() {
		if other != m && m.Reachable(other.id) && !m.loseGossip.Load() && !other.loseGossip.Load() && !m.c.lost() {
			go func() {
				if replica == VotesName {
					_, _ = other.Votes().Merge(delta)
				} else {
					_, _ = other.Merge(delta)
				}
			}()
		}
	}
}

// Others returns all other peers that ever started.
func (m *host) Others() (out []peer.ID) {
	for _, other := range m.c.members() {
		if other.id != m.id {
			out = append(out, other.id)
		}
	}
	return out
}

func (m *host) Stopped(peer.ID) bool { return false }

// no is the error of a refused request.
type no struct{ error }

func (e no) Refused() string { return e.Error() }
func (e no) Unwrap() error   { return e.error }

func (m *host) Name(id peer.ID) string { return fmt.Sprintf("h%d", id[0]) }

func (m *host) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	other := m.reach(to)
	if other == nil {
		return nil, errors.New("unreachable")
	}
	reply, err := other.Handlers()[kind](ctx, m.id, payload)
	select {
	case <-time.After(time.Duration(m.c.replyLate.Load())):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if m.loseReplies.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		err = no{err}
	}
	return reply, err
}

func (m *host) Reachable(id peer.ID) bool { return m.reach(id) != nil }

// reach returns another member, or nil if the network does not reach it.
func (m *host) reach(id peer.ID) *host {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if other := m.c.hosts[id]; other != nil && !other.down.Load() && !m.c.cut(m.id, id) {
		return other
	}
	return nil
}

// space sends m a peer's request for space.
func (m *host) space(ctx context.Context, to peer.ID) ([]byte, error) {
	return m.Handlers()[requestSpace](ctx, to, nil)
}

// start runs an allocator. Peer 1 founds the ring.
func (c *cluster) start(n int, d *disk) *host {
	m := &host{c: c, id: peerID(n), disk: d, done: make(chan error, 1)}
	cfg := Config{Self: m.id, Store: d, Mesh: m, Log: slog.New(slog.DiscardHandler), Changed: func() {}}
	cfg.Heard = func(id peer.ID) string {
		if from := m.tunnel.Load(); from != nil && *from == id {
			return "its tunnel works"
		}
		return ""
	}
	if c.tune != nil {
		c.tune(&cfg)
	}
	if n == 1 {
		found := ring.Found(ring.ID{1}, [16]byte{1}, universe, m.id)
		cfg.Found = &found
	}
	m.Allocator = New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	c.put(m)
	go func() { m.done <- m.Run(ctx) }()
	return m
}

func (c *cluster) end() {
	for _, m := range c.hosts {
		m.end()
	}
	synctest.Wait()
}

// end stops a member, and waits until it has ended.
func (m *host) end() {
	m.c.t.Helper()
	m.stop()
	if err := <-m.done; err != nil {
		m.c.t.Error(err)
	}
}

// gossip is one round of push/pull among all reachable peers.
func (c *cluster) gossip() {
	for _, a := range c.members() {
		for _, b := range c.members() {
			if full := a.Full(); full != nil && a != b && a.Reachable(b.id) {
				_, _ = b.Merge(full)
			}
		}
	}
}

// check asserts the invariants over all peers.
func (c *cluster) check() {
	c.t.Helper()
	holder := map[slot.Slot]string{}
	for id, m := range c.hosts {
		snap, err := m.Snapshot(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		for key, s := range snap.Allocations {
			if owner, _ := snap.Ring.Owner(s); owner != id {
				c.t.Fatalf("peer %v allocated %s slot %d, which %v owns; want a slot of its own", id, key, s, owner)
			}
			if other, taken := holder[s]; taken {
				c.t.Fatalf("slot %d is allocated to %s and to %v %s; want only one of these allocations", s, other, id, key)
			}
			if !universe.Usable().Contains(s) {
				c.t.Fatalf("slot %d was allocated, but is not usable; want only usable slots", s)
			}
			holder[s] = fmt.Sprintf("%v %s", id, key)
			if m.disk.state.Allocations[key] != s {
				c.t.Fatalf("%s has slot %d, but on disk slot %d; want the same", key, s, m.disk.state.Allocations[key])
			}
		}
	}
}

// Invariant 2: no address has two live endpoints, in random histories with lost messages,
// partitions and restarts from disk.
func TestInvariant2OneAddressOneEndpoint(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		seed := rapid.Uint64().Draw(r, "seed")
		synctest.Test(t, func(t *testing.T) {
			const peers = 5
			c := newCluster(t, seed)
			c.lose.Store(30)
			for n := 1; n <= peers; n++ {
				c.start(n, &disk{})
			}
			held := map[int]map[string]bool{}
			for step := range 120 {
				n := 1 + c.rand.IntN(peers)
				m := c.hosts[peerID(n)]
				if held[n] == nil {
					held[n] = map[string]bool{}
				}
				switch c.rand.IntN(10) {
				case 0:
					c.gossip()
				case 1:
					side := 1 + c.rand.IntN(peers)
					c.split(func(a, b peer.ID) bool { return (int(a[0]) <= side) != (int(b[0]) <= side) })
				case 2:
					c.split(func(a, b peer.ID) bool { return false })
				case 3:
					m.end()
					c.start(n, m.disk)
				case 4, 5:
					for key := range held[n] {
						if err := m.Free(t.Context(), key); err != nil {
							t.Fatal(err)
						}
						delete(held[n], key)
						break
					}
				default:
					key := fmt.Sprintf("c%d", step)
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					if _, err := m.Allocate(ctx, key, nil); err == nil {
						held[n][key] = true
					}
					cancel()
				}
				synctest.Wait()
				c.check()
			}
			c.end()
		})
	})
}

// started returns a cluster of peers that know each other's rings.
func started(t *testing.T, peers int) *cluster {
	c := newCluster(t, 1)
	for n := 1; n <= peers; n++ {
		c.start(n, &disk{})
	}
	for range 3 {
		c.gossip()
		synctest.Wait()
	}
	return c
}

// Peers that answer later than usual delay an allocation together, not one after the other.
func TestSlowPeersDoNotAddUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const peers = 20
		c := started(t, peers)
		allocate := func(n int, key string) error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := c.hosts[peerID(n)].Allocate(ctx, key, nil)
			return err
		}
		for i := range universe.Usable().Len() - 1 {
			if err := allocate(1+int(i)%peers, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		c.replyLate.Store(int64(3 * usageTimeout / 2))
		for n := 1; n <= peers; n++ {
			if c.hosts[peerID(n)].full() {
				if err := allocate(n, "last"); err != nil {
					t.Errorf("peer %d could not allocate the last address: %v", n, err)
				}
				if err := allocate(n, "none"); err == nil || !strings.Contains(err.Error(), "not all peers have answered yet") {
					t.Errorf("got the error %v, want that peers are still being asked", err)
				}
				break
			}
		}
		c.end()
	})
}

// full reports whether a member has no free slot itself.
func (m *host) full() bool {
	snap, err := m.Snapshot(context.Background())
	return err == nil && snap.Free == 0
}

// Twenty peers use a /24 up to its last address. Only then requests fail, with the reason.
func TestEveryUsableAddressCanBeAllocated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const peers = 20
		c := started(t, peers)
		for i := range universe.Usable().Len() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := c.hosts[peerID(1+int(i)%peers)].Allocate(ctx, fmt.Sprint(i), nil)
			cancel()
			if err != nil {
				t.Fatalf("allocating address %d of %d: error %v, want none", i+1, universe.Usable().Len(), err)
			}
			c.check()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := c.hosts[peerID(7)].Allocate(ctx, "one more", nil); !errors.Is(err, ErrNoSpace) {
			t.Errorf("allocation when all addresses are in use: got %v, want ErrNoSpace", err)
		}
		c.end()
	})
}

func TestAllocateIsIdempotentAndSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		m := c.start(1, &disk{})
		first, err := m.Allocate(t.Context(), "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := m.Allocate(t.Context(), "a", nil); again != first {
			t.Errorf("two calls for one key returned slots %d and %d; want the same slot", first, again)
		}
		m.end()
		m = c.start(1, m.disk)
		if after, _ := m.Allocate(t.Context(), "a", nil); after != first {
			t.Errorf("after a restart the key has slot %d, want %d", after, first)
		}
		if other, _ := m.Allocate(t.Context(), "b", nil); other == first {
			t.Errorf("slot %d was allocated to two keys; want two slots", other)
		}
		c.end()
	})
}

// An allocation that cannot be persisted fails, and its slot is free again.
func TestFailedWritesChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		d := &disk{}
		m := c.start(1, d)
		if _, err := m.Allocate(t.Context(), "a", nil); err != nil {
			t.Fatal(err)
		}
		before, _ := m.Snapshot(t.Context())
		full := errors.New("disk full")
		d.Fail(full)
		if _, err := m.Allocate(t.Context(), "b", nil); !errors.Is(err, full) {
			t.Errorf("Allocate with a failing disk returned %v; want the disk's error", err)
		}
		if _, err := m.space(t.Context(), peerID(2)); !errors.Is(err, full) {
			t.Errorf("a donation with a failing disk returned %v; want the disk's error", err)
		}
		if err := m.Free(t.Context(), "a"); !errors.Is(err, full) {
			t.Errorf("Free with a failing disk returned %v; want the disk's error", err)
		}
		after, _ := m.Snapshot(t.Context())
		if after.Free != before.Free || !after.Ring.Equal(before.Ring) || len(after.Allocations) != 1 {
			t.Errorf("failed writes changed the state to %+v, want %+v", after, before)
		}
		c.end()
	})
}

// One request leads to one grant, even if the grant arrives by gossip before the reply.
func TestOneRequestLeadsToOneGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		for n := 1; n <= 3; n++ {
			c.start(n, &disk{})
		}
		c.gossip()
		c.replyLate.Store(int64(100 * time.Millisecond))
		for n := 2; n <= 3; n++ {
			if _, err := c.hosts[peerID(n)].Allocate(t.Context(), "a", nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		snap, _ := c.hosts[peerID(1)].Snapshot(t.Context())
		if segments := snap.Ring.Segments(); len(segments) != 3 {
			t.Errorf("the ring has segments %v, want 3: one per peer", segments)
		}
		c.end()
	})
}

func TestAllocateWithoutRingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		m := c.start(2, &disk{})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := m.Allocate(ctx, "a", nil); !errors.Is(err, ErrNoRing) {
			t.Errorf("the request returned %v; want ErrNoRing", err)
		}
		c.end()
	})
}

// Rings of another founder, cluster or universe are reported as conflicts and not merged.
func TestForeignRingsAreReportedAndNotMerged(t *testing.T) {
	other := universe
	other.V4 = netip.MustParsePrefix("10.99.0.0/24")
	for name, theirs := range map[string]ring.Ring{
		"another founder":  ring.Found(ring.ID{2}, [16]byte{1}, universe, peerID(2)),
		"another cluster":  ring.Found(ring.ID{1}, [16]byte{9}, universe, peerID(2)),
		"another universe": ring.Found(ring.ID{1}, [16]byte{1}, other, peerID(2)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				m := c.start(1, &disk{})
				news, err := m.Merge(theirs.Encode())
				snap, _ := m.Snapshot(t.Context())
				if news != nil || err == nil || snap.Conflict == nil {
					t.Errorf("Merge gave news %v, error %v; want no news, an error and a conflict", news, err)
				}
				if owner, _ := snap.Ring.Owner(5); owner != peerID(1) {
					t.Errorf("in our ring slot 5 now belongs to %v; want the owner unchanged", owner)
				}
				time.Sleep(conflictLife)
				if snap, _ = m.Snapshot(t.Context()); snap.Conflict != nil {
					t.Error("after conflictLife the snapshot still has the conflict; want none")
				}
				c.end()
			})
		})
	}
}

// No slot is allocated to a request that was cancelled, even if space arrives at that moment.
func TestCancelledRequestGetsNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		founder := c.start(1, &disk{})
		m := c.start(2, &disk{})
		ctx, cancel := context.WithCancel(t.Context())
		given := make(chan error, 1)
		go func() {
			_, err := m.Allocate(ctx, "a", nil)
			given <- err
		}()
		synctest.Wait() // wait until the request waits for a ring
		cancel()
		delta, err := founder.space(t.Context(), m.id)
		if err == nil {
			_, err = m.Merge(delta)
		}
		if err != nil {
			t.Fatal(err)
		}
		err = <-given
		snap, _ := m.Snapshot(t.Context())
		if (err == nil) != (len(snap.Allocations) == 1) || snap.Waiting != 0 {
			t.Errorf("the cancelled request returned %v, but the allocations are %v and %d requests wait; want a slot exactly if there is no error", err, snap.Allocations, snap.Waiting)
		}
		c.end()
	})
}
