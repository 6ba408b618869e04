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

// VotesName is the name of the votes as a replicated state.
const VotesName = "votes"

// Election configures how peers that start together agree on the founders of the ring.
type Election struct {
	Terms paxos.Terms
	// Candidate returns the ring that this peer would found: the ids of ring and cluster, and the
	// universe.
	Candidate func() (ring.ID, [16]byte, slot.Universe)
	// Elsewhere reports whether any peer announces a ring: then this peer founds none.
	Elsewhere func() bool
}

// These are the waiting times of an election. A ballot takes time: each voter of a quorum
// must receive it, and write its promise and then its acceptance to disk. A competing ballot that
// starts meanwhile voids it. So the reachable voter with the lowest id proposes first. Each of the
// other voters waits for a further random time, which grows with the number of voters and of failed
// ballots.
const (
	lookEvery    = 100 * time.Millisecond // the pause between two checks of which voters are reachable
	settleFor    = time.Second            // how long to wait for missing voters
	ballotStep   = 250 * time.Millisecond // time in which all voters receive a ballot
	maxDoublings = 3
	tellStep     = 2 * time.Millisecond // times the number of voters: the shortest interval between two messages of one voter
	maxTell      = 250 * time.Millisecond
	hereWithin   = 2 * time.Second // how soon a voter without quorum announces itself again
)

// election is the state of the vote while there is no ring. It belongs to the actor's goroutine.
type election struct {
	*Election
	votes paxos.State
	kept  paxos.State // the state on disk
	timer *time.Timer // runs tick

	sent   paxos.State // the state that this voter sent last
	sentAt time.Time
	hereAt time.Time // earliest time of the next announcement
	ringAt time.Time // when this peer last sent the ring to a peer that still votes

	since  time.Time     // when a quorum became reachable or the newest ballot arrived; zero while proposing is not allowed
	spread time.Duration // how much longer this voter waits than the one with the lowest id
	err    error         // why another peer's votes are refused, for status
	errAt  time.Time
}

// loadVotes continues the election from the stored votes, or starts it.
func (a *Allocator) loadVotes(kept []byte) (err error) {
	e := &election{Election: a.cfg.Elect, timer: time.NewTimer(lookEvery)}
	if len(kept) > 0 {
		e.votes, err = paxos.Restore(kept, a.cfg.Self, e.Terms)
	} else {
		e.votes, err = paxos.New(a.cfg.Self, e.Terms)
	}
	if err != nil {
		return fmt.Errorf("ipam: preparing the election: %w", err)
	}
	e.kept, e.hereAt = e.votes, time.Now().Add(rand.N(hereWithin))
	a.election = e
	a.cfg.Mesh.Broadcast(VotesName, e.votes.Sendable().Encode())
	e.sent, e.sentAt = e.votes, time.Now()
	a.tick()
	return nil
}

// voting returns the channel of the election's timer, or nil if this peer does not vote.
func (a *Allocator) voting() <-chan time.Time {
	if a.election == nil {
		return nil
	}
	return a.election.timer.C
}

// voters returns the number of voters: the configured number, or the number of known voters if that
// is higher.
func (e *election) voters() int { return max(e.Terms.Expect, e.votes.Known()) }

// vote advances the election to a newer state. Whatever binds this voter is stored before it takes
// effect, and before other voters receive it.
func (a *Allocator) vote(newer paxos.State) error {
	e := a.election
	next, _, err := newer.Advance(func(voters []peer.ID) paxos.Value {
		id, cluster, u := e.Candidate()
		return paxos.Value{Ring: id, Cluster: cluster, V4: u.V4, V6: u.V6, Founders: voters}
	})
	if err != nil {
		return fmt.Errorf("ipam: founding a ring: %w", err)
	}
	if next.Binds(e.kept) {
		if err := a.cfg.Store.Update(Change{Vote: next.Encode()}); err != nil {
			return fmt.Errorf("ipam: storing the vote: %w", err)
		}
		e.kept = next
	}
	if !e.since.IsZero() && next.Ballot() != e.votes.Ballot() {
		e.begin()
	}
	e.votes = next
	a.send()
	if v, ok := e.votes.Decided(); ok {
		return a.found(v)
	}
	return nil
}

