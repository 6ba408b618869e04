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

// valueOf is what peer n would found at its k-th attempt: never the same twice.
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

// world is the voters 1..n, their disks, and a network that keeps every state ever sent.
type world struct {
	rapid.TB
	expect   int
	states   []State // at 0: none
	disks    [][]byte
	sent     [][]byte
	attempts int
	accepted map[Ballot]map[peer.ID]bool // by acceptors that wrote it to disk
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

// keep is what the caller does with a new state: disk first, then it may be told.
func (w *world) keep(n int, s State) {
	if was, ok := w.states[n].Decided(); ok {
		if is, still := s.Decided(); !still || is.compare(was) != 0 {
			w.Fatalf("peer %d: decided %x, then %x", n, was.Ring, is.Ring)
		}
	}
	w.states[n], w.disks[n] = s, s.Encode()
	w.sent = append(w.sent, w.disks[n])
	for voter, v := range s.votes {
		if v.Accepted == (Ballot{}) {
			continue
		}
		if was, ok := w.values[v.Accepted]; ok && was.compare(v.Value) != 0 {
			w.Fatalf("ballot %v has the values %x and %x", v.Accepted, was.Ring, v.Value.Ring)
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
			w.Fatalf("peer %d believes in %x, which no quorum accepted", n, v.Ring)
		}
		w.choose(v)
	}
}

func (w *world) choose(v Value) {
	if w.chosen != nil && w.chosen.compare(v) != 0 {
		w.Fatalf("two values were decided: %x and %x", w.chosen.Ring, v.Ring)
	}
	w.chosen = &v
}

func (w *world) think(n int) State {
	next, _, err := w.states[n].Think(func(voters []peer.ID) Value {
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

// even draws from 0..n-1, all alike: rapid's own ranges lean towards small numbers,
// so that a schedule would be mostly the first peer doing the first thing.
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

// chaos delivers any state ever sent anywhere, in any order, any number of times or
// never, also across changing splits of the network; voters propose as they like and
// crash before or after they wrote to disk.
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
		case op <= 9 && inside[n] == inside[from]: // what somebody said last
			w.deliver(n, w.disks[from])
			w.keep(n, w.think(n))
		case op == 10: // heard of, not thought about yet
			w.deliver(n, w.disks[from])
		case op == 11: // long out of date
			w.deliver(n, w.sent[even(len(w.sent)).Draw(t, "message")])
			w.keep(n, w.think(n))
		case op == 12:
			w.restart(n)
		case op == 13: // it thought, and crashed before anybody knew
			w.think(n)
			w.restart(n)
		case op >= 17:
			w.states[n], _ = w.states[n].Propose()
			w.keep(n, w.think(n))
		}
	}
}

// flow lets those who are up hear each other until there is no more news.
func (w *world) flow(up []int) {
	for range 4 {
		for _, n := range up {
			for _, from := range up {
				w.deliver(n, w.disks[from])
				w.keep(n, w.think(n))
			}
		}
	}
}

// Invariant: at most one value is ever decided, and who knows it never forgets it.
// When at last a quorum can talk and one of them proposes, all of them know it.
func TestOnlyOneValueIsDecidedAndThenByAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		for range 3 { // one schedule is cheap, and most are harmless
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
			w.keep(up[0], w.think(up[0]))
			w.flow(up)
			for _, n := range up {
				v, ok := w.states[n].Decided()
				if !ok {
					t.Fatalf("peer %d does not know what was decided", n)
				}
				w.choose(v)
			}
		}
	})
}

