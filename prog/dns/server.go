package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"
)

// asker is the source of a query.
type asker struct {
	client Client
	addr   netip.Addr // the source address without its zone
	tcp    bool
}

// who identifies the client with a source address.
func (s *Server) who(source netip.AddrPort, tcp bool) (asker, bool) {
	addr := source.Addr().Unmap()
	from := asker{addr: addr.WithZone(""), tcp: tcp}
	var ok bool
	from.client, ok = s.cfg.Client(netip.AddrPortFrom(from.addr, source.Port()), addr.Zone())
	return from, ok
}

// serve answers a message into buf, if that takes no time. It returns nil if there is nothing to
// answer. If wait is true, the answer to q needs an upstream.
func (s *Server) serve(buf, msg []byte, from asker) (out []byte, q question, wait bool) {
	q, rcode, ok := parse(msg)
	if !ok {
		s.counts.dropped.Add(1)
		return nil, q, false
	}
	if from.tcp {
		q.size = maxTCP
	}
	if rcode != dns.RcodeSuccess {
		s.counts.refused.Add(1)
		return q.fail(buf, rcode), q, false
	}
	if r, ours := s.authority.answer(q.name, q.qtype); ours {
		s.counts.local.Add(1)
		return q.write(buf, r, s.authority.ttl), q, false
	}
	if zone, ok := isSpecial(q.name); ok {
		if rule, _ := s.upstreams.Load().rule(q.name); len(rule) <= len(".") { // a rule for "." does not override special names
			s.counts.local.Add(1)
			return q.write(buf, s.authority.local(zone, q.qtype), s.authority.ttl), q, false
		}
	}
	now := time.Now()
	if p := s.cache.get(q.key(), now); p != nil {
		s.counts.hits.Add(1)
		return q.render(buf, p, now), q, false
	}
	if q.bits&bitRD == 0 {
		s.counts.refused.Add(1)
		return q.fail(buf, dns.RcodeRefused), q, false
	}
	return nil, q, true
}

func (q *question) key() key { return key{q.name, q.qtype, q.do, q.bits&bitCD != 0} }

// later waits for the answer to q, and then sends it.
func (s *Server) later(ctx context.Context, q question, from asker, send func([]byte)) {
	ctx, end := context.WithCancel(ctx)
	place := s.forwards.enter(from.client, func() { s.counts.limited.Add(1); end() })
	if place == nil {
		end()
		s.counts.limited.Add(1)
		send(q.fail(nil, dns.RcodeServerFailure))
		return
	}
	q.keep()
	began := time.Now()
	s.tasks.Go(func() {
		defer end()
		p := s.resolve(ctx, q.key(), from.addr)
		s.cfg.Forwarded(time.Since(began))
		s.forwards.leave(place) // before the answer is sent, since the client's next query may come at once
		send(q.render(nil, p, time.Now()))
	})
}

// socket is a pair of sockets that listen on an address.
type socket struct {
	udp *net.UDPConn
	tcp *net.TCPListener
}

func (so *socket) close() {
	_ = so.udp.Close()
	_ = so.tcp.Close()
}

// bind opens and closes sockets so that they match SetAddrs, as far as possible.
func (s *Server) bind(ctx context.Context, open map[netip.Addr]*socket) {
	want := s.nodes()
	for a, so := range maps.All(open) {
		if !slices.Contains(want, a) {
			so.close()
			delete(open, a)
		}
	}
	var status []Socket
	for _, a := range want {
		one := Socket{Addr: netip.AddrPortFrom(a, s.port)}
		if open[a] == nil {
			so, err := listen(ctx, one.Addr)
			if err != nil {
				one.Err = unbound(one.Addr, err)
			} else {
				open[a] = so
				s.start(ctx, so)
			}
		}
		status = append(status, one)
	}
	s.mu.Lock()
	old := s.sockets
	s.sockets = status
	s.mu.Unlock()
	for _, one := range status {
		if one.Err != "" && !slices.Contains(old, one) { // each new error is logged once
			s.cfg.Log.Warn("the name server cannot listen on an address: it retries every second", keyAddr, one.Addr, keyErr, one.Err)
		}
	}
}

// unbound explains to users why an address is not bound.
func unbound(addr netip.AddrPort, err error) string {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Sprintf("%v is in use: another name server on this host listens on all addresses. Configure its listen addresses without this one", addr)
	}
	return err.Error()
}

func listen(ctx context.Context, addr netip.AddrPort) (*socket, error) {
	family := "4"
	if addr.Addr().Is6() {
		family = "6"
	}
	var lc net.ListenConfig
	udp, err := lc.ListenPacket(ctx, "udp"+family, addr.String())
	if err != nil {
		return nil, err
	}
	tcp, err := lc.Listen(ctx, "tcp"+family, addr.String())
	if err != nil {
		udp.Close()
		return nil, err
	}
	so := &socket{udp.(*net.UDPConn), tcp.(*net.TCPListener)}
	_ = so.udp.SetReadBuffer(1 << 20) // a larger buffer for bursts; the kernel may grant less
	return so, nil
}

