package paxos

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weft/mesh/peer"
)

var (
	v4 = netip.MustParsePrefix("10.32.0.0/12")
	v6 = netip.MustParsePrefix("fd00:1::/96")
)

func id(n int) peer.ID { return peer.ID{byte(n)} }

// valueOf returns the value that peer n would propose at its k-th attempt. No two are equal.
func valueOf(n, k int, voters []peer.ID) Value {
	return Value{Ring: [16]byte{byte(n), byte(k), byte(k >> 8)}, Cluster: [16]byte{7}, V4: v4, V6: v6, Founders: voters}
}

func by(n int) func([]peer.ID) Value {
	return func(voters []peer.ID) Value { return valueOf(n, 1, voters) }
}

func fresh(t interface{ Fatal(...any) }, n, expect int) State {
	s, err := New(id(n), Terms{Expect: expect})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func equal(a, b State) bool { a.self = b.self; return bytes.Equal(a.Encode(), b.Encode()) }

// world is voters 1..n, their disks, and a network that keeps every state that was ever sent.
type world struct {
	rapid.TB
	expect   int
	states   []State // index 0 is unused
	disks    [][]byte
	sent     [][]byte
	attempts int
	accepted map[Ballot]map[peer.ID]bool // the acceptors that stored their acceptance
	values   map[Ballot]Value
	chosen   *Value
}

func newWorld(t rapid.TB, voters, expect int) *world {
	w := &world{TB: t, expect: expect, states: make([]State, voters+1), disks: make([][]byte, voters+1), accepted: map[Ballot]map[peer.ID]bool{}, values: map[Ballot]Value{}}
	for n := 1; n <= voters; n++ {
		w.states[n] = fresh(t, n, expect)
		w.disks[n] = w.states[n].Encode()
		w.sent = append(w.sent, w.disks[n])
	}
	return w
}

// keep stores a new state and then sends it, as every caller must.
func (w *world) keep(n int, s State) {
	if was, ok := w.states[n].Decided(); ok {
		if is, still := s.Decided(); !still || is.compare(was) != 0 {
			w.Fatalf("peer %d decided on ring %x, and later on %x; want one decision", n, was.Ring, is.Ring)
		}
	}
	w.states[n], w.disks[n] = s, s.Encode()
	w.sent = append(w.sent, w.disks[n])
	for voter, v := range s.votes {
		if v.Accepted == (Ballot{}) {
			continue
		}
		if was, ok := w.values[v.Accepted]; ok && was.compare(v.Value) != 0 {
			w.Fatalf("ballot %v has the two values %x and %x; want one", v.Accepted, was.Ring, v.Value.Ring)
		}
		w.values[v.Accepted] = v.Value
		if w.accepted[v.Accepted] == nil {
			w.accepted[v.Accepted] = map[peer.ID]bool{}
		}
		w.accepted[v.Accepted][voter] = true
		if len(w.accepted[v.Accepted]) > w.expect/2 {
			w.choose(v.Value)
		}
	}
	if v, ok := s.Decided(); ok {
		if w.chosen == nil {
			w.Fatalf("peer %d decided on %x, which no quorum accepted; want an accepted value", n, v.Ring)
		}
		w.choose(v)
	}
}

func (w *world) choose(v Value) {
	if w.chosen != nil && w.chosen.compare(v) != 0 {
		w.Fatalf("the peers decided on two values, %x and %x; want one", w.chosen.Ring, v.Ring)
	}
	w.chosen = &v
}

func (w *world) advance(n int) State {
	next, _, err := w.states[n].Advance(func(voters []peer.ID) Value {
		w.attempts++
		return valueOf(n, w.attempts, voters)
	})
	if err != nil {
		w.Fatal(err)
	}
	return next
}

func (w *world) deliver(n int, message []byte) {
	m, err := Decode(message)
	if err != nil {
		w.Fatal(err)
	}
	if w.states[n], _, err = w.states[n].Merge(m); err != nil {
		w.Fatal(err)
	}
}

func (w *world) restart(n int) {
	var err error
	if w.states[n], err = Restore(w.disks[n], id(n), Terms{Expect: w.expect}); err != nil {
		w.Fatal(err)
	}
}

// even draws from 0..n-1 uniformly. rapid's own ranges prefer small numbers: most schedules would
// repeat the first action of the first peer.
func even(n int) *rapid.Generator[int] {
	return rapid.Custom(func(t *rapid.T) (x int) {
		for range 12 {
			x <<= 1
			if rapid.Bool().Draw(t, "bit") {
				x++
			}
		}
		return x % n
	})
}

// chaos delivers states to peers: any state that was ever sent, in any order, any number of times
// or never, and across changing partitions. Voters propose at random, and crash before or after
// they wrote to disk.
func (w *world) chaos(t *rapid.T, steps int) {
	inside := make([]bool, len(w.states))
	for range steps {
		if !slices.ContainsFunc(w.states[1:], func(s State) bool { return s.decided.isZero() }) {
			return
		}
		if even(6).Draw(t, "split") == 0 {
			for n := range inside {
				inside[n] = rapid.Bool().Draw(t, "inside")
			}
		}
		n, from := 1+even(len(w.disks)-1).Draw(t, "peer"), 1+even(len(w.disks)-1).Draw(t, "from")
		switch op := even(20).Draw(t, "op"); {
		case op <= 9 && inside[n] == inside[from]: // send the newest state of a peer to another
			w.deliver(n, w.disks[from])
			w.keep(n, w.advance(n))
		case op == 10: // merge a state without advancing
			w.deliver(n, w.disks[from])
		case op == 11: // send an old state to a peer
			w.deliver(n, w.sent[even(len(w.sent)).Draw(t, "message")])
			w.keep(n, w.advance(n))
		case op == 12:
			w.restart(n)
		case op == 13: // advance a peer, and let it crash before it stores
			w.advance(n)
			w.restart(n)
		case op >= 17:
			w.states[n], _ = w.states[n].Propose()
			w.keep(n, w.advance(n))
		}
	}
}

// flow exchanges states among the peers in up until all these peers know the same votes.
func (w *world) flow(up []int) {
	for range 4 {
		for _, n := range up {
			for _, from := range up {
				w.deliver(n, w.disks[from])
				w.keep(n, w.advance(n))
			}
		}
	}
}

// At most one value is ever decided, and a peer that has learned the value never forgets it. Once a
// quorum can communicate and one of its voters proposes, all of these voters learn the value.
func TestAtMostOneValueIsDecided(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for range 3 { // one schedule is cheap, and most contain no conflict
			voters := 1 + even(5).Draw(t, "voters")
			w := newWorld(t, voters, voters)
			w.chaos(t, 80)

			up := rapid.Permutation([]int{1, 2, 3, 4, 5}[:voters]).Draw(t, "up")
			up = up[:rapid.IntRange(voters/2+1, voters).Draw(t, "how many are up")]
			for _, n := range up {
				w.restart(n)
			}
			w.flow(up)
			w.states[up[0]], _ = w.states[up[0]].Propose()
			w.keep(up[0], w.advance(up[0]))
			w.flow(up)
			for _, n := range up {
				v, ok := w.states[n].Decided()
				if !ok {
					t.Fatalf("peer %d has no decided value; want that of its quorum", n)
				}
				w.choose(v)
			}
		}
	})
}

