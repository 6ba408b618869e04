package mesh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// Documents converge in spite of loss and partitions, and of clocks that are wrong by decades.
// Hosts restart with the same disk, an older copy or an empty disk.
func TestDocumentsConverge(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { documentFaults(t, seed) })
		})
	}
}

func documentFaults(t *testing.T, seed uint64) {
	c, r := newDocCluster(t, seed), rand.New(rand.NewPCG(seed, 1))
	c.SetConditions(meshtest.Conditions{Loss: 0.2, Duplicate: 0.1, Delay: time.Second})
	disks, backups := map[int]*meshtest.Disk{}, map[int][]*meshtest.Disk{}
	for n := 1; n <= 5; n++ {
		c.start(n, 0, nil)
	}
	if err := c.here[1].MarkSynced(); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		n := 1 + r.IntN(5)
		m := c.here[n]
		switch dice := r.IntN(20); {
		case m == nil:
			disk := disks[n]
			if b := backups[n]; dice < 4 && len(b) > 0 {
				disk = b[r.IntN(len(b))].Copy()
			} else if dice < 6 {
				disk = nil
			}
			c.start(n, 0, disk)
		case dice < 11:
			var changes []Change
			for i := range 1 + r.IntN(3) {
				change := policy(fmt.Sprint("web-", i), fmt.Sprint(r.IntN(3), strings.Repeat("x", r.IntN(2)*3000)))
				if r.IntN(3) == 0 {
					change = noPolicy(change.Name)
				}
				changes = append(changes, change)
			}
			m.ahead.Store([]int64{0, 0, 0, -20_000, 20_000}[r.IntN(5)])
			c.write(m, changes...)
			m.ahead.Store(0)
		case dice < 13:
			backups[n] = append(backups[n], m.disk.Copy())
		case dice < 15 && len(c.here) > 2:
			c.kill(m)
			disks[n] = m.disk
		case dice < 17:
			c.Partition(func(*meshtest.Host) int { return r.IntN(2) })
		default:
			c.Heal()
		}
		time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
	}
	c.Heal()
	var last *docHost
	for _, m := range c.here {
		last = m
		c.write(m, policy(fmt.Sprint("last-", m.n), "x"))
	}
	c.agree(5*time.Minute, "*")
	c.write(last, policy("web-0", "the last word"))
	c.agree(time.Minute, "*")
	time.Sleep(2 * time.Minute)
	c.agree(0, "*")
	before := c.Requests("")
	time.Sleep(time.Minute)
	if n := c.Requests("") - before; n > 0 {
		t.Errorf("%d more requests within a minute, want none", n)
	}
	for _, m := range c.here {
		again := documents(t, m.n, &meshtest.Solo{}, m.disk)
		if got := reads(again); got != reads(m.Documents) || !strings.Contains(got, "web-0=the last word") || !m.Synced() {
			t.Errorf("host %d has the documents %s, on disk %s, synced: %v; want the last write in both, and synced", m.n, reads(m.Documents), got, m.Synced())
		}
	}
	c.end()
}

// With memberlist's packets, a joining peer has all documents and is synced within a second,
// without waiting half a minute for push/pull.
func TestJoiningPeerHasDocumentsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(1)}
		var hosts []*host
		var docs []*Documents
		ctx, cancel := context.WithCancel(context.Background())
		var runs sync.WaitGroup
		start := func(n int, targets ...string) {
			h := s.make(nil, n, nil, targets)
			d := documents(t, n, h.Mesh, h.disk)
			h.Replicate(d)
			for kind, handler := range d.Handlers() {
				h.Handle(kind, handler)
			}
			h.run()
			runs.Go(func() { _ = d.Run(ctx) })
			hosts, docs = append(hosts, h), append(docs, d)
		}
		start(1)
		if err := docs[0].MarkSynced(); err != nil {
			t.Fatal(err)
		}
		for i := range 40 { // these are more documents than fit into one reply
			if err := docs[0].Write([]Change{policy(fmt.Sprint(i), strings.Repeat("x", 30_000))}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		for n := 2; n <= 5; n++ {
			start(n, address(n-1).Addr().String())
			d := docs[n-1]
			eventually.True(t, time.Second, "the joining peer is synced", func() bool { return d.Synced() && d.Generation("policy") == docs[0].Generation("policy") })
		}
		time.Sleep(5 * time.Second)
		if err := docs[4].Write([]Change{policy("small", "y"), noPolicy("1")}); err != nil {
			t.Fatal(err)
		}
		if err := docs[3].Write([]Change{policy("large", strings.Repeat("z", 60_000))}); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, 2*time.Second, "all peers have the changes", func() bool {
			for _, d := range docs {
				if d.Get("policy", "small") == nil || d.Get("policy", "large") == nil || d.Get("policy", "1") != nil {
					return false
				}
			}
			return true
		})
		cancel()
		runs.Wait()
		s.end(hosts...)
	})
}

// Tombstones are dropped from all disks after 30 days, even if clocks are wrong.
func TestTombstonesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m := four(t)
		m[4].ahead.Store(20_000)
		c.write(m[1], policy("web", "1"), policy("db", "1"), policy("dns", "1"))
		c.agree(time.Second, "db=1 dns=1 web=1")
		c.write(m[1], noPolicy("web"))
		c.write(m[4], noPolicy("db"))
		time.Sleep(2 * flushEvery)
		for n, m := range c.here {
			if got := reads(m.Documents); got != "dns=1" || stored(m.disk) != 3 {
				t.Errorf("host %d has the documents %s, and stores %d entries; want dns=1 and 3 entries", n, got, stored(m.disk))
			}
		}
		c.Close() // no gossip is sent while clocks advance by a month
		for _, m := range c.here {
			m.ahead.Store(31)
		}
		time.Sleep(2 * flushEvery)
		for n, m := range c.here {
			if got := reads(m.Documents); got != "dns=1" || stored(m.disk) != 1 {
				t.Errorf("after 31 days host %d has the documents %s, and stores %d entries; want dns=1 and one entry", n, got, stored(m.disk))
			}
		}
		c.end()
	})
}

// A peer that missed the first push/pull becomes synced without waiting for the next push/pull.
func TestPeerBecomesSyncedWithoutPushPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := func(q meshtest.Asked) ([]byte, error) { // only one of the two other peers answers, and push/pull reaches neither
			if q.To != (peer.ID{2}) || q.Kind != requestMissing {
				return nil, ErrUnreachable
			}
			return encode(documentAnswer{Synced: true}), nil
		}
		d := documents(t, 3, &meshtest.Solo{Peers: []peer.ID{{1}, {2}}, Reply: answer}, &meshtest.Disk{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		time.Sleep(2 * compareEvery)
		if !d.Synced() {
			t.Error("the documents are not synced without push/pull; want them synced by requests")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
