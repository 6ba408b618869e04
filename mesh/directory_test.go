package mesh

import (
	"context"
	"crypto/ed25519"
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
	"weft/mesh/peer"
)

var ids = func() (out [100]peer.ID) {
	for n := range out {
		out[n] = peer.IDOf(identity(n).Public().(ed25519.PublicKey))
	}
	return out
}()

func idOf(n int) peer.ID { return ids[n] }

// setDisk is a DirectoryStore in memory.
type setDisk struct {
	mu   sync.Mutex
	sets map[peer.ID][]byte
	fail error
}

func (d *setDisk) SaveSets(sets map[peer.ID][]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	maps.Copy(d.sets, sets)
	maps.DeleteFunc(d.sets, func(_ peer.ID, data []byte) bool { return data == nil })
	return nil
}

func (d *setDisk) copy() *setDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &setDisk{sets: maps.Clone(d.sets)}
}

// dirCluster is a set of hosts with a directory each, on a simulated network.
type dirCluster struct {
	t    *testing.T
	net  *meshtest.Gossip
	mu   sync.Mutex
	gone map[peer.ID]bool // removed peers, whose sets are not wanted
	here map[int]*dirHost
}

// dirHost is one run of a host.
type dirHost struct {
	*Directory
	*meshtest.Node
	n      int
	disk   *setDisk
	says   []directory.Endpoint // what it has published
	stop   context.CancelFunc
	done   chan error
	slow   atomic.Int64 // how long it takes to answer a request
	behind atomic.Bool  // its policy is not applied yet
	asked  map[string]int
	counts sync.Mutex
}

func newDirCluster(t *testing.T, seed uint64) *dirCluster {
	return &dirCluster{t: t, net: meshtest.NewGossip(seed), gone: map[peer.ID]bool{}, here: map[int]*dirHost{}}
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

// Request counts requests by kind.
func (r *dirHost) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	r.counts.Lock()
	r.asked[kind]++
	r.counts.Unlock()
	return r.Node.Request(ctx, to, kind, payload)
}

func (r *dirHost) requests(kind string) int {
	r.counts.Lock()
	defer r.counts.Unlock()
	return r.asked[kind]
}

// Name returns a peer's name; it resolves the ambiguity with the replica's name.
func (r *dirHost) Name(id peer.ID) string { return r.Node.Name(id) }

