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

// A request opens a stream, and its reply comes back on that: who asks may be a host that
// nobody can dial, behind NAT or a firewall.
//
// On the wire both are memberlist's own user messages. A peer of an older version takes such
// a request from memberlist, closes the stream, and sends its reply on one of its own.

// userHead is how such a message begins: its type, and memberlist's header, a map with the
// length in four bytes. What memberlist of an older version sends is compressed, and begins otherwise.
const userHead = "\x08\x81\xaaUserMsgLen\xce"

// sealVersion says that the text is not padded.
const sealVersion = 1

// seal makes the message of a stream.
func (d *door) seal(data []byte) []byte {
	text := binary.BigEndian.AppendUint32([]byte(userHead), uint32(len(data)))
	text = append(text, data...)
	out := make([]byte, streamHeader+sealHead, streamHeader+sealHead+len(text)+d.aead.Overhead())
	out[0], out[streamHeader] = streamSealed, sealVersion
	binary.BigEndian.PutUint32(out[1:], uint32(sealHead+len(text)+d.aead.Overhead()))
	nonce := out[streamHeader+1 : streamHeader+sealHead]
	_, _ = rand.Read(nonce) // never fails (crypto/rand)
	return d.aead.Seal(out, nonce, text, out[:streamHeader])
}

// asked is what was sealed by seal; nil if something else was.
func asked(text []byte) []byte {
	rest, ok := bytes.CutPrefix(text, []byte(userHead))
	if !ok || len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) != uint64(len(rest)-4) {
		return nil
	}
	return bytes.Clone(rest[4:])
}

// ask sends a request to a run of a peer. It returns once that is sent; the reply is delivered before ctx ends,
// or not at all. What it returns waits for the end of the stream.
func (m *Mesh) ask(ctx context.Context, to memberlist.Address, msg message) (wait func(), err error) {
	conn, err := m.ways.dial(to, streamTimeout, m.door.Transport.DialTimeout)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(streamTimeout)) // where it fails, the write does
	if _, err := conn.Write(m.door.seal(encode(envelope{Kind: kindRequest, Payload: m.sign(msg)}))); err != nil {
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

// hear takes the reply to a request from its stream. Until it begins, the stream does not
// count among those that have proved nothing: it is ours, and waits for a handler.
func (m *Mesh) hear(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(handlerTimeout + streamTimeout))
	first := []byte{0}
	if _, err := io.ReadFull(conn, first); err != nil {
		return // an older version, or it is gone
	}
	_ = conn.SetReadDeadline(time.Now().Add(streamTimeout))
	s := &stream{Conn: begun{conn, io.MultiReader(bytes.NewReader(first), conn)}, door: m.door, source: sourceOf(conn.RemoteAddr())}
	defer s.Close()
	if s.prove() != nil {
		return
	}
	var e envelope
	if err := decoding.Unmarshal(s.asked, &e); err != nil || e.Kind != kindReply {
		m.cfg.Log.Debug("reply ignored", "addr", s.source, "err", err)
		return
	}
	m.deliver(e.Payload)
}

// begun is a stream of which some bytes were read.
type begun struct {
	net.Conn
	rest io.Reader
}

func (b begun) Read(p []byte) (int, error) { return b.rest.Read(p) }

// answer takes a stream that waits for a reply, and reports whether it is one.
func (m *Mesh) answer(ctx context.Context, s *stream) bool {
	var e envelope
	if s.asked == nil || !m.running() || decoding.Unmarshal(s.asked, &e) != nil || e.Kind != kindRequest {
		return false
	}
	m.serve(ctx, e.Payload, s)
	return true
}

var errNoStream = errors.New("the request did not come on a stream that waits")

// reply sends an answer on the stream that the request came on.
func (m *Mesh) reply(s *stream, msg message) error {
	if s == nil {
		return errNoStream
	}
	_ = s.SetWriteDeadline(time.Now().Add(streamTimeout)) // where it fails, the write does
	_, err := s.Write(m.door.seal(encode(envelope{Kind: kindReply, Payload: m.sign(msg)})))
	return err
}
