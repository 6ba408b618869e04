// Package paxos decides who founds the address ring when several hosts start at
// once and each could found one of its own.
//
// It is Paxos for a single decision ("Paxos Made Simple", Lamport 2001), over
// gossip of states instead of messages. Every voter is acceptor, proposer and
// learner. It keeps the newest vote it has heard of from each voter (which ballot
// it promised, which value it accepted under which ballot) and tells all of them to
// whom it meets. Votes only grow, so that Merge takes the higher one of each voter,
// and loss, repetition and disorder do no harm. A proposer promises itself a ballot
// higher than any it saw; whoever hears of it promises it too, and from then on
// accepts nothing lower. When a quorum promised, the proposer accepts its ballot
// with the value that the promisers accepted last, or else with a value of its own;
// the others accept that after it. What a quorum accepted under one ballot is
// decided: any later ballot is promised by somebody who accepted it, and carries it on.
//
// A State is an immutable value: every change returns a new one. If the caller
// cannot write the new one to disk, it keeps the old one and nothing has happened.
// Nothing here reads a clock: the caller says when to propose.
package paxos

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// MaxVoters bounds what a stranger can make us hold.
const MaxVoters = 1024

// Terms are what voters must agree on before they vote. If they did not expect
// equally many, two quorums need not meet.
type Terms struct {
	// Expect is how many voters there are, 1 to MaxVoters. A few may be missing, but
	// hosts beyond it, if they start apart, could make a quorum of their own.
	Expect int          `cbor:"1,keyasint"`
	V4     netip.Prefix `cbor:"2,keyasint,omitzero"` // as asked for on the command line; invalid if not asked for
	V6     netip.Prefix `cbor:"3,keyasint,omitzero"`
}

func (t Terms) String() string {
	s, sep := fmt.Sprintf("--ipalloc-init consensus=%d", t.Expect), " --ipalloc-range "
	for _, p := range []netip.Prefix{t.V4, t.V6} {
		if p.IsValid() {
			s, sep = s+sep+p.String(), ","
		}
	}
	return s
}

// TermsError says that a peer votes under other terms than we do, so that neither
// counts the other's vote.
type TermsError struct {
	Peer         peer.ID
	Ours, Theirs Terms
}

func (e *TermsError) Error() string {
	fix := "--ipalloc-init consensus=N"
	if e.Ours.Expect == e.Theirs.Expect {
		fix = "--ipalloc-range"
	}
	return fmt.Sprintf("paxos: peer %v was launched with %v, this one with %v: launch both with the same %s", e.Peer, e.Theirs, e.Ours, fix)
}

// Value is what is decided: the ring, and who founds it.
type Value struct {
	Ring     [16]byte     `cbor:"1,keyasint"`
	Cluster  [16]byte     `cbor:"2,keyasint"`
	V4       netip.Prefix `cbor:"3,keyasint"`
	V6       netip.Prefix `cbor:"4,keyasint"`
	Founders []peer.ID    `cbor:"5,keyasint"` // sorted, distinct, 1 to MaxVoters
}

func (v Value) isZero() bool { return v.Ring == [16]byte{} }

// compare is an arbitrary total order, for equality and for a fixed form on the wire.
func (v Value) compare(o Value) int {
	return cmp.Or(bytes.Compare(v.Ring[:], o.Ring[:]), bytes.Compare(v.Cluster[:], o.Cluster[:]), v.V4.Compare(o.V4), v.V6.Compare(o.V6),
		slices.CompareFunc(v.Founders, o.Founders, compareIDs))
}

func compareIDs(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) }

// validate reports why v cannot be decided under t.
func (v Value) validate(t Terms) error {
	if err := (slot.Universe{V4: v.V4, V6: v.V6}).Validate(); err != nil {
		return fmt.Errorf("paxos: %w", err)
	}
	switch {
	case v.isZero():
		return errors.New("paxos: a value without a ring")
	case t.V4.IsValid() && t.V4 != v.V4 || t.V6.IsValid() && t.V6 != v.V6:
		return fmt.Errorf("paxos: a value with %v,%v, asked for was %v", v.V4, v.V6, t)
	case len(v.Founders) < 1 || len(v.Founders) > MaxVoters || v.Founders[0].IsZero():
		return fmt.Errorf("paxos: a value with no usable founders, %d in number", len(v.Founders))
	}
	for i, id := range v.Founders[1:] {
		if compareIDs(v.Founders[i], id) >= 0 {
			return fmt.Errorf("paxos: founder %v is out of order or there twice", id)
		}
	}
	return nil
}

// Ballot numbers an attempt to decide. The zero Ballot is none.
type Ballot struct {
	Round    uint32  `cbor:"1,keyasint"`
	Proposer peer.ID `cbor:"2,keyasint"` // makes ballots of two proposers differ
}

