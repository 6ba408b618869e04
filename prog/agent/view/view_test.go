package view

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// world is the ring and the mesh of a peer that knows one other peer.
type world struct {
	mu    sync.Mutex
	snap  ipam.Snapshot
	peers []mesh.Peer
	fail  error
}

func (w *world) Snapshot(context.Context) (ipam.Snapshot, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snap, w.fail
}

func (w *world) Peers() []mesh.Peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.peers
}
func (*world) Own() peer.Record         { return peer.Record{Nickname: "here"} }
func (*world) Confirmed() bool          { return true }
func (*world) Name(id peer.ID) string   { return id.String() }
func (w *world) set(peers ...mesh.Peer) { w.mu.Lock(); w.peers = peers; w.mu.Unlock() }

// other is a peer; the bytes of its identity do not matter here.
var other = peer.Record{Identity: make([]byte, 32), Nickname: "there"}

func TestAViewIsTakenOnRequestAndPeriodically(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{}
		watcher := New(Config{Self: peer.ID{1}, Ring: w, Mesh: w, Started: time.Now(), Path: unmeasured})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- watcher.Run(ctx) }()
		synctest.Wait()
		if watcher.Get() != nil {
			t.Error("a view was taken without a request")
		}
		w.set(mesh.Peer{Record: other, Reachable: true})
		watcher.Wake()
		watcher.Wake() // Wake never blocks
		synctest.Wait()
		if v := watcher.Get(); v == nil || len(v.Peers) != 1 || v.Own.Nickname != "here" || v.Name(other.ID()) != other.Name() || v.Name(peer.ID{7}) != (peer.ID{7}).String() {
			t.Fatalf("view %+v; want one peer, and the names of this peer and the other", v)
		}
		before := watcher.Version()
		time.Sleep(period)
		synctest.Wait()
		if watcher.Version() == before {
			t.Error("no new view without a Wake, want one after a period")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestTheEndOfTheAllocatorEndsTheWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{fail: errors.New("it has ended")}
		if err := New(Config{Ring: w, Mesh: w, Path: unmeasured}).Run(t.Context()); !errors.Is(err, w.fail) {
			t.Error(err)
		}
	})
}

// unmeasured knows no path.
func unmeasured(peer.ID) (path.Path, bool) { return path.Path{}, false }

// presumed is for how long peers may be alive that were not heard since the start of the agent.
const presumed = 30 * time.Second

// The endpoints of peers that gossip has not reached yet count for a while after the start, since
// usually only the agent was restarted.
func TestEndpointsCountWhileTheirPeerIsPresentOrOwnsAddresses(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	self := peer.ID{1}
	for name, tt := range map[string]struct {
		peer    mesh.Peer
		started time.Duration // time since the start
		owns    bool
		present bool
		path    path.Path
	}{
		"reached":                           {mesh.Peer{Reachable: true}, time.Hour, false, true, path.Path{}},
		"lost":                              {mesh.Peer{Since: now.Add(-time.Minute)}, time.Hour, false, false, path.Path{}},
		"lost, and owns addresses":          {mesh.Peer{Since: now.Add(-time.Minute)}, time.Hour, true, false, path.Path{}},
		"not met yet, just after a start":   {mesh.Peer{}, presumed - time.Second, false, true, path.Path{}},
		"not met yet, later":                {mesh.Peer{}, presumed, false, false, path.Path{}},
		"lost just after a start":           {mesh.Peer{Since: now.Add(-time.Second)}, presumed - time.Second, false, false, path.Path{}},
		"its agent was stopped":             {mesh.Peer{Record: peer.Record{State: peer.Stopped}}, time.Hour, false, true, path.Path{}},
		"the peer left, and is reached":     {mesh.Peer{Reachable: true, Record: peer.Record{State: peer.Left}}, time.Hour, false, false, path.Path{}},
		"lost by gossip, not by its tunnel": {mesh.Peer{Since: now.Add(-time.Minute)}, time.Hour, false, true, path.Path{State: path.Direct, Answered: now.Add(-time.Second)}},
		"lost, and its tunnel is silent":    {mesh.Peer{Since: now.Add(-time.Second)}, time.Hour, false, false, path.Path{State: path.Deaf, Answered: now.Add(-time.Second)}},
	} {
		tt.peer.Record.Identity = other.Identity
		id := tt.peer.Record.ID()
		w := &world{peers: []mesh.Peer{tt.peer, {}}}
		owners := []peer.ID{self}
		if tt.owns {
			owners = append(owners, id)
		}
		w.snap.Ring = ring.Found(ring.ID{1}, [16]byte{1}, slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}, owners...)
		v := take(w.snap, Config{Self: self, Mesh: w, Started: now.Add(-tt.started), Path: func(peer.ID) (path.Path, bool) { return tt.path, true }}, now)
		if v.Present[id] != tt.present || v.Counts(id) != (tt.present || tt.owns) || !v.Counts(self) {
			t.Errorf("%s: present %v, counts %v, want the row's result", name, v.Present[id], v.Counts(id))
		}
	}
	if !(*View)(nil).Counts(peer.ID{7}) {
		t.Error("before the first view, the endpoints of a peer do not count, want them to")
	}
}

// The status says of every other peer whether it is alive, and why.
func TestTheStatusJudgesOtherPeers(t *testing.T) {
	now, self := time.Unix(1_800_000_000, 0), peer.Record{Identity: []byte("this host's identity, of 32 bytes"), Nickname: "here"}
	measured := path.Path{State: path.Deaf, Since: now.Add(-9 * time.Second), Received: now.Add(-12 * time.Second)}
	w := &world{peers: []mesh.Peer{{Record: self, Reachable: true}, {Record: other, Since: now.Add(-5 * time.Second)}}}
	v := take(w.snap, Config{Self: self.ID(), Mesh: w, Started: now.Add(-time.Hour), Path: func(peer.ID) (path.Path, bool) { return measured, true }}, now)
	list := v.StatusPeers(false)
	if len(list) != 2 || !list[0].Self || list[0].Liveness != "" || list[0].Reasons != nil {
		t.Fatalf("got %+v, want two peers, and no verdict about this host", list)
	}
	want := []string{"gossip lost it 5s ago", "its tunnel has been silent for 9s", "its tunnel brought data 12s ago"}
	if list[1].Liveness != "silent" || !slices.Equal(list[1].Reasons, want) {
		t.Errorf("the other peer is %s: %q, want silent: %q", list[1].Liveness, list[1].Reasons, want)
	}
}

// Reports take views as often as they like: only Refresh publishes one, and wakes components.
func TestLookDoesNotPublishAView(t *testing.T) {
	at := &world{}
	w := New(Config{Ring: at, Mesh: at, Path: unmeasured})
	if v, err := w.Look(t.Context()); err != nil || v == nil || w.Get() != nil {
		t.Errorf("Look returned %v, error %v, and %v is published; want a view, and none published", v, err, w.Get())
	}
	if v, err := w.Refresh(t.Context()); err != nil || w.Get() != v {
		t.Errorf("Refresh returned %v, error %v, and %v is published; want the same view", v, err, w.Get())
	}
}
