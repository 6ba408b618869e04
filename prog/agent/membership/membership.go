// Package membership holds what decides about members: the tokens, joins and bans, which are replicated
// documents signed by the root key's holders or by members with the admitting right.
//
// A Membership owns the ledger that follows from these documents, and the identity of this host as a
// member. It admits hosts that prove a token, expels members that are banned, and logs each join. It is
// safe for concurrent use. It never deletes a document: a revoked token and an ended ban are new versions.
package membership

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/prog/agent/trust"
	"weft/router/problem"
)

// Documents are the replicated documents.
type Documents interface {
	List(kind string) []*document.Document
	Generation(kind string) string
	Write([]mesh.Change) error
}

// Mesh ends what binds this host to another peer.
type Mesh interface {
	Expel(peer.ID)
	HoldsSecret(peer.ID) bool
	Name(peer.ID) string
}

// Config configures a Membership. The caller sets Documents and Mesh before Run: both need the
// Membership to be made.
type Config struct {
	Trust  trust.Trust
	Random io.Reader
	Log    *slog.Logger
}

// Membership decides about members.
type Membership struct {
	cfg       Config
	Documents Documents
	Mesh      Mesh
	wake      chan struct{}
	admitting sync.Mutex // held while a token is redeemed: two hosts cannot both take its last use
	reading   sync.Mutex // held while the ledger is read: an older reading never replaces a newer one

	mu     sync.Mutex
	ledger member.Ledger
	seen   []string        // the generations that ledger was read from
	joins  map[string]bool // the joins that were logged
	bans   map[peer.ID]bool
}

// New returns a Membership.
func New(cfg Config) *Membership {
	return &Membership{cfg: cfg, wake: make(chan struct{}, 1), ledger: member.Read(cfg.Trust.Root, nil)}
}

// Refuse returns why a document does not count, or nil. A banned member may still pass its documents on
// through others.
func (m *Membership) Refuse(d *document.Document) error {
	writer, err := member.JudgeWriter(d, m.cfg.Trust.Root)
	if err != nil {
		return err
	}
	if writer.Identity == nil { // a document of another kind
		return nil
	}
	if ban, banned := m.Ledger().BannedMember(writer); banned {
		return &mesh.BannedError{Err: fmt.Errorf("%s: refused: peer %v, which wrote it, is banned by peer %v", d, ban.Peer, ban.By)}
	}
	return nil
}

// kinds are the kinds of documents that the ledger is read from.
var kinds = []string{member.KindToken, member.KindJoin, member.KindBan}

// Wake has the ledger read again. It does not block.
func (m *Membership) Wake() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Load reads the ledger for the first time. What it says was logged by an earlier run.
func (m *Membership) Load() {
	m.read()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.joins, m.bans = map[string]bool{}, map[peer.ID]bool{}
	for _, j := range m.ledger.Joins() {
		m.joins[member.JoinName(j.Token, j.Peer)] = true
	}
}

// lastWord is how long a banned peer may still receive, so that it learns that it is banned.
const lastWord = time.Second