// Compare orders ballots.
func (b Ballot) Compare(o Ballot) int {
	return cmp.Or(cmp.Compare(b.Round, o.Round), compareIDs(b.Proposer, o.Proposer))
}

// Vote is what one acceptor has bound itself to.
type Vote struct {
	Promise  Ballot // it accepts nothing lower
	Accepted Ballot // at most Promise
	Value    Value  // accepted; zero while Accepted is
}

// compare orders the votes of one acceptor by age. The value never matters there,
// unless somebody lost his disk; then it keeps Merge commutative.
func (v Vote) compare(o Vote) int {
	return cmp.Or(v.Promise.Compare(o.Promise), v.Accepted.Compare(o.Accepted), v.Value.compare(o.Value))
}

// State is one voter's view of the vote. It is never zero: make it by New, Restore or Decode.
type State struct {
	self    peer.ID
	terms   Terms
	votes   map[peer.ID]Vote // its own is always there; never changed in place
	decided Value            // learned; kept, since the votes that show it may move on to a higher ballot
	mine    Ballot           // proposed in this run; not on the wire, see Think
}

// New is the state of a voter that knows nobody yet.
func New(self peer.ID, terms Terms) (State, error) {
	if self.IsZero() || terms.Expect < 1 || terms.Expect > MaxVoters {
		return State{}, fmt.Errorf("paxos: peer %v cannot vote with %v: give a number of hosts between 1 and %d", self, terms, MaxVoters)
	}
	for _, p := range []*netip.Prefix{&terms.V4, &terms.V6} {
		if !p.IsValid() {
			*p = netip.Prefix{} // makes all ways of not asking equal
		}
	}
	return State{self: self, terms: terms, votes: map[peer.ID]Vote{self: {}}}, nil
}

// Restore reads what the voter self last wrote to disk. Under new terms it goes on
// only as long as it accepted nothing: nothing can have been decided with it then.
func Restore(encoded []byte, self peer.ID, terms Terms) (State, error) {
	fresh, err := New(self, terms)
	if err != nil {
		return State{}, err
	}
	s, err := decode(encoded, restoring)
	switch own := s.votes[self]; {
	case err != nil:
		return State{}, err
	case s.self != self:
		return State{}, fmt.Errorf("paxos: the state on disk is of peer %v, this is %v; `weft reset` starts anew", s.self, self)
	case s.terms == fresh.terms:
		return s, nil
	case own.Accepted == Ballot{} && s.decided.isZero():
		return fresh.with(Vote{Promise: own.Promise}), nil // a promise binds under any terms
	}
	return State{}, fmt.Errorf("paxos: this host voted with %v, and is launched with %v: launch it as before, or run `weft reset` on every host that voted",
		s.terms, fresh.terms)
}

// with is s after its own vote changed.
func (s State) with(own Vote) State {
	s.votes = maps.Clone(s.votes)
	s.votes[s.self] = own
	return s
}

// Voters are all voters heard of, self included, sorted.
func (s State) Voters() []peer.ID { return slices.SortedFunc(maps.Keys(s.votes), compareIDs) }

// Known is how many voters were heard of, self included.
func (s State) Known() int { return len(s.votes) }

// fault is a bug to be found, set by the linker, by prog/soak's tests only:
// -ldflags '-X weft/ipam/paxos.fault=quorum'.
var fault string

// Quorum is how many voters must accept, self included.
func (s State) Quorum() int {
	if fault == "quorum" { // without self
		return max(1, s.terms.Expect/2)
	}
	return s.terms.Expect/2 + 1
}

// Decided is the value that was decided, once a Think of any voter has seen it.
// The caller must not change it.
func (s State) Decided() (Value, bool) { return s.decided, !s.decided.isZero() }

// Merge is the newer vote of each voter, and whether any was news. Its own vote s
// takes from others only if theirs is ahead: then the disk held an older one, and
// what it told them before binds it. Think comes next, and then the disk.
func (s State) Merge(o State) (merged State, news bool, err error) {
	if s.terms != o.terms {
		return s, false, &TermsError{o.self, s.terms, o.terms}
	}
	merged = s
	merged.votes = maps.Clone(s.votes)
	switch ours, theirs := s.decided, o.decided; {
	case theirs.isZero():
	case ours.isZero():
		merged.decided, news = theirs, true
	case ours.compare(theirs) != 0:
		return s, false, fmt.Errorf("paxos: ring %x was decided here, %x at peer %v: more hosts voted than %v says; run `weft reset` on the side to give up",
			ours.Ring, theirs.Ring, o.self, s.terms)
	}
	for id, theirs := range o.votes {
		if ours, ok := merged.votes[id]; !ok || ours.compare(theirs) < 0 {
			merged.votes[id], news = theirs, true
		}
	}
	if !news {
		return s, false, nil
	}
	if err := merged.excess(s); err != nil {
		return s, false, fmt.Errorf("%w (with what peer %v says)", err, o.self)
	}
	return merged, true, nil
}

