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

// What streams may cost before they have proved that they know the secret. The replicas'
// bounds keep a whole state below maxStream.
const (
	maxStream       = 8 << 20  // bytes of one message
	maxHeld         = 24 << 20 // bytes of all messages that are not proven
	maxHeldSource   = 10 << 20 // of those, bytes from one source
	maxStreams      = 256      // that are not proven
	maxStreamSource = 32       // of those, from one source
	streamTimeout   = 3 * time.Second
	chunkSize       = 64 << 10
)

var errCrowded = errors.New("too many connections, or too many bytes on them, without a word that proves the secret")

// door is a transport that lets a stream through to memberlist once its first message is
// complete and sealed with the gossip key: memberlist believes a length before it can
// verify anything. What all others cost is bounded, in total and per source. Where a bound
// is reached, the oldest stream of the source that costs most ends.
//
// It is the same for streams that this host opens: whoever answers has proved nothing
// either.
type door struct {
	memberlist.Transport
	ways   *ways
	aead   cipher.AEAD
	refuse func(addr, reason string)
	take   func(*stream) bool // a stream that is proven, unless it is for memberlist
	open   chan net.Conn
	done   chan struct{}

	verifying sync.Mutex
	scratch   []byte // where messages are opened, one at a time

	mu      sync.Mutex
	freed   *sync.Cond
	total   usage
	sources map[netip.Addr]*usage
	queued  []*stream // those that are not proven, the oldest first
}

// usage is what streams cost: how many are not proven, and the bytes that all hold. Those
// that were ended give their bytes back in a moment.
type usage struct{ streams, bytes, ending int }

// newDoor puts a door in front of a transport. Shutdown ends both. It asks take about each
// stream that is proven before memberlist gets it.
func newDoor(t memberlist.Transport, w *ways, gossipKey []byte, refuse func(addr, reason string), take func(*stream) bool) (*door, error) {
	block, err := aes.NewCipher(gossipKey)
	if err != nil {
		return nil, fmt.Errorf("mesh: gossip key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("mesh: gossip key: %w", err)
	}
	d := &door{Transport: t, ways: w, aead: aead, refuse: refuse, take: take, open: make(chan net.Conn), done: make(chan struct{}), sources: map[netip.Addr]*usage{}}
	d.freed = sync.NewCond(&d.mu)
	go d.watch()
	return d, nil
}

// StreamCh is where memberlist gets the streams of other hosts.
func (d *door) StreamCh() <-chan net.Conn { return d.open }

// DialTimeout opens a stream. Its answer is checked when memberlist reads it.
func (d *door) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return d.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// WriteToAddress sends a packet to a run of a peer, where that answers.
func (d *door) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return d.WriteTo(b, d.ways.to(a))
}

// DialAddressTimeout opens a stream to a run of a peer, at any address of that.
func (d *door) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := d.ways.dial(a, timeout, d.Transport.DialTimeout)
	if err != nil {
		return nil, err
	}
	return &stream{Conn: conn, door: d, source: sourceOf(conn.RemoteAddr())}, nil
}

// Shutdown ends the transport first: until that is over, it wants its streams to be taken.
func (d *door) Shutdown() error {
	err := d.Transport.Shutdown()
	close(d.done)
	return err
}

func (d *door) watch() {
	for {
		select {
		case conn := <-d.Transport.StreamCh():
			go d.admit(&stream{Conn: conn, door: d, source: sourceOf(conn.RemoteAddr())})
		case <-d.done:
			return
		}
	}
}

// admit gives a stream to memberlist once it is proven, or closes it.
func (d *door) admit(s *stream) {
	_ = s.SetDeadline(time.Now().Add(streamTimeout)) // where it fails, the next read does
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

// sourceOf is whom a stream is counted for: an address, or the /64 of an IPv6 address.
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

// enter counts a stream that is not proven.
func (d *door) enter(s *stream) error {
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

// grow gives a stream room for another chunk of its message. It waits for room that
// another stream is about to give back.
func (d *door) grow(s *stream) error {
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

// leave ends the count of a stream as one that is not proven, and reports why the door
// ended it, if it did. Nothing ends it from here on.
func (d *door) leave(s *stream) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unqueue(s)
	return s.gone
}

func (d *door) unqueue(s *stream) {
	if i := slices.Index(d.queued, s); i >= 0 {
		d.queued = slices.Delete(d.queued, i, i+1)
		d.add(s, usage{streams: -1})
	}
}

// release takes back all room that a stream has.
func (d *door) release(s *stream) {
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

// evict ends the oldest stream of a source that holds so many chunks.
func (d *door) evict(source netip.Addr, chunks int) {
	i := slices.IndexFunc(d.queued, func(s *stream) bool { return s.source == source && len(s.chunks) >= chunks })
	if i < 0 {
		return // what the source holds is proven, and read at this moment
	}
	s := d.queued[i]
	d.unqueue(s)
	d.add(s, usage{ending: len(s.chunks) * chunkSize})
	s.gone = errCrowded
	s.Conn.Close()
	d.freed.Broadcast() // it may be waiting itself
}

// add changes what the streams of one source cost, and all, and returns the former.
func (d *door) add(s *stream, more usage) usage {
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

// greediest is the source whose streams cost most.
func (d *door) greediest(of func(*usage) int) (source netip.Addr) {
	most := 0
	for addr, u := range d.sources {
		if n := of(u); n > most {
			source, most = addr, n
		}
	}
	return source
}

// verify reports whether the message of a stream is sealed with the gossip key.
func (d *door) verify(s *stream) bool {
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
