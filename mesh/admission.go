package mesh

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// These bounds apply to streams that have not yet proved to know the secret. The bounds of
// the replicated states keep a whole state below maxStream.
const (
	maxStream       = 8 << 20  // bytes of one message
	maxHeld         = 24 << 20 // bytes of all unproven messages
	maxHeldSource   = 10 << 20 // bytes of all unproven messages from one source
	maxStreams      = 256      // number of unproven streams
	maxStreamSource = 32       // number of unproven streams from one source
	streamTimeout   = 3 * time.Second
	chunkSize       = 64 << 10
)

var errCrowded = errors.New("too many connections or bytes from a host that has not proved to know the secret")

// admission is a transport with admission control for streams. It passes a stream to memberlist
// when the first message is complete and sealed with the gossip key. The reason is that memberlist
// trusts a length field before it verifies anything. Memory and number of all other streams are
// bounded, in total and per source. At a bound, the oldest stream of the source with the highest
// usage is closed.
//
// The same applies to the answers on streams that this host opens: the other end has proved nothing
// either.
type admission struct {
	memberlist.Transport
	dialer *dialer
	aead   cipher.AEAD
	refuse func(addr, reason string)
	take   func(*stream) bool // takes a proven stream, and reports false if it is for memberlist
	open   chan net.Conn
	done   chan struct{}

	verifying sync.Mutex
	scratch   []byte // buffer for decrypting one message at a time

	mu      sync.Mutex
	freed   *sync.Cond
	total   usage
	sources map[netip.Addr]*usage
	queued  []*stream // unproven streams, oldest first
}

// usage counts unproven streams, and the bytes that all streams hold. ending counts the bytes of
// closed streams, which will be released soon.
type usage struct{ streams, bytes, ending int }

// newAdmission wraps a transport in admission control; Shutdown ends the transport and the
// admission control. Each proven stream is offered to take before memberlist gets it.
func newAdmission(t memberlist.Transport, w *dialer, gossipKey []byte, refuse func(addr, reason string), take func(*stream) bool) (*admission, error) {
	block, err := aes.NewCipher(gossipKey)
	if err != nil {
		return nil, fmt.Errorf("mesh: the gossip key is invalid: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("mesh: the gossip key is invalid: %w", err)
	}
	d := &admission{Transport: t, dialer: w, aead: aead, refuse: refuse, take: take, open: make(chan net.Conn), done: make(chan struct{}), sources: map[netip.Addr]*usage{}}
	d.freed = sync.NewCond(&d.mu)
	go d.watch()
	return d, nil
}

// StreamCh is the channel on which memberlist receives the streams of other hosts.
func (d *admission) StreamCh() <-chan net.Conn { return d.open }

// DialTimeout opens a stream. Its answer is verified when memberlist reads it.
func (d *admission) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return d.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// WriteToAddress sends a packet to one run of a peer's agent, at the address that last answered.
func (d *admission) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return d.WriteTo(b, d.dialer.to(a))
}

// DialAddressTimeout opens a stream to one run of a peer's agent, at any of that peer's addresses.
func (d *admission) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := d.dialer.dial(a, timeout, d.Transport.DialTimeout)
	if err != nil {
		return nil, err
	}
	return &stream{Conn: conn, admission: d, source: sourceOf(conn.RemoteAddr())}, nil
}

// Shutdown ends the transport first, since it delivers streams until it has ended.
func (d *admission) Shutdown() error {
	err := d.Transport.Shutdown()
	close(d.done)
	return err
}

func (d *admission) watch() {
	for {
		select {
		case conn := <-d.Transport.StreamCh():
			go d.admit(&stream{Conn: conn, admission: d, source: sourceOf(conn.RemoteAddr())})
		case <-d.done:
			return
		}
	}
}

// admit passes a stream to memberlist once it is proven; otherwise it closes the stream.
func (d *admission) admit(s *stream) {
	_ = s.SetDeadline(time.Now().Add(streamTimeout)) // if this fails, so does the next read
	if s.prove() != nil {
		s.Close()
		return
	}
	if d.take(s) {
		return
	}
	select {
	case d.open <- s:
	case <-d.done:
		s.Close()
	}
}

// sourceOf returns the source that a stream counts for: its IPv4 address, or the /64 of its IPv6
// address.
func sourceOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		p, _ := addr.Prefix(64)
		return p.Addr()
	}
	return addr
}

