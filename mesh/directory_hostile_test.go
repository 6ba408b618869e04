package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// replying makes a Solo answer every request with the result of f.
func replying(f func() []byte) func(meshtest.Asked) ([]byte, error) {
	return func(meshtest.Asked) ([]byte, error) { return f(), nil }
}

// quiet returns a directory that does not run.
func quiet(t testing.TB, n int, m Messenger) *Directory {
	t.Helper()
	d, err := NewDirectory(DirectoryConfig{
		Identity: identity(n), Mesh: m, Store: &meshtest.Disk{}, Wanted: func(peer.ID) bool { return true },
		Log: slog.New(slog.DiscardHandler), Changed: func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func set(t testing.TB, n int, old *directory.Set, endpoints ...directory.Endpoint) (*directory.Set, *directory.Delta) {
	t.Helper()
	s, d, err := directory.Next(old, endpoints, 0, identity(n))
	if err != nil {
		t.Fatal(err)
	}
	return s, d
}

// fetchAll fetches as Run does, until nothing is wanted.
func fetchAll(t testing.TB, d *Directory) {
	t.Helper()
	for range 100 {
		var group sync.WaitGroup
		d.fetch(t.Context(), &group)
		group.Wait()
		if d.mu.Lock(); len(d.wanted) == 0 {
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
	}
	t.Fatalf("after 100 rounds the directory still requests sets: %v; want none", d.wanted)
}

// No message causes a panic, endless requests or a change of this peer's own endpoints.
func FuzzDirectory(f *testing.F) {
	s1, _ := set(f, 2, nil, at("a", 1))
	s2, d2 := set(f, 2, s1, at("a", 1), at("b", 2))
	f.Add(encode(news{From: idOf(2), Held: []directory.Held{s2.Held(), {Owner: idOf(3), Version: 1 << 63}}}), encode([]peer.ID{idOf(1)}))
	f.Add(encode(news{From: idOf(2), Delta: d2.Encode()}), encode([][]byte{s1.Encode(), s2.Encode()}))
	f.Add(encode(news{From: idOf(3), Held: []directory.Held{{Owner: idOf(1), Version: 9}}, Delta: []byte{}}), encode(s2.Held()))
	own, _ := set(f, 1, nil, at("lost", 3))
	own, _ = set(f, 1, own, at("lost", 3), at("mine", 4))
	f.Add(encode(news{From: idOf(2), Held: []directory.Held{own.Held()}}), encode([][]byte{own.Encode()}))
	f.Add([]byte{0xa0}, []byte{0x80})
	f.Fuzz(func(t *testing.T, gossip, answer []byte) {
		m := &meshtest.Solo{Reply: replying(func() []byte { return answer })}
		d := quiet(t, 1, m)
		if err := d.Publish([]directory.Endpoint{at("mine", 1)}); err != nil {
			t.Fatal(err)
		}
		d.mu.Lock()
		d.dir.Put(s1)
		d.mu.Unlock()
		for _, data := range [][]byte{gossip, answer} {
			_, _ = d.Merge(data)
			_, _ = d.serveSets(t.Context(), idOf(2), data)
			_, _ = d.serveHeld(t.Context(), idOf(2), data)
			_, _ = d.serveHeld(t.Context(), idOf(3), data)
			fetchAll(t, d)
		}
		_ = d.confirmOne(t.Context(), idOf(2), d.set(idOf(1)).Held())
		fetchAll(t, d)
		if own := d.set(idOf(1)).Endpoints(); len(own) != 1 || own[0].ID != "mine" {
			t.Errorf("foreign sets changed the own endpoints to %+v; want only mine", own)
		}
		if len(d.Held()) > 3 || len(d.asked)+len(d.busy) > 0 {
			t.Errorf("the directory holds the sets %v, and requests %v from %v; want at most 3, and no open requests", d.Held(), d.asked, d.busy)
		}
	})
}

// Unsigned data next to a signed delta is not passed on.
func TestOnlySignedDeltaIsPassedOn(t *testing.T) {
	d := quiet(t, 1, &meshtest.Solo{})
	s1, _ := set(t, 2, nil, at("a", 1))
	d.dir.Put(s1)
	_, delta := set(t, 2, s1, at("b", 1))
	lies := []directory.Held{{Owner: idOf(3), Version: 99}}
	got, err := d.Merge(encode(news{From: idOf(4), Held: lies, Delta: delta.Encode()}))
	if want := encode(news{From: idOf(4), Delta: delta.Encode()}); err != nil || !slices.Equal(got, want) {
		t.Errorf("passed on %x, error %v; want only the delta", got, err)
	}
}

// rogue starts a peer that answers requests with answer, and counts them.
func (w *dirCluster) rogue(n int, answer func() ([]byte, error)) (*meshtest.Host, *atomic.Int64) {
	host, asked := w.Host(idOf(n), nil), &atomic.Int64{}
	h := func(context.Context, peer.ID, []byte) ([]byte, error) {
		asked.Add(1)
		return answer()
	}
	host.Start(0, meshtest.HostConfig{Handlers: map[string]meshtest.Handler{requestSets: h, requestHeld: h}})
	return host, asked
}

// A malicious peer repeatedly claims to have the newest sets. The number of requests stays in
// proportion to its claims, true sets still arrive, and no request remains open.
func TestFalseVersionClaimsDoNotDelayEndpoints(t *testing.T) {
	stale, _ := set(t, 2, nil, at("first-2", 2))
	foreign, _ := set(t, 66, nil, at("foreign", 66))
	for name, answer := range map[string]func() ([]byte, error){
		"no sets":      func() ([]byte, error) { return encode([][]byte{}), nil },
		"an error":     func() ([]byte, error) { return nil, errors.New("no") },
		"no reply":     func() ([]byte, error) { time.Sleep(time.Minute); return nil, nil },
		"garbage":      func() ([]byte, error) { return []byte("garbage"), nil },
		"garbage sets": func() ([]byte, error) { return encode([][]byte{{1}, {2}}), nil },
		"stale sets":   func() ([]byte, error) { return encode([][]byte{stale.Encode()}), nil },
		"other sets":   func() ([]byte, error) { return encode([][]byte{foreign.Encode()}), nil },
		"a huge list":  func() ([]byte, error) { return encode(slices.Repeat([][]byte{stale.Encode()}, 1000)), nil },
		"a huge digest": func() ([]byte, error) {
			return encode(directory.Held{Version: 1 << 60, Digest: make([]byte, 1<<20)}), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, h := five(t)
				w.remove(idOf(66), true)
				rogue, asked := w.rogue(9, answer)
				time.Sleep(5 * time.Second)
				before := w.fetches()
				const lies = 20
				for i := range lies {
					var held []directory.Held
					for n := 1; n <= 200; n++ {
						held = append(held, directory.Held{Owner: idOf(n % 100), Version: uint64(1000 + i)})
					}
					rogue.Broadcast(DirectoryName, encode(news{From: idOf(9), Held: held}))
					if i%5 == 0 {
						w.publish(h[2], at(fmt.Sprint("true-", i), slot.Slot(i)))
					}
					time.Sleep(100 * time.Millisecond)
				}
				w.agree(15*time.Second, "all hosts have the true sets")
				time.Sleep(30 * time.Second)
				if n := w.fetches() - before; asked.Load() > 10*lies || n > 5*(5*lies+5*lies) {
					t.Errorf("%d requests went to the malicious peer, and %d to all; want a number in proportion to its claims", asked.Load(), n)
				}
				before = w.fetches()
				time.Sleep(time.Minute)
				if n := w.fetches() - before; n > 0 {
					t.Errorf("%d more requests within a minute, want none", n)
				}
				for _, r := range w.here {
					if sets, _ := r.waits(); len(r.Held()) != 5 || sets > 0 {
						t.Errorf("host %d holds the sets %v, and waits for %d; want 5 and 0", r.n, r.Held(), sets)
					}
				}
				w.end()
			})
		})
	}
}

// A reply is bounded in number of sets and in size.
func TestRepliesWithEndpointSetsAreBounded(t *testing.T) {
	d := quiet(t, 1, &meshtest.Solo{})
	s, _ := set(t, 2, nil, many(2000)...)
	d.dir.Put(s)
	one := len(s.Encode())
	answer, err := d.serveSets(t.Context(), idOf(3), encode(slices.Repeat([]peer.ID{idOf(2)}, 100_000)))
	if err != nil || len(answer) > maxAnswer+one {
		t.Errorf("the reply to a repeated request has %d bytes, error %v; want at most maxAnswer and one set", len(answer), err)
	}
	d = quiet(t, 1, &meshtest.Solo{Reply: replying(func() []byte { return answer })})
	if err := d.fetchFrom(t.Context(), idOf(3), []peer.ID{idOf(2)}); err == nil || len(d.Held()) > 0 {
		t.Errorf("a reply with more sets than requested: got %v, want an error", err)
	}
}
