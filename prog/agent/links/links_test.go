package links

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/measure"
)

func TestAHostThatReachesAllOthersHasNoDocument(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b := w.hosts[0], w.hosts[1]
		a.run(false)
		a.measures(b, path.Direct, time.Millisecond)
		a.measures(w.hosts[2], path.Unknown, 0)
		time.Sleep(time.Minute)
		if w.says(a, a); a.writes.Load() != 0 {
			t.Errorf("the document was written %d times, want never", a.writes.Load())
		}
	})
}

// A link on which the peer's packets arrive is cut for sure. Its end is told later, and the document is deleted.
func TestACutIsToldSoonAndItsEndLater(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		a.measures(b, path.Unheard, 0)
		time.Sleep(900 * time.Millisecond)
		w.says(c, a)
		time.Sleep(time.Second)
		w.says(c, a, b)
		a.measures(b, path.Direct, time.Millisecond)
		time.Sleep(9 * time.Second)
		w.says(c, a, b)
		time.Sleep(2 * time.Second)
		if w.says(c, a); a.writes.Load() != 2 {
			t.Errorf("the document was written %d times, want twice", a.writes.Load())
		}
	})
}

// Of a peer from which nothing comes, gossip may not know yet that it is dead.
func TestADeadHostMakesNoDocuments(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		a.measures(b, path.Deaf, 0)
		time.Sleep(5 * time.Second)
		w.alive(b, false)
		time.Sleep(time.Minute)
		w.says(c, a)
		w.alive(b, true) // it starts again, and its path is not measured yet
		time.Sleep(5 * time.Second)
		w.says(c, a)
		a.measures(b, path.Direct, 0)
		time.Sleep(time.Minute)
		if w.says(c, a); a.writes.Load() != 0 {
			t.Errorf("the document was written %d times, want never", a.writes.Load())
		}
	})
}

// Two hosts of which neither hears the other tell that as soon as one is sure that the other is alive.
func TestBothEndsTellOfACut(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		b.run(false)
		w.cut(a, b, path.Deaf)
		time.Sleep(6 * time.Second)
		w.says(c, a)
		w.says(c, b)
		time.Sleep(2 * time.Second)
		w.says(c, a, b)
		w.says(c, b, a)
	})
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		a.measures(b, path.Deaf, 0)
		b.tells(b, topology.Links{Cut: map[peer.ID]bool{a.id: true}})
		w.says(c, a, b)
	})
}

func TestAFlappingLinkStaysCut(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		for range 100 {
			a.measures(b, path.Unheard, 0)
			time.Sleep(2 * time.Second)
			w.says(c, a, b)
			a.measures(b, path.Direct, time.Millisecond)
			time.Sleep(3 * time.Second)
			w.says(c, a, b)
		}
		if a.writes.Load() != 1 {
			t.Errorf("the document was written %d times, want once", a.writes.Load())
		}
	})
}

// A link that only works badly for moments is never told. But this host's own choice follows it.
func TestAShortCutIsNotTold(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		for range 20 {
			a.measures(b, path.Unheard, 0)
			a.relays(b, c)
			time.Sleep(500 * time.Millisecond)
			a.measures(b, path.Direct, time.Millisecond)
			a.relays(b)
			time.Sleep(time.Second)
		}
		if w.says(c, a); a.writes.Load() != 0 {
			t.Errorf("the document was written %d times, want never", a.writes.Load())
		}
	})
}