// A surplus voter, or a voter that was reset and has a new identity, does no harm if the voters
// know of each other.
func TestSurplusVotersDoNotSplitTheDecision(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		expect := rapid.IntRange(1, 3).Draw(t, "expected")
		voters := expect + rapid.IntRange(1, 3).Draw(t, "too many")
		w := newWorld(t, voters, expect)
		for n := 1; n <= voters; n++ {
			for _, m := range w.disks[1:] {
				w.deliver(n, m)
			}
			w.keep(n, w.states[n])
		}
		w.chaos(t, 80)
	})
}

// Safety depends on two rules: a voter accepts a value only after a quorum has promised the ballot,
// and never in a ballot below its promise. Random schedules test these rules too rarely.
func TestValueIsAcceptedOnlyAfterQuorumPromised(t *testing.T) {
	v1, v2 := valueOf(1, 1, []peer.ID{id(1)}), valueOf(2, 1, []peer.ID{id(2)})
	b1, b2, b3 := Ballot{1, id(1)}, Ballot{2, id(2)}, Ballot{3, id(3)}
	for range 20 { // map iteration order must not matter
		s := fresh(t, 3, 5)
		s.votes[id(1)], s.votes[id(2)] = Vote{b1, b1, v1}, Vote{b2, b2, v2}
		s, _ = s.Propose()
		if next, changed, err := s.Advance(by(3)); changed || err != nil {
			t.Fatalf("before a quorum promised, Advance changed the vote to %v, error %v; want no change", next.votes[id(3)], err)
		}
		s.votes[id(1)] = Vote{b3, b1, v1}
		if _, changed, _ := s.Advance(by(3)); changed {
			t.Fatal("the voter accepted with two of five promises; want none before three")
		}
		s.votes[id(2)] = Vote{b3, b2, v2}
		if next, _, _ := s.Advance(by(3)); next.votes[id(3)].compare(Vote{b3, b3, v2}) != 0 {
			t.Fatalf("accepted %v, want the value that was accepted last", next.votes[id(3)])
		}
	}
	s := fresh(t, 3, 5)
	s.votes[id(3)], s.votes[id(1)] = Vote{Promise: b2}, Vote{b1, b1, v1}
	if next, changed, _ := s.Advance(by(3)); changed {
		t.Fatalf("the voter accepted a ballot below its promise: %v; want no change", next.votes[id(3)])
	}
	s.votes[id(2)] = Vote{b3, b3, v2}
	if next, changed, _ := s.Advance(by(3)); !changed || next.votes[id(3)].compare(Vote{b3, b3, v2}) != 0 {
		t.Fatalf("after a ballot above its promise the vote is %v; want it accepted", next.votes[id(3)])
	}
}

