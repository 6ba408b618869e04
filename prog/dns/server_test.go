package dns

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"weft/mesh/meshtest/eventually"
)

var loopback = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}

// freePort returns a free port of the loopback addresses. It is below the ports that Linux chooses
// (32768 to 60999), so that no connection of another process takes it before the test does.
func freePort(t testing.TB) uint16 {
	t.Helper()
	var err error
	for range 100 {
		port := uint16(10000 + rand.IntN(20000))
		if err = bindable(t.Context(), port); err == nil {
			return port
		}
	}
	t.Fatal(err)
	return 0
}

// bindable returns an error if a loopback address cannot be served on port.
func bindable(ctx context.Context, port uint16) error {
	for _, a := range loopback {
		so, err := listen(ctx, netip.AddrPortFrom(a, port))
		if err != nil {
			return err
		}
		so.close()
	}
	return nil
}

// run runs a server on the loopback addresses until the test ends.
func run(t testing.TB, s *Server) {
	t.Helper()
	s.SetAddrs(loopback)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run returned %v, want no error", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Run did not end within 5 s after its context, want it to end")
		}
	})
	eventually.True(t, wait, "both sockets are open", func() bool { return len(s.Status().Sockets) == 2 })
	for _, so := range s.Status().Sockets {
		if so.Err != "" {
			t.Fatal(so)
		}
	}
}

// wait is how long a test waits for what the server does at once.
const wait = 5 * time.Second

func runServer(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	s := newServer(t, func(c *Config) {
		c.Port = freePort(t)
		if change != nil {
			change(c)
		}
	})
	run(t, s)
	return s
}

func at(s *Server, a netip.Addr) string { return netip.AddrPortFrom(a, s.port).String() }

func TestQueriesAreAnsweredOverUDPAndTCP(t *testing.T) {
	s := runServer(t, nil)
	use(s, fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		return replies(q, dns.RcodeSuccess, q.Question[0].Name+" 60 A 192.0.2.1")
	}))
	for _, network := range []string{"udp", "tcp"} {
		for _, a := range loopback {
			c := dns.Client{Net: network}
			for name, want := range map[string]int{"wEb.weft.internal.": 2, "www." + network + ".example.": 1} {
				r, _, err := c.Exchange(query4(name, dns.TypeA), at(s, a))
				if err != nil || len(r.Answer) != want {
					t.Errorf("over %s, the server at %v answered %s with %v, error %v; want all records", network, a, name, r, err)
				}
			}
		}
	}
}

// A source that is no client gets no answer, over UDP or TCP.
func TestSourcesThatAreNoClientsGetNoAnswer(t *testing.T) {
	var asked atomic.Int32
	s := runServer(t, func(c *Config) {
		c.Client = func(remote netip.AddrPort, zone string) (Client, bool) {
			asked.Add(1)
			if remote.Port() == 0 || !remote.Addr().IsLoopback() || remote.Addr().Is4In6() || zone != "" {
				t.Errorf("Client was called with %v and zone %q, want a loopback address without zone", remote, zone)
			}
			return Client{}, false
		}
	})
	for _, a := range loopback {
		c := dns.Client{Net: "udp", Timeout: 100 * time.Millisecond}
		if r, _, err := c.Exchange(query4("web.weft.internal.", dns.TypeA), at(s, a)); err == nil {
			t.Errorf("a source that is no client got an answer over UDP, want none: %v", r)
		}
		conn, err := net.Dial("tcp", at(s, a))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
			t.Errorf("TCP: %d bytes, %v; want the end at once", n, err)
		}
	}
	if asked.Load() != 4 || s.Status().Counts.Dropped != 4 || s.Status().Counts.Local != 0 {
		t.Errorf("the counts are %+v; want 4 dropped and none answered", s.Status().Counts)
	}
}

func dialTCP(t *testing.T, s *Server) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", at(s, loopback[0]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return c.(*net.TCPConn)
}

func writeTCP(t *testing.T, c io.Writer, messages ...[]byte) {
	t.Helper()
	var b []byte
	for _, m := range messages {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m))), m...)
	}
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// RFC 7766 6.2.1.1: several queries on one connection are answered as the answers come, also after
// the client has closed its sending side.
func TestPipelinedQueriesAreAnsweredOutOfOrder(t *testing.T) {
	s := runServer(t, nil)
	use(s, fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		time.Sleep(50 * time.Millisecond)
		return replies(q, dns.RcodeNameError)
	}))
	c := dialTCP(t, s)
	slow, fast := query4("www.example.", dns.TypeA), query4("web.weft.internal.", dns.TypeA)
	slow.Id, fast.Id = 1, 2
	writeTCP(t, c, packed1(slow), packed1(fast))
	_ = c.CloseWrite()
	conn := &dns.Conn{Conn: c}
	for _, want := range []uint16{2, 1} {
		if r, err := conn.ReadMsg(); err != nil || r.Id != want {
			t.Fatalf("got the message %v, error %v; want the answer with id %d", r, err, want)
		}
	}
	if _, err := conn.ReadMsg(); err == nil {
		t.Error("the connection stays open after the last answer, want it closed")
	}
}

// RFC 7766 6.2.2: one client cannot take all connections.
func TestTCPConnectionsOfOneClientAreLimited(t *testing.T) {
	s := runServer(t, nil)
	for i := range connsOf + 1 {
		c := dialTCP(t, s)
		writeTCP(t, c, packed1(query4("web.weft.internal.", dns.TypeA)))
		_, err := (&dns.Conn{Conn: c}).ReadMsg()
		if ok := i < connsOf; ok != (err == nil) {
			t.Fatalf("connection %d: error %v; want one only beyond the limit", i, err)
		}
	}
}

