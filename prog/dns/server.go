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
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// asker is who asks a question, and how.
type asker struct {
	client string
	addr   netip.Addr // without zone
	tcp    bool
}

// who asks from a source address.
func (s *Server) who(source netip.AddrPort, tcp bool) (asker, bool) {
	addr := source.Addr().Unmap()
	from := asker{addr: addr.WithZone(""), tcp: tcp}
	var ok bool
	from.client, ok = s.cfg.Client(netip.AddrPortFrom(from.addr, source.Port()), addr.Zone())
	return from, ok
}

// serve answers a message into buf, as far as that takes no time. It returns nothing when
// there is nothing to say; when wait is set, the answer to q has to be waited for.
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
		if rule, _ := s.upstreams.Load().rule(q.name); len(rule) <= len(".") { // "." is no rule for them
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

// later waits for the answer to q and sends it.
func (s *Server) later(ctx context.Context, q question, from asker, send func([]byte)) {
	if !s.forwards.enter(from.client) {
		s.counts.limited.Add(1)
		send(q.fail(nil, dns.RcodeServerFailure))
		return
	}
	q.keep()
	s.tasks.Go(func() {
		p := s.resolve(ctx, q.key(), from.addr)
		s.forwards.leave(from.client) // before the client knows: its next question may come at once
		send(q.render(nil, p, time.Now()))
	})
}

// socket is an address that is listened on.
type socket struct {
	udp *net.UDPConn
	tcp *net.TCPListener
}

func (so *socket) close() {
	_ = so.udp.Close()
	_ = so.tcp.Close()
}

// bind makes the open sockets those that SetAddrs asked for, as far as that is possible.
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
				one.Err = err.Error()
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
		if one.Err != "" && !slices.Contains(old, one) { // not every second
			s.cfg.Log.Warn("name server cannot listen yet", keyAddr, one.Addr, keyErr, one.Err)
		}
	}
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
	_ = so.udp.SetReadBuffer(1 << 20) // for bursts; as much as the kernel allows
	return so, nil
}

// start serves a socket until it is closed. Packets are answered by whoever read them: as
// many at a time as there are processors.
func (s *Server) start(ctx context.Context, so *socket) {
	for range max(2, runtime.GOMAXPROCS(0)) {
		s.tasks.Go(func() { s.packets(ctx, so.udp) })
	}
	s.tasks.Go(func() { s.accept(ctx, so.tcp) })
}

// closed reports whether a socket that gave err is no more; otherwise it waits a little,
// because what is out (descriptors, memory) may come back.
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

// packets answers what comes over UDP. Answers leave by the socket that the question came
// in on, for what the kernel made of destination and interface to be undone.
func (s *Server) packets(ctx context.Context, c *net.UDPConn) {
	in, out := make([]byte, maxTCP), make([]byte, 0, maxUDP)
	for {
		n, source, err := c.ReadFromUDPAddrPort(in)
		if err != nil {
			if closed(ctx, err) {
				return
			}
			continue
		}
		s.counts.queries.Add(1)
		from, ok := s.who(source, false)
		if !ok || source.Port() == 0 {
			s.counts.dropped.Add(1)
			continue
		}
		send := func(b []byte) { _, _ = c.WriteToUDPAddrPort(b, source) } // lost, as packets are
		answer, q, wait := s.serve(out, in[:n], from)
		if wait {
			s.later(ctx, q, from, send)
		} else if answer != nil {
			send(answer)
		}
	}
}

// accept takes TCP connections.
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
		if !ok || !s.conns.enter(from.client) {
			s.counts.dropped.Add(1)
			_ = c.Close()
			continue
		}
		s.tasks.Go(func() {
			defer s.conns.leave(from.client)
			s.stream(ctx, c, from)
		})
	}
}

// stream answers what comes over one connection. Questions that must wait do not hold up
// those behind them: answers come as they are there (RFC 7766 6.2.1.1).
func (s *Server) stream(ctx context.Context, c *net.TCPConn, from asker) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	var writing sync.Mutex
	var waiting sync.WaitGroup
	defer waiting.Wait() // the client may have closed its half after the last question
	send := func(b []byte) {
		writing.Lock()
		defer writing.Unlock()
		_ = c.SetWriteDeadline(time.Now().Add(idleTimeout))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...)); err != nil {
			_ = c.Close()
		}
	}
	var size [2]byte
	var in, out []byte
	for {
		_ = c.SetReadDeadline(time.Now().Add(idleTimeout)) // for the whole message
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
			waiting.Add(1)
			s.later(ctx, q, from, func(b []byte) { defer waiting.Done(); send(b) })
		case answer == nil:
			return // no question: there is nothing to talk about
		default:
			out = answer
			send(answer)
		}
	}
}

// String says where a socket is, for people.
func (so Socket) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%v: %s", so.Addr, so.Err), ": ")
}