func TestQuorumCountsTheVoterItselfOnce(t *testing.T) {
	for _, tt := range []struct {
		expect, up int
		decides    bool
	}{{1, 1, true}, {2, 1, false}, {2, 2, true}, {3, 1, false}, {3, 2, true}, {4, 2, false}, {4, 3, true}, {5, 2, false}, {5, 3, true}} {
		w := newWorld(t, tt.up, tt.expect)
		up := []int{1, 2, 3}[:tt.up]
		w.flow(up)
		w.states[1], _ = w.states[1].Propose()
		w.keep(1, w.advance(1))
		if tt.expect > 1 { // a single voter decides at once
			w.flow(up)
		}
		s := w.states[1]
		v, ok := s.Decided()
		if ok != tt.decides || s.Known() != tt.up || s.Quorum() != tt.expect/2+1 {
			t.Errorf("with %d of %d voters running: decided %v, known voters %d, quorum %d; want %v, %d and %d",
				tt.up, tt.expect, ok, s.Known(), s.Quorum(), tt.decides, tt.up, tt.expect/2+1)
		}
		if ok && len(v.Founders) != tt.up {
			t.Errorf("the founders are %v; want %d", v.Founders, tt.up)
		}
		if next, changed := s.Propose(); ok && (changed || !equal(next, s)) {
			t.Error("Propose changed a decided state; want the same state")
		}
	}
}

// anyState draws an arbitrary state. As Paxos guarantees, it has one value per ballot and at most
// one decided value.
func anyState(t *rapid.T, label string) State {
	s := fresh(t, rapid.IntRange(1, 4).Draw(t, label), 3)
	ballot := rapid.Custom(func(t *rapid.T) Ballot {
		return Ballot{rapid.Uint32Range(1, 3).Draw(t, "round"), id(rapid.IntRange(1, 3).Draw(t, "proposer"))}
	})
	for n := 1; n <= 4; n++ {
		var v Vote
		switch rapid.IntRange(0, 3).Draw(t, "vote") {
		case 0:
			continue
		case 1: // this voter is known, but has not voted
		case 2:
			v.Promise = ballot.Draw(t, "promise")
		case 3:
			v.Promise, v.Accepted = ballot.Draw(t, "promise"), ballot.Draw(t, "accepted")
			if v.Accepted.Compare(v.Promise) > 0 {
				v.Promise, v.Accepted = v.Accepted, v.Promise
			}
			v.Value = valueOf(int(v.Accepted.Proposer[0]), int(v.Accepted.Round), []peer.ID{id(1), id(2)})
		}
		s.votes[id(n)] = v
	}
	if rapid.IntRange(0, 3).Draw(t, "decided") == 0 {
		s.decided = valueOf(1, 1, []peer.ID{id(1)})
	}
	return s
}