func TestConnectionsWithInvalidMessagesAreClosed(t *testing.T) {
	s := runServer(t, nil)
	for name, b := range map[string][]byte{
		"an empty message": {0, 0}, "a short one": {0, 3, 1, 2, 3}, "an answer": append([]byte{0, 12, 1, 2, 0x80}, make([]byte, 9)...),
	} {
		c := dialTCP(t, s)
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
			t.Errorf("%s: read %d bytes, error %v; want the end of the connection", name, n, err)
		}
	}
}

func TestTheServerListensOnChangedAddresses(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Port = freePort(t) })
	taken, err := net.Listen("tcp4", at(s, loopback[0]))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = s.Run(ctx) })
	s.SetAddrs([]netip.Addr{netip.MustParseAddr("192.0.2.250"), loopback[0], loopback[1], loopback[1]})
	errs := func() (out []bool) {
		for _, so := range s.Status().Sockets {
			out = append(out, so.Err != "")
		}
		return out
	}
	// Sorted: 127.0.0.1 is in use, 192.0.2.250 is not on this host, ::1 works.
	eventually.True(t, wait, "one of three addresses can be served", func() bool { return slices.Equal(errs(), []bool{true, true, false}) })
	ask := func(a netip.Addr) bool {
		c := dns.Client{Timeout: 200 * time.Millisecond}
		r, _, err := c.Exchange(query4("web.weft.internal.", dns.TypeA), at(s, a))
		return err == nil && len(r.Answer) == 2
	}
	if why := s.Status().Sockets[0].Err; !strings.Contains(why, "another name server") {
		t.Errorf("the error for an address in use is %q, want it to name another name server", why)
	}
	eventually.True(t, wait, "the free address is served", func() bool { return ask(loopback[1]) })
	if ask(loopback[0]) {
		t.Error("a foreign socket answers, want no answer")
	}
	taken.Close()
	eventually.True(t, wait, "the address that was taken is served", func() bool { return slices.Equal(errs(), []bool{false, true, false}) && ask(loopback[0]) })
	s.SetAddrs(loopback[:1])
	eventually.True(t, wait, "only the first address is served", func() bool { return slices.Equal(errs(), []bool{false}) && !ask(loopback[1]) && ask(loopback[0]) })
}

func TestChangesOfResolvConfAreApplied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	s := newServer(t, func(c *Config) { c.Port, c.ResolvConf = freePort(t), path })
	u := fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg { return replies(q, dns.RcodeNameError) })
	s.hostPort = u.addr.Port()
	run(t, s)
	if r := ask(t, s, query4("a.example.", dns.TypeA), false); r.Rcode != dns.RcodeServerFailure || !strings.Contains(s.Status().ResolvConf, path) {
		t.Errorf("without resolv.conf the answer is %v, status %+v; want SERVFAIL, and the path in the status", r, s.Status())
	}
	if err := os.WriteFile(path, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, wait, "resolv.conf is read", func() bool { return s.Status().ResolvConf == "" })
	if st := s.Status(); st.Cached != 0 {
		t.Errorf("answers of former servers are still cached, want none: %+v", st)
	}
	if r := ask(t, s, query4("b.example.", dns.TypeA), false); r.Rcode != dns.RcodeNameError || s.Status().Upstreams[0].Addr != u.addr {
		t.Errorf("after the change of resolv.conf the answer is %v, status %+v; want that of the new server", r, s.Status())
	}
}

// The status tells which file names no server, and why an upstream does not answer.
func TestStatusExplainsFailedUpstreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("# nothing\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	silent := fakeUpstream(t, func(*dns.Msg, bool) *dns.Msg { return nil })
	nobody := netip.AddrPortFrom(loopback[0], freePort(t))
	s := newServer(t, func(c *Config) {
		c.Port, c.ResolvConf, c.Timeout = freePort(t), path, 50*time.Millisecond
		c.Forward = map[string][]netip.AddrPort{"silent": {silent.addr}, "closed": {nobody}}
	})
	run(t, s)
	ask(t, s, query4("a.silent.", dns.TypeA), false)
	ask(t, s, query4("a.closed.", dns.TypeA), false)
	st := s.Status()
	if st.ResolvConf != path+" has no nameserver line" {
		t.Errorf("the status of resolv.conf is %q, want that it has no nameserver line", st.ResolvConf)
	}
	for i, want := range []string{"connection refused", "does not answer"} {
		if st.Upstreams[i].Err != want {
			t.Errorf("the upstream's status is %+v, want the error %q", st.Upstreams[i], want)
		}
	}
}

// Run ends at once, also while queries wait for upstreams.
func TestTheNameServerStopsAtOnceWhileQueriesWait(t *testing.T) {
	s := runServer(t, func(c *Config) { c.Timeout = time.Minute })
	var n atomic.Int32
	use(s, silent(t, &n))
	c := dns.Client{Timeout: 50 * time.Millisecond}
	_, _, _ = c.Exchange(query4("a.example.", dns.TypeA), at(s, loopback[0]))
	dialTCP(t, s)
	eventually.True(t, wait, "the upstream is asked", func() bool { return n.Load() == 1 })
}
