// Package reclaim takes over the addresses of Nodes that were removed from a Kubernetes cluster.
//
// A Reclaimer owns the times when each peer was last heard. Its goroutine checks every two seconds.
// A pure function of the known facts (census) decides which peers are gone. It never removes a
// reachable peer.
package reclaim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/kube"
	"weft/prog/words"
)

// Mesh lists the peers.
type Mesh interface {
	Peers() []mesh.Peer
	Name(peer.ID) string
}

// Ring returns the ring, and so what peers own.
type Ring interface {
	Snapshot(context.Context) (ipam.Snapshot, error)
}

// Source returns the Nodes that the watch has reported.
type Source interface{ State() *kube.State }

// Client reads the current Nodes from the API server.
type Client interface {
	Nodes(context.Context) ([]kube.Node, error)
}

// Report writes events on the Node.
type Report interface {
	Warn(reason, message string)
	Tell(reason, message string)
}

// Config configures a Reclaimer.
type Config struct {
	Self     peer.ID
	Mesh     Mesh
	Ring     Ring
	Source   Source
	Client   Client
	Report   Report
	Founding kube.Founding // the Secret's content when this host made its ring
	// Remove takes over a peer's addresses, for which it needs no majority, and returns their number.
	Remove func(context.Context, peer.ID) (uint64, error)
	Log    *slog.Logger
}

// Reclaimer detects which peers are gone. Its state belongs to the goroutine of Run.
type Reclaimer struct {
	cfg   Config
	start time.Time
	heard map[peer.ID]time.Time // by the monotonic clock, when gossip last reached a peer
	said  map[peer.ID]bool      // reported peers that answer although their Node is gone
	next  map[peer.ID]time.Time // earliest time of the next attempt
}

// New returns a Reclaimer; Run starts it.
func New(cfg Config) *Reclaimer {
	return &Reclaimer{cfg: cfg, heard: map[peer.ID]time.Time{}, said: map[peer.ID]bool{}, next: map[peer.ID]time.Time{}}
}

// refusedPause is the pause after a removal that another peer refused, since that peer may still hear
// the silent one.
const refusedPause = 20 * time.Second

// period is the interval of checks. The API server is only asked if a peer seems gone.
const period = 2 * time.Second

// Run takes over the addresses of removed Nodes until ctx ends.
func (r *Reclaimer) Run(ctx context.Context) error {
	r.start = time.Now()
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.look(ctx); err != nil && ctx.Err() == nil {
				r.cfg.Log.Warn("cannot check for removed Nodes", "err", err)
			}
		}
	}
}

// census collects the known facts, without the Nodes.
func (r *Reclaimer) census(snap ipam.Snapshot, now time.Time) census {
	f := r.cfg.Founding
	c := census{Self: r.cfg.Self, Founder: f.Founder, Host: f.UID, Owners: map[peer.ID]bool{}}
	for id := range snap.Ring.Owned() {
		c.Owners[id] = true
	}
	for _, p := range r.cfg.Mesh.Peers() {
		if p.Record.Identity == nil {
			continue
		}
		id := p.Record.ID()
		if p.Reachable && id != c.Self {
			r.heard[id] = now
		}
		since, heard := r.heard[id]
		if !heard {
			since = r.start
		}
		c.Peers = append(c.Peers, resident{ID: id, Host: p.Record.Host, Here: p.Reachable, Silent: now.Sub(since)})
	}
	return c
}

// look first decides with the Nodes of the watch, which can be outdated. If a peer seems gone, it
// decides again with the API server's current Nodes.
func (r *Reclaimer) look(ctx context.Context) error {
	now := time.Now()
	snap, err := r.cfg.Ring.Snapshot(ctx)
	if err != nil {
		return err
	}
	c := r.census(snap, now)
	st := r.cfg.Source.State()
	if st == nil || !st.Live || snap.Behind || snap.Ring.IsZero() {
		return nil
	}
	for _, n := range st.Nodes {
		c.Nodes = append(c.Nodes, n)
	}
	seems := c.evaluate()
	r.tellOfAnswering(seems)
	wait := silence + turn*time.Duration(min(seems.Turn, maxTurns))
	due := func(g gone) bool { return c.silent(g.ID) >= wait && !now.Before(r.next[g.ID]) }
	if !slices.ContainsFunc(seems.Gone, due) {
		return nil
	}
	if c.Nodes, err = r.cfg.Client.Nodes(ctx); err != nil {
		return err
	}
	for _, g := range c.evaluate().Gone {
		if due(g) {
			r.next[g.ID] = now.Add(refusedPause)
			r.takeOver(ctx, g)
		}
	}
	return nil
}

// tellOfAnswering reports once that a deleted Node keeps its addresses. Only the peer that is first
// in turn does it.
func (r *Reclaimer) tellOfAnswering(v verdict) {
	for _, p := range v.Answering {
		if v.Turn > 0 || r.said[p.ID] {
			continue
		}
		r.said[p.ID] = true
		message := fmt.Sprintf("the Node of %s was deleted (UID %s), but its agent still answers: it keeps its addresses. Stop the agent, or, if the host should stay, let its kubelet register again", r.cfg.Mesh.Name(p.ID), p.Host)
		r.cfg.Log.Warn("a deleted Node keeps its addresses", "peer", r.cfg.Mesh.Name(p.ID), "event", message)
		r.cfg.Report.Warn(kube.ReasonStillAnswers, message)
	}
	for id := range r.said { // the Node may be deleted again later
		if !slices.ContainsFunc(v.Answering, func(p resident) bool { return p.ID == id }) {
			delete(r.said, id)
		}
	}
}

// takeOver takes over the addresses of a peer that is gone. All reachable peers must confirm that
// they cannot reach it. No majority is needed, since its Node was deleted.
func (r *Reclaimer) takeOver(ctx context.Context, g gone) {
	name := r.cfg.Mesh.Name(g.ID)
	slots, err := r.cfg.Remove(ctx, g.ID)
	refused, ok := errors.AsType[*ipam.RemovalError](err)
	switch {
	case ok && refused.Nothing:
		// Another peer has taken over the addresses already.
	case err != nil && ctx.Err() == nil:
		r.cfg.Log.Warn("cannot remove a peer whose Node is gone: it is tried again", "peer", name, "why", strings.TrimPrefix(err.Error(), "ipam: "))
	case err == nil:
		message := fmt.Sprintf("took over %s of %s (Node UID %s): %s", words.Count(slots, "address"), name, g.Host, g.Why)
		r.cfg.Log.Warn("took over the addresses of a removed Node", "peer", name, "event", message)
		r.cfg.Report.Tell(kube.ReasonReclaimed, message)
	}
}