// Ballot is the highest that s promised; after a Think, the highest that it has heard of.
func (s State) Ballot() Ballot { return s.votes[s.self].Promise }

// Binds reports whether s holds its voter to more than o, an earlier state of the same
// voter: then it must be on disk before anybody is told of it. What other voters said is
// theirs to keep.
func (s State) Binds(o State) bool {
	return s.votes[s.self].compare(o.votes[s.self]) != 0 || s.decided.compare(o.decided) != 0
}

// Differs reports whether s says anything that o, an earlier state of the same voter, does not.
func (s State) Differs(o State) bool {
	return s.decided.compare(o.decided) != 0 ||
		!maps.EqualFunc(s.votes, o.votes, func(v, w Vote) bool { return v.compare(w) == 0 })
}

// Since is s without what o, an earlier state of the same voter, says too. Its own vote is
// always there.
func (s State) Since(o State) State {
	delta := s
	delta.votes = maps.Clone(s.votes)
	maps.DeleteFunc(delta.votes, func(id peer.ID, v Vote) bool {
		old, ok := o.votes[id]
		return ok && id != s.self && old.compare(v) == 0
	})
	return delta
}

// Propose starts a ballot above all that s has seen; an older one of s is given up.
// The caller sees to it that a ballot mostly has the time to be decided before the next
// one begins: proposers in step would outbid each other forever. It does nothing once a
// value is decided. Think comes next.
func (s State) Propose() (next State, changed bool) {
	round := uint32(0)
	for _, v := range s.votes {
		round = max(round, v.Promise.Round)
	}
	if !s.decided.isZero() || round == math.MaxUint32 {
		return s, false
	}
	own := s.votes[s.self]
	own.Promise = Ballot{round + 1, s.self}
	s.mine = own.Promise
	return s.with(own), true
}

// Think does what the rules ask for after anything changed: it promises, accepts,
// and learns what was decided. Changed says that the result must be on disk before
// anybody is told of it. candidate is asked for the value to propose, with the
// voters known so far, only where s is free to choose; an error is about its answer.
func (s State) Think(candidate func(voters []peer.ID) Value) (next State, changed bool, err error) {
	if !s.decided.isZero() {
		return s, false, nil
	}
	voters, own := s.Voters(), s.votes[s.self]
	for _, id := range voters {
		if v := s.votes[id]; v.Promise.Compare(own.Promise) > 0 {
			own.Promise = v.Promise
		}
	}
	for _, id := range voters { // nobody is above our promise now, so that "not below" is "equal"
		if v := s.votes[id]; v.Accepted == own.Promise && own.Accepted != own.Promise {
			own.Accepted, own.Value = v.Accepted, v.Value
		}
	}
	// Only a ballot of this run: of one from before a restart, a disk that went back
	// in time would not tell that a value was proposed under it already.
	if own.Promise == s.mine && own.Accepted != own.Promise {
		if last, ok := s.promised(s.mine); ok {
			if own.Accepted, own.Value = s.mine, last.Value; last.Value.isZero() {
				own.Value = candidate(voters)
				own.Value.Founders = slices.Clone(own.Value.Founders)
				if err := own.Value.validate(s.terms); err != nil {
					return s, false, err
				}
			}
		}
	}
	next = s.with(own)
	next.decided = next.learn()
	return next, own.compare(s.votes[s.self]) != 0 || !next.decided.isZero(), nil
}

// promised reports whether enough voters promised b, and the last vote of theirs.
// Of more voters than expected, all but a quorum less one must promise: fewer could
// miss those who decided already (Flexible Paxos, Howard et al. 2016).
func (s State) promised(b Ballot) (last Vote, ok bool) {
	n := 0
	for _, v := range s.votes {
		if v.Promise != b {
			continue
		}
		n++
		if v.Accepted.Compare(last.Accepted) > 0 {
			last = v
		}
	}
	return last, n >= max(s.Quorum(), s.Known()-s.Quorum()+1)
}

// learn is the value that a quorum accepted under one ballot. It is no part of Merge,
// which would depend on the order of news otherwise.
func (s State) learn() Value {
	accepted := map[Ballot]int{}
	for _, v := range s.votes {
		if accepted[v.Accepted]++; v.Accepted != (Ballot{}) && accepted[v.Accepted] == s.Quorum() {
			return v.Value
		}
	}
	return Value{}
}
