package pairs

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// town connects the Pairs of several hosts.
type town struct {
	mu      sync.Mutex
	hosts   map[peer.ID]*Pairs
	holders map[peer.ID]bool
	cut     bool
	silent  map[peer.ID]bool // requests to them hang
	mute    bool             // only hosts with a higher id reach others
}

// view is the mesh as one host sees it.
type view struct {
	*town
	self peer.ID
}

func (v view) Name(id peer.ID) string      { return id.String() + "(name)" }
func (v view) HoldsSecret(id peer.ID) bool { return v.holders[id] }

func (v view) Others() (out []peer.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range v.hosts {
		if id != v.self {
			out = append(out, id)
		}
	}
	return out
}

func (v view) Reachable(peer.ID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.cut
}

func (v view) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	v.mu.Lock()
	silent := v.silent[to]
	h, cut := v.hosts[to], v.cut || v.mute && bytes.Compare(v.self[:], to[:]) < 0
	v.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if h == nil || cut {
		return nil, errors.New("no answer")
	}
	return h.Handlers()[kind](ctx, v.self, payload)
}

type disk struct {
	keys map[string][]byte
	fail atomic.Bool
}

func (d *disk) Pairs() (map[string][]byte, error) { return d.keys, nil }
func (d *disk) SavePairs(keys map[string][]byte) error {
	if d.fail.Load() {
		return errors.New("disk full")
	}
	d.keys = maps.Clone(keys)
	return nil
}

func (w *town) start(t *testing.T, n int, d *disk) (p *Pairs, stop func()) {
	t.Helper()
	id := meshtest.ID(n)
	p, err := New(Config{
		Self: id, Holds: w.holders[id], Shared: func(peer.ID) [32]byte { return [32]byte{9} }, Mesh: view{w, id}, Store: d,
		Random: rand.Reader, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.hosts[id] = p
	w.mu.Unlock()
	ctx, end := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = p.Run(ctx) })
	stop = sync.OnceFunc(func() { end(); done.Wait() })
	t.Cleanup(stop)
	return p, stop
}

// Two holders use the key of the secret. Any other pair agrees on a key of its own, which survives the
// restart of either host.
func TestPairsWithoutTheSecretAgreeOnAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &town{hosts: map[peer.ID]*Pairs{}, holders: map[peer.ID]bool{meshtest.ID(1): true, meshtest.ID(2): true}}
		disks := []*disk{{}, {}, {}, {}, {}}
		var hosts []*Pairs
		var stops []func()
		for n := range disks {
			p, stop := w.start(t, n, disks[n])
			hosts, stops = append(hosts, p), append(stops, stop)
		}
		time.Sleep(3 * time.Second)
		seen := map[[32]byte]bool{}
		for i := range hosts {
			for j := range i {
				a, b := hosts[i].Key(meshtest.ID(j)), hosts[j].Key(meshtest.ID(i))
				shared := i == 2 && j == 1
				if a != b || a == [32]byte{} || (a == [32]byte{9}) != shared || seen[a] {
					t.Errorf("hosts %d and %d have the keys %x and %x; want one of their own, or the secret's for two holders", i, j, a, b)
				}
				seen[a] = true
			}
		}
		before := hosts[3].Key(meshtest.ID(4))
		for _, n := range []int{3, 4} {
			stops[n]()
			hosts[n], stops[n] = w.start(t, n, disks[n])
			if got := hosts[n].Key(meshtest.ID(7 - n)); got != before {
				t.Errorf("after the restart of host %d, its key is %x, want %x", n, got, before)
			}
		}
		time.Sleep(3 * time.Second)
		if a, b := hosts[3].Key(meshtest.ID(4)), hosts[4].Key(meshtest.ID(3)); a != before || b != before {
			t.Errorf("after both restarts the keys are %x and %x, want %x", a, b, before)
		}
	})
}

