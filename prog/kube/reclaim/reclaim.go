// Package reclaim takes over the addresses of Nodes that are gone from a Kubernetes cluster.
//
// A Reclaimer owns when each peer was heard last. Its goroutine looks every two seconds; who is
// gone is decided by a pure function of what is known (census).
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

// Mesh says which peers there are.
type Mesh interface {
	Peers() []mesh.Peer
	Name(peer.ID) string
}

// Ring says what peers own.
type Ring interface {
	Snapshot(context.Context) (ipam.Snapshot, error)
}

// Source says which Nodes there are, as far as the watch has heard.
type Source interface{ State() *kube.State }

// Client asks the API server for the Nodes of this moment.
type Client interface {
	Nodes(context.Context) ([]kube.Node, error)
}

// Report says on the Node what was done.
type Report interface {
	Warn(reason, message string)
	Tell(reason, message string)
}

// Config is what a Reclaimer is made of.
type Config struct {
	Self     peer.ID
	Mesh     Mesh
	Ring     Ring
	Source   Source
	Client   Client
	Report   Report
	Founding kube.Founding // kept from when this host made its ring
	// Remove takes over what a peer owns, without a majority, and says how many slots that were.
	Remove func(context.Context, peer.ID) (uint64, error)
	Log    *slog.Logger
}

// Reclaimer watches which peers fall silent. Its state belongs to Run's goroutine.
type Reclaimer struct {
	cfg   Config
	start time.Time
	heard map[peer.ID]time.Time // when gossip last reached a peer, by the monotonic clock
	said  map[peer.ID]bool      // peers that answer though their Node is gone, once told
	next  map[peer.ID]time.Time // not before then, after others refused
}

// New makes a reclaimer; Run starts it.
func New(cfg Config) *Reclaimer {
	return &Reclaimer{cfg: cfg, heard: map[peer.ID]time.Time{}, said: map[peer.ID]bool{}, next: map[peer.ID]time.Time{}}
}

// refusedPause is how long a removal that another peer refused waits: it may still hear the
// silent one.
const refusedPause = 20 * time.Second

// period is how often peers are looked at. The API server is asked only when one seems gone.
const period = 2 * time.Second

// Run takes over the addresses of Nodes that are gone, until ctx ends.
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
				r.cfg.Log.Warn("cannot look for Nodes that are gone", "err", err)
			}
		}
	}
}

// census gathers what is known, but for the Nodes.
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

// look decides by what the watch says, and if a peer seems gone, by what the API server says at
// this moment: a watch can be behind.
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

// tellOfAnswering says once that a deleted Node keeps its addresses; the first in turn says it.
func (r *Reclaimer) tellOfAnswering(v verdict) {
	for _, p := range v.Answering {
		if v.Turn > 0 || r.said[p.ID] {
			continue
		}
		r.said[p.ID] = true
		message := fmt.Sprintf("the Node of %s was deleted (UID %s), but its agent still answers: it keeps its addresses. Stop it, or, if the host shall stay, let its kubelet register again", r.cfg.Mesh.Name(p.ID), p.Host)
		r.cfg.Log.Warn("a deleted Node keeps its addresses", "peer", r.cfg.Mesh.Name(p.ID), "event", message)
		r.cfg.Report.Warn(kube.ReasonStillAnswers, message)
	}
	for id := range r.said { // it may be deleted again
		if !slices.ContainsFunc(v.Answering, func(p resident) bool { return p.ID == id }) {
			delete(r.said, id)
		}
	}
}

// takeOver takes what a peer that is gone owns. All peers that can be reached must confirm that they
// cannot reach it; that its Node is gone stands for the majority.
func (r *Reclaimer) takeOver(ctx context.Context, g gone) {
	name := r.cfg.Mesh.Name(g.ID)
	slots, err := r.cfg.Remove(ctx, g.ID)
	refused, ok := errors.AsType[*ipam.RemovalError](err)
	switch {
	case ok && refused.Nothing:
		// another peer was faster
	case err != nil && ctx.Err() == nil:
		r.cfg.Log.Warn("a peer whose Node is gone is not removed", "peer", name, "why", strings.TrimPrefix(err.Error(), "ipam: "))
	case err == nil:
		message := fmt.Sprintf("took over %s of %s (Node UID %s): %s", words.Count(slots, "address"), name, g.Host, g.Why)
		r.cfg.Log.Warn("addresses of a Node that is gone were taken over", "peer", name, "event", message)
		r.cfg.Report.Tell(kube.ReasonReclaimed, message)
	}
}
