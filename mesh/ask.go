package mesh

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/session"
)

// A request opens a stream, and its reply returns on the same stream. So hosts behind NAT or a
// firewall, to which other hosts cannot connect, can send requests too. Both are an envelope with its
// length in four bytes in front.

const (
	// maxStream bounds one message on a stream. The bounds of the replicated states keep a whole state
	// below it.
	maxStream     = 8 << 20
	streamTimeout = 3 * time.Second
	// overTimeout allows for three handshakes between far hosts, one after the other.
	overTimeout = 8 * time.Second
)

func writeEnvelope(w io.Writer, e envelope) error {
	data := encode(e)
	_, err := w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(data)), uint32(len(data))), data...))
	return err
}

// readEnvelope reads an envelope. The buffer grows as data arrives: the length is only announced.
func readEnvelope(r io.Reader) (e envelope, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return e, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxStream {
		return e, fmt.Errorf("a message of %d bytes, at most %d are allowed", size, maxStream)
	}
	var data bytes.Buffer
	if _, err := io.CopyN(&data, r, int64(size)); err != nil {
		return e, err
	}
	return e, decoding.Unmarshal(data.Bytes(), &e)
}

// ask sends a request to one run of a peer's agent, and returns once it is sent. The reply is
// delivered before ctx ends, or is dropped. The returned function waits for the end of the stream.
func (m *Mesh) ask(ctx context.Context, to memberlist.Address, msg message) (wait func(), err error) {
	s, err := m.transport.Ask(to, session.Request, streamTimeout)
	if err != nil {
		row := m.over(msg.To)
		if len(row) == 0 || ctx.Err() != nil {
			return nil, err
		}
		over, end := context.WithTimeout(ctx, overTimeout)
		defer end()
		if s, err = m.transport.AskOver(over, row, to, session.Request); err != nil {
			return nil, fmt.Errorf("over other members, since it does not answer: %w", err)
		}
	}
	_ = s.SetDeadline(time.Now().Add(streamTimeout)) // if this fails, so does the write
	if err := writeEnvelope(s, envelope{Kind: kindRequest, Payload: m.sign(msg)}); err != nil {
		s.Close()
		return nil, err
	}
	end := context.AfterFunc(ctx, func() { s.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.Close()
		defer end()
		m.hear(s)
	}()
	return func() { <-done }, nil
}

// hear receives the reply to a request from its stream.
func (m *Mesh) hear(s *session.Stream) {
	_ = s.SetReadDeadline(time.Now().Add(handlerTimeout + streamTimeout))
	e, err := readEnvelope(s)
	switch {
	case err != nil:
		m.cfg.Log.Debug("no reply to a request", "peer", m.Name(s.Peer.ID), "err", err)
	case e.Kind == kindReply:
		m.deliver(e.Payload)
	}
}

// answer handles a stream that another host opened for a request.
func (m *Mesh) answer(ctx context.Context, s *session.Stream) {
	_ = s.SetDeadline(time.Now().Add(streamTimeout)) // if this fails, so does the read
	h := &held{Stream: &session.Stream{Conn: s.Conn, Peer: s.Peer}, budget: &m.budget, free: smallRequest}
	s.Conn = giving{s.Conn, h}
	e, err := readEnvelope(h)
	if err != nil || e.Kind != kindRequest || !m.running() {
		s.Close()
		return
	}
	m.serve(ctx, e.Payload, s)
}

// smallRequest is the size up to which a request does not count in the budget of its peer. So peers that use
// up the budget of all do not keep others from being served: the number of streams is bounded.
const smallRequest = 64 << 10

// giving is the stream of a request, which is held in memory until the stream is closed.
type giving struct {
	net.Conn
	held *held
}

func (g giving) Close() error {
	g.held.give()
	return g.Conn.Close()
}

var errNoStream = errors.New("the request did not arrive on a stream that waits for its reply")

// reply sends a reply on the stream of its request.
func (m *Mesh) reply(s *session.Stream, msg message) error {
	if s == nil {
		return errNoStream
	}
	_ = s.SetWriteDeadline(time.Now().Add(streamTimeout)) // if this fails, so does the write
	return writeEnvelope(s, envelope{Kind: kindReply, Payload: m.sign(msg)})
}
