package wire

import (
	"encoding/hex"
	"fmt"
	"maps"
	"testing"

	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// These items are tokens, records, rings and votes.

var stateItems = map[string]item{
	"secret/token":    {what: "a join token, text", read: readToken},
	"secret/password": {what: "the token derived from the password `correct horse`, text", read: readToken},
	"peer/starting":   {what: "the record of a peer without a ring", read: readRecord, newer: newerRecord},
	"peer/running":    {what: "the record of a peer in the ring, on a Kubernetes Node", read: readRecord, newer: newerRecord},
	"peer/stopped":    {what: "the record of a peer whose agent was stopped", read: readRecord, newer: newerRecord},
	"peer/left":       {what: "the record of a peer that left", read: readRecord, newer: newerRecord},
	"ring/founded":    {what: "a whole ring", read: readRing, newer: newerRing},
	"ring/granted":    {what: "a delta: slots that alpha gave to charlie", read: readRing, newer: newerRing},
	"ring/taken-over": {what: "a delta: what bravo owned, after its removal", read: readRing, newer: newerRing},
	"ring/whole":      {what: "a whole ring, after both", read: readRing, newer: newerRing},
	"votes/new":       {what: "a voter that knows no other voters yet; no range was requested", read: readVotes, newer: withFields},
	"votes/proposed":  {what: "a voter that proposes; a range was requested", read: readVotes, newer: withFields},
	"votes/accepted":  {what: "the proposer, after it has a quorum of promises", read: readVotes, newer: newerVotes},
	"votes/decided":   {what: "another voter, after the decision", read: readVotes, newer: newerVotes},
}

// newerVotes adds unknown fields to every vote and every value.
func newerVotes(data []byte) []byte {
	if len(must(decode[v1Votes](data)).Values) > 0 {
		data = within(data, 4, each(withFields))
	}
	return withFields(within(data, 3, each(withFields)))
}

func produceStates(t *testing.T) map[string][]byte {
	t.Helper()
	password, err := secret.FromPassword("correct horse", "")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{"secret/token": []byte(joinToken.Reveal()), "secret/password": []byte(password.Reveal())}
	for name, r := range map[string]peer.Record{
		"peer/starting": func() peer.Record { r := record(charlie); r.Sequence = 1; return r }(),
		"peer/running":  func() peer.Record { r := settled(alpha); r.Sequence = 7; return r }(),
		"peer/stopped":  func() peer.Record { r := settled(bravo); r.Sequence, r.State = 300, peer.Stopped; return r }(),
		"peer/left":     func() peer.Record { r := settled(bravo); r.Sequence, r.State = 1<<40, peer.Left; return r }(),
	} {
		n := map[string]int{"charlie": charlie, "alpha": alpha, "bravo": bravo}[r.Nickname]
		r.Certificate = certificate(n)
		all[name] = must(peer.Sign(r, key(n))).Encode()
	}
	r := founded()
	all["ring/founded"] = r.Encode()
	r, granted, err := r.Grant(id(alpha), id(charlie), slot.Range{Start: 0x4000, End: 0x6000})
	if err != nil {
		t.Fatal(err)
	}
	r, taken, err := r.TakeOver(id(bravo), id(alpha))
	if err != nil {
		t.Fatal(err)
	}
	all["ring/granted"], all["ring/taken-over"], all["ring/whole"] = granted.Encode(), taken.Encode(), r.Encode()
	maps.Copy(all, produceVotes(t))
	return all
}

// produceVotes lets alpha and bravo, two of three voters, found a ring.
func produceVotes(t *testing.T) map[string][]byte {
	t.Helper()
	fail := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	value := func(voters []peer.ID) paxos.Value {
		return paxos.Value{Ring: ringID, Cluster: cluster, V4: universe.V4, V6: universe.V6, Founders: voters}
	}
	lone, err := paxos.New(id(charlie), paxos.Terms{Expect: 5})
	fail(err)
	terms := paxos.Terms{Expect: 3, V4: universe.V4, V6: universe.V6}
	a, err := paxos.New(id(alpha), terms)
	fail(err)
	b, err := paxos.New(id(bravo), terms)
	fail(err)
	all := map[string][]byte{"votes/new": lone.Encode()}
	a, _ = a.Propose()
	all["votes/proposed"] = a.Encode()
	hear := func(s, o paxos.State) paxos.State {
		t.Helper()
		s, _, err := s.Merge(o)
		fail(err)
		s, _, err = s.Advance(value)
		fail(err)
		return s
	}
	b = hear(b, a)
	a = hear(a, b)
	all["votes/accepted"] = a.Encode()
	b = hear(b, a)
	if _, decided := b.Decided(); !decided {
		t.Fatal("the election decided nothing, want a ring")
	}
	all["votes/decided"] = b.Encode()
	return all
}

func readToken(t *testing.T, data []byte) string {
	t.Helper()
	tok, err := secret.Parse(string(data))
	if err != nil {
		return show(err)
	}
	a, b := id(alpha), id(bravo)
	psk := tok.Secret.PresharedKey(a, b)
	return show(map[string]string{
		"secret": hex.EncodeToString(tok.Secret[:]), "cluster": tok.Cluster.String(), "IPv6 universe": tok.Cluster.V6().String(),
		"gossip key": hex.EncodeToString(tok.Secret.GossipKey()), "WireGuard's key of alpha and bravo": hex.EncodeToString(psk[:]),
	})
}

func readRecord(t *testing.T, data []byte) string {
	t.Helper()
	s, err := peer.Decode(data)
	if err != nil {
		return show(err)
	}
	out := tell("of "+nameOf(s.Record.ID())+"\n", "says it is "+s.Record.State.String()+"\n", show(s.Record))
	if s.Record.Certificate != nil { // since version 3
		out += describeMember(s.Record.Identity, s.Record.Certificate)
	}
	return out
}

func readRing(t *testing.T, data []byte) string {
	t.Helper()
	r, err := ring.Decode(data)
	if err != nil {
		return show(err)
	}
	return tell(show(r), describeRing(r))
}

func describeRing(r ring.Ring) (out string) {
	for _, s := range r.Segments() {
		out += fmt.Sprintf("%v generation %d, version %d, %s's\n", s.Range, s.Generation, s.Version, nameOf(s.Owner))
	}
	return out
}

func readVotes(t *testing.T, data []byte) string {
	t.Helper()
	s, err := paxos.Decode(data)
	if err != nil {
		return show(err)
	}
	out := show(map[string]any{"voters": s.Voters(), "quorum": s.Quorum()})
	if v, ok := s.Decided(); ok {
		out += tell("decided:\n", show(v))
	}
	// Only Merge uses the other fields of the votes. They are shown as version 1 reads them from
	// the state that is passed on.
	return tell(out, "passed on as:\n", show(must(decode[v1Votes](s.Encode()))))
}
