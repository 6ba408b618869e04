// Package view publishes the ring and the peers as one versioned value, so that all components of
// the agent use the same state.
//
// A Watcher owns the last View. It takes a new one when ring or peers change, and every two
// seconds, since time alone turns a silent peer into a lost one. Components that check the kernel
// regularly do so whenever a view is published. A View is never changed once it is published. A
// Watcher is safe for concurrent use.
package view

import (
	"context"
	"sync"
	"time"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/live"
)

const (
	// period is the interval at which views are taken even if nothing changed.
	period = 2 * time.Second
	// lostAfter is how long gossip must not reach a peer before its tunnel is no longer updated.
	lostAfter = 5 * time.Minute
)

// View is the state of the ring and the peers at one moment.
type View struct {
	ipam.Snapshot
	Self      peer.ID
	Own       peer.Record // of this peer
	Confirmed bool        // whether other peers have confirmed that no other host has this one's identity
	Peers     []mesh.Peer // all, including those whose record is not known yet
	Owners    map[peer.ID][]slot.Range
	Records   map[peer.ID]peer.Record
	Present   map[peer.ID]bool // peers whose endpoints can be reached
	Evidence  map[peer.ID]path.Evidence
	Taken     time.Time
	Reach     map[peer.ID]topology.Reach
}

// Name returns a peer's name for output.
func (v *View) Name(id peer.ID) string {
	if v != nil {
		if r, known := v.Records[id]; known {
			return r.Name()
		}
	}
	return id.String()
}

// Counts reports whether a peer's endpoints can count: it owns a part of the ring, or it can be
// reached. Before the first view, the endpoints of all peers count.
func (v *View) Counts(id peer.ID) bool {
	return v == nil || v.Ring.IsZero() || id == v.Self || v.Present[id] || len(v.Owners[id]) > 0
}

// Ring provides the ring.
type Ring interface {
	Snapshot(context.Context) (ipam.Snapshot, error)
}

// Mesh provides the peers.
type Mesh interface {
	Peers() []mesh.Peer
	Own() peer.Record
	Confirmed() bool
	Name(peer.ID) string
}

// Config configures a Watcher.
type Config struct {
	Self    peer.ID
	Ring    Ring
	Mesh    Mesh
	Started time.Time // the start of the agent
	// Path returns what is known about the path to a peer.
	Path func(peer.ID) (path.Path, bool)
	// Rejoin is the beginning of a sentence: how a host leaves its ring and joins the largest ring.
	Rejoin string
}

// Watcher takes views.
type Watcher struct {
	live.Value[*View] // the last view; nil before the first one

	cfg    Config
	taking sync.Mutex // held while a view is taken, so that an older one never follows a newer
	wake   chan struct{}
}

// New makes a watcher; Run starts it.
func New(cfg Config) *Watcher { return &Watcher{cfg: cfg, wake: make(chan struct{}, 1)} }

// Get returns the last view; nil before the first, and of a nil Watcher.
func (w *Watcher) Get() *View {
	if w == nil {
		return nil
	}
	return w.Value.Get()
}

// Wake requests a new view. It never blocks; several requests cause one view.
func (w *Watcher) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run takes views until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-tick.C:
		}
		if _, err := w.Refresh(ctx); err != nil && ctx.Err() == nil {
			return err // the allocator has ended
		}
	}
}

// Look takes a view now, and does not publish it: a report must not wake components.
func (w *Watcher) Look(ctx context.Context) (*View, error) {
	snap, err := w.cfg.Ring.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return take(snap, w.cfg, time.Now()), nil
}

// Refresh takes a view now, and publishes it.
func (w *Watcher) Refresh(ctx context.Context) (*View, error) {
	w.taking.Lock()
	defer w.taking.Unlock()
	v, err := w.Look(ctx)
	if err == nil {
		w.Set(v)
	}
	return v, err
}

// take makes a view of the current state of the ring and the mesh.
func take(snap ipam.Snapshot, cfg Config, now time.Time) *View {
	v := &View{
		Snapshot: snap, Self: cfg.Self, Own: cfg.Mesh.Own(), Confirmed: cfg.Mesh.Confirmed(), Peers: cfg.Mesh.Peers(), Owners: snap.Ring.Owned(),
		Records: map[peer.ID]peer.Record{}, Present: map[peer.ID]bool{}, Reach: map[peer.ID]topology.Reach{},
		Evidence: map[peer.ID]path.Evidence{}, Taken: now,
	}
	for _, p := range v.Peers {
		if p.Record.Identity == nil {
			continue
		}
		id := p.Record.ID()
		v.Records[id] = p.Record
		e := path.Evidence{Gossip: p.Reachable, Lost: p.Since, Started: cfg.Started}
		e.Path, _ = cfg.Path(id)
		v.Evidence[id] = e
		life := path.Judge(now, e)
		// If the agent of a peer was stopped on purpose, its containers keep running.
		v.Present[id] = p.Record.State != peer.Left &&
			(p.Record.State == peer.Stopped || life == path.Alive || life == path.Unsure)
		v.Reach[id] = reach(p, cfg.Started, now)
	}
	return v
}

// reach reports whether gossip reaches a peer. For a peer that it never reached, the time counts from
// this agent's start.
func reach(p mesh.Peer, started, now time.Time) topology.Reach {
	since := p.Since
	if since.IsZero() {
		since = started
	}
	switch {
	case p.Reachable:
		return topology.Reached
	case now.Sub(since) > lostAfter:
		return topology.Lost
	}
	return topology.Unsure
}
