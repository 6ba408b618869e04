package mesh

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// dirCluster is a cluster of hosts with a directory each.
type dirCluster struct {
	*meshtest.Cluster
	t    *testing.T
	mu   sync.Mutex
	gone map[peer.ID]bool // removed peers, whose sets are not wanted
	here map[int]*dirHost
}

// dirHost is one run of a host.
type dirHost struct {
	*Directory
	*meshtest.Host
	n      int
	disk   *meshtest.Disk
	says   []directory.Endpoint // the endpoints that the host has published
	behind atomic.Bool          // whether the host has not applied the new policy yet
}

func newDirCluster(t *testing.T, seed uint64) *dirCluster {
	return &dirCluster{t: t, Cluster: meshtest.NewCluster(seed), gone: map[peer.ID]bool{}, here: map[int]*dirHost{}}
}

func (w *dirCluster) wanted(id peer.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.gone[id]
}

func (w *dirCluster) remove(id peer.ID, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone[id] = gone
}

// start runs host n in a partition of the network, from its disk.
func (w *dirCluster) start(n, side int, disk *meshtest.Disk) *dirHost {
	w.t.Helper()
	if disk == nil {
		disk = &meshtest.Disk{}
	}
	r := &dirHost{n: n, Host: w.Host(idOf(n), nil), disk: disk}
	d, err := NewDirectory(DirectoryConfig{
		Identity: identity(n), Mesh: r.Host, Store: disk, Sets: slices.Collect(maps.Values(disk.Sets())), Wanted: w.wanted,
		Log: slog.New(slog.DiscardHandler), Changed: func() {},
		Settle: func() error {
			if r.behind.Load() {
				return errors.New("the kernel is behind")
			}
			return nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	r.Directory = d
	r.Start(side, meshtest.HostConfig{
		Replicas: []meshtest.Replica{d}, Handlers: meshtest.Handlers(d.Handlers()), Run: d.Run,
	})
	w.here[n] = r
	return r
}

// kill ends a host's run without an announcement.
func (w *dirCluster) kill(r *dirHost) {
	if err := r.Stop(); err != nil {
		w.t.Error(err)
	}
	delete(w.here, r.n)
}

func (w *dirCluster) end() {
	if err := w.Stop(); err != nil {
		w.t.Error(err)
	}
}

// publish publishes endpoints of a host.
func (w *dirCluster) publish(r *dirHost, endpoints ...directory.Endpoint) {
	w.t.Helper()
	r.says = endpoints
	if err := r.Publish(endpoints); err != nil {
		w.t.Fatal(err)
	}
}

// agree waits until all running hosts have equal sets, with the endpoints that each host published.
func (w *dirCluster) agree(within time.Duration, what string) {
	w.t.Helper()
	eventually.Nil(w.t, within, what, w.differ)
}

func (w *dirCluster) differ() error {
	var first *dirHost
	for _, n := range slices.Sorted(maps.Keys(w.here)) {
		r := w.here[n]
		if first == nil {
			first = r
		}
		if got, want := fmt.Sprint(r.Held()), fmt.Sprint(first.Held()); got != want {
			return fmt.Errorf("host %d holds the sets\n%s, host %d\n%s; want the same", r.n, got, first.n, want)
		}
		for _, o := range w.here {
			if got, want := describe(r.set(idOf(o.n)).Endpoints()), describe(o.says); got != want {
				return fmt.Errorf("host %d holds for host %d the endpoints %s; want %s", r.n, o.n, got, want)
			}
		}
	}
	return nil
}

func describe(endpoints []directory.Endpoint) string {
	var out []string
	for _, e := range endpoints {
		e.Generation = 0
		out = append(out, fmt.Sprintf("%+v", e))
	}
	slices.Sort(out)
	return fmt.Sprint(out)
}

func at(id string, slots ...slot.Slot) directory.Endpoint {
	return directory.Endpoint{ID: id, Name: id, Slots: slots, Labels: map[string]string{"app": id}}
}

func many(n int) (out []directory.Endpoint) {
	for i := range n {
		out = append(out, at(fmt.Sprintf("many-%d", i), slot.Slot(i)))
	}
	return out
}

// five returns hosts 1 to 5, which know each other.
func five(t *testing.T) (*dirCluster, [6]*dirHost) {
	w := newDirCluster(t, 1)
	var h [6]*dirHost
	for n := 1; n <= 5; n++ {
		h[n] = w.start(n, 0, nil)
		w.publish(h[n], at(fmt.Sprint("first-", n), slot.Slot(n)))
	}
	w.agree(10*time.Second, "all hosts have all sets")
	time.Sleep(10 * time.Second)
	return w, h
}

// waits returns how many sets and freed slots a host still waits for.
func (r *dirHost) waits() (sets, slots int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.wanted) + len(r.asked) + len(r.busy), len(r.left)
}

func (w *dirCluster) fetches() int { return w.Requests(requestSets) }

// A small change arrives by gossip alone; a large change is fetched once by each peer.
func TestEndpointChangeReachesAllPeersSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		before := w.fetches()
		w.publish(h[1], at("a", 1), at("b", 11))
		w.agree(200*time.Millisecond, "a change")
		if n := w.fetches() - before; n != 0 {
			t.Errorf("a small change caused %d fetches; want 0", n)
		}
		time.Sleep(10 * time.Second)
		before = w.fetches()
		w.publish(h[1], append(many(100), at("b", 111))...)
		w.agree(300*time.Millisecond, "a large change")
		time.Sleep(time.Minute)
		if n := w.fetches() - before; n != 4 {
			t.Errorf("%d fetches of a large set by four peers, want 4", n)
		}
		w.publish(h[1])
		w.agree(300*time.Millisecond, "the removal of all endpoints")
		w.end()
	})
}

