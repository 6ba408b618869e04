package mesh

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"weft/mesh/peer"
	"weft/mesh/session"
)

// memberlist's reports about its members are not signed, so a recorded report can be replayed. So a
// run of a peer counts as alive only after two checks. It answered a signed challenge with its
// peer's signature, and it is at an address in that peer's record. The same challenge detects
// another host with our identity.

// requestAlive challenges one run of a peer.
const requestAlive = "alive"

// challenge names the challenging run, and the address for the answer.
type challenge struct {
	Run  string         `cbor:"1,keyasint"`
	Addr netip.AddrPort `cbor:"2,keyasint"`
}

// run is one run of a peer's agent, from start to end, that memberlist reports.
type run struct {
	id     peer.ID
	name   string
	addr   netip.AddrPort
	proven bool // the run answered a challenge
	placed bool // the record of the run's peer contained its address
	sure   bool // the run knew, when it last answered, that its identity is unique
	tries  int
	next   time.Time // when to challenge the run next
	ids    []uint64  // ids of the challenges that the run may still answer
}

const (
	maxRunsHeard = 8 // bounds the runs stored per peer
	firstProof   = 250 * time.Millisecond
	maxProof     = 8 * time.Second
	maxAnswers   = 4
	// challengeStreams limits how many challenges travel on streams at once.
	challengeStreams = 16
)

// proof is the state of the challenges. The lock of its Mesh guards it.
type proof struct {
	wake       chan struct{}   // wakes prove to challenge a run
	challenges map[uint64]*run // the challenged runs; key: the id of the request
	nonce      uint32          // identifies this run in the ids of its challenges
	sent       uint32
	twins      map[string]*run // runs of other hosts with our identity
	advertised netip.Addr      // the address that memberlist advertises for this peer
	start      time.Time
	joined     bool          // a push/pull with another peer succeeded
	confirmed  bool          // it is certain that no other host has our identity
	sure       chan struct{} // closed once confirmed is true
	copySeen   time.Time
}

func newProof() proof {
	return proof{wake: make(chan struct{}, 1), challenges: map[uint64]*run{}, nonce: rand.Uint32(), twins: map[string]*run{}, sure: make(chan struct{})}
}

// prove challenges unproven runs until ctx ends.
func (m *Mesh) prove(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	streams := new(errgroup.Group)
	streams.SetLimit(challengeStreams)
	defer func() { _ = streams.Wait() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.proof.wake:
		case <-timer.C:
		}
		now := time.Now()
		m.challengeDue(ctx, streams, now)
		m.confirm(now)
		timer.Reset(time.Until(m.nextProof(now)))
	}
}

// wakeProver wakes prove.
func (m *Mesh) wakeProver() {
	select {
	case m.proof.wake <- struct{}{}:
	default:
	}
}

// unproven lists the runs that have not yet proved to be alive. The caller holds the lock.
func (m *Mesh) unproven() (out []*run) {
	for _, k := range m.peers {
		for _, r := range k.runs {
			if !r.proven {
				out = append(out, r)
			}
		}
	}
	for _, r := range m.proof.twins {
		if !r.proven {
			out = append(out, r)
		}
	}
	return out
}

// nextProof returns when prove must look at the runs again.
func (m *Mesh) nextProof(now time.Time) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := now.Add(maxProof)
	if !m.proof.confirmed {
		next = now.Add(firstProof)
	}
	for _, r := range m.unproven() {
		if r.next.Before(next) {
			next = r.next
		}
	}
	return next
}

// challengeDue sends the challenges that are due, as packets, which are repeated if lost. After two
// unanswered packets every other challenge uses a stream. The answer returns on the same stream, so
// it arrives even if no packet can reach this host.
func (m *Mesh) challengeDue(ctx context.Context, streams *errgroup.Group, now time.Time) {
	type letter struct {
		to     netip.AddrPort
		msg    message
		stream bool
	}
	var letters []letter
	m.mu.Lock()
	payload := encode(challenge{m.name, m.reachedAt()})
	for _, r := range m.unproven() {
		if now.Before(r.next) {
			continue
		}
		m.proof.sent++
		id := uint64(m.proof.nonce)<<32 | uint64(m.proof.sent)
		m.proof.challenges[id] = r
		if r.ids = append(r.ids, id); len(r.ids) > maxAnswers {
			delete(m.proof.challenges, r.ids[0])
			r.ids = r.ids[1:]
		}
		r.next = now.Add(min(firstProof<<min(r.tries, 16), maxProof))
		stream := r.tries >= 2 && r.tries%2 == 0
		r.tries++
		msg := message{ID: id, From: m.self, To: r.id, Kind: requestAlive, Run: r.name, Payload: payload}
		letters = append(letters, letter{r.addr, msg, stream})
	}
	m.mu.Unlock()
	for _, l := range letters {
		if l.stream && streams.TryGo(func() error { m.challengeOn(ctx, l.to, l.msg); return nil }) {
			continue
		}
		m.sendTo(l.to, l.msg.Run, kindRequest, l.msg)
	}
}

// challengeOn sends a challenge on a stream, and waits for the answer.
func (m *Mesh) challengeOn(ctx context.Context, to netip.AddrPort, msg message) {
	ctx, end := context.WithTimeout(ctx, streamTimeout+overTimeout)
	defer end()
	wait, err := m.ask(ctx, memberlist.Address{Addr: to.String(), Name: msg.Run}, msg)
	if err != nil {
		m.cfg.Log.Debug("could not send a challenge", "to", to, "err", err)
		return
	}
	wait()
}

