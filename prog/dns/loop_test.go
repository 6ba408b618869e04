package dns

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A resolv.conf that names this server causes no loop.
func TestServerInItsOwnResolvConfCausesNoLoop(t *testing.T) {
	own := netip.MustParseAddr("169.254.1.1")
	s := newServer(t, func(c *Config) { c.Own, c.Timeout = func(a netip.Addr) bool { return a == own }, time.Minute })
	s.budget = time.Minute // longer than the test waits: nobody is asked
	use(s, &upstream{addr: netip.AddrPortFrom(own, port)}, &upstream{addr: netip.AddrPortFrom(nodeAddrs[0], port)})
	if r := ask(t, s, query4("a.example.", dns.TypeA), false); r.Rcode != dns.RcodeServerFailure {
		t.Error(r)
	}
	for _, u := range s.Status().Upstreams {
		if !u.Own || u.Err != "" {
			t.Errorf("the upstream %v is this server, want it detected and not asked: %+v", u.Addr, u)
		}
	}
	if s.loop(netip.AddrPortFrom(own, 5353)) {
		t.Error("another server on this host was taken for this one, want it used")
	}
}

// Two servers forward to each other: the returning query is refused.
func TestForwardingLoopBetweenTwoServersEnds(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, func(c *Config) { c.Timeout = time.Minute })
	s.budget = time.Minute // longer than the test waits: the returning query must not wait for itself
	u := fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		n.Add(1)
		m := q.Copy()
		m.Question[0].Name = "A.Example."
		in, _ := m.Pack()
		out := raw(t, s, in, asker{Client{Name: "b"}, netip.MustParseAddr("127.0.0.1"), false})
		var r dns.Msg
		if err := r.Unpack(out); err != nil {
			t.Error(err)
		}
		return replies(q, r.Rcode)
	})
	use(s, u)
	if r := ask(t, s, query4("a.example.", dns.TypeA), false); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("the answer is %v; want SERVFAIL", r)
	}
	if n.Load() != 1 {
		t.Errorf("the other server got %d queries, want 1", n.Load())
	}
}

// Like TestForwardingLoopBetweenTwoServersEnds, but from an unknown address: the query ends with the upstream's
// timeout, and does not multiply.
func TestForwardingLoopThroughUnknownAddressEnds(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, nil)
	use(s, fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		n.Add(1)
		raw(t, s, packed1(q), asker{Client{Name: "b"}, netip.MustParseAddr("192.0.2.1"), false})
		return nil
	}))
	if r := ask(t, s, query4("a.example.", dns.TypeA), false); r.Rcode != dns.RcodeServerFailure {
		t.Error(r)
	}
	if c := s.Status().Counts; n.Load() != 2 || c.Forwarded != 1 || c.Joined != 2 {
		t.Errorf("the other server got %d queries, want 2; counts %+v, want 1 forwarded, 2 joined", n.Load(), c)
	}
}