func merged(t *rapid.T, a, b State) State {
	before := a.Encode()
	m, news, err := a.Merge(b)
	if err != nil {
		t.Fatal(err)
	}
	if news == equal(m, a) || !bytes.Equal(before, a.Encode()) {
		t.Fatalf("Merge returned news %v; want news exactly if the result differs from the receiver, and the receiver unchanged", news)
	}
	return m
}

func TestMergeIsCommutativeAssociativeAndIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := anyState(t, "a"), anyState(t, "b"), anyState(t, "c")
		ab := merged(t, a, b)
		if !equal(ab, merged(t, b, a)) {
			t.Fatal("Merge is not commutative: want the same state in both orders")
		}
		if !equal(merged(t, ab, c), merged(t, a, merged(t, b, c))) {
			t.Fatal("Merge is not associative: want the same state in both groupings")
		}
		if !equal(ab, merged(t, ab, b)) || !equal(ab, merged(t, ab, a)) {
			t.Fatal("Merge is not idempotent: a second merge changed the state; want no change")
		}
		for _, v := range []State{a, b} {
			for n, vote := range v.votes {
				if ab.votes[n].Promise.Compare(vote.Promise) < 0 {
					t.Fatalf("the merged vote of %v is below the promise of an input; want at least that promise", n)
				}
			}
		}
		back, err := Decode(ab.Encode())
		if err != nil || back.self != ab.self || !bytes.Equal(back.Encode(), ab.Encode()) {
			t.Fatalf("decoding the encoded state returned another state or error %v; want the same state", err)
		}
	})
}

// After a restart from an older disk, the votes that other peers know still bind the voter. It
// proposes no value under a ballot that it may have used before.
func TestNewerVotesOfPeersOverrideOlderDisk(t *testing.T) {
	a, b := fresh(t, 1, 3), fresh(t, 2, 3)
	old := a.Encode()
	a, _ = a.Propose()
	b, _, _ = b.Merge(a)
	b, _, _ = b.Advance(by(2))

	a, err := Restore(old, id(1), Terms{Expect: 3})
	if err != nil {
		t.Fatal(err)
	}
	a, news, err := a.Merge(b)
	if err != nil || !news || a.votes[id(1)].Promise != (Ballot{1, id(1)}) {
		t.Fatalf("own vote is %v, want the promise known to the peer; error %v", a.votes[id(1)], err)
	}
	if a, changed, _ := a.Advance(by(1)); changed || a.votes[id(1)].Accepted != (Ballot{}) {
		t.Fatal("after a restart the voter proposed a value under its earlier ballot; want no proposal")
	}
	a, _ = a.Propose()
	if got := a.votes[id(1)].Promise; got != (Ballot{2, id(1)}) {
		t.Fatalf("proposed ballot %v, want the next round", got)
	}
}

// A decided value stays decided, even for a peer that sees votes change to a higher ballot which no
// quorum has accepted yet.
func TestDecisionSurvivesHigherBallots(t *testing.T) {
	v, low, high := valueOf(1, 1, []peer.ID{id(1)}), Ballot{1, id(1)}, Ballot{2, id(4)}
	a := fresh(t, 1, 5)
	for n := 1; n <= 3; n++ {
		a.votes[id(n)] = Vote{low, low, v}
	}
	if _, ok := a.Decided(); ok {
		t.Fatal("before any call of Advance the state is decided; want no decision")
	}
	a, changed, _ := a.Advance(by(1))
	b := fresh(t, 4, 5)
	for n := 3; n <= 4; n++ {
		b.votes[id(n)] = Vote{high, high, v}
	}
	a, _, err := a.Merge(b)
	if got, ok := a.Decided(); !changed || err != nil || !ok || got.compare(v) != 0 {
		t.Fatalf("after the merge, decided is %v, error %v; want the value of the quorum", ok, err)
	}
	if b, _, _ = b.Merge(a); b.decided.compare(v) != 0 {
		t.Fatal("Merge did not copy the other state's decision; want it decided")
	}
	b.decided = valueOf(2, 2, []peer.ID{id(1)})
	if got, news, err := a.Merge(b); err == nil || news || !equal(got, a) || !strings.Contains(err.Error(), "weft reset") {
		t.Fatalf("merging a different decision returned %v; want an error that names weft reset, and no change", err)
	}
}