// enter counts an unproven stream.
func (d *admission) enter(s *stream) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queued = append(d.queued, s)
	u := d.add(s, usage{streams: 1})
	switch {
	case u.streams > maxStreamSource:
		d.evict(s.source, 0)
	case d.total.streams > maxStreams:
		d.evict(d.greediest(func(u *usage) int { return u.streams }), 0)
	}
	return s.gone
}

// grow gives a stream room for another chunk of its message. It waits for room that a closed stream
// is about to release.
func (d *admission) grow(s *stream) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s.gone == nil {
		u := d.add(s, usage{})
		switch {
		case u.bytes+chunkSize <= maxHeldSource && d.total.bytes+chunkSize <= maxHeld:
			d.add(s, usage{bytes: chunkSize})
			s.chunks = append(s.chunks, chunks.Get().(*chunk))
			return nil
		case u.bytes-u.ending+chunkSize > maxHeldSource:
			d.evict(s.source, 1)
		case d.total.bytes-d.total.ending+chunkSize > maxHeld:
			d.evict(d.greediest(func(u *usage) int { return u.bytes - u.ending }), 1)
		}
		if s.gone == nil {
			d.freed.Wait()
		}
	}
	return s.gone
}

// leave stops counting a stream as unproven, and returns the error if it was evicted. After that
// the stream cannot be evicted.
func (d *admission) leave(s *stream) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unqueue(s)
	return s.gone
}

func (d *admission) unqueue(s *stream) {
	if i := slices.Index(d.queued, s); i >= 0 {
		d.queued = slices.Delete(d.queued, i, i+1)
		d.add(s, usage{streams: -1})
	}
}

// release returns all memory of a stream.
func (d *admission) release(s *stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unqueue(s)
	size := len(s.chunks) * chunkSize
	back := usage{bytes: -size}
	if s.gone != nil {
		back.ending = -size
	}
	d.add(s, back)
	for _, c := range s.chunks {
		chunks.Put(c)
	}
	s.chunks = nil
	d.freed.Broadcast()
}

// evict closes the oldest unproven stream of a source that holds at least that many chunks.
func (d *admission) evict(source netip.Addr, chunks int) {
	i := slices.IndexFunc(d.queued, func(s *stream) bool { return s.source == source && len(s.chunks) >= chunks })
	if i < 0 {
		return // all its streams are proven and are being read
	}
	s := d.queued[i]
	d.unqueue(s)
	d.add(s, usage{ending: len(s.chunks) * chunkSize})
	s.gone = errCrowded
	s.Conn.Close()
	d.freed.Broadcast() // the evicted stream may itself be waiting in grow
}

// add changes the usage of a stream's source and the total usage. It returns the usage of the
// source.
func (d *admission) add(s *stream, more usage) usage {
	u := d.sources[s.source]
	if u == nil {
		u = &usage{}
		d.sources[s.source] = u
	}
	for _, u := range []*usage{u, &d.total} {
		u.streams, u.bytes, u.ending = u.streams+more.streams, u.bytes+more.bytes, u.ending+more.ending
	}
	if *u == (usage{}) {
		delete(d.sources, s.source)
	}
	return *u
}

// greediest returns the source with the highest usage.
func (d *admission) greediest(of func(*usage) int) (source netip.Addr) {
	most := 0
	for addr, u := range d.sources {
		if n := of(u); n > most {
			source, most = addr, n
		}
	}
	return source
}

// verify reports whether the message of a stream is sealed with the gossip key.
func (d *admission) verify(s *stream) bool {
	if s.size < streamHeader+sealHead+d.aead.Overhead() {
		return false
	}
	d.verifying.Lock()
	defer d.verifying.Unlock()
	d.scratch = d.scratch[:0]
	for i, c := range s.chunks {
		d.scratch = append(d.scratch, c[:min(chunkSize, s.size-i*chunkSize)]...)
	}
	header, sealed := d.scratch[:streamHeader], d.scratch[streamHeader:]
	nonce, text := sealed[1:sealHead], sealed[sealHead:]
	text, err := d.aead.Open(text[:0], nonce, text, header)
	if err == nil {
		s.asked = asked(text)
	}
	return err == nil
}