// send broadcasts the votes that it has not broadcast yet. Shortly after the last message it waits
// a little, so that several changes go into one message.
func (a *Allocator) send() {
	e := a.election
	if wait := min(time.Duration(e.voters())*tellStep, maxTell) - time.Since(e.sentAt); wait > 0 {
		e.timer.Reset(min(wait, lookEvery))
		return
	}
	a.cfg.Mesh.Broadcast(VotesName, e.votes.Since(e.sent).Sendable().Encode())
	e.sent, e.sentAt = e.votes, time.Now()
}

// found creates the ring that the election decided on.
func (a *Allocator) found(v paxos.Value) error {
	r := ring.Found(ring.ID(v.Ring), v.Cluster, slot.Universe{V4: v.V4, V6: v.V6}, v.Founders...)
	if err := a.acceptable(r); err != nil {
		a.conflict, a.conflictAt = err, time.Now()
		return err
	}
	a.cfg.Log.Info("founded the address ring", "ring", r.ID, "founders", len(v.Founders))
	if err := a.adopt(r); err != nil {
		return err
	}
	a.cfg.Mesh.Broadcast(ReplicaName, r.Encode())
	return nil
}

// tick sends pending votes, and proposes when mayPropose allows it. Without a reachable quorum it
// announces this voter again.
func (a *Allocator) tick() {
	e := a.election
	if !a.ring.IsZero() {
		return // stop: the timer is not set again
	}
	e.timer.Reset(lookEvery)
	if e.votes.Differs(e.sent) {
		a.send()
	}
	if !a.mayPropose(time.Now()) {
		return
	}
	next, changed := e.votes.Propose()
	if !changed {
		return
	}
	if err := a.vote(next); err != nil {
		e.begin() // wait, as after a ballot that failed
		a.cfg.Log.Warn("cannot propose a ring: trying again later", "err", err)
	}
}

// begin starts the waiting times anew, for the newest ballot.
func (e *election) begin() {
	e.since, e.spread = time.Now(), rand.N(time.Duration(e.voters())*e.step())
}

// step is the time in which all voters should receive a ballot. It doubles after each failed
// ballot.
func (e *election) step() time.Duration {
	round := e.votes.Ballot().Round
	return ballotStep << min(max(round, 1)-1, maxDoublings)
}

// mayPropose reports whether this voter has waited long enough to propose.
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
			// Perhaps no other voter knows this voter: its first announcement can be lost.
			// Push/pull takes long to find the other voters among many hosts that do not vote.
			a.cfg.Mesh.Broadcast(VotesName, e.votes.Sendable().Encode())
			e.hereAt = now.Add(rand.N(max(hereWithin, time.Duration(e.voters())*lookEvery)))
		}
		return false
	case e.since.IsZero():
		e.begin()
	}
	wait := settleFor // news of an existing ring may still be on its way
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

// Votes returns the votes as a replicated state.
func (a *Allocator) Votes() *Votes { return &Votes{a} }

// Votes is the election's replicated state.
type Votes struct{ a *Allocator }

// Name returns the name of the votes as a replicated state.
func (*Votes) Name() string { return VotesName }

// Full returns all known votes; nil if this peer does not vote or there is a ring.
func (v *Votes) Full() []byte {
	var data []byte
	_ = v.a.do(context.Background(), func() {
		if v.a.election != nil && v.a.ring.IsZero() {
			data = v.a.election.votes.Sendable().Encode()
		}
	})
	return data
}

// Merge merges another peer's votes. It returns no news: this peer broadcasts the votes itself,
// together with its own vote.
func (v *Votes) Merge(data []byte) (news []byte, err error) {
	theirs, err := paxos.Decode(data)
	if err != nil {
		return nil, err
	}
	a := v.a
	_ = a.do(context.Background(), func() { err = a.mergeVotes(theirs) }) // do only fails while stopping, when votes do not matter
	return nil, err
}

func (a *Allocator) mergeVotes(theirs paxos.State) error {
	e := a.election
	if e == nil {
		return nil // this peer founds alone or only observes: it has no vote
	}
	if !a.ring.IsZero() { // a peer that still votes has not received the ring
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

// Vote is the progress of an election, for status.
type Vote struct {
	Expected, Quorum int
	Known            []peer.ID // known voters, including this peer
}

func (e *election) describe() *Vote {
	if e == nil {
		return nil
	}
	return &Vote{e.Terms.Expect, e.votes.Quorum(), slices.Clone(e.votes.Voters())}
}