func TestMergeRefusesStateWithDifferentTerms(t *testing.T) {
	for _, tt := range []struct {
		ours, theirs Terms
		says         []string
	}{
		{Terms{Expect: 3}, Terms{Expect: 5}, []string{id(2).String(), "consensus=3", "consensus=5", "launch both with the same --ipalloc-init consensus=N"}},
		{Terms{Expect: 3, V4: v4}, Terms{Expect: 3}, []string{id(2).String(), "10.32.0.0/12", "launch both with the same --ipalloc-range"}},
		{Terms{Expect: 3, V6: v6}, Terms{Expect: 3, V4: v4, V6: v6}, []string{"--ipalloc-range fd00:1::/96:", "--ipalloc-range 10.32.0.0/12,fd00:1::/96"}},
	} {
		a, _ := New(id(1), tt.ours)
		b, _ := New(id(2), tt.theirs)
		got, news, err := a.Merge(b)
		if e, ok := errors.AsType[*TermsError](err); !ok || news || got.Known() != 1 || e.Peer != id(2) || e.Ours != tt.ours || e.Theirs != tt.theirs {
			t.Errorf("merging a state with terms %[2]v into one with terms %[1]v returned %[3]v; want a TermsError, and no change", tt.ours, tt.theirs, err)
			continue
		}
		for _, s := range tt.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("got error %q; want one with %q", err, s)
			}
		}
	}
}

func TestRestoreRefusesStateOfOtherVotersAndInvalidTerms(t *testing.T) {
	promised, _ := fresh(t, 1, 1).Propose()
	accepted, _, _ := promised.Advance(by(1))
	for name, tt := range map[string]struct {
		s     State
		self  peer.ID
		terms Terms
		ok    bool
	}{
		"same terms":                    {accepted, id(1), Terms{Expect: 1}, true},
		"state of another peer":         {accepted, id(2), Terms{Expect: 1}, false},
		"new terms, nothing accepted":   {promised, id(1), Terms{Expect: 3}, true},
		"new terms, something accepted": {accepted, id(1), Terms{Expect: 3}, false},
		"unusable terms":                {promised, id(1), Terms{Expect: 0}, false},
	} {
		got, err := Restore(tt.s.Encode(), tt.self, tt.terms)
		if (err == nil) != tt.ok || tt.ok && (got.terms != tt.terms || got.votes[id(1)].Promise != (Ballot{1, id(1)})) {
			t.Errorf("%s: Restore returned the terms %+v, error %v; want success %v", name, got.terms, err, tt.ok)
		}
	}
}

func TestInvalidCandidateChangesNothing(t *testing.T) {
	for name, break_ := range map[string]func(*Value){
		"no ring":           func(v *Value) { v.Ring = [16]byte{} },
		"no founders":       func(v *Value) { v.Founders = nil },
		"other range":       func(v *Value) { v.V4 = netip.MustParsePrefix("10.64.0.0/12") },
		"no universe":       func(v *Value) { v.V6 = netip.Prefix{} },
		"unsorted founders": func(v *Value) { v.Founders = []peer.ID{id(2), id(1)} },
	} {
		s, err := New(id(1), Terms{Expect: 1, V4: v4, V6: netip.PrefixFrom(netip.IPv6Unspecified(), 200)})
		if err != nil {
			t.Fatal(err)
		}
		s, _ = s.Propose()
		next, changed, err := s.Advance(func(voters []peer.ID) Value {
			v := valueOf(1, 1, voters)
			break_(&v)
			return v
		})
		if err == nil || changed || !equal(next, s) {
			t.Errorf("candidate with %s: Advance returned %v, changed %v; want an error and no change", name, err, changed)
		}
		if next, _, err = s.Advance(by(1)); err != nil || next.decided.isZero() {
			t.Errorf("a valid candidate after one with %s: %v; want a decision", name, err)
		}
	}
}
