package links

import (
	"fmt"
	"log/slog"
	"maps"
	"testing"
	"time"

	"weft/mesh/document"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/measure"
	"weft/prog/agent/view"
)

// Both ends of a cut choose the same relay, the nearest one, from what all hosts tell.
func TestBothEndsChooseTheSameRelay(t *testing.T) {
	in(t, 5, func(t *testing.T, w *world) {
		for _, h := range w.hosts {
			h.run(false)
			for _, other := range w.hosts {
				h.measures(other, path.Direct, 20*time.Millisecond)
			}
		}
		a, b, near := w.hosts[0], w.hosts[1], w.hosts[3]
		a.measures(near, path.Direct, 2*time.Millisecond)
		a.relays(b)
		w.cut(a, b, path.Deaf)
		time.Sleep(20 * time.Second)
		a.relays(b, near)
		b.relays(a, near)
		near.relays(a)
	})
}

// A relay that does not reach the other end is not taken, as soon as one of the two tells that.
func TestTheChoiceFollowsWhatOthersTell(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, d := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.run(false)
		a.measures(b, path.Unheard, 0)
		version := a.Version()
		c.tells(c, topology.Links{Cut: map[peer.ID]bool{b.id: true}})
		a.relays(b, d)
		if a.Version() == version {
			t.Error("the version did not grow with a new choice")
		}
		c.tells(c, topology.Links{})
		d.tells(d, topology.Links{Refuses: true})
		a.relays(b, c)
		c.tells(c, topology.Links{Cut: map[peer.ID]bool{d.id: true, b.id: true}})
		a.relays(b)
	})
}

// Several relays are taken in a row where one is not enough.
func TestTwoRelaysAreTakenWhereOneIsNotEnough(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, d := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.run(false)
		a.measures(b, path.Unheard, 0)
		a.measures(d, path.Unheard, 0)
		c.tells(c, topology.Links{Cut: map[peer.ID]bool{b.id: true}})
		a.relays(b, c, d)
	})
}

// A document counts only if its own peer wrote it.
func TestWhatAPeerTellsOfAnotherOneDoesNotCount(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		c.tells(b, topology.Links{Cut: map[peer.ID]bool{a.id: true}})
		a.relays(b)
		a.measures(b, path.Unheard, 0)
		b.tells(c, topology.Links{Refuses: true})
		a.relays(b, c)
	})
}

func TestUnreadableDocumentsDoNotCount(t *testing.T) {
	var o others
	docs := agentDocuments(t, map[int][]byte{1: {0xff}, 2: nil})
	if o.read(docs, peer.ID{}); len(o.links) != 0 {
		t.Errorf("%d unreadable documents count, want none", len(o.links))
	}
}

// agentDocuments returns documents of hosts about themselves.
func agentDocuments(t testing.TB, bodies map[int][]byte) (out []*document.Document) {
	t.Helper()
	for n, body := range bodies {
		d, err := document.Next(nil, Kind, idOf(n).String(), body, false, 1, key(n))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

// Each case takes away one of two relays, and brings it back.
func TestOnlyRunningPeersOfThisNetworkRelay(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, d := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.run(false)
		a.measures(b, path.Unheard, 0)
		a.measures(c, path.Direct, time.Millisecond) // the nearest
		a.measures(d, path.Direct, 40*time.Millisecond)
		a.relays(b, c)
		good := w.view.Records[c.id]
		for name, f := range map[string]func(gone bool){
			"left":       func(gone bool) { w.record(c, func(r *peer.Record) { r.State = peer.Left }) },
			"stopped":    func(gone bool) { w.record(c, func(r *peer.Record) { r.State = peer.Stopped }) },
			"other ring": func(gone bool) { w.record(c, func(r *peer.Record) { r.Ring = []byte{1} }) },
			"no ring":    func(gone bool) { w.record(c, func(r *peer.Record) { r.Ring = nil }) },
			"dead":       func(gone bool) { w.alive(c, !gone) },
			"banned":     func(gone bool) { w.banned[c.id] = gone; w.look() },
		} {
			f(true)
			if got := a.Relays(b.id, nil); len(got) != 1 || got[0] != d.id {
				t.Errorf("%s: the relays are %v, want the other one", name, got)
			}
			f(false)
			w.record(c, func(r *peer.Record) { *r = good })
			a.relays(b, c)
		}
	})
}

// Nobody believes a peer that has left or is banned. Nobody looks for a relay to it either.
func TestDocumentsOfPeersThatAreGoneAreNotUsed(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		b.tells(b, topology.Links{Cut: map[peer.ID]bool{a.id: true}})
		a.relays(b, c)
		w.banned[b.id] = true
		w.look()
		a.relays(b)
		w.banned[b.id] = false
		w.look()
		a.relays(b, c)
		w.record(b, func(r *peer.Record) { r.State = peer.Left })
		a.relays(b)
	})
}

// A host that relays for nobody tells that. The other hosts take another relay.
func TestAHostThatRefusesIsNotTaken(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, d := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.run(false)
		a.measures(b, path.Unheard, 0)
		a.measures(c, path.Direct, time.Millisecond)
		a.measures(d, path.Direct, 40*time.Millisecond)
		a.relays(b, c)
		c.run(true)
		time.Sleep(10 * time.Second)
		a.relays(b, d)
		w.says(a, c, []*host{}...)
	})
}

