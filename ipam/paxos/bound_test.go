package paxos

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"weft/mesh/peer"
)

// crowd is n voters from one on, with the longest numbers that there are, who voted for values
// with so many founders, each for its own one of so many.
func crowd(n, from, values, founders int) State {
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

// Whatever members say, in whatever order: what is kept loads, and what is told is read.
func TestWhatIsMergedCanBeLoaded(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			s := crowd(1, 0, 1, 1)
			refused := 0
			for range 15 {
				n := 1 + rng.IntN(MaxVoters/4)
				o := crowd(n, rng.IntN(MaxVoters), 1+rng.IntN(maxValues/2), 1+rng.IntN(200))
				next, _, err := s.Merge(o)
				if err != nil {
					refused++
				}
				s = next
				check(t, s)
			}
			if refused == 0 {
				t.Error("nothing is refused: the test is too small")
			}
		})
	}
}

func check(t *testing.T, s State) {
	t.Helper()
	if back, err := Restore(s.Encode(), s.self, s.terms); err != nil || !equal(back, s) {
		t.Fatalf("it does not load: %v", err)
	}
	told := s.Told().Encode()
	if back, err := Decode(told); err != nil || len(told) > MaxEncoded {
		t.Fatalf("others cannot read it: %d bytes, %d votes, %v", len(told), back.Known(), err)
	}
}

// The largest state of all fits into the bound in bytes, which push/pull has room for; what an
// earlier release kept beyond it loads.
func TestTheLargestVoteFits(t *testing.T) {
	s := crowd(MaxVoters, 0, maxValues, maxFounders/maxValues)
	if err := s.excess(State{}); err != nil {
		t.Fatal(err)
	}
	check(t, s)
	t.Logf("%d bytes", len(s.Encode()))
	s = crowd(MaxVoters, 0, MaxVoters, 100)
	s.decided = Value{Ring: [16]byte{1}, Cluster: [16]byte{1}, V4: v4, V6: v6, Founders: []peer.ID{id(1)}} // one value more than voters
	check(t, s)
	if told := s.Told(); told.Known() != 1 {
		t.Errorf("it tells %d votes", told.Known())
	}
}
