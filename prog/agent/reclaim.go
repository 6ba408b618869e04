package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/mesh/peer"
	"weft/prog/kube"
	"weft/prog/words"
)

// silence is how long a peer must not have been heard before it can be taken for gone: gossip
// needs up to ten seconds to notice that a peer is silent, and a pod of the agent less than
// that to be another one. It is longer than the trust of a founder in its own last word
// (prog/kube).
const silence = 30 * time.Second

// Peers try one after the other, so that one of them does it and the others find it done.
const (
	turn     = 5 * time.Second
	maxTurns = 12
)

// lookEvery is how often peers are looked at. The API server is asked only when one seems gone.
const lookEvery = 2 * time.Second

// census is what is known when it is decided whose addresses are reclaimed. It is a value:
// who is gone is a pure function of it.
type census struct {
	Self    peer.ID
	Peers   []resident
	Nodes   []kube.Node      // that there are at this moment
	Founder peer.ID          // as the Secret names it, and
	Host    string           // the UID of its Node; it may never have been heard of
	Owners  map[peer.ID]bool // who owns addresses
}

// resident is a peer that was heard of.
type resident struct {
	ID     peer.ID
	Host   string // the UID of its Node; empty if it does not say
	Here   bool   // gossip reaches it, or it is this one
	Silent time.Duration
}

// gone is a peer whose addresses are to be reclaimed, and why.
type gone struct {
	ID   peer.ID
	Host string
	Why  string
}

// verdict is what follows from a census.
type verdict struct {
	Gone      []gone
	Answering []resident // whose Node was deleted, but who can be reached
	Turn      int        // how many others try before this one
	Cut       bool       // too few Nodes can be reached to judge, or this peer's own was deleted
}

// judge decides who is gone. A peer is, when it owns addresses and has been silent for a
// while, and its Node does not exist any more, or has another peer by now: there is one agent
// on a Node, so that the silent one's disk was lost. Who does not say on which Node it is, is
// never gone.
func (c census) judge() (v verdict) {
	exists, here := map[string]bool{}, map[string]peer.ID{}
	for _, n := range c.Nodes {
		exists[n.UID] = true
	}
	known := map[peer.ID]bool{}
	for _, p := range c.Peers {
		known[p.ID] = true
		if p.Here && p.Host != "" {
			here[p.Host] = p.ID
		}
	}
	reached := 0
	for uid, id := range here {
		if !exists[uid] {
			continue
		}
		reached++
		if bytes.Compare(id[:], c.Self[:]) < 0 {
			v.Turn++
		}
	}
	v.Cut = 2*reached <= len(c.Nodes) || !slices.ContainsFunc(c.Nodes, func(n kube.Node) bool { return here[n.UID] == c.Self })
	all := c.Peers
	if !c.Founder.IsZero() && !known[c.Founder] && c.Founder != c.Self {
		all = append(slices.Clone(all), resident{ID: c.Founder, Host: c.Host, Silent: c.sinceStart()})
	}
	for _, p := range all {
		other, replaced := here[p.Host]
		switch {
		case p.Host == "" || !c.Owners[p.ID]:
		case p.Here:
			if !exists[p.Host] && p.ID != c.Self {
				v.Answering = append(v.Answering, p)
			}
		case v.Cut || p.Silent < silence:
		case !exists[p.Host]:
			v.Gone = append(v.Gone, gone{p.ID, p.Host, "its Node was deleted"})
		case replaced && other != p.ID:
			v.Gone = append(v.Gone, gone{p.ID, p.Host, "its Node has another peer, " + other.String() + ": its disk was lost"})
		}
	}
	return v
}

// sinceStart is for how long this peer has heard nothing of who it never heard of: for as
// long as it has run.
func (c census) sinceStart() time.Duration {
	for _, p := range c.Peers {
		if p.ID == c.Self {
			return p.Silent
		}
	}
	return 0
}

// reclaimer watches who falls silent; of reclaim's goroutine.
type reclaimer struct {
	a     *Agent
	start time.Time
	heard map[peer.ID]time.Time // when gossip last reached a peer, by the monotonic clock
	said  map[peer.ID]bool      // whose Node is gone and who still answers, once told
	next  map[peer.ID]time.Time // not before then, after others refused
}