// Run follows the documents until ctx ends.
func (m *Membership) Run(ctx context.Context) error {
	for {
		for _, id := range m.news() {
			time.AfterFunc(lastWord, func() { m.Mesh.Expel(id) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
			m.read()
		}
	}
}

// read reads the ledger again if a document has changed.
func (m *Membership) read() {
	m.reading.Lock()
	defer m.reading.Unlock()
	var seen []string
	for _, kind := range kinds {
		seen = append(seen, m.Documents.Generation(kind))
	}
	m.mu.Lock()
	same := slices.Equal(seen, m.seen)
	m.mu.Unlock()
	if same {
		return
	}
	var docs []*document.Document
	for _, kind := range kinds {
		docs = append(docs, m.Documents.List(kind)...)
	}
	ledger := member.Read(m.cfg.Trust.Root, docs)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ledger, m.seen = ledger, seen
}

// news logs each new join and ban, and returns the peers that must be expelled.
func (m *Membership) news() (expel []peer.ID) {
	ledger := m.Ledger()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, j := range ledger.Joins() {
		name := member.JoinName(j.Token, j.Peer)
		if !m.joins[name] {
			m.joins[name] = true
			m.cfg.Log.Info("a host joined by a token", "host", nameOf(j.Peer, j.Nickname), "token", j.Token.String(), "from", j.From, "admitted by", m.Mesh.Name(j.By))
		}
	}
	now := map[peer.ID]bool{}
	for _, b := range ledger.Bans() {
		if !b.ByHolder && m.holds(b.Peer) { // such a ban does not count
			continue
		}
		now[b.Peer] = true
		if !m.bans[b.Peer] {
			m.cfg.Log.Warn("a peer is banned", "peer", m.Mesh.Name(b.Peer), "by", m.Mesh.Name(b.By), "reason", b.Reason)
			expel = append(expel, b.Peer)
		}
	}
	for id := range m.bans {
		if !now[id] {
			m.cfg.Log.Info("the ban of a peer has ended", "peer", m.Mesh.Name(id))
		}
	}
	m.bans = now
	return expel
}

// holds reports whether a peer holds the network's secret. The ledger knows that only of peers that wrote a
// document.
func (m *Membership) holds(id peer.ID) bool {
	if id == m.cfg.Trust.Self {
		return m.cfg.Trust.Holds()
	}
	return m.Mesh.HoldsSecret(id)
}

func nameOf(id peer.ID, nickname string) string { return id.String() + "(" + nickname + ")" }

// Ledger returns the tokens, joins and bans.
func (m *Membership) Ledger() member.Ledger {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger
}

// Banned returns why a member is banned, or nil.
func (m *Membership) Banned(who member.Member) error {
	ban, banned := m.Ledger().BannedMember(who)
	if !banned {
		return nil
	}
	return fmt.Errorf("peer %v was banned from this network by peer %v%s: a member with the admitting right ends the ban with `weft unban %v`", ban.Peer, ban.By, because(ban.Reason), ban.Peer)
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// Expelled reports whether a peer is banned, by a ban that counts.
func (m *Membership) Expelled(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bans[id]
}

// Admits reports whether this host may admit and ban others.
func (m *Membership) Admits() bool { return m.cfg.Trust.Member.Rights.Has(member.Admits) }

// Admitter returns what decides about hosts that want to join; nil if this host may not admit any.
func (m *Membership) Admitter() func(mesh.Applicant) (mesh.Admission, error) {
	if !m.Admits() {
		return nil
	}
	return m.Admit
}

// Admit certifies a host that has proved to have a token.
func (m *Membership) Admit(a mesh.Applicant) (out mesh.Admission, err error) {
	m.admitting.Lock()
	defer m.admitting.Unlock()
	m.read()
	now, host := time.Now(), peer.IDOf(a.Identity)
	body, err := m.Ledger().Redeem(a.Token, host, now.Unix())
	if err != nil {
		return out, err
	}
	certificate, err := m.certify(a.Identity, body.Rights, a.Token)
	if err != nil {
		return out, err
	}
	join, err := member.JoinBody{
		Token: a.Token, Peer: a.Identity, Nickname: a.Nickname, From: a.From, At: now.Unix(), Certificate: m.cfg.Trust.Certificate,
	}.Encode()
	if err != nil {
		return out, err
	}
	if err := m.Documents.Write([]mesh.Change{{Kind: member.KindJoin, Name: member.JoinName(a.Token, host), Body: join}}); err != nil {
		return out, fmt.Errorf("the member that should admit this host cannot store that it did: %w", err)
	}
	if skew := now.Sub(a.Clock).Abs(); skew > mesh.MaxSkew {
		m.cfg.Log.Warn("the clock of a host that joins disagrees with this host's clock: set the clocks", "host", nameOf(host, a.Nickname), "difference", skew.Round(time.Second))
	}
	return mesh.Admission{Root: m.cfg.Trust.Root, Certificate: certificate, Cluster: m.cfg.Trust.Token.Cluster}, nil
}

// certify returns a certificate for an identity.
func (m *Membership) certify(identity ed25519.PublicKey, r member.Rights, token member.TokenID) ([]byte, error) {
	t := m.cfg.Trust
	if t.Holds() {
		return member.CertifyByToken(t.Token.Secret.Root(), identity, r, token).Encode(), nil
	}
	own, err := member.DecodeCertificate(t.Certificate)
	if err != nil {
		return nil, err
	}
	c, err := own.AdmitByToken(t.Keys.Identity, t.Keys.Identity.Public().(ed25519.PublicKey), identity, r, token)
	return c.Encode(), err
}

// Check returns that this host was banned, or nil.
func (m *Membership) Check() error {
	ban, ok := m.Ledger().BannedMember(m.cfg.Trust.Member)
	if !ok {
		return nil
	}
	return fmt.Errorf("this host was banned from its network by peer %s%s: all other hosts refuse it, and its containers reach no other host: run `weft unban %v` on a host with the admitting right, and this host connects again by itself; or run `weft reset` here",
		m.Mesh.Name(ban.By), because(ban.Reason), ban.Peer)
}

// Problems lists what an operator should know of members.
func (m *Membership) Problems() (list []problem.Problem) {
	ledger := m.Ledger()
	for _, o := range ledger.Overused() {
		var names, ids []string
		for _, j := range o.Joins {
			names, ids = append(names, nameOf(j.Peer, j.Nickname)), append(ids, j.Peer.String())
		}
		list = append(list, problem.Problem{
			Reason: problem.Membership, About: o.Token.ID.Name(), Elsewhere: true,
			What:   fmt.Sprintf("token %v may admit %d and admitted %d: %s", o.Token.ID, o.Token.Uses, o.Token.Used, strings.Join(names, ", ")),
			Effect: "members that could not reach each other both admitted a host, and one of these hosts may not be yours",
			Fix:    fmt.Sprintf("check whether all of them belong to the network, and ban those that do not with `weft rmpeer --ban` (%s)", strings.Join(ids, ", ")),
		})
	}
	return list
}
