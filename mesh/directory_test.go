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

// setDisk is what a host keeps of the directory.
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

// town is hosts with a directory each, on a network of which the weather can be chosen.
type town struct {
	t    *testing.T
	net  *meshtest.Gossip
	mu   sync.Mutex
	gone map[peer.ID]bool // nobody wants their sets
	here map[int]*resident
}

// resident is one run of a host.
type resident struct {
	*Directory
	*meshtest.Node
	n      int
	disk   *setDisk
	says   []directory.Endpoint // what it has published
	stop   context.CancelFunc
	done   chan error
	slow   atomic.Int64 // how long it takes to answer
	behind atomic.Bool  // what follows from the directory is not yet in force
	asked  map[string]int
	counts sync.Mutex
}

func newTown(t *testing.T, seed uint64) *town {
	return &town{t: t, net: meshtest.NewGossip(seed), gone: map[peer.ID]bool{}, here: map[int]*resident{}}
}

func (w *town) wanted(id peer.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.gone[id]
}

func (w *town) remove(id peer.ID, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone[id] = gone
}

// Request counts what is asked.
func (r *resident) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	r.counts.Lock()
	r.asked[kind]++
	r.counts.Unlock()
	return r.Node.Request(ctx, to, kind, payload)
}

func (r *resident) requests(kind string) int {
	r.counts.Lock()
	defer r.counts.Unlock()
	return r.asked[kind]
}

// Name is a peer's, and not the replica's.
func (r *resident) Name(id peer.ID) string { return r.Node.Name(id) }

// start runs host n on a side of the network, with what is on its disk.
func (w *town) start(n, side int, disk *setDisk) *resident {
	w.t.Helper()
	if disk == nil {
		disk = &setDisk{sets: map[peer.ID][]byte{}}
	}
	r := &resident{n: n, Node: w.net.Node(idOf(n), nil), disk: disk, done: make(chan error, 1), asked: map[string]int{}}
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
			// Not with a timer of no time at all: Go 1.26's race detector crashes on it in a bubble.
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

// kill ends a host's run without a word.
func (w *town) kill(r *resident) {
	r.Stop()
	r.stop()
	if err := <-r.done; err != nil {
		w.t.Error(err)
	}
	delete(w.here, r.n)
}

func (w *town) end() {
	for _, r := range w.here {
		w.kill(r)
	}
	w.net.Close()
	time.Sleep(time.Minute)
	synctest.Wait()
}

// say publishes what a host has.
func (w *town) say(r *resident, endpoints ...directory.Endpoint) {
	w.t.Helper()
	r.says = endpoints
	if err := r.Publish(endpoints); err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits until all hosts know of each other what they say; of those that are not
// here, all the same.
func (w *town) eventually(within time.Duration, what string) {
	w.t.Helper()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		diff := w.differ()
		if diff == "" {
			return
		}
		if time.Since(start) > within {
			w.t.Fatalf("not within %v: %s: %s", within, what, diff)
		}
	}
}

func (w *town) differ() string {
	var first *resident
	for _, n := range slices.Sorted(maps.Keys(w.here)) {
		r := w.here[n]
		if first == nil {
			first = r
		}
		if got, want := fmt.Sprint(r.Held()), fmt.Sprint(first.Held()); got != want {
			return fmt.Sprintf("host %d holds\n%s, host %d\n%s", r.n, got, first.n, want)
		}
		for _, o := range w.here {
			if got, want := describe(r.set(idOf(o.n)).Endpoints()), describe(o.says); got != want {
				return fmt.Sprintf("host %d knows of host %d %s, which says %s", r.n, o.n, got, want)
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

// five is hosts 1 to 5 that know each other.
func five(t *testing.T) (*town, [6]*resident) {
	w := newTown(t, 1)
	var h [6]*resident
	for n := 1; n <= 5; n++ {
		h[n] = w.start(n, 0, nil)
		w.say(h[n], at(fmt.Sprint("first-", n), slot.Slot(n)))
	}
	w.eventually(10*time.Second, "they meet")
	time.Sleep(10 * time.Second)
	return w, h
}

// waits is what a host still waits for: sets, and slots that are not free yet.
func (r *resident) waits() (sets, slots int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.wanted) + len(r.Directory.asked) + len(r.busy), len(r.left)
}

func (w *town) fetches() (n int) {
	for _, r := range w.here {
		n += r.requests(requestSets)
	}
	return n
}

// A small change travels by itself; a large one is fetched, once by each.
func TestAChangeIsSoonEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		before := w.fetches()
		w.say(h[1], at("a", 1), at("b", 11))
		w.eventually(200*time.Millisecond, "a change")
		if n := w.fetches() - before; n != 0 {
			t.Errorf("%d fetches for a small change", n)
		}
		time.Sleep(10 * time.Second)
		before = w.fetches()
		w.say(h[1], append(many(100), at("b", 111))...)
		w.eventually(300*time.Millisecond, "a large change")
		time.Sleep(time.Minute)
		if n := w.fetches() - before; n != 4 {
			t.Errorf("%d fetches of one set by four", n)
		}
		w.say(h[1])
		w.eventually(300*time.Millisecond, "its end")
		w.end()
	})
}

// Who missed a change fetches the set as soon as it hears of the next one; also if that is
// announced while an older set is on its way.
func TestALostDeltaLeadsToAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.net.SetWeather(meshtest.Weather{Loss: 1})
		w.say(h[1], at("a", 1))
		time.Sleep(50 * time.Millisecond)
		w.net.SetWeather(meshtest.Weather{})
		w.say(h[1], at("a", 1), at("b", 11))
		w.eventually(200*time.Millisecond, "what was missed")
		w.net.SetWeather(meshtest.Weather{Delay: 100 * time.Millisecond})
		for i := range 30 {
			w.say(h[2], many(i)...)
			time.Sleep(time.Duration(i) * 3 * time.Millisecond)
		}
		w.eventually(time.Second, "a quick series")
		w.end()
	})
}