// reachedAt returns the address at which other peers reach this peer. The caller holds the lock.
func (m *Mesh) reachedAt() netip.AddrPort {
	var addr netip.Addr
	if own := m.peers[m.self].signed.Record; len(own.Underlay) > 0 {
		addr = own.Underlay[0]
	}
	return netip.AddrPortFrom(addr, uint16(m.cfg.Port))
}

// sendTo sends a message as one packet to a run of a peer at the given address.
func (m *Mesh) sendTo(to netip.AddrPort, run string, kind uint, msg message) {
	node := &memberlist.Node{Name: run, Addr: to.Addr().AsSlice(), Port: to.Port()}
	if err := m.list.SendBestEffort(node, encode(envelope{Kind: kind, Payload: m.sign(msg)})); err != nil {
		m.cfg.Log.Debug("could not send a packet", "to", to, "err", err)
	}
}

// answerChallenge answers a challenge that is signed, new and addressed to this run. The challenge
// also proves that its sender is alive.
func (m *Mesh) answerChallenge(msg message, s *session.Stream) {
	c, err := readChallenge(msg.Payload)
	if err != nil {
		m.cfg.Log.Debug("ignoring a challenge", "peer", m.Name(msg.From), "err", err)
		return
	}
	answer := message{ID: msg.ID, From: m.self, To: msg.From, IsReply: true}
	if m.reply(s, answer) != nil {
		m.sendTo(c.Addr, c.Run, kindReply, answer)
	}
	m.mu.Lock()
	var r *run
	if k := m.peers[msg.From]; k != nil { // otherwise the peer was forgotten since open
		r = k.runs[c.Run]
	}
	twin := msg.From == m.self && c.Run != m.name && !m.ownAddr(c.Addr.Addr())
	if twin {
		r = &run{id: m.self, name: c.Run, addr: c.Addr}
	}
	m.mu.Unlock()
	if r != nil {
		m.proved(r, msg.sure)
	}
}

// readChallenge decodes a challenge, and refuses a challenge without a usable address for the
// answer.
func readChallenge(data []byte) (c challenge, err error) {
	if err := decoding.Unmarshal(data, &c); err != nil {
		return c, err
	}
	a := c.Addr.Addr()
	if c.Addr.Port() == 0 || !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" {
		return c, fmt.Errorf("invalid challenge: no answer can be sent to %v", c.Addr)
	}
	return c, nil
}

// isProof reports whether a signed reply answers a challenge, and marks the run as proven.
func (m *Mesh) isProof(msg message) bool {
	m.mu.Lock()
	r := m.proof.challenges[msg.ID]
	m.mu.Unlock()
	if r == nil || msg.From != r.id {
		return false
	}
	m.proved(r, msg.sure)
	return true
}

// proved marks a run as alive.
func (m *Mesh) proved(r *run, sure bool) {
	m.mu.Lock()
	m.forgetChallenges(r)
	twin, before := r.id == m.self, r.proven
	r.proven, r.sure = true, sure
	m.mu.Unlock()
	switch {
	case before:
	case twin:
		m.meetTwin(r)
	default:
		m.reach(r.id)
	}
}

// forgetChallenges discards the open challenges of a run. The caller holds the lock.
func (m *Mesh) forgetChallenges(r *run) {
	for _, id := range r.ids {
		delete(m.proof.challenges, id)
	}
	r.ids = nil
}

// reach updates the run and address at which a peer is reached, after a change to the peer.
func (m *Mesh) reach(id peer.ID) {
	m.mu.Lock()
	k := m.peers[id]
	if k == nil {
		m.mu.Unlock()
		return
	}
	before := k.node
	k.latest()
	now, addr := k.node, k.addr
	if now != before {
		k.since, k.heard = time.Now(), time.Now()
		if now == "" {
			k.lose(before, k.since)
		}
	}
	if now != "" {
		k.retry = backoff{}
		k.met = true
		select {
		case m.kept.unsaved <- struct{}{}:
		default:
		}
	}
	m.mu.Unlock()
	switch {
	case now == before:
		return
	case now != "":
		m.cfg.Log.Info("peer is reachable", "peer", m.Name(id), "addr", addr)
	default:
		m.cfg.Log.Info("peer is unreachable", "peer", m.Name(id))
	}
	m.cfg.Changed()
}

// latest chooses the run that was started last. After a crash, other peers still report the
// previous run for some seconds.
func (k *known) latest() {
	k.node = ""
	record := k.signed.Record
	for name, r := range k.runs {
		if r.addr.Port() == record.Gossip && slices.Contains(record.Underlay, r.addr.Addr()) {
			r.placed = true // stays true: a host with a new address starts a new run for it
		}
		if r.proven && r.placed && name > k.node {
			k.node, k.addr = name, r.addr.Addr()
		}
	}
}

// ownAddr reports whether an address belongs to this host. The caller holds the lock.
func (m *Mesh) ownAddr(a netip.Addr) bool {
	return a == m.proof.advertised || slices.Contains(m.peers[m.self].signed.Record.Underlay, a)
}
