package ipam

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
)

// VotesName is the founders' vote, in gossip.
const VotesName = "votes"

// Election is how peers that start at once agree on who founds the ring.
type Election struct {
	Terms paxos.Terms
	// Candidate completes what this peer would found: the ring's id, the cluster's, and
	// the universe.
	Candidate func() (ring.ID, [16]byte, slot.Universe)
	// Elsewhere reports whether some peer says that it has a ring: then nobody founds another.
	Elsewhere func() bool
}

// proposeWithin is how long a proposer waits at most before it tries again. The moment is
// random, so that two of them do not outbid each other for ever.
const proposeWithin = 2 * time.Second

// election is the vote, as long as there is no ring; of the actor's goroutine.
type election struct {
	*Election
	votes   paxos.State
	propose time.Time // not before
	err     error     // why another's votes do not count, for people
	errAt   time.Time
}

// loadVotes goes on with the vote where this peer left it, or begins.
func (a *Allocator) loadVotes(kept []byte) (err error) {
	e := &election{Election: a.cfg.Elect}
	if len(kept) > 0 {
		e.votes, err = paxos.Restore(kept, a.cfg.Self, e.Terms)
	} else {
		e.votes, err = paxos.New(a.cfg.Self, e.Terms)
	}
	if err != nil {
		return fmt.Errorf("ipam: %w", err)
	}
	e.wait()
	a.election = e
	return a.vote(e.votes)
}

func (e *election) wait() { e.propose = time.Now().Add(rand.N(proposeWithin)) }

// vote takes the steps that a newer state of the vote asks for. It is on disk before
// it is ours, and before others hear of it.
func (a *Allocator) vote(newer paxos.State) error {
	e := a.election
	next, _, err := newer.Think(func(voters []peer.ID) paxos.Value {
		id, cluster, u := e.Candidate()
		return paxos.Value{Ring: id, Cluster: cluster, V4: u.V4, V6: u.V6, Founders: voters}
	})
	if err != nil {
		return fmt.Errorf("ipam: found a ring: %w", err)
	}
	if err := a.cfg.Store.Update(Change{Vote: next.Encode()}); err != nil {
		return fmt.Errorf("ipam: vote: %w", err)
	}
	e.votes = next
	a.cfg.Mesh.Broadcast(VotesName, next.Told().Encode())
	if v, ok := e.votes.Decided(); ok {
		return a.found(v)
	}
	return nil
}

// found makes the ring that was decided on.
func (a *Allocator) found(v paxos.Value) error {
	r := ring.Found(ring.ID(v.Ring), v.Cluster, slot.Universe{V4: v.V4, V6: v.V6}, v.Founders...)
	if err := a.acceptable(r); err != nil {
		a.conflict, a.conflictAt = err, time.Now()
		return err
	}
	a.cfg.Log.Info("the ring is founded", "ring", r.ID, "founders", len(v.Founders))
	if err := a.adopt(r); err != nil {
		return err
	}
	a.cfg.Mesh.Broadcast(ReplicaName, r.Encode())
	return nil
}

// tick proposes, if nothing is decided and enough voters can be reached; else it says
// again that this one is here.
func (a *Allocator) tick() {
	e := a.election
	if e == nil || !a.ring.IsZero() || time.Now().Before(e.propose) || e.Elsewhere() {
		return
	}
	here := 1
	for _, id := range e.votes.Voters() {
		if id != a.cfg.Self && a.cfg.Mesh.Reachable(id) {
			here++
		}
	}
	e.wait()
	if here < e.votes.Quorum() {
		// Perhaps nobody has heard of us: what was said at the start can be lost, and push/pull
		// takes long to find the other voters among many hosts that do not vote.
		a.cfg.Mesh.Broadcast(VotesName, e.votes.Told().Encode())
		return
	}
	next, changed := e.votes.Propose()
	if !changed {
		return
	}
	if err := a.vote(next); err != nil {
		a.cfg.Log.Warn("cannot propose a ring", "err", err)
	}
}

// Votes is the vote as a replicated state of its own.
func (a *Allocator) Votes() *Votes { return &Votes{a} }

// Votes is the replicated state of an Election.
type Votes struct{ a *Allocator }

// Name is the vote's name as a replicated state.
func (*Votes) Name() string { return VotesName }

// Full is all votes that are known; nil where there is nothing to vote on, or not any more.
func (v *Votes) Full() []byte {
	var data []byte
	_ = v.a.do(context.Background(), func() {
		if v.a.election != nil && v.a.ring.IsZero() {
			data = v.a.election.votes.Told().Encode()
		}
	})
	return data
}

// Merge takes in another peer's votes. What is news is passed on with what this peer
// makes of it, by itself.
func (v *Votes) Merge(data []byte) (news []byte, err error) {
	theirs, err := paxos.Decode(data)
	if err != nil {
		return nil, err
	}
	a := v.a
	_ = a.do(context.Background(), func() { err = a.mergeVotes(theirs) }) // who is stopping does not vote
	return nil, err
}

func (a *Allocator) mergeVotes(theirs paxos.State) error {
	e := a.election
	if e == nil {
		return nil // a founder, or an observer: it has no vote
	}
	if !a.ring.IsZero() { // who still votes has not heard
		a.cfg.Mesh.Broadcast(ReplicaName, a.ring.Encode())
		return nil
	}
	merged, news, err := e.votes.Merge(theirs)
	if err != nil {
		e.err, e.errAt = err, time.Now()
		return err
	}
	if !news {
		return nil
	}
	return a.vote(merged)
}

// Vote is how far an election is, for people.
type Vote struct {
	Expected, Quorum int
	Known            []peer.ID // voters, this peer included
}

func (e *election) describe() *Vote {
	if e == nil {
		return nil
	}
	return &Vote{e.Terms.Expect, e.votes.Quorum(), slices.Clone(e.votes.Voters())}
}