// start serves a socket until it is closed. One goroutine reads and answers packets: an answer takes
// microseconds, and several readers would wake each other for every packet.
func (s *Server) start(ctx context.Context, so *socket) {
	s.tasks.Go(func() { s.packets(ctx, so.udp) })
	s.tasks.Go(func() { s.accept(ctx, so.tcp) })
}

// closed reports whether err means that the socket was closed. Otherwise it waits a little, since a
// lack of descriptors or memory may end.
func closed(ctx context.Context, err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return true
	}
	select {
	case <-ctx.Done():
		return true
	case <-time.After(50 * time.Millisecond):
		return false
	}
}

// batch is the maximum number of packets per system call. Under load, most of the cost of a query is
// the system call.
const batch = 16

// maxQuery is the size of the receive buffer. A query has one name and few options.
const maxQuery = 4096

// packets answers queries over UDP. Answers use the socket on which the query came in, so that
// conntrack reverses any NAT.
func (s *Server) packets(ctx context.Context, c *net.UDPConn) {
	conn := ipv4.NewPacketConn(c) // despite its name, ReadBatch works for both families
	in, out := messages(maxQuery), messages(maxUDP)
	for {
		n, err := conn.ReadBatch(in, 0)
		if err != nil {
			if closed(ctx, err) {
				return
			}
			continue
		}
		answers := out[:0]
		for i := range in[:n] {
			m := &out[len(answers)]
			if answer := s.packet(ctx, c, &in[i], m.Buffers[0][:0]); answer != nil {
				m.Buffers[0], m.Addr = answer, in[i].Addr
				answers = out[:len(answers)+1]
			}
		}
		for len(answers) > 0 {
			n, err := conn.WriteBatch(answers, 0)
			if err != nil {
				n++ // skip a packet that cannot be sent: UDP may lose packets
			}
			answers = answers[min(n, len(answers)):]
		}
	}
}

func messages(size int) []ipv4.Message {
	out := make([]ipv4.Message, batch)
	for i := range out {
		out[i].Buffers = [][]byte{make([]byte, size)}
	}
	return out
}

// packet returns the answer to a packet, in buf; nil if there is none yet.
func (s *Server) packet(ctx context.Context, c *net.UDPConn, m *ipv4.Message, buf []byte) []byte {
	s.counts.queries.Add(1)
	source := m.Addr.(*net.UDPAddr).AddrPort()
	from, ok := s.who(source, false)
	if !ok || source.Port() == 0 {
		s.counts.dropped.Add(1)
		return nil
	}
	answer, q, wait := s.serve(buf, m.Buffers[0][:m.N], from)
	if wait {
		s.later(ctx, q, from, func(b []byte) { _, _ = c.WriteToUDPAddrPort(b, source) })
		return nil
	}
	return answer
}

// accept accepts TCP connections.
func (s *Server) accept(ctx context.Context, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if closed(ctx, err) {
				return
			}
			continue
		}
		from, ok := s.who(c.RemoteAddr().(*net.TCPAddr).AddrPort(), true)
		var place *place
		if ok {
			place = s.conns.enter(from.client, func() { s.counts.dropped.Add(1); _ = c.Close() })
		}
		if place == nil {
			s.counts.dropped.Add(1)
			_ = c.Close()
			continue
		}
		s.tasks.Go(func() {
			defer s.conns.leave(place)
			s.stream(ctx, c, from)
		})
	}
}

// stream answers the queries of one connection. Answers may overtake those that wait (RFC 7766
// 6.2.1.1).
func (s *Server) stream(ctx context.Context, c net.Conn, from asker) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	var writing sync.Mutex
	var waiting sync.WaitGroup
	defer waiting.Wait() // the client may have closed its sending side after the last query
	send := func(b []byte) {
		writing.Lock()
		defer writing.Unlock()
		_ = c.SetWriteDeadline(time.Now().Add(idleTimeout))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...)); err != nil {
			_ = c.Close()
		}
	}
	unread := make(chan struct{}, forwardsOf) // limits the answers kept for a client that does not read
	var size [2]byte
	var in, out []byte
	for {
		_ = c.SetReadDeadline(time.Now().Add(idleTimeout)) // time limit for the whole message
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		in = slices.Grow(in[:0], n)[:n]
		if _, err := io.ReadFull(c, in); err != nil {
			return
		}
		s.counts.queries.Add(1)
		answer, q, wait := s.serve(out, in, from)
		switch {
		case wait:
			unread <- struct{}{}
			waiting.Add(1)
			s.later(ctx, q, from, func(b []byte) { defer func() { <-unread; waiting.Done() }(); send(b) })
		case answer == nil:
			return // not a query: close the connection
		default:
			out = answer
			send(answer)
		}
	}
}

// String formats a socket with its error for output.
func (so Socket) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%v: %s", so.Addr, so.Err), ": ")
}
