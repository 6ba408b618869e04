package links

import (
	"log/slog"
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

func TestOnlyCapablePeersRelay(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, d := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.measures(b, path.Unheard, 0)
		a.measures(c, path.Direct, time.Millisecond)
		a.measures(d, path.Direct, 40*time.Millisecond)
		cfg := a.config(false)
		cfg.Capable = func(id peer.ID) bool { return id == d.id }
		a.Links = New(cfg)
		a.relays(b, d)
	})
}

// fixed are documents that nobody writes.
type fixed struct {
	Documents
	docs []*document.Document
}

func (f fixed) List(string) []*document.Document      { return f.docs }
func (f fixed) Get(string, string) *document.Document { return nil }

// BenchmarkRelays measures the choice in a mesh of 1,000 hosts of which each of the first half is cut off from the second
// one, except for one host that reaches all; or without that one.
//
//	go test -run '^$' -bench Relays ./prog/agent/links
func BenchmarkRelays(b *testing.B) {
	const n = 1000
	ids := make([]peer.ID, n)
	for i := range ids {
		ids[i] = idOf(i)
	}
	for _, c := range []struct {
		name           string
		bridge, change bool // whether a relay reaches all, and whether a document changes before each choice
	}{
		{"one/unchanged", true, false}, {"one/changed", true, true}, {"none/unchanged", false, false}, {"none/changed", false, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			v := agenttest.View()
			v.Records, v.Evidence = map[peer.ID]peer.Record{}, map[peer.ID]path.Evidence{}
			paths, links := measure.Paths{}, map[int]topology.Links{}
			for i := range n {
				v.Records[ids[i]] = peer.Record{Ring: v.Ring.ID[:]}
				v.Evidence[ids[i]] = path.Evidence{Gossip: true}
				l := topology.Links{Cut: map[peer.ID]bool{}, Usual: time.Millisecond}
				for k := range n {
					if (i < n/2) != (k < n/2) && !(c.bridge && (i == 1 || k == 1)) {
						l.Cut[ids[k]] = true
					}
				}
				links[i] = l
				paths[ids[i]] = path.Path{State: path.Direct, RTT: time.Millisecond}
				if l := links[0]; l.Cut[ids[i]] {
					paths[ids[i]] = path.Path{State: path.Deaf}
				}
			}
			bodies := map[int][]byte{}
			for i, l := range links {
				var err error
				if bodies[i], err = l.Encode(); err != nil {
					b.Fatal(err)
				}
			}
			var seen live.Value[*view.View]
			var measured live.Value[measure.Paths]
			seen.Set(v)
			measured.Set(paths)
			l := New(Config{
				Self: ids[0], Documents: fixed{docs: agentDocuments(b, bodies)}, Paths: &measured, View: &seen,
				Banned: func(peer.ID) bool { return false }, Log: slog.New(slog.DiscardHandler),
			})
			i := 0
			for k := range n { // as in a mesh that runs
				l.Relays(ids[k], nil)
			}
			for b.Loop() {
				if i++; c.change {
					l.Wake()
				}
				if got := l.Relays(ids[n/2+i%(n/2)], nil); (len(got) == 1) != c.bridge {
					b.Fatalf("the relays are %v", got)
				}
			}
		})
	}
}
