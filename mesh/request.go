package mesh

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
	"weft/mesh/session"
)

// message is a request or a reply. The sender signs it for the receiver, so knowing the cluster
// secret is not enough to impersonate a peer. The high half of ID identifies the sender's run, the
// low half counts requests. So a request is served only once, and a reply matches only its request.
type message struct {
	ID      uint64  `cbor:"1,keyasint"`
	From    peer.ID `cbor:"2,keyasint"`
	To      peer.ID `cbor:"3,keyasint"`
	Kind    string  `cbor:"4,keyasint,omitempty"`
	Payload []byte  `cbor:"5,keyasint,omitempty"`
	Error   string  `cbor:"6,keyasint,omitempty"`
	IsReply bool    `cbor:"7,keyasint,omitempty"`
	Run     string  `cbor:"8,keyasint,omitempty"` // in a request: the name of the run that shall answer

	sure bool // the sender is certain that its identity is unique, since it sent its record
}

type signedMessage struct {
	Message   []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
	// Record is the sender's record, since gossip may be slower than the first request of a new
	// peer.
	Record []byte `cbor:"3,keyasint,omitempty"`
}

type reply struct {
	from    peer.ID
	payload []byte
	err     error
}

const messageContext = "weft message v1\x00"

// handlerTimeout limits the handling of a request; the requester has its own deadline.
const handlerTimeout = 10 * time.Second

// ErrUnreachable reports a request to a peer that gossip does not reach.
var ErrUnreachable = errors.New("the peer cannot be reached by gossip at present")

// RefusedError is the error of a peer that refused a request.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the peer refused: " + e.Reason }

// Refused returns the reason. Packages that do not know this type use it to tell refusals from
// failures.
func (e *RefusedError) Refused() string { return e.Reason }

// Request sends a request to one peer and waits for its reply.
func (m *Mesh) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	select {
	case <-m.proof.sure:
	case <-ctx.Done():
		return nil, fmt.Errorf("mesh: asking %v for %s: %w", to, kind, ctx.Err())
	}
	msg := message{From: m.self, To: to, Kind: kind, Payload: payload}
	answer := make(chan reply, 1)
	m.mu.Lock()
	m.asked++
	msg.ID = uint64(m.nonce)<<32 | uint64(m.asked)
	if k := m.peers[to]; k != nil {
		msg.Run = k.node
	}
	m.pending[msg.ID] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.pending, msg.ID)
	}()
	ctx, end := context.WithCancel(ctx)
	defer end()
	node := m.nodeFor(kindRequest, msg)
	if node == nil {
		return nil, fmt.Errorf("mesh: asking %v for %s: %w", to, kind, ErrUnreachable)
	}
	wait, err := m.ask(ctx, node.FullAddress(), msg)
	if err != nil {
		return nil, fmt.Errorf("mesh: asking %v for %s: %w", to, kind, err)
	}
	defer func() { end(); wait() }()
	select {
	case r := <-answer:
		if r.from != to {
			return nil, fmt.Errorf("mesh: asking %v for %s: %v answered instead", to, kind, r.from)
		}
		return r.payload, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("mesh: asking %v for %s: %w", to, kind, ctx.Err())
	}
}

// nodeFor returns the node that a message goes to, or nil. A reply may use the address in the
// requester's record, which came with the request.
func (m *Mesh) nodeFor(kind uint, msg message) *memberlist.Node {
	if !m.running() {
		return nil
	}
	var name string
	var record peer.Record
	m.mu.Lock()
	if k := m.peers[msg.To]; k != nil {
		name, record = k.node, k.signed.Record
	}
	m.mu.Unlock()
	node := m.members.named(name)
	if node == nil && kind == kindReply && len(record.Underlay) > 0 {
		node = &memberlist.Node{Addr: record.Underlay[0].AsSlice(), Port: record.Gossip}
	}
	return node
}

// sendReply sends a reply on a new stream, if the request did not come on a waiting stream.
func (m *Mesh) sendReply(msg message) error {
	node := m.nodeFor(kindReply, msg)
	if node == nil {
		return ErrUnreachable
	}
	return m.list.SendReliable(node, encode(envelope{Kind: kindReply, Payload: m.sign(msg)}))
}

func (m *Mesh) sign(msg message) []byte {
	data := encode(msg)
	var record []byte
	m.mu.Lock()
	if m.proof.confirmed {
		record = m.peers[m.self].signed.Encode()
	}
	m.mu.Unlock()
	return encode(signedMessage{data, ed25519.Sign(m.cfg.Identity, append([]byte(messageContext), data...)), record})
}

