package judge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// These bounds limit one msgpack object. The largest of memberlist's structs has 8 fields, whose
// names have at most 12 bytes.
const (
	maxObject = MaxPacket
	maxPairs  = 16
	maxKey    = 32
)

// chunk is how much memory a source allocates at a time, before the data for it has arrived.
const chunk = 16 << 10

var (
	errLimit = errors.New("message is longer than the limit")
	errShape = errors.New("not a struct of memberlist")
)

// source gives out the bytes of a packet or of a stream in order. The zero value with buf set is a
// packet. With r set, buf grows as data arrives.
type source struct {
	r    io.Reader // nil: there is nothing after buf
	buf  []byte    // what has been read
	pos  int       // how much of buf has been given out
	left int       // how much may still be read from r
}

// fill reads until n bytes are ready. It does not wait for more, but takes what is there.
func (s *source) fill(n int) error {
	if s.r != nil && s.pos > 0 && len(s.buf)-s.pos < n {
		s.buf = s.buf[:copy(s.buf, s.buf[s.pos:])]
		s.pos = 0
	}
	for missing := n - (len(s.buf) - s.pos); missing > 0; missing = n - (len(s.buf) - s.pos) {
		if s.r == nil {
			return io.ErrUnexpectedEOF
		}
		if missing > s.left {
			return errLimit
		}
		s.buf = slices.Grow(s.buf, min(chunk, s.left))
		space := s.buf[len(s.buf):min(cap(s.buf), len(s.buf)+s.left)]
		got, err := io.ReadAtLeast(s.r, space, min(missing, len(space)))
		s.buf, s.left = s.buf[:len(s.buf)+got], s.left-got
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// take gives out n bytes, which are valid until the next call.
func (s *source) take(n int) ([]byte, error) {
	if err := s.fill(n); err != nil {
		return nil, err
	}
	s.pos += n
	return s.buf[s.pos-n : s.pos], nil
}

// appendTo moves n bytes to dst, which grows as they arrive.
func (s *source) appendTo(dst []byte, n int) ([]byte, error) {
	for n > 0 {
		part, err := s.take(min(n, chunk))
		if err != nil {
			return nil, err
		}
		dst, n = append(dst, part...), n-len(part)
	}
	return dst, nil
}

// ended reports whether nothing follows. On a stream it waits for the end.
func (s *source) ended() error {
	switch err := s.fill(1); {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil
	case errors.Is(err, errLimit):
		return s.endOfReader()
	case err != nil:
		return err
	}
	return errors.New("more bytes follow than the header announces")
}

// endOfReader looks for the end of a stream whose limit is used up.
func (s *source) endOfReader() error {
	if _, err := io.ReadFull(s.r, make([]byte, 1)); !errors.Is(err, io.EOF) {
		return errLimit
	}
	return nil
}

// object gives out one msgpack map of names and plain values: the only shape that memberlist's
// structs have. It refuses nested values, which no honest host sends. It checks each length against
// the bound before it waits for the data.
func (s *source) object() ([]byte, error) {
	pairs, off, err := s.mapHeader()
	if err != nil {
		return nil, err
	}
	for range pairs {
		key, err := s.scalar(off)
		if err != nil {
			return nil, err
		}
		if !s.isText(off) || key-off > maxKey {
			return nil, fmt.Errorf("%w: the name of a field is no short text", errShape)
		}
		if off, err = s.scalar(key); err != nil {
			return nil, err
		}
	}
	return s.take(off)
}

// mapHeader returns the number of pairs of the map that comes next, and the size of its header.
func (s *source) mapHeader() (pairs, size int, err error) {
	if err := s.fill(1); err != nil {
		return 0, 0, err
	}
	switch b := s.buf[s.pos]; {
	case b&0xf0 == 0x80: // fixmap
		pairs, size = int(b&0x0f), 1
	case b == 0xde: // map 16
		if err := s.fill(3); err != nil {
			return 0, 0, err
		}
		pairs, size = int(binary.BigEndian.Uint16(s.buf[s.pos+1:])), 3
	default:
		return 0, 0, fmt.Errorf("%w: byte %#x begins no short map", errShape, b)
	}
	if pairs > maxPairs {
		return 0, 0, fmt.Errorf("%w: %d fields, at most %d are allowed", errShape, pairs, maxPairs)
	}
	return pairs, size, nil
}

// isText reports whether the value at an offset is a string. Its first byte has arrived.
func (s *source) isText(off int) bool {
	b := s.buf[s.pos+off]
	return b&0xe0 == 0xa0 || b >= 0xd9 && b <= 0xdb
}

// scalar returns where the value at an offset ends: nil, a truth value, an integer or bytes. It
// returns once the value has arrived.
func (s *source) scalar(off int) (end int, err error) {
	if err := s.fill(off + 1); err != nil {
		return 0, err
	}
	switch b := s.buf[s.pos+off]; {
	case b <= 0x7f, b >= 0xe0, b == 0xc0, b == 0xc2, b == 0xc3: // small integers, nil, false, true
		end = off + 1
	case b >= 0xcc && b <= 0xcf: // uint 8 to 64
		end = off + 1 + 1<<(b-0xcc)
	case b >= 0xd0 && b <= 0xd3: // int 8 to 64
		end = off + 1 + 1<<(b-0xd0)
	case b&0xe0 == 0xa0: // fixstr
		end = off + 1 + int(b&0x1f)
	case b >= 0xc4 && b <= 0xc6: // bin 8 to 32
		end, err = s.long(off, 1<<(b-0xc4))
	case b >= 0xd9 && b <= 0xdb: // str 8 to 32
		end, err = s.long(off, 1<<(b-0xd9))
	default:
		err = fmt.Errorf("%w: byte %#x begins no plain value", errShape, b)
	}
	if err == nil && end > maxObject {
		err = fmt.Errorf("%w: it is larger than a packet", errShape)
	}
	if err != nil {
		return 0, err
	}
	return end, s.fill(end)
}

// long returns where bytes end whose length is a big-endian number of width bytes.
func (s *source) long(off, width int) (end int, err error) {
	if err := s.fill(off + 1 + width); err != nil {
		return 0, err
	}
	var n uint64
	for _, b := range s.buf[s.pos+off+1:][:width] {
		n = n<<8 | uint64(b)
	}
	return off + 1 + width + int(min(n, 2*maxObject)), nil
}
