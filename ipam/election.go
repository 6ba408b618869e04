package ipam

import (
	"bytes"
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

// Timing of a vote. A ballot is decided once a quorum has heard of it twice and written
// twice; one that begins before voids it. So one voter goes first, the reachable one with
// the lowest id, and the others leave it a time that grows with their number and with
// each ballot that came to nothing.
const (
	lookEvery    = 100 * time.Millisecond // at who can be reached
	settleFor    = time.Second            // for which voters that are missing are waited for
	ballotStep   = 250 * time.Millisecond // in which all hear of a ballot
	maxDoublings = 3
	tellStep     = 2 * time.Millisecond // per voter, between two words of one voter, at most
	maxTell      = 250 * time.Millisecond
	hereWithin   = 2 * time.Second // in which one that lacks others says that it is here
)

// election is the vote, as long as there is no ring; of the actor's goroutine.
type election struct {
	*Election
	votes paxos.State
	kept  paxos.State // what is on disk
	timer *time.Timer // of tick

	told   paxos.State // what the others were told
	toldAt time.Time
	hereAt time.Time // not before: when it says again that it is here
	ringAt time.Time // when it last told one who still votes of the ring

	since  time.Time     // a quorum can be reached, or the newest ballot is known; zero while nobody may propose
	spread time.Duration // what this voter waits beyond the lowest one
	err    error         // why another's votes do not count, for people
	errAt  time.Time
}

// loadVotes goes on with the vote where this peer left it, or begins.
func (a *Allocator) loadVotes(kept []byte) (err error) {
	e := &election{Election: a.cfg.Elect, timer: time.NewTimer(lookEvery)}
	if len(kept) > 0 {
		e.votes, err = paxos.Restore(kept, a.cfg.Self, e.Terms)
	} else {
		e.votes, err = paxos.New(a.cfg.Self, e.Terms)
	}
	if err != nil {
		return fmt.Errorf("ipam: %w", err)
	}
	e.kept, e.hereAt = e.votes, time.Now().Add(rand.N(hereWithin))
	a.election = e
	a.cfg.Mesh.Broadcast(VotesName, e.votes.Told().Encode())
	e.told, e.toldAt = e.votes, time.Now()
	a.tick()
	return nil
}

// voting ticks while there is something to vote on.
func (a *Allocator) voting() <-chan time.Time {
	if a.election == nil {
		return nil
	}
	return a.election.timer.C
}

// voters is how many there are, as far as this one knows.
func (e *election) voters() int { return max(e.Terms.Expect, e.votes.Known()) }

// vote takes the steps that a newer state of the vote asks for. What binds this voter is
// on disk before it is its own, and before others hear of it.
func (a *Allocator) vote(newer paxos.State) error {
	e := a.election
	next, _, err := newer.Think(func(voters []peer.ID) paxos.Value {
		id, cluster, u := e.Candidate()
		return paxos.Value{Ring: id, Cluster: cluster, V4: u.V4, V6: u.V6, Founders: voters}
	})
	if err != nil {
		return fmt.Errorf("ipam: found a ring: %w", err)
	}
	if next.Binds(e.kept) {
		if err := a.cfg.Store.Update(Change{Vote: next.Encode()}); err != nil {
			return fmt.Errorf("ipam: vote: %w", err)
		}
		e.kept = next
	}
	if !e.since.IsZero() && next.Ballot() != e.votes.Ballot() {
		e.begin()
	}
	e.votes = next
	a.tell()
	if v, ok := e.votes.Decided(); ok {
		return a.found(v)
	}
	return nil
}

// tell says what the others were not told yet; where it told them something a moment ago,
// a little later: what comes in meanwhile goes with it.
func (a *Allocator) tell() {
	e := a.election
	if wait := min(time.Duration(e.voters())*tellStep, maxTell) - time.Since(e.toldAt); wait > 0 {
		e.timer.Reset(min(wait, lookEvery))
		return
	}
	a.cfg.Mesh.Broadcast(VotesName, e.votes.Since(e.told).Told().Encode())
	e.told, e.toldAt = e.votes, time.Now()
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

// tick tells what is to be told, and proposes when it is this voter's turn; where too few
// voters can be reached, it says again that this one is here.
func (a *Allocator) tick() {
	e := a.election
	if !a.ring.IsZero() {
		return // and never again
	}
	e.timer.Reset(lookEvery)
	if e.votes.Differs(e.told) {
		a.tell()
	}
	if !a.mayPropose(time.Now()) {
		return
	}
	next, changed := e.votes.Propose()
	if !changed {
		return
	}
	if err := a.vote(next); err != nil {
		e.begin() // as if that ballot had come to nothing
		a.cfg.Log.Warn("cannot propose a ring", "err", err)
	}
}

// begin makes all voters wait for the newest ballot.
func (e *election) begin() {
	e.since, e.spread = time.Now(), rand.N(time.Duration(e.voters())*e.step())
}

// step is how long all take to hear of a ballot: longer than was thought, after each that
// came to nothing.
func (e *election) step() time.Duration {
	round := e.votes.Ballot().Round
	return ballotStep << min(max(round, 1)-1, maxDoublings)
}

// mayPropose reports whether it is this voter's turn.
func (a *Allocator) mayPropose(now time.Time) bool {
	e := a.election
	if e.Elsewhere() {
		e.since = time.Time{}
		return false
	}
	here, lowest := 1, true
	for _, id := range e.votes.Voters() {
		if id != a.cfg.Self && a.cfg.Mesh.Reachable(id) {
			here++
			lowest = lowest && bytes.Compare(a.cfg.Self[:], id[:]) < 0
		}
	}
	switch {
	case here < e.votes.Quorum():
		e.since = time.Time{}
		if now.After(e.hereAt) {
			// Perhaps nobody has heard of us: what was said at the start can be lost, and push/pull
			// takes long to find the other voters among many hosts that do not vote.
			a.cfg.Mesh.Broadcast(VotesName, e.votes.Told().Encode())
			e.hereAt = now.Add(rand.N(max(hereWithin, time.Duration(e.voters())*lookEvery)))
		}
		return false
	case e.since.IsZero():
		e.begin()
	}
	wait := settleFor // also for a host that may hear in a moment that there is a ring
	switch {
	case e.votes.Ballot() != paxos.Ballot{}:
		wait = 4*e.step() + time.Duration(e.voters())*e.step()/12
	case lowest && here == e.voters() && here > 1:
		wait = ballotStep
	}
	if !lowest {
		wait += e.spread
	}
	return now.Sub(e.since) >= wait
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
		if now := time.Now(); now.Sub(e.ringAt) >= lookEvery {
			e.ringAt = now
			a.cfg.Mesh.Broadcast(ReplicaName, a.ring.Encode())
		}
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
