package member

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"net/netip"
	"slices"

	"weft/mesh/document"
	"weft/mesh/peer"
)

// Ban says that a member was banned.
type Ban struct {
	Peer     peer.ID
	Reason   string
	At       int64 // Unix seconds, by the clock of By
	By       peer.ID
	ByHolder bool // whether By holds the cluster's secret: only such a ban counts against another holder
}

// TokenState is what is known about a token.
type TokenState struct {
	ID      TokenID
	Name    string
	Rights  Rights
	Created int64 // Unix seconds
	Expires int64 // Unix seconds
	Uses    int
	Used    int
	Revoked bool
	By      peer.ID // the writer of the newest version
}

// Join says that a token admitted a host.
type Join struct {
	Token    TokenID
	Peer     peer.ID
	Identity ed25519.PublicKey
	Nickname string
	From     netip.AddrPort
	At       int64   // Unix seconds, by the clock of By
	By       peer.ID // the member that admitted it
}

// Overuse is a token with more joins than uses. That happens if members that could not reach each
// other admitted hosts with the same token.
type Overuse struct {
	Token TokenState
	Joins []Join // the earliest first, by the clocks of the members that admitted them
}

// Ledger is what the documents of this package say together.
type Ledger struct {
	tokens  map[TokenID]token
	joins   map[TokenID][]Join // the earliest first
	bans    map[peer.ID]Ban    // those that count
	holders map[peer.ID]bool   // writers of a document that hold the secret
}

type token struct {
	body TokenBody
	by   peer.ID
}

// Read returns the ledger of a cluster. It ignores documents that Judge refuses, documents of other
// kinds, and older versions. The order of docs does not matter.
func Read(root ed25519.PublicKey, docs []*document.Document) Ledger {
	l := Ledger{tokens: map[TokenID]token{}, joins: map[TokenID][]Join{}, bans: map[peer.ID]Ban{}, holders: map[peer.ID]bool{}}
	newest := map[string]*document.Document{}
	counted := map[*document.Document]judged{}
	verify := remember(root)
	for _, d := range docs {
		j, err := judge(d, verify)
		if err != nil || j.writer.Identity == nil {
			continue
		}
		if j.writer.Rights.Has(Holder) {
			l.holders[j.writer.ID()] = true
		}
		if old := newest[d.Key()]; old == nil || d.Supersedes(old) {
			newest[d.Key()], counted[d] = d, j
		}
	}
	var bans []Ban
	for _, d := range newest {
		j, by := counted[d], d.WriterID()
		switch {
		case j.token != nil:
			l.tokens[j.id] = token{*j.token, by}
		case j.join != nil:
			l.joins[j.join.Token] = append(l.joins[j.join.Token], Join{j.join.Token, j.peer, j.join.Peer, j.join.Nickname, j.join.From, j.join.At, by})
		case j.ban.Banned:
			bans = append(bans, Ban{j.peer, j.ban.Reason, j.ban.At, by, l.holders[by]})
		}
	}
	for _, joins := range l.joins {
		slices.SortFunc(joins, compareJoins)
	}
	l.count(bans)
	return l
}

// remember returns Verify with a memory, since one member writes many documents.
func remember(root ed25519.PublicKey) verify {
	type result struct {
		member Member
		err    error
	}
	known := map[string]result{}
	return func(writer ed25519.PublicKey, certificate []byte) (Member, error) {
		key := string(writer) + string(certificate)
		r, ok := known[key]
		if !ok {
			r.member, r.err = Verify(root, writer, certificate)
			known[key] = r
		}
		return r.member, r.err
	}
}

// count keeps the bans that count. A holder's ban always counts. Another member's ban does not count if
// it is of a holder, or if a holder banned its writer.
func (l Ledger) count(bans []Ban) {
	for _, b := range bans {
		if b.ByHolder {
			l.bans[b.Peer] = b
		}
	}
	var others []Ban
	for _, b := range bans {
		if _, banned := l.bans[b.By]; !b.ByHolder && !banned && !l.holders[b.Peer] {
			others = append(others, b)
		}
	}
	for _, b := range others {
		if _, byHolder := l.bans[b.Peer]; !byHolder {
			l.bans[b.Peer] = b
		}
	}
}

func compareJoins(a, b Join) int {
	return cmp.Or(cmp.Compare(a.At, b.At), bytes.Compare(a.Peer[:], b.Peer[:]))
}

// Banned returns the ban of a peer that counts, if there is one. Of holders it only knows those that
// wrote a document: BannedMember also uses the certificate.
func (l Ledger) Banned(id peer.ID) (Ban, bool) {
	b, ok := l.bans[id]
	return b, ok
}

// BannedMember is Banned for a member whose verified certificate is known. It also says who was admitted by
// a member after that was banned.
func (l Ledger) BannedMember(m Member) (Ban, bool) {
	b, ok := l.bans[m.ID()]
	if ok && m.Rights.Has(Holder) && !b.ByHolder {
		return Ban{}, false
	}
	if ok || m.By.IsZero() {
		return b, ok
	}
	// A banned member that may admit could certify another identity of its own. Those that it admitted
	// before are known by their joins: no replica takes a join of a banned writer.
	by, banned := l.bans[m.By]
	joined := slices.ContainsFunc(l.joins[m.Token], func(j Join) bool { return j.Peer == m.ID() && j.By == m.By })
	if banned && !joined {
		return Ban{Peer: m.ID(), Reason: "a banned peer admitted it", At: by.At, By: by.By, ByHolder: by.ByHolder}, true
	}
	return Ban{}, false
}

// Bans returns the bans that count, by the id of the banned peer.
func (l Ledger) Bans() []Ban {
	bans := make([]Ban, 0, len(l.bans))
	for _, b := range l.bans {
		bans = append(bans, b)
	}
	slices.SortFunc(bans, func(a, b Ban) int { return bytes.Compare(a.Peer[:], b.Peer[:]) })
	return bans
}

// Tokens returns all tokens, the oldest first. Expired and revoked ones are among them.
func (l Ledger) Tokens() []TokenState {
	tokens := make([]TokenState, 0, len(l.tokens))
	for id := range l.tokens {
		tokens = append(tokens, l.state(id))
	}
	slices.SortFunc(tokens, func(a, b TokenState) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return tokens
}

func (l Ledger) state(id TokenID) TokenState {
	t := l.tokens[id]
	return TokenState{
		ID: id, Name: t.body.Name, Rights: t.body.Rights, Created: t.body.Created, Expires: t.body.Expires(),
		Uses: int(t.body.Uses), Used: len(l.joins[id]), Revoked: t.body.Revoked, By: t.by,
	}
}

// Joins returns all joins, the earliest first. A host that two tokens admitted has two.
func (l Ledger) Joins() []Join {
	joins := []Join{}
	for _, some := range l.joins {
		joins = append(joins, some...)
	}
	slices.SortFunc(joins, func(a, b Join) int {
		return cmp.Or(compareJoins(a, b), bytes.Compare(a.Token[:], b.Token[:]))
	})
	return joins
}

// Overused returns the tokens that admitted more hosts than they should, the oldest first.
func (l Ledger) Overused() []Overuse {
	var over []Overuse
	for _, t := range l.Tokens() {
		if t.Used > t.Uses {
			over = append(over, Overuse{t, slices.Clone(l.joins[t.ID])})
		}
	}
	return over
}