// open verifies a received message.
func (m *Mesh) open(data []byte) (message, error) {
	var s signedMessage
	var msg message
	if err := decoding.Unmarshal(data, &s); err != nil {
		return msg, err
	}
	if err := decoding.Unmarshal(s.Message, &msg); err != nil {
		return msg, err
	}
	// A PeerID is derived from the public key, so the key can come with the message.
	var sender ed25519.PublicKey
	if r, err := peer.Parse(s.Record); err == nil && r.Record.ID() == msg.From {
		sender, msg.sure = r.Record.Identity, true
	}
	m.mu.Lock()
	if k := m.peers[msg.From]; k != nil && k.hasRecord() {
		sender = k.signed.Record.Identity
	}
	m.mu.Unlock()
	switch {
	case msg.To != m.self:
		return msg, fmt.Errorf("the message is for peer %v", msg.To)
	case sender == nil:
		return msg, fmt.Errorf("unknown sender %v", msg.From)
	case !ed25519.Verify(sender, append([]byte(messageContext), s.Message...), s.Signature):
		return msg, fmt.Errorf("the signature is not that of %v", msg.From)
	}
	if s.Record != nil && msg.From != m.self {
		m.mu.Lock()
		delete(m.kept.forgotten, msg.From) // the peer itself is sending again
		m.mu.Unlock()
		m.merge(peersName, encode([][]byte{s.Record}))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.peers[msg.From] == nil {
		return msg, fmt.Errorf("the record of %v was refused", msg.From)
	}
	return msg, nil
}

// window is the replay window of one run of one peer. It records each of the last 64 request
// numbers; all earlier requests count as received.
type window struct {
	last uint32
	seen uint64 // bit n is set if last - n was received
	used time.Time
}

func (w *window) fresh(n uint32) bool {
	if n > w.last {
		w.seen = w.seen<<(n-w.last) | 1
		w.last = n
		return true
	}
	bit := uint64(1) << (w.last - n)
	fresh := bit != 0 && w.seen&bit == 0
	w.seen |= bit
	return fresh
}

// maxRuns bounds the replay windows per peer. Each run of a peer has two windows: one for requests,
// one for challenges.
const maxRuns = 256

var errRepeated = errors.New("repeated request, or one for an earlier run of this agent")

var errForgotten = errors.New("the sender was forgotten meanwhile")

// forgetOldest makes room for the window of another run. A replay then becomes possible only for
// requests of a run more than a hundred runs ago, and repeating any request does no harm.
func (k *known) forgetOldest() {
	oldest := slices.MinFunc(slices.Collect(maps.Keys(k.asked)), func(a, b uint32) int { return k.asked[a].used.Compare(k.asked[b].used) })
	delete(k.asked, oldest)
}

// once refuses a replayed request. A host that captures packets on the underlay can replay them
// without the secret, any number of times.
func (m *Mesh) once(msg message) error {
	if msg.Run != m.name {
		return errRepeated
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k, run := m.peers[msg.From], uint32(msg.ID>>32)
	if k == nil { // the peer was forgotten since open: it was banned, for example
		return errForgotten
	}
	w := k.asked[run]
	if w == nil {
		if len(k.asked) >= maxRuns {
			k.forgetOldest()
		}
		w = &window{}
		if k.asked == nil {
			k.asked = map[uint32]*window{}
		}
		k.asked[run] = w
	}
	w.used = time.Now()
	if !w.fresh(uint32(msg.ID)) {
		return errRepeated
	}
	return nil
}

// serve answers a request, on its own goroutine since a handler may send requests too. s is the
// stream of the request, which serve closes at the end, or nil if the reply does not use a stream.
func (m *Mesh) serve(ctx context.Context, data []byte, s *session.Stream) {
	end := func() {
		if s != nil {
			s.Close()
		}
	}
	msg, err := m.open(data)
	if err == nil && !msg.IsReply {
		err = m.once(msg)
	}
	if err != nil || msg.IsReply {
		m.cfg.Log.Debug("ignoring a request", "peer", m.Name(msg.From), "err", err)
		end()
		return
	}
	if msg.Kind == requestAlive {
		m.answerChallenge(msg, s)
		end()
		return
	}
	h, ok := m.handlers[msg.Kind]
	if !ok {
		h = func(context.Context, peer.ID, []byte) ([]byte, error) {
			return nil, fmt.Errorf("this version of Weft does not know %q", msg.Kind) // part of the protocol: older peers compare this text
		}
	}
	go func() {
		defer end()
		ctx, cancel := context.WithTimeout(ctx, handlerTimeout)
		defer cancel()
		payload, err := h(ctx, msg.From, msg.Payload)
		answer := message{ID: msg.ID, From: m.self, To: msg.From, Payload: payload, IsReply: true}
		if err != nil {
			answer.Error = err.Error()
		}
		if m.reply(s, answer) == nil {
			return
		}
		if err := m.sendReply(answer); err != nil {
			m.cfg.Log.Info("could not send a reply", "peer", m.Name(msg.From), "err", err)
		}
	}()
}

// deliver passes a reply to the request that waits for it.
func (m *Mesh) deliver(data []byte) {
	msg, err := m.open(data)
	if err != nil || !msg.IsReply {
		m.cfg.Log.Debug("ignoring a reply", "peer", m.Name(msg.From), "err", err)
		return
	}
	if m.isProof(msg) {
		return
	}
	m.mu.Lock()
	waiting := m.pending[msg.ID]
	m.mu.Unlock()
	r := reply{from: msg.From, payload: msg.Payload}
	if msg.Error != "" {
		r.err = &RefusedError{msg.Error}
	}
	select {
	case waiting <- r:
	default: // the request has ended, or the reply is a duplicate
	}
}