// With a voter too many, or one that was reset and came back under a new name,
// nothing goes wrong as long as they had heard of each other.
func TestMoreVotersThanExpected(t *testing.T) {
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

// The two rules that safety rests on; random schedules break them too seldom.
func TestTheRulesOfPaxos(t *testing.T) {
	v1, v2 := valueOf(1, 1, []peer.ID{id(1)}), valueOf(2, 1, []peer.ID{id(2)})
	b1, b2, b3 := Ballot{1, id(1)}, Ballot{2, id(2)}, Ballot{3, id(3)}
	for range 20 { // the order of a map must not matter
		s := fresh(t, 3, 5)
		s.votes[id(1)], s.votes[id(2)] = Vote{b1, b1, v1}, Vote{b2, b2, v2}
		s, _ = s.Propose()
		if next, changed, err := s.Think(by(3)); changed || err != nil {
			t.Fatalf("accepted %v before a quorum promised, %v", next.votes[id(3)], err)
		}
		s.votes[id(1)] = Vote{b3, b1, v1}
		if _, changed, _ := s.Think(by(3)); changed {
			t.Fatal("two are no quorum of five")
		}
		s.votes[id(2)] = Vote{b3, b2, v2}
		if next, _, _ := s.Think(by(3)); next.votes[id(3)].compare(Vote{b3, b3, v2}) != 0 {
			t.Fatalf("the value accepted last is to be carried on, not %v", next.votes[id(3)])
		}
	}
	s := fresh(t, 3, 5)
	s.votes[id(3)], s.votes[id(1)] = Vote{Promise: b2}, Vote{b1, b1, v1}
	if next, changed, _ := s.Think(by(3)); changed {
		t.Fatalf("accepted below its promise: %v", next.votes[id(3)])
	}
	s.votes[id(2)] = Vote{b3, b3, v2}
	if next, changed, _ := s.Think(by(3)); !changed || next.votes[id(3)].compare(Vote{b3, b3, v2}) != 0 {
		t.Fatalf("did not accept above its promise: %v", next.votes[id(3)])
	}
}

func TestAQuorumCountsThePeerItselfAndNoMore(t *testing.T) {
	for _, tt := range []struct {
		expect, up int
		decides    bool
	}{{1, 1, true}, {2, 1, false}, {2, 2, true}, {3, 1, false}, {3, 2, true}, {4, 2, false}, {4, 3, true}, {5, 2, false}, {5, 3, true}} {
		w := newWorld(t, tt.up, tt.expect)
		up := []int{1, 2, 3}[:tt.up]
		w.flow(up)
		w.states[1], _ = w.states[1].Propose()
		w.keep(1, w.think(1))
		if tt.expect > 1 { // one of one decides at once
			w.flow(up)
		}
		s := w.states[1]
		v, ok := s.Decided()
		if ok != tt.decides || s.Known() != tt.up || s.Quorum() != tt.expect/2+1 {
			t.Errorf("%d of %d are up: decided %v, known %d, quorum %d", tt.up, tt.expect, ok, s.Known(), s.Quorum())
		}
		if ok && len(v.Founders) != tt.up {
			t.Errorf("founders: %v", v.Founders)
		}
		if next, changed := s.Propose(); ok && (changed || !equal(next, s)) {
			t.Error("proposed what was decided already")
		}
	}
}

// anyState draws a state that need not come from any history, but keeps to one value
// a ballot, and to one that was decided, as Paxos does.
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
		case 1: // heard of
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
		t.Fatalf("news %v, and the state changed or not", news)
	}
	return m
}

func TestMergeLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := anyState(t, "a"), anyState(t, "b"), anyState(t, "c")
		ab := merged(t, a, b)
		if !equal(ab, merged(t, b, a)) {
			t.Fatal("not commutative")
		}
		if !equal(merged(t, ab, c), merged(t, a, merged(t, b, c))) {
			t.Fatal("not associative")
		}
		if !equal(ab, merged(t, ab, b)) || !equal(ab, merged(t, ab, a)) {
			t.Fatal("not idempotent")
		}
		for _, v := range []State{a, b} {
			for n, vote := range v.votes {
				if ab.votes[n].Promise.Compare(vote.Promise) < 0 {
					t.Fatalf("%v forgot a promise", n)
				}
			}
		}
		back, err := Decode(ab.Encode())
		if err != nil || back.self != ab.self || !bytes.Equal(back.Encode(), ab.Encode()) {
			t.Fatalf("encoding: %v", err)
		}
	})
}

// A disk that went back in time: what the peer told others binds it, and it starts
// no second proposal under a ballot that it may have used.
func TestAnOlderDiskIsOverruledByOthers(t *testing.T) {
	a, b := fresh(t, 1, 3), fresh(t, 2, 3)
	old := a.Encode()
	a, _ = a.Propose()
	b, _, _ = b.Merge(a)
	b, _, _ = b.Think(by(2))

	a, err := Restore(old, id(1), Terms{Expect: 3})
	if err != nil {
		t.Fatal(err)
	}
	a, news, err := a.Merge(b)
	if err != nil || !news || a.votes[id(1)].Promise != (Ballot{1, id(1)}) {
		t.Fatalf("own vote %v, %v", a.votes[id(1)], err)
	}
	if a, changed, _ := a.Think(by(1)); changed || a.votes[id(1)].Accepted != (Ballot{}) {
		t.Fatal("it went on with a ballot that it does not remember")
	}
	a, _ = a.Propose()
	if got := a.votes[id(1)].Promise; got != (Ballot{2, id(1)}) {
		t.Fatalf("proposed %v", got)
	}
}

