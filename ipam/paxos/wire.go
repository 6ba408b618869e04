package paxos

import (
	"fmt"
	"math"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
)

// wire is the encoding of a state, on the network and on disk. Most votes have the same value, so
// each value is listed once.
type wire struct {
	Self    peer.ID `cbor:"1,keyasint"`
	Terms   Terms   `cbor:"2,keyasint"`
	Votes   []vote  `cbor:"3,keyasint"`           // sorted by the voter's id
	Values  []Value `cbor:"4,keyasint,omitempty"` // sorted
	Decided uint16  `cbor:"5,keyasint,omitempty"` // index in Values, counted from 1; 0 is none
}

type vote struct {
	Voter    peer.ID `cbor:"1,keyasint"`
	Promise  Ballot  `cbor:"2,keyasint,omitzero"`
	Accepted Ballot  `cbor:"3,keyasint,omitzero"`
	Value    uint16  `cbor:"4,keyasint,omitempty"` // index in Values, counted from 1; 0 is none
}

// These bounds of the values that votes may have let a state fit into one message. Up to 128 voters
// cannot exceed them. A thousand voters stay far below, since only a few propose at once.
const (
	maxValues   = 128            // distinct values in one state
	maxFounders = 16 * MaxVoters // founders of all values together
	// MaxEncoded is the largest encoding, in bytes, of a state within the bounds.
	MaxEncoded = 256 << 10
)

var (
	encoding = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, TextMarshaler: cbor.TextMarshalerNone}.EncMode())
	decoding = must(decodeOptions(MaxVoters).DecMode())
	// Our own disk holds only states that this release or an earlier one accepted, so their size
	// needs no limit.
	restoring = must(decodeOptions(math.MaxInt32).DecMode())
)

func decodeOptions(elements int) cbor.DecOptions {
	return cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: elements, MaxMapPairs: 64, MaxNestedLevels: 8}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only wrong options fail, and these are constant
	}
	return v
}

// values returns the distinct values, sorted. The zero value, which is not encoded, comes first.
func (s State) values() []Value {
	values := []Value{{}, s.decided}
	for _, v := range s.votes {
		values = append(values, v.Value)
	}
	slices.SortFunc(values, Value.compare)
	return slices.CompactFunc(values, func(a, b Value) bool { return a.compare(b) == 0 })
}

// excess returns an error if s exceeds the bounds. Excess that old, the state before a merge,
// already had is allowed.
func (s State) excess(old State) error {
	weigh := func(s State) (values, founders int) {
		all := s.values()
		for _, v := range all {
			founders += len(v.Founders)
		}
		return len(all) - 1, founders
	}
	if len(s.votes) > max(MaxVoters, len(old.votes)) {
		return fmt.Errorf("paxos: more than %d voters: launch fewer hosts until there is a ring", MaxVoters)
	}
	values, founders := weigh(s)
	if values <= maxValues && founders <= maxFounders {
		return nil
	}
	if hadValues, hadFounders := weigh(old); values > max(maxValues, hadValues) || founders > max(maxFounders, hadFounders) {
		return fmt.Errorf("paxos: votes for %d rings with %d founders, but at most %d and %d are allowed: stop the agents of some hosts, and launch them once there is a ring",
			values, founders, maxValues, maxFounders)
	}
	return nil
}

// Sendable returns the part of s that peers accept: s itself, or only its own vote if s is above
// the bounds.
func (s State) Sendable() State {
	if s.excess(State{}) != nil {
		s.votes, s.decided = map[peer.ID]Vote{s.self: s.votes[s.self]}, Value{}
	}
	return s
}

// Encode encodes s for Restore, and for Decode if s is within the bounds. Equal states have equal
// bytes.
func (s State) Encode() []byte {
	values := s.values()
	number := func(v Value) uint16 {
		i, _ := slices.BinarySearchFunc(values, v, Value.compare)
		return uint16(i)
	}
	w := wire{Self: s.self, Terms: s.terms, Values: values[1:], Decided: number(s.decided)}
	for _, id := range s.Voters() {
		v := s.votes[id]
		w.Votes = append(w.Votes, vote{id, v.Promise, v.Accepted, number(v.Value)})
	}
	return must(encoding.Marshal(w))
}

// Decode reads a state. It refuses invalid states, since a state binds its voters, and states above
// the bounds.
func Decode(data []byte) (State, error) {
	s, err := decode(data, decoding)
	if err != nil {
		return State{}, err
	}
	if err := s.excess(State{}); err != nil {
		return State{}, err
	}
	return s, nil
}

func decode(data []byte, mode cbor.DecMode) (State, error) {
	var w wire
	if err := mode.Unmarshal(data, &w); err != nil {
		return State{}, fmt.Errorf("paxos: decoding the state: %w", err)
	}
	s, err := New(w.Self, w.Terms)
	if err != nil {
		return State{}, err
	}
	for _, v := range w.Values {
		if err := v.validate(s.terms); err != nil {
			return State{}, err
		}
	}
	values, last := append([]Value{{}}, w.Values...), peer.ID{}
	for _, v := range w.Votes {
		switch {
		case compareIDs(last, v.Voter) >= 0:
			return State{}, fmt.Errorf("paxos: invalid state: voter %v is out of order, listed twice or without id", v.Voter)
		case !v.Promise.possible() || !v.Accepted.possible() || v.Accepted.Compare(v.Promise) > 0:
			return State{}, fmt.Errorf("paxos: invalid state: voter %v promised %v and accepted %v", v.Voter, v.Promise, v.Accepted)
		case int(v.Value) >= len(values) || (v.Value == 0) != (v.Accepted == Ballot{}):
			return State{}, fmt.Errorf("paxos: invalid state: voter %v accepted a ballot without a value, or a value without a ballot", v.Voter)
		}
		last, s.votes[v.Voter] = v.Voter, Vote{v.Promise, v.Accepted, values[v.Value]}
	}
	if s.terms != w.Terms || len(s.votes) != len(w.Votes) || int(w.Decided) >= len(values) {
		return State{}, fmt.Errorf("paxos: invalid state of %v: its range is unusable, or its own vote or the decided value is missing", s.self)
	}
	s.decided = values[w.Decided]
	return s, nil
}

// possible reports whether b is either no ballot, or has both a proposer and a round.
func (b Ballot) possible() bool { return (b.Round == 0) == b.Proposer.IsZero() }
