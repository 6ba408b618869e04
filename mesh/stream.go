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

// The form of memberlist's messages on a stream: a type; where that says that it is sealed,
// a length of four bytes; a version, a nonce and the sealed text.
const (
	streamHeader = 5
	streamSealed = 10
	sealHead     = 1 + 12
)

type chunk [chunkSize]byte

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// stream is a connection of which memberlist reads one message, once that is proven.
type stream struct {
	net.Conn
	door   *door
	source netip.Addr

	done bool  // whether the message was read and checked
	err  error // why there is none
	size int   // of the message
	read int   // of that, how much memberlist has

	asked []byte // what the message says, if it is not for memberlist

	// Guarded by the door's lock, but for the stream's own reads of chunks.
	chunks []*chunk
	gone   error // why the door ended it
}

// Read gives memberlist the message, and nothing after it: a stream carries one each way.
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
		s.door.release(s)
	}
	return n, nil
}

// Close gives back what the stream holds.
func (s *stream) Close() error {
	s.door.release(s)
	return s.Conn.Close()
}

var errTooLong = fmt.Errorf("a message of more than %d MiB", maxStream>>20)

// prove reads the message, the first time that it is called, and verifies it.
func (s *stream) prove() error {
	if s.done {
		return s.err
	}
	s.done = true
	err := s.receive()
	if err == nil && !s.door.verify(s) {
		s.shorten()
	}
	if gone := s.door.leave(s); gone != nil {
		err = gone
	}
	if err != nil {
		s.report(err)
		s.door.release(s)
	}
	s.err = err
	return err
}

// receive reads the message. Where it is not sealed its first byte is enough: memberlist
// refuses it by that.
func (s *stream) receive() error {
	if err := s.door.enter(s); err != nil {
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

// fill reads until there are size bytes of the message.
func (s *stream) fill(size int) error {
	for s.size < size {
		if s.size == len(s.chunks)*chunkSize {
			if err := s.door.grow(s); err != nil {
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

// shorten leaves so much of a message that does not verify that memberlist refuses it, and
// tells the sender.
func (s *stream) shorten() {
	if s.chunks[0][0] != streamSealed {
		return
	}
	s.size = min(s.size, 64)
	binary.BigEndian.PutUint32(s.chunks[0][1:], uint32(s.size-streamHeader))
}

// report tells people of a stream that was turned away. One that ends before it says
// anything is a probe of a port.
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
		s.door.refuse(peer, "it sent "+err.Error()+": no host of this mesh does so; find the program that does")
	case errors.Is(err, os.ErrDeadlineExceeded) && s.size > 0:
		s.door.refuse(peer, fmt.Sprintf("its message was not complete after %v: the network is slow, or it is another program", streamTimeout))
	}
}