// A restart of the agent neither ends a cut nor keeps one that is over.
func TestTheDocumentOfAnEarlierRunIsCorrected(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, d := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.tells(a, topology.Links{Cut: map[peer.ID]bool{b.id: true, c.id: true}, Refuses: true})
		a.run(false)
		a.relays(b, d) // not measured yet
		time.Sleep(time.Second)
		w.says(d, a, b, c)
		a.measures(b, path.Direct, time.Millisecond)
		a.measures(c, path.Deaf, 0)
		time.Sleep(20 * time.Second)
		w.says(d, a, c)
		a.measures(c, path.Direct, time.Millisecond)
		time.Sleep(20 * time.Second)
		w.says(d, a)
	})
	in(t, 3, func(t *testing.T, w *world) { // nothing has changed
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.tells(a, topology.Links{Cut: map[peer.ID]bool{b.id: true}, Usual: topology.OfOrder(3)})
		a.run(false)
		time.Sleep(15 * time.Second)
		a.measures(b, path.Unheard, 0)
		a.measures(c, path.Direct, 5*time.Millisecond)
		time.Sleep(2 * time.Minute)
		if w.says(c, a, b); a.writes.Load() != 0 {
			t.Errorf("a document that is still true was written %d times, want never", a.writes.Load())
		}
	})
	in(t, 2, func(t *testing.T, w *world) { // the earlier run refused, and this one does not
		a, b := w.hosts[0], w.hosts[1]
		a.tells(a, topology.Links{Refuses: true})
		a.run(false)
		time.Sleep(10 * time.Second)
		w.says(b, a)
	})
}

// While a peer's agent is restarted, its path fails and gossip loses it. The link stays cut, or not, as it was.
func TestACutStaysWhileThePeersAgentRestarts(t *testing.T) {
	in(t, 3, func(t *testing.T, w *world) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		a.run(false)
		a.measures(b, path.Unheard, 0)
		time.Sleep(5 * time.Second)
		w.record(b, func(r *peer.Record) { r.State = peer.Stopped })
		w.alive(b, false)
		a.measures(b, path.Deaf, 0)
		time.Sleep(time.Minute)
		w.says(c, a, b)
		a.relays(b, c)
		w.view.Reach[b.id] = topology.Lost // it does not come back
		w.look()
		time.Sleep(time.Minute)
		w.says(c, a)
		a.relays(b)
	})
}

func TestRoundTripsAreToldOnlyBesideCutsAndSeldom(t *testing.T) {
	in(t, 5, func(t *testing.T, w *world) {
		a, b := w.hosts[0], w.hosts[1]
		a.run(false)
		a.measures(b, path.Unheard, 0)
		for _, near := range w.hosts[2:4] {
			a.measures(near, path.Direct, 300*time.Microsecond)
		}
		far := w.hosts[4]
		a.measures(far, path.Direct, 40*time.Millisecond)
		time.Sleep(10 * time.Second)
		w.says(b, a, b)
		got, err := topology.DecodeLinks(b.Get(Kind, a.id.String()).Body)
		if err != nil || topology.Order(got.Usual) != 0 || len(got.RTT) != 1 || topology.Order(got.RTT[far.id]) != 6 {
			t.Errorf("the round trips are %v, usually %v, %v; want those of one far host", got.RTT, got.Usual, err)
		}
		writes := a.writes.Load()
		for i := range 300 { // around the bounds of orders, and once a real change
			rtt := 28 * time.Millisecond
			if i%2 == 0 {
				rtt = 70 * time.Millisecond
			}
			a.measures(far, path.Direct, rtt)
			time.Sleep(time.Second)
		}
		if a.writes.Load() != writes {
			t.Errorf("small changes of a round trip were written %d times, want never", a.writes.Load()-writes)
		}
		for i := range 300 {
			a.measures(far, path.Direct, time.Duration(1+i%2*500)*time.Millisecond)
			time.Sleep(time.Second)
		}
		if n := a.writes.Load() - writes; n < 2 || n > 6 {
			t.Errorf("large changes of a round trip within 5 minutes were written %d times, want at most once a minute", n)
		}
	})
}

// What another peer writes in this host's name does not count, and is replaced. A member that goes on with that causes
// few writes.
func TestAForgedDocumentIsReplaced(t *testing.T) {
	in(t, 4, func(t *testing.T, w *world) {
		a, b, c, liar := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
		a.run(false)
		a.measures(b, path.Unheard, 0)
		time.Sleep(10 * time.Second)
		lie := topology.Links{Cut: map[peer.ID]bool{c.id: true}}
		for range 30 {
			liar.tells(a, lie)
			c.relays(a)
		}
		if a.writes.Load() > 14 {
			t.Errorf("60 s of lies made this host write %d times, want once in 5 s", a.writes.Load())
		}
		time.Sleep(10 * time.Second)
		w.says(c, a, b)
		a.measures(b, path.Direct, 0)
		time.Sleep(20 * time.Second)
		liar.tells(a, lie)
		time.Sleep(10 * time.Second)
		w.says(c, a)
	})
}