// A peer that missed a change fetches the set when the next change arrives, even if it is fetching
// an older set at that time.
func TestLostDeltaLeadsToFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.SetConditions(meshtest.Conditions{Loss: 1})
		w.publish(h[1], at("a", 1))
		time.Sleep(50 * time.Millisecond)
		w.SetConditions(meshtest.Conditions{})
		w.publish(h[1], at("a", 1), at("b", 11))
		w.agree(200*time.Millisecond, "the missed change arrives")
		w.SetConditions(meshtest.Conditions{Delay: 100 * time.Millisecond})
		for i := range 30 {
			w.publish(h[2], many(i)...)
			time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		}
		w.agree(time.Second, "a quick series of changes")
		w.end()
	})
}

// If a newer set is announced while an older set is being fetched, the newer set is fetched next.
func TestNewerSetIsFetchedAfterOlderOne(t *testing.T) {
	d := quiet(t, 1, &meshtest.Solo{})
	s1, _ := set(t, 2, nil, at("a", 1))
	s2, _ := set(t, 2, s1, at("a", 1), at("b", 2))
	if _, err := d.Merge(encode(news{From: idOf(2), Held: []directory.Held{s1.Held()}})); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	d.cfg.Mesh = &meshtest.Solo{Reply: replying(func() []byte { // a newer set is announced while the fetch is under way
		if _, err := d.Merge(encode(news{From: idOf(2), Held: []directory.Held{s2.Held()}})); err != nil {
			t.Error(err)
		}
		return encode([][]byte{s1.Encode()})
	})}
	d.fetch(t.Context(), &group)
	group.Wait()
	d.cfg.Mesh = &meshtest.Solo{Reply: replying(func() []byte { return encode([][]byte{s2.Encode()}) })}
	d.fetch(t.Context(), &group)
	group.Wait()
	if got := d.set(idOf(2)); got == nil || got.Version != s2.Version {
		t.Errorf("the directory has set %+v, want version 2", got)
	}
}

func TestDirectoryConvergesAfterPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.Isolate(h[1].Host, h[2].Host)
		time.Sleep(10 * time.Second)
		for i := range 10 {
			for n := 1; n <= 5; n++ {
				w.publish(h[n], at(fmt.Sprint("later-", n), slot.Slot(20+n)), at(fmt.Sprint("round-", i), slot.Slot(30+n)))
			}
			time.Sleep(3 * time.Second)
		}
		if w.differ() == nil {
			t.Fatal("during the partition the directories are equal; want a difference, else the test proves nothing")
		}
		w.Heal()
		w.agree(time.Minute, "all hosts have the same sets after the partition")
		w.end()
	})
}

func TestDirectorySurvivesRestartAndOlderDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		held := fmt.Sprint(h[1].Held())
		w.kill(h[1])
		h[1] = w.start(1, 0, h[1].disk)
		if got := fmt.Sprint(h[1].Held()); got != held {
			t.Errorf("after a restart the directory holds %s; want %s", got, held)
		}
		w.publish(h[1], at("first-1", 1))
		time.Sleep(time.Minute)
		if got := fmt.Sprint(h[1].Held()); got != held {
			t.Errorf("publishing the same endpoints changed the sets to %s, want %s", got, held)
		}
		w.agree(0, "after a restart")
		// Start host 1 with an older copy of its disk, and publish no endpoints at first.
		old := h[1].disk.Copy()
		w.publish(h[1], many(3)...)
		time.Sleep(3 * time.Second)
		w.publish(h[1], append(many(2), at("x", 77))...)
		time.Sleep(10 * time.Second)
		version := h[2].set(idOf(1)).Version
		w.kill(h[1])
		h[1] = w.start(1, 0, old.Copy())
		h[1].says = append(many(2), at("x", 77))
		w.agree(20*time.Second, "the restored host takes over its newer set before it publishes")
		if got := h[1].set(idOf(1)).Version; got != version {
			t.Errorf("the restored host has version %d, want %d since this run has published nothing", got, version)
		}
		w.kill(h[1])
		h[1] = w.start(1, 0, old.Copy())
		w.publish(h[1], at("first-1", 1), at("y", 78))
		if got := h[1].set(idOf(1)).Version; got >= version {
			t.Fatalf("the restored host starts with version %d, want one below %d", got, version)
		}
		w.agree(20*time.Second, "the newly published set replaces the newer version")
		for _, s := range []slot.Slot{0, 77} { // slots that only other peers knew it had used
			if !h[1].Taken(s) {
				t.Errorf("slot %d is free, but other peers may still map it; want it taken", s)
			}
		}
		time.Sleep(15 * time.Second)
		if h[1].Taken(0) || h[1].Taken(77) || !h[1].Taken(78) {
			t.Error("slot 0 or 77 is taken, or slot 78 is free; want only slot 78 taken, which peers still map")
		}
		w.end()
	})
}

// A delta of an earlier run arrives late. The peer refutes it: it broadcasts the endpoints that
// this run published, with a higher version.
func TestLateDeltaOfEarlierRunIsRefuted(t *testing.T) {
	said := 0
	d := quiet(t, 1, &meshtest.Solo{OnDelta: func([]byte) { said++ }})
	s1, _ := set(t, 1, nil, at("a", 1))
	_, delta := set(t, 1, s1, at("a", 1), at("lost", 2))
	d.dir.Put(s1)
	if err := d.Publish([]directory.Endpoint{at("a", 1)}); err != nil || said != 0 {
		t.Fatalf("publishing the stored endpoints caused %d broadcasts, error %v; want none", said, err)
	}
	if _, err := d.Merge(encode(news{From: idOf(1), Delta: delta.Encode()})); err != nil {
		t.Fatal(err)
	}
	if own := d.set(idOf(1)); own.Version != 3 || own.Len() != 1 || said != 1 || !d.Taken(2) {
		t.Errorf("the own set is %+v after %d broadcasts, and slot 2 is taken: %v; want version 3 with one endpoint, 1 broadcast, and true", own, said, d.Taken(2))
	}
}

// Sets of removed peers are deleted in memory and on disk. A returning peer continues with its own
// set or with none, whatever other peers still have.
func TestRemovedPeersEndpointsAreDeletedAndPeerCanReturn(t *testing.T) {
	for _, wiped := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, h := five(t)
			w.publish(h[1], many(5)...)
			time.Sleep(10 * time.Second)
			w.kill(h[1])
			w.Isolate(h[5].Host)
			late := h[5].disk.Copy()
			w.kill(h[5])
			w.remove(idOf(1), true)
			time.Sleep(3 * time.Second)
			for _, r := range w.here {
				if r.set(idOf(1)) != nil || r.disk.Sets()[idOf(1)] != nil {
					t.Errorf("host %d still has the set of the removed peer; want it gone from memory and disk", r.n)
				}
			}
			w.remove(idOf(1), false)
			disk := h[1].disk
			if wiped {
				disk = nil
			}
			h[1] = w.start(1, 0, disk)
			w.publish(h[1], at("new", 50))
			w.agree(20*time.Second, "the returned peer's set arrives")
			h[5] = w.start(5, 0, late)
			w.publish(h[5], at("first-5", 5))
			w.agree(time.Minute, "a host with the old set of the removed peer converges")
			w.end()
		})
	}
}
