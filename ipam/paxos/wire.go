package paxos

import (
	"fmt"
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

var (
	encoding = must(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, TextMarshaler: cbor.TextMarshalerNone}.EncMode())
	decoding = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: MaxVoters, MaxMapPairs: 64, MaxNestedLevels: 8}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options
	}
	return v
}

// Encode writes s so that Decode reads it. Equal states have equal bytes.
func (s State) Encode() []byte {
	values := []Value{{}, s.decided} // the zero one sorts first and is not written
	for _, v := range s.votes {
		values = append(values, v.Value)
	}
	slices.SortFunc(values, Value.compare)
	values = slices.CompactFunc(values, func(a, b Value) bool { return a.compare(b) == 0 })
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

// Decode reads a state and refuses one that cannot be, since what it says binds its voters.
func Decode(data []byte) (State, error) {
	var w wire
	if err := decoding.Unmarshal(data, &w); err != nil {
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