// A key counts only once the other host has it and it is stored. A host that lost its key gets it again.
func TestAKeyCountsOnceBothHaveIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &town{hosts: map[peer.ID]*Pairs{}, cut: true}
		low, high := 1, 2
		if a, b := meshtest.ID(1), meshtest.ID(2); string(a[:]) > string(b[:]) {
			low, high = 2, 1
		}
		full := &disk{}
		full.fail.Store(true)
		a, _ := w.start(t, low, &disk{})
		b, stop := w.start(t, high, full)
		time.Sleep(3 * time.Second)
		if key := a.Key(meshtest.ID(high)); key != [32]byte{} {
			t.Errorf("the other host cannot be reached, but there is a key %x, want none", key)
		}
		w.mu.Lock()
		w.cut = false
		w.mu.Unlock()
		time.Sleep(3 * time.Second)
		if key, other := a.Key(meshtest.ID(high)), b.Key(meshtest.ID(low)); key != [32]byte{} || other != [32]byte{} {
			t.Errorf("the other host cannot store the key, but the keys are %x and %x, want none", key, other)
		}
		full.fail.Store(false)
		time.Sleep(3 * time.Second)
		key := a.Key(meshtest.ID(high))
		if key == [32]byte{} || b.Key(meshtest.ID(low)) != key {
			t.Fatalf("the keys are %x and %x, want the same", key, b.Key(meshtest.ID(low)))
		}
		stop()
		w.mu.Lock()
		w.cut = true
		w.mu.Unlock()
		time.Sleep(3 * time.Second)
		b, _ = w.start(t, high, &disk{}) // it has lost its state
		w.mu.Lock()
		w.cut = false
		w.mu.Unlock()
		time.Sleep(3 * time.Second)
		if got := b.Key(meshtest.ID(low)); got != key {
			t.Errorf("the host that lost its key has %x, want %x", got, key)
		}
		for _, bad := range [][]byte{nil, make([]byte, 32), make([]byte, 31)} {
			if _, err := b.serve(t.Context(), meshtest.ID(low), bad); err == nil {
				t.Errorf("a key of %d zero bytes was accepted, want it refused", len(bad))
			}
		}
		if _, err := a.serve(t.Context(), meshtest.ID(high), bytes.Repeat([]byte{7}, 32)); err == nil {
			t.Error("a key of the peer with the higher id was accepted, want it refused")
		}
	})
}

// A host whose peer cannot reach it, as behind NAT, asks for the key.
func TestAHostThatNobodyReachesAsksForTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &town{hosts: map[peer.ID]*Pairs{}, mute: true}
		a, _ := w.start(t, 1, &disk{})
		b, _ := w.start(t, 2, &disk{})
		time.Sleep(askAfter + 3*time.Second)
		key := a.Key(meshtest.ID(2))
		if key == [32]byte{} || b.Key(meshtest.ID(1)) != key {
			t.Fatalf("the keys are %x and %x, want the same", key, b.Key(meshtest.ID(1)))
		}
		w.mu.Lock()
		w.mute = false
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		if one, other := a.Key(meshtest.ID(2)), b.Key(meshtest.ID(1)); one != key || other != key {
			t.Errorf("once both reach each other the keys are %x and %x, want %x", one, other, key)
		}
	})
}

// A few peers that do not answer keep no other peer waiting.
func TestSilentPeersDelayNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &town{hosts: map[peer.ID]*Pairs{}, silent: map[peer.ID]bool{}}
		for n := 10; n < 10+atOnce/2; n++ {
			w.silent[meshtest.ID(n)] = true
			w.hosts[meshtest.ID(n)] = nil
		}
		a, _ := w.start(t, 1, &disk{})
		time.Sleep(5 * time.Second) // it asks them
		b, _ := w.start(t, 2, &disk{})
		time.Sleep(askAfter + 3*time.Second)
		if key := a.Key(meshtest.ID(2)); key == [32]byte{} || b.Key(meshtest.ID(1)) != key {
			t.Errorf("the keys are %x and %x, want the same", key, b.Key(meshtest.ID(1)))
		}
	})
}

// Ever new peers give keys. The stored keys are bounded, and those of present peers stay.
func TestKeysOfForgottenPeersAreDropped(t *testing.T) {
	w, d := &town{hosts: map[peer.ID]*Pairs{}, holders: map[peer.ID]bool{}}, &disk{}
	self := peer.ID{255, 255}
	p, err := New(Config{Self: self, Mesh: view{w, self}, Store: d, Random: rand.Reader, Log: slog.New(slog.DiscardHandler), Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	present := peer.ID{1}
	w.hosts[present] = nil
	if _, err := p.serve(t.Context(), present, bytes.Repeat([]byte{7}, 32)); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	for i := range uint32(maxKeys) {
		var id peer.ID
		binary.BigEndian.PutUint32(id[4:], i)
		p.keys[id] = [32]byte{1}
	}
	p.mu.Unlock()
	last := peer.ID{2}
	if _, err := p.serve(t.Context(), last, bytes.Repeat([]byte{8}, 32)); err != nil {
		t.Fatal(err)
	}
	if len(d.keys) != 2 || p.Key(present)[0] != 7 || p.Key(last)[0] != 8 {
		t.Errorf("%d keys are stored, want those of the present peer and of the new one", len(d.keys))
	}
}
