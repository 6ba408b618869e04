package reclaim

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/kube"
)

// cluster has the fakes that a reclaimer on the Node n1 uses. The ring has two owners: the
// reclaimer's peer, and a silent peer on n2.
type cluster struct {
	self, dead peer.Record
	until      time.Time // gossip reaches the dead peer until this time
	snap       ipam.Snapshot
	watched    *kube.State // the state that the watch has reported
	nodes      []kube.Node // the Nodes that the API server has now
	down       error
	asked      int
	refused    error

	mu      sync.Mutex
	removed []peer.ID
	events  []string
}

// done returns the removed peers and the events.
func (c *cluster) done() (removed []peer.ID, events []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.removed), slices.Clone(c.events)
}

func (c *cluster) say(event string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, event)
}

func (c *cluster) Peers() []mesh.Peer {
	return []mesh.Peer{{Record: c.self, Reachable: true}, {Record: c.dead, Reachable: time.Now().Before(c.until)}, {}}
}
func (*cluster) Name(id peer.ID) string                            { return id.String() }
func (c *cluster) Snapshot(context.Context) (ipam.Snapshot, error) { return c.snap, nil }
func (c *cluster) State() *kube.State                              { return c.watched }
func (c *cluster) Nodes(context.Context) ([]kube.Node, error)      { c.asked++; return c.nodes, c.down }

func (c *cluster) Warn(reason, message string) { c.say("Warning " + reason + ": " + message) }

func (c *cluster) Tell(reason, message string) { c.say("Normal " + reason + ": " + message) }

func (c *cluster) remove(_ context.Context, id peer.ID) (uint64, error) {
	if c.refused != nil {
		return 0, c.refused
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removed = append(c.removed, id)
	return 8, nil
}

// watch makes the watch report Nodes with these UIDs.
func (c *cluster) watch(uids ...string) {
	c.watched = &kube.State{Live: true, Nodes: map[string]kube.Node{}}
	for _, n := range nodes(uids...) {
		c.watched.Nodes[n.Name] = n
	}
}

func nodes(uids ...string) (out []kube.Node) {
	for _, uid := range uids {
		out = append(out, kube.Node{Name: "node-" + uid, UID: uid, Ready: true})
	}
	return out
}

func newCluster() (*cluster, *Reclaimer) {
	c := &cluster{self: agenttest.Record(1), dead: agenttest.Record(2)}
	c.self.Host, c.dead.Host = "uid-1", "uid-2"
	c.snap.Ring = ring.Found(ring.ID{1}, [16]byte{1}, agenttest.Universe(), c.self.ID(), c.dead.ID())
	c.nodes = nodes("uid-1", "uid-2")
	return c, New(Config{
		Self: c.self.ID(), Mesh: c, Ring: c, Source: c, Client: c, Report: c, Remove: c.remove, Log: slog.New(slog.DiscardHandler),
	})
}

// The Nodes of the watch can be outdated. So no peer is removed while the API server does not answer,
// or before the silence has lasted. Then the peer is removed once.
func TestTheAPIServerIsAskedBeforeAddressesAreReclaimed(t *testing.T) {
	c, r := newCluster()
	r.start = time.Now().Add(-time.Hour)
	look := func(when string, asked, removed int) {
		t.Helper()
		c.asked = 0
		err := r.look(t.Context())
		if (err != nil) != (c.down != nil) || c.asked != asked || len(c.removed) != removed {
			t.Fatalf("%s: error %v; the API server was asked %d times, %d peers were removed; want error %v, %d requests, %d removed", when, err, c.asked, len(c.removed), c.down, asked, removed)
		}
	}
	look("nothing is known yet", 0, 0)
	c.watch("uid-1", "uid-2")
	look("the silent peer's Node exists", 0, 0)
	c.watch("uid-1")
	look("the watch reports fewer Nodes than the API server", 1, 0)
	c.watched.Live = false
	look("the watch has only stored Nodes", 0, 0)
	c.watch("uid-1")
	c.nodes, c.down = nodes("uid-1"), errors.New("it is down")
	look("the API server is down", 1, 0)
	c.down, c.snap.Behind = nil, true
	look("this peer's ring is outdated", 0, 0)
	c.snap.Behind = false
	r.heard[c.dead.ID()] = time.Now().Add(-silence + 5*time.Second)
	look("gossip reached the silent peer a moment ago", 0, 0)
	delete(r.heard, c.dead.ID())
	look("the silent peer is gone", 1, 1)
	if len(c.events) != 1 || !strings.HasPrefix(c.events[0], "Normal "+kube.ReasonReclaimed) || !strings.Contains(c.events[0], "uid-2") ||
		!strings.Contains(c.events[0], "took over 8 addresses of "+c.dead.ID().String()) {
		t.Errorf("events %q, want one about 8 addresses", c.events)
	}
	c.snap.Ring = ring.Found(ring.ID{1}, [16]byte{1}, agenttest.Universe(), c.self.ID()) // the ring as after the removal
	look("the silent peer was removed before", 0, 1)
}

func TestASilentPeerOfADeletedNodeIsRemovedAfterTheSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, r := newCluster()
		c.nodes, c.until = nodes("uid-1"), time.Now().Add(time.Hour)
		c.watch("uid-1")
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if removed, events := c.done(); len(removed) != 0 || len(events) != 1 || !strings.HasPrefix(events[0], "Warning "+kube.ReasonStillAnswers) {
			t.Errorf("while the agent of the deleted Node answers: removed %v, events %q; want none removed, and one warning", removed, events)
		}
		time.Sleep(silence - 2*period)
		synctest.Wait()
		if removed, _ := c.done(); len(removed) != 0 {
			t.Error("the peer was removed before the silence had lasted, want it kept")
		}
		time.Sleep(3 * period)
		synctest.Wait()
		if removed, _ := c.done(); !slices.Contains(removed, c.dead.ID()) {
			t.Errorf("removed %v, want the silent peer", removed)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestARefusedRemovalIsTriedAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, r := newCluster()
		r.start = time.Now().Add(-time.Hour)
		c.nodes = nodes("uid-1")
		c.watch("uid-1")
		look := func() int {
			c.asked = 0
			if err := r.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			return c.asked
		}
		c.refused = &ipam.RemovalError{Why: "another peer reaches it"}
		if look(); len(c.events) != 0 {
			t.Errorf("events %q after a refusal, want none", c.events)
		}
		c.refused = nil
		time.Sleep(refusedPause - time.Second)
		if look() != 0 || len(c.removed) != 0 {
			t.Error("the removal was tried again at once, want a pause")
		}
		time.Sleep(time.Second)
		if look() != 1 || len(c.removed) != 1 {
			t.Error("the removal was not tried again after the pause, want it done")
		}
	})
}

func TestARemovalThatAnotherPeerDidIsNoError(t *testing.T) {
	c, r := newCluster()
	var log strings.Builder
	r.cfg.Log, r.start = slog.New(slog.NewTextHandler(&log, nil)), time.Now().Add(-time.Hour)
	c.nodes, c.refused = nodes("uid-1"), &ipam.RemovalError{Nothing: true}
	c.watch("uid-1")
	if err := r.look(t.Context()); err != nil || log.Len() != 0 || len(c.events) != 0 {
		t.Errorf("error %v; log: %s; events %q; want no error, no log line and no event", err, &log, c.events)
	}
}
