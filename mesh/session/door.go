package session

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
)

// These bounds apply to streams whose other end has not yet proved its identity.
const (
	maxStreams      = 256      // in total
	maxStreamSource = 32       // from one source
	maxUnproven     = 12 << 10 // bytes read from one stream
	// maxRecord bounds one TLS record: crypto/tls makes room for the whole record at once. It is larger than
	// the records that an honest host sends right after its proof, which may be read together with it.
	maxRecord    = 8 << 10
	proofTimeout = 5 * time.Second

	maxOpen = 128 // streams of one proven peer at once
)

var (
	errMany    = errors.New("too many connections at once from this peer")
	errCrowded = errors.New("too many connections from hosts that have not proved their identity")
	errTooMuch = errors.New("it sent too much before it proved its identity")
)

// door counts the streams whose other end has not yet proved its identity. At a bound, it closes the oldest
// stream of the source with the most streams, so that a flood from one source ends its own streams first.
type door struct {
	mu      sync.Mutex
	sources map[netip.Addr]int
	queued  []*guest        // oldest first
	open    map[peer.ID]int // streams of proven peers
}

// guest is a stream before the proof. It reads a bounded number of bytes.
type guest struct {
	net.Conn
	source netip.Addr
	left   int
	proven bool // set by the goroutine that reads, once the proof is complete
	record records
}

// records follows the records of TLS in a stream (RFC 8446, section 5.1).
type records struct {
	head [5]byte
	have int // bytes of head
	body int // bytes of the record that are still to come
}

// long reports whether the next bytes of a stream contain the head of a record that is longer than maxRecord.
func (r *records) long(p []byte) bool {
	for len(p) > 0 {
		if r.body > 0 {
			n := min(r.body, len(p))
			r.body, p = r.body-n, p[n:]
			continue
		}
		n := copy(r.head[r.have:], p)
		r.have, p = r.have+n, p[n:]
		if r.have == len(r.head) {
			r.have, r.body = 0, int(binary.BigEndian.Uint16(r.head[3:]))
			if r.body > maxRecord {
				return true
			}
		}
	}
	return false
}

func (g *guest) Read(p []byte) (int, error) {
	if g.proven {
		return g.Conn.Read(p)
	}
	if g.left == 0 {
		return 0, errTooMuch
	}
	n, err := g.Conn.Read(p[:min(len(p), g.left)])
	g.left -= n
	if g.record.long(p[:n]) {
		return 0, errTooMuch
	}
	return n, err
}

// sourceOf returns the source that a stream counts for: its IPv4 address, or the /64 of its IPv6 address.
func sourceOf(a net.Addr) netip.Addr {
	addr := addrOf(a).Addr()
	if addr.Is6() {
		p, _ := addr.Prefix(64)
		return p.Addr()
	}
	return addr
}

// addrOf returns an address without zone; invalid if it is none of IP.
func addrOf(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// enter counts a stream. It may close another one.
func (d *door) enter(c net.Conn) *guest {
	g := &guest{Conn: c, source: sourceOf(c.RemoteAddr()), left: maxUnproven}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sources == nil {
		d.sources = map[netip.Addr]int{}
	}
	d.queued = append(d.queued, g)
	d.sources[g.source]++
	switch {
	case d.sources[g.source] > maxStreamSource:
		d.evict(g.source)
	case len(d.queued) > maxStreams:
		d.evict(d.greediest())
	}
	return g
}

// leave stops counting a stream, and reports whether it was still counted.
func (d *door) leave(g *guest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.queued, g)
	if i < 0 {
		return false
	}
	d.remove(i)
	return true
}

func (d *door) remove(i int) {
	g := d.queued[i]
	d.queued = slices.Delete(d.queued, i, i+1)
	if d.sources[g.source]--; d.sources[g.source] == 0 {
		delete(d.sources, g.source)
	}
}

func (d *door) evict(source netip.Addr) {
	i := slices.IndexFunc(d.queued, func(g *guest) bool { return g.source == source })
	g := d.queued[i]
	d.remove(i)
	g.Conn.Close()
}

// greediest returns the source with the most streams; among several, the one whose stream is the oldest. So
// a stream has time for its proof, even if a flood comes from ever new sources.
func (d *door) greediest() (source netip.Addr) {
	most := 0
	for _, g := range d.queued {
		if n := d.sources[g.source]; n > most {
			source, most = g.source, n
		}
	}
	return source
}

// let counts the stream of a proven peer until it is closed. It reports false if the peer has too many.
func (d *door) let(s *Stream) bool {
	id := s.Peer.ID
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[id] >= maxOpen {
		return false
	}
	if d.open == nil {
		d.open = map[peer.ID]int{}
	}
	d.open[id]++
	s.Conn = counted{s.Conn, sync.OnceFunc(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.open[id]--; d.open[id] == 0 {
			delete(d.open, id)
		}
	})}
	return true
}

// counted is the stream of a proven peer, which is counted until it is closed.
type counted struct {
	net.Conn
	closed func()
}

func (c counted) Close() error {
	c.closed()
	return c.Conn.Close()
}

// begun is a stream whose first bytes were already read.
type begun struct {
	net.Conn
	rest io.Reader
}

func (b begun) Read(p []byte) (int, error) { return b.rest.Read(p) }