// A set that is on its way when a later one is announced does not end the wish for that.
func TestAnOlderSetIsNotEnough(t *testing.T) {
	d := quiet(t, 1, &stub{})
	s1, _ := set(t, 2, nil, at("a", 1))
	s2, _ := set(t, 2, s1, at("a", 1), at("b", 2))
	if _, err := d.Merge(encode(news{From: idOf(2), Held: []directory.Held{s1.Held()}})); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	d.cfg.Mesh = &stub{answer: func() []byte { // it was on its way
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
		t.Errorf("it has %+v", got)
	}
}

func TestPartitionsHeal(t *testing.T) {
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
				w.say(h[n], at(fmt.Sprint("later-", n), slot.Slot(20+n)), at(fmt.Sprint("round-", i), slot.Slot(30+n)))
			}
			time.Sleep(3 * time.Second)
		}
		if w.differ() == "" {
			t.Fatal("there was no partition")
		}
		w.net.Heal()
		w.eventually(time.Minute, "all are together again")
		w.end()
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		held := fmt.Sprint(h[1].Held())
		w.kill(h[1])
		h[1] = w.start(1, 0, h[1].disk)
		if got := fmt.Sprint(h[1].Held()); got != held {
			t.Errorf("it starts with %s, had %s", got, held)
		}
		w.say(h[1], at("first-1", 1))
		time.Sleep(time.Minute)
		if got := fmt.Sprint(h[1].Held()); got != held {
			t.Errorf("the same endpoints, but %s, before %s", got, held)
		}
		w.eventually(0, "after a restart")
		// An older copy of its disk, before it says anything, and after.
		old := h[1].disk.copy()
		w.say(h[1], many(3)...)
		time.Sleep(3 * time.Second)
		w.say(h[1], append(many(2), at("x", 77))...)
		time.Sleep(10 * time.Second)
		version := h[2].set(idOf(1)).Version
		w.kill(h[1])
		h[1] = w.start(1, 0, old.copy())
		h[1].says = append(many(2), at("x", 77))
		w.eventually(20*time.Second, "what it said is there, before it says anything")
		if got := h[1].set(idOf(1)).Version; got != version {
			t.Errorf("version %d, want %d: it says nothing new", got, version)
		}
		w.kill(h[1])
		h[1] = w.start(1, 0, old.copy())
		w.say(h[1], at("first-1", 1), at("y", 78))
		if got := h[1].set(idOf(1)).Version; got >= version {
			t.Fatalf("it starts with version %d already", got)
		}
		w.eventually(20*time.Second, "what it says now counts")
		for _, s := range []slot.Slot{0, 77} { // only the mesh knew that it had them
			if !h[1].Taken(s) {
				t.Errorf("slot %d is free at once", s)
			}
		}
		time.Sleep(15 * time.Second)
		if h[1].Taken(0) || h[1].Taken(77) || !h[1].Taken(78) {
			t.Error("what is taken is not what is known")
		}
		w.end()
	})
}

// A delta of our own past life comes late: what this run says counts.
func TestOwnPastIsAnswered(t *testing.T) {
	said := 0
	d := quiet(t, 1, &stub{broadcast: func([]byte) { said++ }})
	s1, _ := set(t, 1, nil, at("a", 1))
	_, delta := set(t, 1, s1, at("a", 1), at("lost", 2))
	d.dir.Put(s1)
	if err := d.Publish([]directory.Endpoint{at("a", 1)}); err != nil || said != 0 {
		t.Fatalf("said %d, %v", said, err)
	}
	if _, err := d.Merge(encode(news{From: idOf(1), Delta: delta.Encode()})); err != nil {
		t.Fatal(err)
	}
	if own := d.set(idOf(1)); own.Version != 3 || own.Len() != 1 || said != 1 || !d.Taken(2) {
		t.Errorf("%+v, said %d, slot 2 is taken: %v", own, said, d.Taken(2))
	}
}

// Sets of removed peers vanish, also from disk; who comes back starts where it left off, or
// from nothing, whatever some peers still remember.
func TestRemovalAndRejoin(t *testing.T) {
	for _, wiped := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, h := five(t)
			w.say(h[1], many(5)...)
			time.Sleep(10 * time.Second)
			w.kill(h[1])
			w.net.Partition(func(n *meshtest.Node) int { // host 5 hears of nothing
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
					t.Errorf("host %d still has it", r.n)
				}
			}
			w.remove(idOf(1), false)
			disk := h[1].disk
			if wiped {
				disk = nil
			}
			h[1] = w.start(1, 0, disk)
			w.say(h[1], at("new", 50))
			w.eventually(20*time.Second, "it is back")
			h[5] = w.start(5, 0, late)
			w.say(h[5], at("first-5", 5))
			w.eventually(time.Minute, "who still remembers its past comes back")
			w.end()
		})
	}
}
