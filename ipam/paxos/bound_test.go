package paxos

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"weft/mesh/peer"
)

// manyVoters returns n voters, starting at number from, with the longest possible encoding. Voter k
// votes for value k modulo values. Each value has the given number of founders.
func manyVoters(n, from, values, founders int) State {
	longID := func(i int) (id peer.ID) {
		binary.BigEndian.PutUint64(id[:], 1<<63|uint64(i))
		return id
	}
	s := State{self: longID(from), terms: Terms{Expect: MaxVoters, V4: v4, V6: v6}, votes: map[peer.ID]Vote{}}
	for i := from; i < from+n; i++ {
		v := Value{Ring: [16]byte{255, 0, byte(i % values), byte(i % values >> 8)}, Cluster: [16]byte{255}, V4: v4, V6: v6}
		for k := range founders {
			v.Founders = append(v.Founders, longID(k))
		}
		b := Ballot{^uint32(0), longID(i)}
		s.votes[longID(i)] = Vote{b, b, v}
	}
	return s
}

// Whatever the order of merges, the merged state can be restored and sent.
func TestMergedStatesCanBeRestoredAndDecoded(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			s := manyVoters(1, 0, 1, 1)
			refused := 0
			for range 15 {
				n := 1 + rng.IntN(MaxVoters/4)
				o := manyVoters(n, rng.IntN(MaxVoters), 1+rng.IntN(maxValues/2), 1+rng.IntN(200))
				next, _, err := s.Merge(o)
				if err != nil {
					refused++
				}
				s = next
				check(t, s)
			}
			if refused == 0 {
				t.Error("no merge was refused; want some: the test draws too few voters and values")
			}
		})
	}
}

func check(t *testing.T, s State) {
	t.Helper()
	if back, err := Restore(s.Encode(), s.self, s.terms); err != nil || !equal(back, s) {
		t.Fatalf("Restore returned another state or error %v; want the merged state", err)
	}
	told := s.Sendable().Encode()
	if back, err := Decode(told); err != nil || len(told) > MaxEncoded {
		t.Fatalf("the state to send has %d bytes and %d votes, and decoding it returned %v; want at most MaxEncoded and no error", len(told), back.Known(), err)
	}
}

// The largest allowed state fits MaxEncoded, and push/pull accepts messages of that size. A larger
// state of an earlier release can be restored.
func TestLargestStateFitsMaxEncoded(t *testing.T) {
	s := manyVoters(MaxVoters, 0, maxValues, maxFounders/maxValues)
	if err := s.excess(State{}); err != nil {
		t.Fatal(err)
	}
	check(t, s)
	t.Logf("the largest state has %d bytes", len(s.Encode()))
	s = manyVoters(MaxVoters, 0, MaxVoters, 100)
	s.decided = Value{Ring: [16]byte{1}, Cluster: [16]byte{1}, V4: v4, V6: v6, Founders: []peer.ID{id(1)}} // the state now has one more value than it has voters
	check(t, s)
	if told := s.Sendable(); told.Known() != 1 {
		t.Errorf("the part of a state above the bounds that is sent has %d votes; want only the voter's own", told.Known())
	}
}