// A value that was decided stays so also for one who sees votes move on to a higher
// ballot that no quorum has accepted yet.
func TestDecidedStaysWhenVotesMoveOn(t *testing.T) {
	v, low, high := valueOf(1, 1, []peer.ID{id(1)}), Ballot{1, id(1)}, Ballot{2, id(4)}
	a := fresh(t, 1, 5)
	for n := 1; n <= 3; n++ {
		a.votes[id(n)] = Vote{low, low, v}
	}
	if _, ok := a.Decided(); ok {
		t.Fatal("nobody has thought yet")
	}
	a, changed, _ := a.Think(by(1))
	b := fresh(t, 4, 5)
	for n := 3; n <= 4; n++ {
		b.votes[id(n)] = Vote{high, high, v}
	}
	a, _, err := a.Merge(b)
	if got, ok := a.Decided(); !changed || err != nil || !ok || got.compare(v) != 0 {
		t.Fatalf("decided %v, %v", ok, err)
	}
	if b, _, _ = b.Merge(a); b.decided.compare(v) != 0 {
		t.Fatal("who hears of a decision knows it")
	}
	b.decided = valueOf(2, 2, []peer.ID{id(1)})
	if got, news, err := a.Merge(b); err == nil || news || !equal(got, a) || !strings.Contains(err.Error(), "weft reset") {
		t.Fatalf("two decisions: %v", err)
	}
}

func TestOtherTermsAreNamedAndNotMerged(t *testing.T) {
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
			t.Errorf("%v and %v: %v", tt.ours, tt.theirs, err)
			continue
		}
		for _, s := range tt.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%q does not say %q", err, s)
			}
		}
	}
}

func TestRestore(t *testing.T) {
	promised, _ := fresh(t, 1, 1).Propose()
	accepted, _, _ := promised.Think(by(1))
	for name, tt := range map[string]struct {
		s     State
		self  peer.ID
		terms Terms
		ok    bool
	}{
		"as before":                     {accepted, id(1), Terms{Expect: 1}, true},
		"somebody else's":               {accepted, id(2), Terms{Expect: 1}, false},
		"new terms, nothing accepted":   {promised, id(1), Terms{Expect: 3}, true},
		"new terms, something accepted": {accepted, id(1), Terms{Expect: 3}, false},
		"unusable terms":                {promised, id(1), Terms{Expect: 0}, false},
	} {
		got, err := Restore(tt.s.Encode(), tt.self, tt.terms)
		if (err == nil) != tt.ok || tt.ok && (got.terms != tt.terms || got.votes[id(1)].Promise != (Ballot{1, id(1)})) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnUnusableCandidateChangesNothing(t *testing.T) {
	for name, break_ := range map[string]func(*Value){
		"no ring":           func(v *Value) { v.Ring = [16]byte{} },
		"nobody":            func(v *Value) { v.Founders = nil },
		"other range":       func(v *Value) { v.V4 = netip.MustParsePrefix("10.64.0.0/12") },
		"no universe":       func(v *Value) { v.V6 = netip.Prefix{} },
		"unsorted founders": func(v *Value) { v.Founders = []peer.ID{id(2), id(1)} },
	} {
		s, err := New(id(1), Terms{Expect: 1, V4: v4, V6: netip.PrefixFrom(netip.IPv6Unspecified(), 200)})
		if err != nil {
			t.Fatal(err)
		}
		s, _ = s.Propose()
		next, changed, err := s.Think(func(voters []peer.ID) Value {
			v := valueOf(1, 1, voters)
			break_(&v)
			return v
		})
		if err == nil || changed || !equal(next, s) {
			t.Errorf("%s: %v", name, err)
		}
		if next, _, err = s.Think(by(1)); err != nil || next.decided.isZero() {
			t.Errorf("%s, then a good one: %v", name, err)
		}
	}
}
