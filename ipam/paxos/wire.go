package paxos

import (
	"fmt"
	"math"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
)

// wire is a state on the network and on disk. Most votes are for the same value, so
// that values stand apart.
type wire struct {
	Self    peer.ID `cbor:"1,keyasint"`
	Terms   Terms   `cbor:"2,keyasint"`
	Votes   []vote  `cbor:"3,keyasint"`           // sorted by voter
	Values  []Value `cbor:"4,keyasint,omitempty"` // sorted
	Decided uint16  `cbor:"5,keyasint,omitempty"` // counts in Values from 1; 0 is none
}

type vote struct {
	Voter    peer.ID `cbor:"1,keyasint"`
	Promise  Ballot  `cbor:"2,keyasint,omitzero"`
	Accepted Ballot  `cbor:"3,keyasint,omitzero"`
	Value    uint16  `cbor:"4,keyasint,omitempty"` // as Decided
}

// Bounds of what votes are for, so that a state fits into one message. Below 128 voters they
// are never reached; a thousand, of which seldom more than a few propose at once, are far below.
const (
	maxValues   = 128            // different ones
	maxFounders = 16 * MaxVoters // of all of them together
	// MaxEncoded is how large a state within the bounds can be on the wire.
	MaxEncoded = 256 << 10
)

var (
	encoding = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, TextMarshaler: cbor.TextMarshalerNone}.EncMode())
	decoding = must(decodeOptions(MaxVoters).DecMode())
	// What is on our own disk was once accepted, by this release or another one.
	restoring = must(decodeOptions(math.MaxInt32).DecMode())
)

func decodeOptions(elements int) cbor.DecOptions {
	return cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: elements, MaxMapPairs: 64, MaxNestedLevels: 8}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options
	}
	return v
}

// values are the different ones, in order; the zero one, which is not written, is the first.
func (s State) values() []Value {
	values := []Value{{}, s.decided}
	for _, v := range s.votes {
		values = append(values, v.Value)
	}
	slices.SortFunc(values, Value.compare)
	return slices.CompactFunc(values, func(a, b Value) bool { return a.compare(b) == 0 })
}

// excess reports what s has too much of, for a state that is added to old, which may have
// been above the bounds already.
func (s State) excess(old State) error {
	weigh := func(s State) (values, founders int) {
		all := s.values()
		for _, v := range all {
			founders += len(v.Founders)
		}
		return len(all) - 1, founders
	}
	if len(s.votes) > max(MaxVoters, len(old.votes)) {
		return fmt.Errorf("paxos: more than %d voters", MaxVoters)
	}
	values, founders := weigh(s)
	if values <= maxValues && founders <= maxFounders {
		return nil
	}
	if hadValues, hadFounders := weigh(old); values > max(maxValues, hadValues) || founders > max(maxFounders, hadFounders) {
		return fmt.Errorf("paxos: votes for %d rings with %d founders, at most %d and %d are allowed: stop the agents of some hosts, and launch them once there is a ring",
			values, founders, maxValues, maxFounders)
	}
	return nil
}

// Told is as much of s as others accept: all of it, unless it is above the bounds; then its
// own vote.
func (s State) Told() State {
	if s.excess(State{}) != nil {
		s.votes, s.decided = map[peer.ID]Vote{s.self: s.votes[s.self]}, Value{}
	}
	return s
}

// Encode writes s so that Restore reads it, and Decode what is within the bounds. Equal states
// have equal bytes.
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

// Decode reads a state and refuses one that cannot be, since what it says binds its voters, or
// that is above the bounds.
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
		return State{}, fmt.Errorf("paxos: %w", err)
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
			return State{}, fmt.Errorf("paxos: voter %v is out of order, there twice or nobody", v.Voter)
		case !v.Promise.possible() || !v.Accepted.possible() || v.Accepted.Compare(v.Promise) > 0:
			return State{}, fmt.Errorf("paxos: voter %v has promised %v and accepted %v, which cannot be", v.Voter, v.Promise, v.Accepted)
		case int(v.Value) >= len(values) || (v.Value == 0) != (v.Accepted == Ballot{}):
			return State{}, fmt.Errorf("paxos: voter %v has accepted a ballot without a value, or a value without a ballot", v.Voter)
		}
		last, s.votes[v.Voter] = v.Voter, Vote{v.Promise, v.Accepted, values[v.Value]}
	}
	if s.terms != w.Terms || len(s.votes) != len(w.Votes) || int(w.Decided) >= len(values) {
		return State{}, fmt.Errorf("paxos: the state of %v has an unusable range, or lacks its own vote or what was decided", s.self)
	}
	s.decided = values[w.Decided]
	return s, nil
}

// possible reports whether b is either no ballot or one that has a proposer and a round.
func (b Ballot) possible() bool { return (b.Round == 0) == b.Proposer.IsZero() }
