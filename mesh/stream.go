package mesh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
)

// memberlist's messages on a stream have this format: a type byte; if the type is "encrypted", a
// length of four bytes; then version, nonce and ciphertext.
const (
	streamHeader = 5
	streamSealed = 10
	sealHead     = 1 + 12
)

type chunk [chunkSize]byte

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// stream is a connection from which memberlist reads one message, once the message is verified.
type stream struct {
	net.Conn
	admission *admission
	source    netip.Addr

	done bool  // whether the message was read and verified
	err  error // why there is no valid message
	size int   // bytes of the message received so far
	read int   // bytes that memberlist has read

	asked []byte // content of the message, if it is a request or reply

	// The admission's lock guards these fields, except while the stream itself reads chunks.
	chunks []*chunk
	gone   error // why the stream was evicted; nil if it was not
}

// Read returns the message to memberlist, and nothing after it: a stream carries one message in
// each direction.
func (s *stream) Read(b []byte) (int, error) {
	if err := s.prove(); err != nil {
		return 0, err
	}
	if s.read == s.size {
		return 0, io.EOF
	}
	i, from := s.read/chunkSize, s.read%chunkSize
	n := copy(b, s.chunks[i][from:min(chunkSize, s.size-i*chunkSize)])
	if s.read += n; s.read == s.size {
		s.admission.release(s)
	}
	return n, nil
}

// Close releases the memory of the stream and closes it.
func (s *stream) Close() error {
	s.admission.release(s)
	return s.Conn.Close()
}

var errTooLong = fmt.Errorf("a message of more than %d MiB", maxStream>>20)

// prove reads and verifies the message, on the first call.
func (s *stream) prove() error {
	if s.done {
		return s.err
	}
	s.done = true
	err := s.receive()
	if err == nil && !s.admission.verify(s) {
		s.shorten()
	}
	if gone := s.admission.leave(s); gone != nil {
		err = gone
	}
	if err != nil {
		s.report(err)
		s.admission.release(s)
	}
	s.err = err
	return err
}

// receive reads the message. An unencrypted message is refused after its first byte, so no more is
// read.
func (s *stream) receive() error {
	if err := s.admission.enter(s); err != nil {
		return err
	}
	if err := s.fill(1); err != nil || s.chunks[0][0] != streamSealed {
		return err
	}
	if err := s.fill(streamHeader); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(s.chunks[0][1:])
	if length > maxStream {
		return errTooLong
	}
	return s.fill(streamHeader + int(length))
}

// fill reads until size bytes of the message have arrived.
func (s *stream) fill(size int) error {
	for s.size < size {
		if s.size == len(s.chunks)*chunkSize {
			if err := s.admission.grow(s); err != nil {
				return err
			}
		}
		i := len(s.chunks) - 1
		n, err := s.Conn.Read(s.chunks[i][s.size-i*chunkSize : min(chunkSize, size-i*chunkSize)])
		if s.size += n; err != nil && s.size < size {
			return err
		}
	}
	return nil
}

// shorten truncates a message that does not verify. memberlist then refuses the message and informs
// the sender.
func (s *stream) shorten() {
	if s.chunks[0][0] != streamSealed {
		return
	}
	s.size = min(s.size, 64)
	binary.BigEndian.PutUint32(s.chunks[0][1:], uint32(s.size-streamHeader))
}

// report reports a refused stream in status. A stream that ends without sending anything is a port
// probe.
func (s *stream) report(err error) {
	peer := s.RemoteAddr().String()
	if host, _, e := net.SplitHostPort(peer); e == nil {
		peer = host
	}
	if a, e := netip.ParseAddr(peer); e == nil {
		peer = a.Unmap().String()
	}
	switch {
	case errors.Is(err, errCrowded), errors.Is(err, errTooLong):
		s.admission.refuse(peer, "it sent "+err.Error()+": it is not a host of this mesh: find the program that does this")
	case errors.Is(err, os.ErrDeadlineExceeded) && s.size > 0:
		s.admission.refuse(peer, fmt.Sprintf("its message was incomplete after %v: the network is slow, or it is another program", streamTimeout))
	}
}
