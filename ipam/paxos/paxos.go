// Package paxos decides which hosts found the address ring. Several hosts may start at once, and
// each of them could found a ring.
//
// The package is Paxos for a single decision ("Paxos Made Simple", Lamport 2001), with gossip of
// states in place of messages. Every voter is acceptor, proposer and learner. It keeps the newest
// known vote of each voter, and sends all these votes to its peers. A vote holds the promised
// ballot, and the accepted value with its ballot. Votes only grow, so Merge takes the higher vote
// of each voter; lost, repeated and reordered states do no harm.
//
// A proposer chooses a ballot higher than any that it knows, and promises it. A voter that receives
// that promise promises the ballot too, and accepts no lower ballot from then on. When a quorum has
// promised the ballot, the proposer accepts it. The ballot's value is the value that the
// promising voters accepted last. If they accepted none, the proposer chooses a value. The other
// voters then accept this value. A value that a quorum accepted under one ballot is decided: any
// later quorum contains a voter that accepted the value, so that quorum decides the same value.
//
// A State is an immutable value: every change returns a new State. A caller that cannot write the
// new state to disk keeps the old state, as if nothing had happened. The package does no I/O and
// reads no clock: the caller decides when to propose.
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

// MaxVoters bounds the memory that a malicious peer can make us use.
const MaxVoters = 1024

// Terms are the settings that voters must agree on before they vote. With different expectations,
// two quorums need not share a voter.
type Terms struct {
	// Expect is the number of voters, 1 to MaxVoters. A minority of them may be missing. Surplus
	// hosts that start separately could form a second quorum.
	Expect int          `cbor:"1,keyasint"`
	V4     netip.Prefix `cbor:"2,keyasint,omitzero"` // as given on the command line; invalid if not given
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

// TermsError reports that a peer votes under other terms than this peer. Neither peer counts the
// vote of the other.
type TermsError struct {
	Peer         peer.ID
	Ours, Theirs Terms
}

func (e *TermsError) Error() string {
	fix := "--ipalloc-init consensus=N"
	if e.Ours.Expect == e.Theirs.Expect {
		fix = "--ipalloc-range"
	}
	return fmt.Sprintf("paxos: peer %v was launched with %v, this one with %v: their votes do not count together: launch both with the same %s", e.Peer, e.Theirs, e.Ours, fix)
}

// Value is the subject of a decision: the ring and its founders.
type Value struct {
	Ring     [16]byte     `cbor:"1,keyasint"`
	Cluster  [16]byte     `cbor:"2,keyasint"`
	V4       netip.Prefix `cbor:"3,keyasint"`
	V6       netip.Prefix `cbor:"4,keyasint"`
	Founders []peer.ID    `cbor:"5,keyasint"` // sorted and distinct; at least 1, at most MaxVoters
}

func (v Value) isZero() bool { return v.Ring == [16]byte{} }

// compare is an arbitrary total order, for equality and for a canonical order on the wire.
func (v Value) compare(o Value) int {
	return cmp.Or(bytes.Compare(v.Ring[:], o.Ring[:]), bytes.Compare(v.Cluster[:], o.Cluster[:]), v.V4.Compare(o.V4), v.V6.Compare(o.V6),
		slices.CompareFunc(v.Founders, o.Founders, compareIDs))
}

func compareIDs(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) }

// validate returns an error if v cannot be decided under t.
func (v Value) validate(t Terms) error {
	if err := (slot.Universe{V4: v.V4, V6: v.V6}).Validate(); err != nil {
		return fmt.Errorf("paxos: the value is invalid: %w", err)
	}
	switch {
	case v.isZero():
		return errors.New("paxos: invalid value: it has no ring")
	case t.V4.IsValid() && t.V4 != v.V4 || t.V6.IsValid() && t.V6 != v.V6:
		return fmt.Errorf("paxos: invalid value: its range is %v,%v, but this host was launched with %v", v.V4, v.V6, t)
	case len(v.Founders) < 1 || len(v.Founders) > MaxVoters || v.Founders[0].IsZero():
		return fmt.Errorf("paxos: invalid value: it has %d founders, or a founder without id", len(v.Founders))
	}
	for i, id := range v.Founders[1:] {
		if compareIDs(v.Founders[i], id) >= 0 {
			return fmt.Errorf("paxos: invalid value: founder %v is out of order or listed twice", id)
		}
	}
	return nil
}

