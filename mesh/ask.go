package mesh

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
)

// A request opens a stream, and its reply returns on the same stream. So hosts behind NAT or a
// firewall, to which other hosts cannot connect, can send requests too.
//
// On the wire both are user messages of memberlist. A peer of an older version gets such a request
// from memberlist, closes the stream, and sends its reply on a stream that it opens.

// userHead is the start of a user message: its type, and memberlist's header, a map with the length
// in four bytes. Messages of older versions are compressed and start differently.
const userHead = "\x08\x81\xaaUserMsgLen\xce"

// sealVersion is memberlist's encryption version without padding.
const sealVersion = 1

// seal encrypts a message for a stream.
func (d *admission) seal(data []byte) []byte {
	text := binary.BigEndian.AppendUint32([]byte(userHead), uint32(len(data)))
	text = append(text, data...)
	out := make([]byte, streamHeader+sealHead, streamHeader+sealHead+len(text)+d.aead.Overhead())
	out[0], out[streamHeader] = streamSealed, sealVersion
	binary.BigEndian.PutUint32(out[1:], uint32(sealHead+len(text)+d.aead.Overhead()))
	nonce := out[streamHeader+1 : streamHeader+sealHead]
	_, _ = rand.Read(nonce) // crypto/rand.Read never fails
	return d.aead.Seal(out, nonce, text, out[:streamHeader])
}

// asked returns the content of a message that seal made, or nil for other messages.
func asked(text []byte) []byte {
	rest, ok := bytes.CutPrefix(text, []byte(userHead))
	if !ok || len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) != uint64(len(rest)-4) {
		return nil
	}
	return bytes.Clone(rest[4:])
}

// ask sends a request to one run of a peer's agent, and returns once it is sent. The reply is
// delivered before ctx ends, or is dropped. The returned function waits for the end of the stream.
func (m *Mesh) ask(ctx context.Context, to memberlist.Address, msg message) (wait func(), err error) {
	conn, err := m.dialer.dial(to, streamTimeout, m.admission.Transport.DialTimeout)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(streamTimeout)) // if this fails, so does the write
	if _, err := conn.Write(m.admission.seal(encode(envelope{Kind: kindRequest, Payload: m.sign(msg)}))); err != nil {
		conn.Close()
		return nil, err
	}
	end := context.AfterFunc(ctx, func() { conn.Close() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close()
		defer end()
		m.hear(conn)
	}()
	return func() { <-done }, nil
}

// hear receives the reply to a request from its stream. Until the first byte arrives, the stream is
// not counted as unproven: we opened it, and the handler may take a while.
func (m *Mesh) hear(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(handlerTimeout + streamTimeout))
	first := []byte{0}
	if _, err := io.ReadFull(conn, first); err != nil {
		return // the peer has an older version, or has gone
	}
	_ = conn.SetReadDeadline(time.Now().Add(streamTimeout))
	s := &stream{Conn: begun{conn, io.MultiReader(bytes.NewReader(first), conn)}, admission: m.admission, source: sourceOf(conn.RemoteAddr())}
	defer s.Close()
	if s.prove() != nil {
		return
	}
	var e envelope
	if err := decoding.Unmarshal(s.asked, &e); err != nil || e.Kind != kindReply {
		m.cfg.Log.Debug("ignoring a reply", "addr", s.source, "err", err)
		return
	}
	m.deliver(e.Payload)
}

// begun is a stream whose first bytes were already read.
type begun struct {
	net.Conn
	rest io.Reader
}

func (b begun) Read(p []byte) (int, error) { return b.rest.Read(p) }

// answer handles a stream that carries a request, and reports whether the stream carried a request.
func (m *Mesh) answer(ctx context.Context, s *stream) bool {
	var e envelope
	if s.asked == nil || !m.running() || decoding.Unmarshal(s.asked, &e) != nil || e.Kind != kindRequest {
		return false
	}
	m.serve(ctx, e.Payload, s)
	return true
}

var errNoStream = errors.New("the request did not arrive on a stream that waits for its reply")

// reply sends a reply on the stream of its request.
func (m *Mesh) reply(s *stream, msg message) error {
	if s == nil {
		return errNoStream
	}
	_ = s.SetWriteDeadline(time.Now().Add(streamTimeout)) // if this fails, so does the write
	_, err := s.Write(m.admission.seal(encode(envelope{Kind: kindReply, Payload: m.sign(msg)})))
	return err
}