// Of all hosts, one deletes the documents of peers that are gone for good, and those that are about no peer.
func TestDocumentsOfRemovedPeersAreDeleted(t *testing.T) {
	in(t, 5, func(t *testing.T, w *world) {
		a, b, left, removed, dead := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3], w.hosts[4]
		for _, h := range []*host{left, removed, dead} {
			h.tells(h, topology.Links{Refuses: true})
		}
		if err := a.Documents.Write([]mesh.Change{{Kind: Kind, Name: "nonsense", Body: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		a.run(false)
		b.run(false)
		w.record(left, func(r *peer.Record) { r.State = peer.Left })
		delete(w.view.Records, removed.id)
		w.alive(dead, false)
		for range 9 * 30 {
			w.look()
			time.Sleep(2 * time.Second)
		}
		if n := len(b.List(Kind)); n != 4 {
			t.Errorf("after 9 minutes there are %d documents, want 4", n)
		}
		for range 2 * 30 {
			w.look()
			time.Sleep(2 * time.Second)
		}
		if list := b.List(Kind); len(list) != 1 || list[0].Name != dead.id.String() {
			t.Errorf("after 11 minutes the documents are %v, want that of the dead peer", list)
		}
		if n := a.writes.Load() + b.writes.Load(); n != 1 {
			t.Errorf("the hosts wrote %d times, want once", n)
		}
	})
}

// A broken switch cuts this host from 500 of 1,000 within 15 s.
func TestManyCutsMakeFewWrites(t *testing.T) {
	in(t, 1, func(t *testing.T, w *world) {
		a := w.hosts[0]
		paths := measure.Paths{}
		for i := range 999 {
			id := peer.ID{byte(i), byte(i >> 8), 7}
			w.view.Records[id] = w.view.Records[a.id]
			w.view.Evidence[id] = w.view.Evidence[a.id]
			w.view.Peers = append(w.view.Peers, mesh.Peer{})
			paths[id] = path.Path{State: path.Direct, RTT: time.Millisecond / 2}
		}
		w.look()
		a.paths.Set(paths)
		a.run(false)
		time.Sleep(time.Second)
		n := 0
		for id := range paths {
			if n++; n > 500 {
				break
			}
			a.measures(&host{id: id}, path.Unheard, 0)
			time.Sleep(30 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		doc := a.Get(Kind, a.id.String())
		if doc == nil {
			t.Fatal("there is no document")
		}
		got, err := topology.DecodeLinks(doc.Body)
		if err != nil || len(got.Cut) != 500 || len(doc.Body) > 4100 {
			t.Errorf("the document names %d cuts in %d bytes, %v; want 500 in 4,100", len(got.Cut), len(doc.Body), err)
		}
		if a.writes.Load() > 5 {
			t.Errorf("the document was written %d times, want at most 5 times", a.writes.Load())
		}
	})
}

// A mesh that is full of these documents takes no more of them, so that there is room for policies.
func TestNoDocumentIsMadeWhereThereAreTooMany(t *testing.T) {
	in(t, 2, func(t *testing.T, w *world) {
		a, b := w.hosts[0], w.hosts[1]
		var changes []mesh.Change
		for i := range mostDocuments {
			changes = append(changes, mesh.Change{Kind: Kind, Name: fmt.Sprint(i), Body: []byte{0}})
		}
		if err := b.Documents.Write(changes); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		a.run(true)
		time.Sleep(time.Minute)
		w.says(b, a)
		if err := b.Documents.Write([]mesh.Change{{Kind: Kind, Name: "0", Deleted: true}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.says(b, a, []*host{}...)
		if a.Get(Kind, a.id.String()) == nil {
			t.Error("there is room again, but no document")
		}
	})
}