// Ballot numbers an attempt to decide. The zero Ballot means no attempt.
type Ballot struct {
	Round    uint32  `cbor:"1,keyasint"`
	Proposer peer.ID `cbor:"2,keyasint"` // makes ballots of two proposers differ
}

// Compare orders ballots.
func (b Ballot) Compare(o Ballot) int {
	return cmp.Or(cmp.Compare(b.Round, o.Round), compareIDs(b.Proposer, o.Proposer))
}

// Vote is the promise of one acceptor, and the value that it accepted.
type Vote struct {
	Promise  Ballot // the acceptor accepts no lower ballot
	Accepted Ballot // at most Promise
	Value    Value  // the accepted value; zero if Accepted is zero
}

// compare orders the votes of one acceptor by age. Votes of the same age have the same value,
// unless the acceptor lost its disk. The last comparison keeps Merge commutative in that case.
func (v Vote) compare(o Vote) int {
	return cmp.Or(v.Promise.Compare(o.Promise), v.Accepted.Compare(o.Accepted), v.Value.compare(o.Value))
}

// State is one voter's view of the election. It is never zero: New, Restore or Decode make it.
type State struct {
	self    peer.ID
	terms   Terms
	votes   map[peer.ID]Vote // has an entry for self; a map is never changed in place
	decided Value            // the learned value; kept, since the votes that prove it may change to a higher ballot
	mine    Ballot           // the ballot that this voter proposed since its start; never stored or sent, see Advance
}

// New returns the state of a voter that knows no other voter yet.
func New(self peer.ID, terms Terms) (State, error) {
	if self.IsZero() || terms.Expect < 1 || terms.Expect > MaxVoters {
		return State{}, fmt.Errorf("paxos: peer %v cannot vote with %v: the number of hosts must be from 1 to %d", self, terms, MaxVoters)
	}
	for _, p := range []*netip.Prefix{&terms.V4, &terms.V6} {
		if !p.IsValid() {
			*p = netip.Prefix{} // all invalid prefixes get the same representation
		}
	}
	return State{self: self, terms: terms, votes: map[peer.ID]Vote{self: {}}}, nil
}

// Restore reads the state that the voter self stored last. The terms may differ from the stored
// ones only if the voter has accepted nothing. Then nothing can have been decided with its vote.
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
		return State{}, fmt.Errorf("paxos: the state on disk belongs to peer %v, but this is peer %v: it cannot be used; run `weft reset` to start anew", s.self, self)
	case s.terms == fresh.terms:
		return s, nil
	case own.Accepted == Ballot{} && s.decided.isZero():
		return fresh.with(Vote{Promise: own.Promise}), nil // a promise binds this voter even if it is launched with other options
	}
	return State{}, fmt.Errorf("paxos: this host has voted with %v, but is now launched with %v: launch it as before, or run `weft reset` on every host that has voted",
		s.terms, fresh.terms)
}

// with returns a copy of s in which self has another vote.
func (s State) with(own Vote) State {
	s.votes = maps.Clone(s.votes)
	s.votes[s.self] = own
	return s
}

// Voters returns all known voters including self, sorted.
func (s State) Voters() []peer.ID { return slices.SortedFunc(maps.Keys(s.votes), compareIDs) }

// Known returns the number of known voters, including self.
func (s State) Known() int { return len(s.votes) }

// fault selects a deliberate bug, to prove that prog/soak's tests detect it. Only those tests set
// it: -ldflags '-X weft/ipam/paxos.fault=quorum'.
var fault string