// start runs host n in a partition of the network, from its disk.
func (w *dirCluster) start(n, side int, disk *setDisk) *dirHost {
	w.t.Helper()
	if disk == nil {
		disk = &setDisk{sets: map[peer.ID][]byte{}}
	}
	r := &dirHost{n: n, Node: w.net.Node(idOf(n), nil), disk: disk, done: make(chan error, 1), asked: map[string]int{}}
	d, err := NewDirectory(DirectoryConfig{
		Identity: identity(n), Mesh: r, Store: disk, Sets: slices.Collect(maps.Values(disk.copy().sets)), Wanted: w.wanted,
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
	handlers := map[string]meshtest.Handler{}
	for kind, h := range d.Handlers() {
		handlers[kind] = func(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
			// No timer with duration zero: Go 1.26's race detector crashes on it in a synctest
			// bubble.
			if slow := time.Duration(r.slow.Load()); slow > 0 {
				select {
				case <-time.After(slow):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return h(ctx, from, payload)
		}
	}
	r.Start(side, meshtest.NodeConfig{Replicas: []meshtest.Replica{d}, Handlers: handlers, Twin: func() {}})
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.done <- d.Run(ctx) }()
	w.here[n] = r
	return r
}

// kill ends a host's run without an announcement.
func (w *dirCluster) kill(r *dirHost) {
	r.Stop()
	r.stop()
	if err := <-r.done; err != nil {
		w.t.Error(err)
	}
	delete(w.here, r.n)
}

func (w *dirCluster) end() {
	for _, r := range w.here {
		w.kill(r)
	}
	w.net.Close()
	time.Sleep(time.Minute)
	synctest.Wait()
}

// publish publishes endpoints of a host.
func (w *dirCluster) publish(r *dirHost, endpoints ...directory.Endpoint) {
	w.t.Helper()
	r.says = endpoints
	if err := r.Publish(endpoints); err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits until all running hosts have equal sets, with the endpoints that each published.
func (w *dirCluster) eventually(within time.Duration, what string) {
	w.t.Helper()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		diff := w.differ()
		if diff == "" {
			return
		}
		if time.Since(start) > within {
			w.t.Fatalf("not reached within %v: %s: %s", within, what, diff)
		}
	}
}

func (w *dirCluster) differ() string {
	var first *dirHost
	for _, n := range slices.Sorted(maps.Keys(w.here)) {
		r := w.here[n]
		if first == nil {
			first = r
		}
		if got, want := fmt.Sprint(r.Held()), fmt.Sprint(first.Held()); got != want {
			return fmt.Sprintf("host %d holds sets\n%s, host %d\n%s", r.n, got, first.n, want)
		}
		for _, o := range w.here {
			if got, want := describe(r.set(idOf(o.n)).Endpoints()), describe(o.says); got != want {
				return fmt.Sprintf("host %d knows endpoints of host %d as %s, want %s", r.n, o.n, got, want)
			}
		}
	}
	return ""
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
	w.eventually(10*time.Second, "all hosts have all sets")
	time.Sleep(10 * time.Second)
	return w, h
}

// waits returns how many sets and freed slots a host still waits for.
func (r *dirHost) waits() (sets, slots int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.wanted) + len(r.Directory.asked) + len(r.busy), len(r.left)
}

func (w *dirCluster) fetches() (n int) {
	for _, r := range w.here {
		n += r.requests(requestSets)
	}
	return n
}

// A small change arrives by gossip alone; a large one is fetched once by each peer.
func TestChangeReachesAllPeersSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		before := w.fetches()
		w.publish(h[1], at("a", 1), at("b", 11))
		w.eventually(200*time.Millisecond, "a change")
		if n := w.fetches() - before; n != 0 {
			t.Errorf("a small change caused %d fetches; want 0", n)
		}
		time.Sleep(10 * time.Second)
		before = w.fetches()
		w.publish(h[1], append(many(100), at("b", 111))...)
		w.eventually(300*time.Millisecond, "a large change")
		time.Sleep(time.Minute)
		if n := w.fetches() - before; n != 4 {
			t.Errorf("%d fetches of a large set by four peers, want 4", n)
		}
		w.publish(h[1])
		w.eventually(300*time.Millisecond, "the removal of all endpoints")
		w.end()
	})
}

// A peer that missed a change fetches the set when the next one arrives, even if that happens while
// an older set is being fetched.
func TestLostDeltaLeadsToFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.net.SetConditions(meshtest.Conditions{Loss: 1})
		w.publish(h[1], at("a", 1))
		time.Sleep(50 * time.Millisecond)
		w.net.SetConditions(meshtest.Conditions{})
		w.publish(h[1], at("a", 1), at("b", 11))
		w.eventually(200*time.Millisecond, "the missed change arrives")
		w.net.SetConditions(meshtest.Conditions{Delay: 100 * time.Millisecond})
		for i := range 30 {
			w.publish(h[2], many(i)...)
			time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		}
		w.eventually(time.Second, "a quick series")
		w.end()
	})
}

// If a newer set is announced while an older one is being fetched, the newer one is fetched next.
func TestNewerSetIsFetchedAfterOlderOne(t *testing.T) {
	d := quiet(t, 1, &stub{})
	s1, _ := set(t, 2, nil, at("a", 1))
	s2, _ := set(t, 2, s1, at("a", 1), at("b", 2))
	if _, err := d.Merge(encode(news{From: idOf(2), Held: []directory.Held{s1.Held()}})); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	d.cfg.Mesh = &stub{answer: func() []byte { // announced while the fetch is under way
		if _, err := d.Merge(encode(news{From: idOf(2), Held: []directory.Held{s2.Held()}})); err != nil {
			t.Error(err)
		}
		return encode([][]byte{s1.Encode()})
	}}
	d.fetch(t.Context(), &group)
	group.Wait()
	d.cfg.Mesh = &stub{answer: func() []byte { return encode([][]byte{s2.Encode()}) }}
	d.fetch(t.Context(), &group)
	group.Wait()
	if got := d.set(idOf(2)); got == nil || got.Version != s2.Version {
		t.Errorf("the directory has set %+v, want version 2", got)
	}
}

func TestDirectoryConvergesAfterPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.net.Partition(func(n *meshtest.Node) int {
			if n == h[1].Node || n == h[2].Node {
				return 1
			}
			return 0
		})
		time.Sleep(10 * time.Second)
		for i := range 10 {
			for n := 1; n <= 5; n++ {
				w.publish(h[n], at(fmt.Sprint("later-", n), slot.Slot(20+n)), at(fmt.Sprint("round-", i), slot.Slot(30+n)))
			}
			time.Sleep(3 * time.Second)
		}
		if w.differ() == "" {
			t.Fatal("the directories are equal in spite of the partition")
		}
		w.net.Heal()
		w.eventually(time.Minute, "all hosts have the same sets after the partition")
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
		w.eventually(0, "after a restart")
		// Start it with an older copy of its disk, first without publishing, then with.
		old := h[1].disk.copy()
		w.publish(h[1], many(3)...)
		time.Sleep(3 * time.Second)
		w.publish(h[1], append(many(2), at("x", 77))...)
		time.Sleep(10 * time.Second)
		version := h[2].set(idOf(1)).Version
		w.kill(h[1])
		h[1] = w.start(1, 0, old.copy())
		h[1].says = append(many(2), at("x", 77))
		w.eventually(20*time.Second, "it takes over its newer set before it publishes")
		if got := h[1].set(idOf(1)).Version; got != version {
			t.Errorf("version %d, want %d since it has published nothing", got, version)
		}
		w.kill(h[1])
		h[1] = w.start(1, 0, old.copy())
		w.publish(h[1], at("first-1", 1), at("y", 78))
		if got := h[1].set(idOf(1)).Version; got >= version {
			t.Fatalf("it starts with version %d, want an older one", got)
		}
		w.eventually(20*time.Second, "the newly published set replaces the newer version")
		for _, s := range []slot.Slot{0, 77} { // slots that only other peers knew it had used
			if !h[1].Taken(s) {
				t.Errorf("slot %d is free although other peers may still map it", s)
			}
		}
		time.Sleep(15 * time.Second)
		if h[1].Taken(0) || h[1].Taken(77) || !h[1].Taken(78) {
			t.Error("the taken slots are not those that peers still map")
		}
		w.end()
	})
}

// A delta of an earlier run arrives late. The peer refutes it: it broadcasts the endpoints that
// this run published, with a higher version.
func TestOwnOlderRunIsRefuted(t *testing.T) {
	said := 0
	d := quiet(t, 1, &stub{broadcast: func([]byte) { said++ }})
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

// Sets of removed peers are deleted, also on disk. A returning peer continues with its own set or
// with none, whatever other peers still have.
func TestRemovedPeersSetIsDeletedAndCanReturn(t *testing.T) {
	for _, wiped := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, h := five(t)
			w.publish(h[1], many(5)...)
			time.Sleep(10 * time.Second)
			w.kill(h[1])
			w.net.Partition(func(n *meshtest.Node) int { // host 5 does not learn of the removal
				if n == h[5].Node {
					return 1
				}
				return 0
			})
			late := h[5].disk.copy()
			w.kill(h[5])
			w.remove(idOf(1), true)
			time.Sleep(3 * time.Second)
			for _, r := range w.here {
				if r.set(idOf(1)) != nil || r.disk.sets[idOf(1)] != nil {
					t.Errorf("host %d still has the set of the removed peer", r.n)
				}
			}
			w.remove(idOf(1), false)
			disk := h[1].disk
			if wiped {
				disk = nil
			}
			h[1] = w.start(1, 0, disk)
			w.publish(h[1], at("new", 50))
			w.eventually(20*time.Second, "the returned peer's set arrives")
			h[5] = w.start(5, 0, late)
			w.publish(h[5], at("first-5", 5))
			w.eventually(time.Minute, "a host with the old set of the removed peer converges")
			w.end()
		})
	}
}