// refusedPause is how long a removal that another peer refused waits: it may still hear the
// silent one.
const refusedPause = 20 * time.Second

// reclaim takes over the addresses of Nodes that are gone.
func (a *Agent) reclaim(ctx context.Context) error {
	r := &reclaimer{a: a, start: time.Now(), heard: map[peer.ID]time.Time{}, said: map[peer.ID]bool{}, next: map[peer.ID]time.Time{}}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.look(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("cannot look for Nodes that are gone", "err", err)
			}
		}
	}
}

// census gathers what is known. Nodes are added by who asks for them.
func (r *reclaimer) census(snap ipam.Snapshot, now time.Time) census {
	f := r.a.cluster.founding
	c := census{Self: r.a.self(), Founder: f.Founder, Host: f.UID, Owners: map[peer.ID]bool{}}
	for id := range snap.Ring.Owned() {
		c.Owners[id] = true
	}
	for _, p := range r.a.mesh.Peers() {
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

// look judges by what the watch says, and if somebody seems gone, by what the API server says
// at this moment: a watch can be behind.
func (r *reclaimer) look(ctx context.Context) error {
	now := time.Now()
	snap, err := r.a.ipam.Snapshot(ctx)
	if err != nil {
		return err
	}
	c := r.census(snap, now)
	st := r.a.kube.State()
	if st == nil || !st.Live || snap.Behind || snap.Ring.IsZero() {
		return nil
	}
	for _, n := range st.Nodes {
		c.Nodes = append(c.Nodes, n)
	}
	seems := c.judge()
	r.tellOfAnswering(c, seems)
	wait := silence + turn*time.Duration(min(seems.Turn, maxTurns))
	due := func(g gone) bool { return c.silent(g.ID) >= wait && !now.Before(r.next[g.ID]) }
	if !slices.ContainsFunc(seems.Gone, due) {
		return nil
	}
	if c.Nodes, err = r.a.cluster.client.Nodes(ctx); err != nil {
		return err
	}
	for _, g := range c.judge().Gone {
		if due(g) {
			r.next[g.ID] = now.Add(refusedPause)
			r.takeOver(ctx, g)
		}
	}
	return nil
}

// silent is for how long a peer has been.
func (c census) silent(id peer.ID) time.Duration {
	for _, p := range c.Peers {
		if p.ID == id {
			return p.Silent
		}
	}
	return c.sinceStart()
}

// tellOfAnswering says once that a deleted Node keeps its addresses; the first in turn says it.
func (r *reclaimer) tellOfAnswering(c census, v verdict) {
	for _, p := range v.Answering {
		if v.Turn > 0 || r.said[p.ID] {
			continue
		}
		r.said[p.ID] = true
		message := fmt.Sprintf("the Node of %s was deleted (UID %s), but its agent still answers: it keeps its addresses. Stop it, or, if the host shall stay, let its kubelet register again", r.a.mesh.Name(p.ID), p.Host)
		r.a.log.Warn(message)
		r.a.cluster.report.Warn(kube.ReasonStillAnswers, message)
	}
	for id := range r.said { // it may be deleted again
		if !slices.ContainsFunc(v.Answering, func(p resident) bool { return p.ID == id }) {
			delete(r.said, id)
		}
	}
}

// takeOver takes what a peer that is gone owns. All who can be reached must confirm that they
// cannot reach it; that its Node is gone stands for the majority.
func (r *reclaimer) takeOver(ctx context.Context, g gone) {
	name := r.a.mesh.Name(g.ID)
	slots, err := r.a.removePeer(ctx, g.ID, true)
	refused, ok := errors.AsType[*ipam.RemovalError](err)
	switch {
	case ok && refused.Nothing:
		// somebody else was faster
	case err != nil && ctx.Err() == nil:
		r.a.log.Warn("a peer whose Node is gone is not removed", "peer", name, "why", strings.TrimPrefix(err.Error(), "ipam: "))
	case err == nil:
		message := fmt.Sprintf("took over %s of %s (Node UID %s): %s", words.Count(slots, "address"), name, g.Host, g.Why)
		r.a.log.Warn(message)
		r.a.cluster.report.Tell(kube.ReasonReclaimed, message)
	}
}
