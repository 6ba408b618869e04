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
)

// What memberlist says of its members is not signed, and can be sent again by anybody who
// recorded it. So a run of a peer counts once it has answered a challenge that is signed
// for it, with the signature of the peer, and is at an address that the peer's own record
// names. The same decides whether another host has our identity.

// requestAlive challenges one run of a peer.
const requestAlive = "alive"

// challenge says who asks, and where an answer goes.
type challenge struct {
	Run  string         `cbor:"1,keyasint"`
	Addr netip.AddrPort `cbor:"2,keyasint"`
}

// run is one run of a peer that memberlist believes in.
type run struct {
	id     peer.ID
	name   string
	addr   netip.AddrPort
	proven bool // it is alive
	placed bool // and the record of its peer named its address
	sure   bool // it was certain of its identity when it last proved itself
	tries  int
	next   time.Time // when it is challenged again
	ids    []uint64  // of the challenges that it may answer
}

const (
	maxRunsHeard = 8 // of one peer
	firstProof   = 250 * time.Millisecond
	maxProof     = 8 * time.Second
	maxAnswers   = 4
	// challengeStreams is how many challenges at once travel on streams.
	challengeStreams = 16
)

// proof is what is known of who is alive. It is guarded by the lock of its Mesh.
type proof struct {
	doubts     chan struct{}   // a run is to be challenged
	challenges map[uint64]*run // by the number of the request
	nonce      uint32          // of this run, in those numbers
	sent       uint32
	twins      map[string]*run // other runs of our own identity
	advertised netip.Addr      // where memberlist tells the others that we are
	start      time.Time
	joined     bool          // states were exchanged with somebody
	confirmed  bool          // no other host has our identity
	sure       chan struct{} // closed once that is so
	copySeen   time.Time
}

func newProof() proof {
	return proof{doubts: make(chan struct{}, 1), challenges: map[uint64]*run{}, nonce: rand.Uint32(), twins: map[string]*run{}, sure: make(chan struct{})}
}

// prove challenges runs until ctx ends.
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
		case <-m.proof.doubts:
		case <-timer.C:
		}
		now := time.Now()
		m.challengeDue(ctx, streams, now)
		m.confirm(now)
		timer.Reset(time.Until(m.nextProof(now)))
	}
}

// doubt wakes prove.
func (m *Mesh) doubt() {
	select {
	case m.proof.doubts <- struct{}{}:
	default:
	}
}

// inDoubt lists the runs that have not proved to be alive. The caller holds the lock.
func (m *Mesh) inDoubt() (out []*run) {
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

// nextProof is when prove is to look again.
func (m *Mesh) nextProof(now time.Time) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := now.Add(maxProof)
	if !m.proof.confirmed {
		next = now.Add(firstProof)
	}
	for _, r := range m.inDoubt() {
		if r.next.Before(next) {
			next = r.next
		}
	}
	return next
}

// challengeDue sends the challenges that are due. They travel as packets: one that is lost
// is sent again. Where two were not answered, every other one travels on a stream: its answer
// comes back on that also where no packet reaches this host.
func (m *Mesh) challengeDue(ctx context.Context, streams *errgroup.Group, now time.Time) {
	type letter struct {
		to     netip.AddrPort
		msg    message
		stream bool
	}
	var letters []letter
	m.mu.Lock()
	payload := encode(challenge{m.name, m.reachedAt()})
	for _, r := range m.inDoubt() {
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

// challengeOn sends a challenge on a stream, and hears the answer.
func (m *Mesh) challengeOn(ctx context.Context, to netip.AddrPort, msg message) {
	ctx, end := context.WithTimeout(ctx, streamTimeout)
	defer end()
	wait, err := m.ask(ctx, memberlist.Address{Addr: to.String(), Name: msg.Run}, msg)
	if err != nil {
		m.cfg.Log.Debug("challenge not sent", "to", to, "err", err)
		return
	}
	wait()
}

// reachedAt is where others reach this peer. The caller holds the lock.
func (m *Mesh) reachedAt() netip.AddrPort {
	var addr netip.Addr
	if own := m.peers[m.self].signed.Record; len(own.Underlay) > 0 {
		addr = own.Underlay[0]
	}
	return netip.AddrPortFrom(addr, uint16(m.cfg.Port))
}

// sendTo sends a message as one packet, to a run of a peer that is said to be there.
func (m *Mesh) sendTo(to netip.AddrPort, run string, kind uint, msg message) {
	node := &memberlist.Node{Name: run, Addr: to.Addr().AsSlice(), Port: to.Port()}
	if err := m.list.SendBestEffort(node, encode(envelope{Kind: kind, Payload: m.sign(msg)})); err != nil {
		m.cfg.Log.Debug("packet not sent", "to", to, "err", err)
	}
}

// answerChallenge takes a challenge that is for this run, signed, and new. Who sends one is
// alive itself.
func (m *Mesh) answerChallenge(msg message, s *stream) {
	c, err := readChallenge(msg.Payload)
	if err != nil {
		m.cfg.Log.Debug("challenge ignored", "peer", m.Name(msg.From), "err", err)
		return
	}
	answer := message{ID: msg.ID, From: m.self, To: msg.From, IsReply: true}
	if m.reply(s, answer) != nil {
		m.sendTo(c.Addr, c.Run, kindReply, answer)
	}
	m.mu.Lock()
	k := m.peers[msg.From]
	r := k.runs[c.Run]
	twin := msg.From == m.self && c.Run != m.name && !m.ownAddr(c.Addr.Addr())
	if twin {
		r = &run{id: m.self, name: c.Run, addr: c.Addr}
	}
	m.mu.Unlock()
	if r != nil {
		m.proved(r, msg.sure)
	}
}

// readChallenge refuses one that cannot be answered.
func readChallenge(data []byte) (c challenge, err error) {
	if err := decoding.Unmarshal(data, &c); err != nil {
		return c, err
	}
	a := c.Addr.Addr()
	if c.Addr.Port() == 0 || !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Zone() != "" {
		return c, fmt.Errorf("an answer cannot go to %v", c.Addr)
	}
	return c, nil
}

// isProof reports whether a signed reply answers a challenge, and takes it.
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

// proved notes that a run is alive.
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

// forgetChallenges ends those of a run. The caller holds the lock.
func (m *Mesh) forgetChallenges(r *run) {
	for _, id := range r.ids {
		delete(m.proof.challenges, id)
	}
	r.ids = nil
}

// reach looks anew where a peer is reached, after something changed about it.
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
		m.cfg.Log.Info("peer is not reachable", "peer", m.Name(id))
	}
	m.cfg.Changed()
}

// latest makes the run that was started last the one that is spoken to: after a crash,
// others go on telling of the one before for seconds.
func (k *known) latest() {
	k.node = ""
	record := k.signed.Record
	for name, r := range k.runs {
		if r.addr.Port() == record.Gossip && slices.Contains(record.Underlay, r.addr.Addr()) {
			r.placed = true // for good: a host that gets another address runs anew for it, in its time
		}
		if r.proven && r.placed && name > k.node {
			k.node, k.addr = name, r.addr.Addr()
		}
	}
}

// ownAddr reports whether an address is this host's. The caller holds the lock.
func (m *Mesh) ownAddr(a netip.Addr) bool {
	return a == m.proof.advertised || slices.Contains(m.peers[m.self].signed.Record.Underlay, a)
}
