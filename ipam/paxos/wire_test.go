package paxos

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"weft/mesh/peer"
)

func TestVotersAndRoundsAreBounded(t *testing.T) {
	for _, expect := range []int{-1, 0, MaxVoters + 1} {
		if _, err := New(id(1), Terms{Expect: expect}); err == nil {
			t.Errorf("New accepted terms with %d voters; want an error", expect)
		}
	}
	a, b := fresh(t, 1, 3), fresh(t, 2, 3)
	for n := range MaxVoters - 1 {
		a.votes[peer.ID{1, byte(n >> 8), byte(n), 1}] = Vote{}
	}
	if _, err := Decode(a.Encode()); err != nil {
		t.Error(err)
	}
	if got, news, err := a.Merge(b); err == nil || news || got.Known() != MaxVoters {
		t.Errorf("merging one voter too many resulted in %d voters, error %v; want MaxVoters and an error", got.Known(), err)
	}
	a.votes[id(2)] = Vote{}
	if _, err := Decode(a.Encode()); err == nil {
		t.Error("Decode accepted a state with more than MaxVoters votes; want an error")
	}
	b.votes[id(1)] = Vote{Promise: Ballot{^uint32(0), id(1)}}
	if _, changed := b.Propose(); changed {
		t.Error("Propose started a round after the highest possible one; want no change")
	}
}

func TestDecodeRefusesInvalidStates(t *testing.T) {
	good := func() wire {
		v := valueOf(1, 1, []peer.ID{id(1), id(2)})
		return wire{Self: id(1), Terms: Terms{Expect: 3}, Values: []Value{v}, Votes: []vote{{id(1), Ballot{2, id(2)}, Ballot{1, id(1)}, 1}, {Voter: id(2)}}}
	}
	if _, err := Decode(must(encoding.Marshal(good()))); err != nil {
		t.Fatal(err)
	}
	for name, break_ := range map[string]func(*wire){
		"no sender":             func(w *wire) { w.Self = peer.ID{} },
		"sender's vote missing": func(w *wire) { w.Self = id(3) },
		"expects no voters":     func(w *wire) { w.Terms.Expect = 0 },
		"expects too many":      func(w *wire) { w.Terms.Expect = MaxVoters + 1 },
		"unusable range given":  func(w *wire) { w.Terms.V4 = netip.PrefixFrom(v4.Addr(), 99) },
		"founders unsorted":     func(w *wire) { w.Values[0].Founders = []peer.ID{id(2), id(1)} },
		"founder twice":         func(w *wire) { w.Values[0].Founders = []peer.ID{id(1), id(1)} },
		"founder zero":          func(w *wire) { w.Values[0].Founders = []peer.ID{{}, id(1)} },
		"no founders":           func(w *wire) { w.Values[0].Founders = nil },
		"no IPv4 range":         func(w *wire) { w.Values[0].V4 = netip.Prefix{} },
		"host bits":             func(w *wire) { w.Values[0].V4 = netip.MustParsePrefix("10.32.0.1/12") },
		"no ring":               func(w *wire) { w.Values[0].Ring = [16]byte{} },
		"accepted > promise":    func(w *wire) { w.Votes[0].Accepted = Ballot{3, id(1)} },
		"ballot, no proposer":   func(w *wire) { w.Votes[0].Promise = Ballot{Round: 2} },
		"ballot without round":  func(w *wire) { w.Votes[1].Promise = Ballot{Proposer: id(1)} },
		"value missing":         func(w *wire) { w.Votes[0].Value = 0 },
		"unknown value index":   func(w *wire) { w.Votes[0].Value = 2 },
		"value without ballot":  func(w *wire) { w.Votes[0].Accepted = Ballot{} },
		"unknown decided index": func(w *wire) { w.Decided = 2 },
		"votes unsorted":        func(w *wire) { slices.Reverse(w.Votes) },
		"voter listed twice":    func(w *wire) { w.Votes = append(w.Votes, w.Votes[1]) },
		"voter without id":      func(w *wire) { w.Votes = append([]vote{{}}, w.Votes...) },
	} {
		w := good()
		break_(&w)
		if _, err := Decode(must(encoding.Marshal(w))); err == nil {
			t.Errorf("Decode accepted a state with the fault %q; want an error", name)
		}
	}
}

// A newer version may add fields, which Decode ignores.
func TestDecodeIgnoresUnknownFields(t *testing.T) {
	s := fresh(t, 1, 3)
	var m map[int]any
	if err := decoding.Unmarshal(s.Encode(), &m); err != nil {
		t.Fatal(err)
	}
	m[99] = "new"
	if got, err := Decode(must(encoding.Marshal(m))); err != nil || !equal(got, s) {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	s, _ := New(id(1), Terms{Expect: 1, V4: v4})
	f.Add(s.Encode())
	s, _ = s.Propose()
	f.Add(s.Encode())
	s, _, _ = s.Advance(by(1))
	f.Add(s.Encode())
	three, _ := New(id(3), Terms{Expect: 3})
	three.votes[id(1)] = Vote{Ballot{2, id(3)}, Ballot{1, id(1)}, s.decided}
	three.votes[id(2)] = Vote{Promise: Ballot{2, id(3)}}
	f.Add(three.Encode())
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Decode(s.Encode())
		if err != nil || !bytes.Equal(again.Encode(), s.Encode()) {
			t.Fatalf("encoding and decoding again returned another state or error %v; want the same state", err)
		}
		if _, news, err := s.Merge(again); err != nil || news {
			t.Fatalf("merging a state into itself returned news or error %v; want neither", err)
		}
		next, _ := s.Propose()
		if next, _, err = next.Advance(by(1)); err != nil {
			return
		}
		if _, err := Decode(next.Encode()); err != nil {
			t.Fatalf("decoding the advanced state: error %v, want none", err)
		}
	})
}
