package matrix

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"

	"weft/router/endpoint"
	"weft/router/packet"
)

const (
	// Echo requests are repeated, since a single packet may be lost.
	attempts = 3
	patience = time.Second // for each attempt
	// allTalk bounds the answer to one order.
	allTalk = attempts*patience + time.Second
)

// These are the lengths of headers.
const (
	ethernet   = 14
	header4    = 20
	header6    = 40
	headerICMP = 8
)

// order asks a test endpoint to talk to each target.
type order struct {
	Targets []netip.Addr `json:"targets"`
}

// result has why a target did not answer, by its address.
type result struct {
	Failed map[netip.Addr]string `json:"failed"`
}

// tester is a test endpoint. It answers echo requests to its addresses, and sends such requests itself: by frames,
// as a container's kernel would.
type tester struct {
	addresses []netip.Addr
	pair      endpoint.Pair
	mtu, id   int
	frames    io.ReadWriter
	close     func()

	mu      sync.Mutex
	seq     int                 // of the requests whose answers count
	missing map[netip.Addr]bool // targets that have not answered yet
	done    chan struct{}       // is closed once all have answered
}

// newTester returns a tester that answers until reading fails. id tells the answers to it from those to others.
func newTester(frames io.ReadWriter, pair endpoint.Pair, addresses []netip.Addr, mtu, id int) *tester {
	t := &tester{addresses: addresses, pair: pair, mtu: mtu, id: id, frames: frames, close: func() {}}
	go t.serve()
	return t
}

// serve answers requests, and notes answers.
func (t *tester) serve() {
	buf := make([]byte, ethernet+t.mtu+1)
	for {
		n, err := t.frames.Read(buf)
		if err != nil {
			return
		}
		e, ok := parse(buf[:n])
		switch {
		case !ok || !slices.Contains(t.addresses, e.to):
		case e.request:
			_ = t.send(e.to, e.from, false, e.Echo) // the sender repeats its request
		default:
			t.note(e)
		}
	}
}

func (t *tester) note(e echo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.missing[e.from] || e.ID != t.id || e.Seq != t.seq || len(e.Data) != len(t.data(e.from)) {
		return
	}
	if delete(t.missing, e.from); len(t.missing) == 0 {
		close(t.done)
	}
}

// data returns what a request carries: it fills a packet of full size.
func (t *tester) data(to netip.Addr) []byte {
	if to.Is4() {
		return make([]byte, t.mtu-header4-headerICMP)
	}
	return make([]byte, t.mtu-header6-headerICMP)
}

// source returns the tester's address of the family of another one.
func (t *tester) source(to netip.Addr) (own netip.Addr, ok bool) {
	for _, a := range t.addresses {
		if a.Is4() == to.Is4() {
			return a, true
		}
	}
	return own, false
}

// talk sends requests to all targets until their answers come. It leaves out the tester itself, and families that this
// host does not have. One goroutine at a time calls it.
func (t *tester) talk(targets []netip.Addr) result {
	t.mu.Lock()
	t.seq = (t.seq + 1) & 0xffff
	seq := t.seq
	t.missing = map[netip.Addr]bool{}
	for _, to := range targets {
		if own, ok := t.source(to); ok && own != to {
			t.missing[to] = true
		}
	}
	done := make(chan struct{})
	t.done = done
	t.mu.Unlock()
	out := result{}
	for range attempts {
		out.Failed = map[netip.Addr]string{}
		for _, to := range t.left() {
			from, _ := t.source(to)
			out.Failed[to] = fmt.Sprintf("no answer to %d echo requests of %d bytes", attempts, t.mtu)
			if err := t.send(from, to, true, icmp.Echo{ID: t.id, Seq: seq, Data: t.data(to)}); err != nil {
				out.Failed[to] = err.Error()
			}
		}
		if len(out.Failed) == 0 {
			break
		}
		select {
		case <-done:
			return result{}
		case <-time.After(patience):
		}
	}
	missing := t.left()
	maps.DeleteFunc(out.Failed, func(to netip.Addr, _ string) bool { return !slices.Contains(missing, to) })
	return out
}

// left returns the targets that have not answered.
func (t *tester) left() (list []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a := range t.missing {
		list = append(list, a)
	}
	return list
}

func (t *tester) send(from, to netip.Addr, request bool, e icmp.Echo) error {
	p, err := echo{Echo: e, from: from, to: to, request: request}.packet()
	if err == nil {
		_, err = t.frames.Write(packet.Frame(t.pair.HostMAC, t.pair.ContainerMAC, p))
	}
	return err
}

// echo is an echo request or its answer.
type echo struct {
	icmp.Echo
	from, to netip.Addr
	request  bool
}

func (e echo) packet() ([]byte, error) {
	protocol, kind, reply := packet.EchoTypes(e.from.Is4())
	if !e.request {
		kind = reply
	}
	var pseudo []byte
	if e.from.Is6() {
		pseudo = icmp.IPv6PseudoHeader(e.from.AsSlice(), e.to.AsSlice())
	}
	body, err := (&icmp.Message{Type: kind, Body: &e.Echo}).Marshal(pseudo)
	if err != nil {
		return nil, err
	}
	return packet.IP(e.from, e.to, byte(protocol), body), nil
}

// parse reads an echo request, or the answer to one, from a frame. It ignores fragments and other packets.
func parse(frame []byte) (e echo, ok bool) {
	if len(frame) < ethernet {
		return e, false
	}
	b := frame[ethernet:]
	if e.from, e.to, ok = packet.Addresses(b); !ok {
		return e, false
	}
	number, header, length := int(b[6]), header6, header6+int(b[4])<<8+int(b[5])
	if e.from.Is4() {
		const fragmented = 0x3f // the offset's upper bits, and whether more fragments follow
		if b[6]&fragmented != 0 || b[7] != 0 {
			return e, false
		}
		number, header, length = int(b[9]), int(b[0]&15)*4, int(b[2])<<8+int(b[3])
	}
	protocol, request, reply := packet.EchoTypes(e.from.Is4())
	if number != protocol || header < header4 || length < header || length > len(b) {
		return e, false
	}
	m, err := icmp.ParseMessage(protocol, b[header:length])
	if err != nil || m.Type != request && m.Type != reply {
		return e, false
	}
	body, ok := m.Body.(*icmp.Echo)
	if !ok {
		return e, false
	}
	e.Echo, e.request = *body, m.Type == request
	return e, true
}