// Quorum returns the number of voters that must accept, including self.
func (s State) Quorum() int {
	if fault == "quorum" { // the injected bug: a quorum does not count this voter
		return max(1, s.terms.Expect/2)
	}
	return s.terms.Expect/2 + 1
}

// Decided returns the decided value, and false while Advance has not learned any. The caller must
// not change the value.
func (s State) Decided() (Value, bool) { return s.decided, !s.decided.isZero() }

// Merge takes the newer vote of each voter, and reports whether any changed. If o has a newer vote
// of s itself, an older state was restored from disk. Merge then takes that vote too, because the
// votes that were sent before still bind this voter. Call Advance next, then store the result.
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
		return s, false, fmt.Errorf("paxos: this host's election decided on ring %x, that of peer %[3]v on %[2]x: more hosts voted than %[4]v allows; run `weft reset` on the hosts of the ring to give up",
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
		return s, false, fmt.Errorf("%w (after a merge of the votes from peer %v)", err, o.self)
	}
	return merged, true, nil
}

// Ballot returns the highest ballot that s promised. After Advance this is the highest known
// ballot.
func (s State) Ballot() Ballot { return s.votes[s.self].Promise }

// Binds reports whether the own vote or the decision of s differs from o, an earlier state of the
// same voter. Then s must be stored before it is sent. The other voters store their own votes.
func (s State) Binds(o State) bool {
	return s.votes[s.self].compare(o.votes[s.self]) != 0 || s.decided.compare(o.decided) != 0
}

// Differs reports whether s contains anything that o, an earlier state of the same voter, lacks.
func (s State) Differs(o State) bool {
	return s.decided.compare(o.decided) != 0 ||
		!maps.EqualFunc(s.votes, o.votes, func(v, w Vote) bool { return v.compare(w) == 0 })
}

// Since returns s without the votes that o, an earlier state of the same voter, already contains.
// This peer's own vote is always included.
func (s State) Since(o State) State {
	delta := s
	delta.votes = maps.Clone(s.votes)
	maps.DeleteFunc(delta.votes, func(id peer.ID, v Vote) bool {
		old, ok := o.votes[id]
		return ok && id != s.self && old.compare(v) == 0
	})
	return delta
}

// Propose starts a ballot above all that s knows, and gives up an older ballot of s. The caller
// must give a ballot enough time to be decided before the next ballot starts. Otherwise competing
// proposers could outbid each other for ever. Once a value is decided, Propose does nothing. Call
// Advance next.
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

// Advance applies the rules of Paxos after any change: it promises, accepts, and learns a decision.
// If changed, the result must be stored before it is sent. If s is free to choose a value, Advance
// calls candidate with the known voters. An error means that this value is invalid.
func (s State) Advance(candidate func(voters []peer.ID) Value) (next State, changed bool, err error) {
	if !s.decided.isZero() {
		return s, false, nil
	}
	voters, own := s.Voters(), s.votes[s.self]
	for _, id := range voters {
		if v := s.votes[id]; v.Promise.Compare(own.Promise) > 0 {
			own.Promise = v.Promise
		}
	}
	for _, id := range voters { // our promise is now the highest, so comparing for equality suffices
		if v := s.votes[id]; v.Accepted == own.Promise && own.Accepted != own.Promise {
			own.Accepted, own.Value = v.Accepted, v.Value
		}
	}
	// Propose a value only under a ballot of this run. If a ballot is from before a restart, a
	// value may have been proposed under it that is missing on an older copy of the disk.
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

// promised reports whether enough voters promised b, and returns the last accepted vote among them.
// If there are more voters than expected, all but quorum-1 must promise: fewer could miss the
// voters that already decided (Flexible Paxos, Howard et al. 2016).
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

// learn returns the value that a quorum accepted under one ballot. It is no part of Merge, whose
// result must not depend on the order of states.
func (s State) learn() Value {
	accepted := map[Ballot]int{}
	for _, v := range s.votes {
		if accepted[v.Accepted]++; v.Accepted != (Ballot{}) && accepted[v.Accepted] == s.Quorum() {
			return v.Value
		}
	}
	return Value{}
}