// A relay with little room left refuses further pairs, and takes some again once it has much room.
func TestAFullRelayIsNotTaken(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, d := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.run(false)
		c.run(false)
		a.measures(b, path.Unheard, 0)
		a.measures(c, path.Direct, time.Millisecond)
		a.measures(d, path.Direct, 40*time.Millisecond)
		forwards := func(pairs int) {
			c.relayed.Set(measure.Relayed{Pairs: make([]path.Pair, pairs)})
			time.Sleep(10 * time.Second)
		}
		for _, step := range []struct {
			pairs int
			relay *host
		}{{path.ManyPairs - 1, c}, {path.ManyPairs, d}, {path.ManyPairs - 1, d}, {path.ManyPairs * 3 / 4, c}, {path.ManyPairs - 1, c}} {
			forwards(step.pairs)
			a.relays(b, step.relay)
		}
	})
}

// Two hosts behind NAT that gossip does not join seem dead to each other. A relay is chosen all the same: only over it
// can they find out.
func TestAPeerThatSeemsDeadHasRelays(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		a.measures(b, path.Deaf, 0)
		a.measures(c, path.Direct, time.Millisecond)
		w.alive(b, false)
		w.view.Reach[b.id] = topology.Lost
		w.look()
		time.Sleep(time.Minute)
		a.relays(b, c)
		w.view.Records = map[peer.ID]peer.Record{a.id: w.view.Records[a.id], c.id: w.view.Records[c.id]}
		w.look()
		a.relays(b)
	})
}

func TestOnlyCapablePeersRelay(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, d := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.measures(b, path.Unheard, 0)
		a.measures(c, path.Direct, time.Millisecond)
		a.measures(d, path.Direct, 40*time.Millisecond)
		cfg := a.config(false)
		cfg.Capable = func(id peer.ID) bool { return id == d.id }
		a.set(New(cfg))
		a.relays(b, d)
	})
}

// A host with many cut links reads the others' documents seldom, but reads them.
func TestManyCutsDelayWhatOthersTell(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		a, b := w.hosts[0], w.hosts[1]
		a.run(false)
		for i := range 500 {
			other := &host{id: peer.ID{byte(i), byte(i >> 8), 7}}
			w.view.Records[other.id], w.view.Evidence[other.id] = w.view.Records[a.id], w.view.Evidence[a.id]
			a.measures(other, path.Deaf, 0)
		}
		w.look()
		time.Sleep(time.Second)
		b.tells(b, topology.Links{Usual: 1})
		version := a.Version()
		for i := range 10 {
			b.tells(b, topology.Links{Refuses: i%2 == 0})
		}
		if grown := a.Version() - version; grown < 5 || grown > 22 {
			t.Errorf("10 documents within 20 s changed the choice %d times, want about 10 times", grown)
		}
		b.tells(b, topology.Links{Refuses: true})
		if !a.Links.Told(b.id).Refuses {
			t.Error("what the other host tells was not read")
		}
	})
}

// fixed are documents that nobody writes.
type fixed struct {
	Documents
	docs []*document.Document
}

func (f fixed) List(string) []*document.Document      { return f.docs }
func (f fixed) Get(string, string) *document.Document { return nil }

// BenchmarkRelays measures the choice for one peer in a mesh of 1,000 hosts, of which each half is cut off from the other
// one. One host reaches all; or each host of the first half reaches one of the second half, so that a path takes two
// relays; or none does. Before each choice, another link of this host is cut or works again, or nothing changes.
//
//	go test -run '^$' -bench Relays ./prog/agent/links
func BenchmarkRelays(b *testing.B) {
	const n = 1000
	ids := make([]peer.ID, n)
	for i := range ids {
		ids[i] = idOf(i)
	}
	for relays, joined := range []func(i, k int) bool{
		func(int, int) bool { return false },
		func(i, k int) bool { return i == 1 || k == 1 },
		func(i, k int) bool { return i%(n/2) == k%(n/2) && i%(n/2) > n/4 },
	} {
		v := agenttest.View()
		v.Records, v.Evidence = map[peer.ID]peer.Record{}, map[peer.ID]path.Evidence{}
		paths, bodies := measure.Paths{}, map[int][]byte{}
		for i, id := range ids {
			v.Records[id], v.Evidence[id] = peer.Record{Ring: v.Ring.ID[:]}, path.Evidence{Gossip: true}
			l := topology.Links{Cut: map[peer.ID]bool{}, Usual: time.Millisecond}
			for k := range n {
				if (i < n/2) != (k < n/2) && !joined(i, k) {
					l.Cut[ids[k]] = true
				}
			}
			if i == 0 {
				for other := range l.Cut {
					paths[other] = path.Path{State: path.Deaf}
				}
			}
			bodies[i], _ = l.Encode()
		}
		other := maps.Clone(paths)
		other[ids[2]] = path.Path{State: path.Deaf}
		paths[ids[2]] = path.Path{State: path.Direct}
		for name, states := range map[string][]measure.Paths{"unchanged": nil, "changed": {paths, other}} {
			b.Run(fmt.Sprintf("%d relays/%s", relays, name), func(b *testing.B) {
				var seen live.Value[*view.View]
				var measured live.Value[measure.Paths]
				seen.Set(v)
				measured.Set(paths)
				l := New(Config{
					Self: ids[0], Documents: fixed{docs: agentDocuments(b, bodies)}, Paths: &measured, View: &seen,
					Banned: func(peer.ID) bool { return false }, Log: slog.New(slog.DiscardHandler),
				})
				l.Relays(ids[n/2+5], nil)
				for i := 0; b.Loop(); i++ {
					if len(states) > 0 {
						measured.Set(states[i%2])
					}
					if got := l.Relays(ids[n/2+5], nil); len(got) != relays {
						b.Fatalf("the relays are %v, want %d", got, relays)
					}
				}
			})
		}
	}
}
