package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
)

var (
	here, there = peer.ID{1}, peer.ID{2}
	universe    = slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd00:77ef::/96")}
	nodeAddrs   = []netip.Addr{netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00:77ef::1")}
)

// fakeNames is a directory for tests. Entries on the peers in away are unreachable.
type fakeNames struct {
	universe slot.Universe
	entries  []directory.Entry
	away     map[peer.ID]bool
}

func (f *fakeNames) Universe() slot.Universe { return f.universe }

func (f *fakeNames) Lookup(name string) (out []directory.Entry, exists bool) {
	for _, e := range f.entries {
		for _, n := range e.Names() {
			switch {
			case n == name && !f.away[e.Owner]:
				out, exists = append(out, e), true
			case n == name || strings.HasSuffix(n, "."+name):
				exists = true
			}
		}
	}
	return out, exists
}

func (f *fakeNames) At(s slot.Slot) (directory.Entry, bool) {
	for _, e := range f.entries {
		if slices.Contains(e.Slots, s) && !f.away[e.Owner] {
			return e, true
		}
	}
	return directory.Entry{}, false
}

func (f *fakeNames) PeerName(id peer.ID) string { return id.String() + "(host)" }

// testNames has: web on both peers, with ports, in namespace prod; db away; a printer outside the
// mesh; an endpoint without a name, and one without IPv6.
func testNames() *fakeNames {
	http, metrics := directory.Port{Name: "http", Protocol: "tcp", Number: 8080}, directory.Port{Name: "m", Protocol: "udp", Number: 9}
	entry := func(owner peer.ID, e directory.Endpoint) directory.Entry {
		return directory.Entry{Endpoint: e, Owner: owner}
	}
	return &fakeNames{
		universe: universe,
		away:     map[peer.ID]bool{{9}: true},
		entries: []directory.Entry{
			entry(here, directory.Endpoint{ID: "a/eth0", Slots: []slot.Slot{5}, Name: "web", Namespace: "prod", Ports: []directory.Port{http, metrics}}),
			entry(there, directory.Endpoint{ID: `b\/eth0`, Slots: []slot.Slot{0x10006}, Name: "web", Namespace: "prod", Aliases: []string{"www"}, Ports: []directory.Port{http}}),
			entry(here, directory.Endpoint{ID: "c/eth0", Slots: []slot.Slot{7}}),
			entry(here, directory.Endpoint{ID: "d/eth0", Slots: []slot.Slot{8, 9}, Name: "old", IPv4Only: true}),
			entry(there, directory.Endpoint{ID: "printer", Name: "printer", Outside: []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")}}),
			entry(peer.ID{9}, directory.Endpoint{ID: "e/eth0", Slots: []slot.Slot{10}, Name: "db", Ports: []directory.Port{http}}),
		},
	}
}

// newServer returns a server that does not run, and accepts all clients.
func newServer(t testing.TB, change func(*Config)) *Server {
	t.Helper()
	cfg := Config{
		TTL: time.Second, Self: here, Names: testNames(),
		Client:     func(netip.AddrPort, string) (Client, bool) { return Client{Name: "client"}, true },
		ResolvConf: "/nonexistent/resolv.conf",
		Timeout:    200 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.budget = min(budget, 5*s.cfg.Timeout)
	s.SetAddrs(nodeAddrs)
	return s
}

// raw sends a packet to s without sockets, and returns the answer.
func raw(t testing.TB, s *Server, msg []byte, from asker) []byte {
	t.Helper()
	out, q, wait := s.serve(nil, msg, from)
	if !wait {
		return out
	}
	ch := make(chan []byte, 1)
	s.later(t.Context(), q, from, func(b []byte) { ch <- b })
	select {
	case b := <-ch:
		return b
	case <-time.After(10 * time.Second):
		t.Fatal("no answer within 10 s, want one")
		return nil
	}
}

// ask sends a message to s, and returns the parsed answer after the checks that apply to all answers.
func ask(t testing.TB, s *Server, m *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	in, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out := raw(t, s, in, asker{Client{Name: "client"}, netip.MustParseAddr("10.32.0.77"), tcp})
	if out == nil {
		return nil
	}
	limit := dns.MinMsgSize
	if o := m.IsEdns0(); o != nil {
		limit = min(max(int(o.UDPSize()), limit), maxUDP)
	}
	if tcp {
		limit = maxTCP
	}
	if err := dns.IsMsg(out); err != nil || len(out) > limit {
		t.Fatalf("the answer has %d bytes, want at most %d: %v", len(out), limit, err)
	}
	var r dns.Msg
	if err := r.Unpack(out); err != nil {
		t.Fatalf("the answer %x cannot be parsed, want a valid message: %v", out, err)
	}
	switch {
	case r.Id != m.Id, !r.Response, r.Opcode != m.Opcode, r.RecursionDesired != m.RecursionDesired, !r.RecursionAvailable, r.AuthenticatedData, r.CheckingDisabled != m.CheckingDisabled:
		t.Fatalf("header of the answer %v\nwant one that fits the query %v", &r, m)
	case (r.IsEdns0() != nil) != (m.IsEdns0() != nil):
		t.Fatalf("want OPT only in the answer to a query with OPT (RFC 6891 6.1.1): %v", &r)
	case r.IsEdns0() != nil && (r.IsEdns0().Do() != m.IsEdns0().Do() || r.IsEdns0().UDPSize() != maxUDP || len(r.IsEdns0().Option) > 0):
		t.Fatalf("OPT of the answer in %v, want the query's DO, this server's size, no options", &r)
	case len(r.Question) == 1 && r.Question[0] != m.Question[0]:
		t.Fatalf("want the question %v in the answer, got %v", m.Question[0], r.Question[0])
	}
	return &r
}

func query4(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

// told returns an answer as text: its code, then the records of each section, sorted where the order
// is random.
func told(r *dns.Msg) string {
	if r == nil {
		return "silence"
	}
	var b strings.Builder
	b.WriteString(dns.RcodeToString[r.Rcode])
	if r.Authoritative {
		b.WriteString(" aa")
	}
	if r.Truncated {
		b.WriteString(" tc")
	}
	for i, section := range [][]dns.RR{r.Answer, r.Ns, r.Extra} {
		var lines []string
		for _, rr := range section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			line := strings.Join(strings.Fields(strings.ReplaceAll(rr.String(), "\tIN\t", " ")), " ")
			if soa, ok := rr.(*dns.SOA); ok {
				line = fmt.Sprintf("%s %d SOA %d", soa.Hdr.Name, soa.Hdr.Ttl, soa.Minttl)
			}
			lines = append(lines, "; "+line)
		}
		if r.Authoritative {
			slices.Sort(lines)
		}
		if len(lines) > 0 {
			b.WriteString([]string{"", " NS", " EXTRA"}[i] + strings.Join(lines, ""))
		}
	}
	return b.String()
}

// fakeUpstream answers on an address of this host over UDP and TCP. It does not answer if handle
// returns nil.
func fakeUpstream(t testing.TB, handle func(q *dns.Msg, tcp bool) *dns.Msg) *upstream {
	t.Helper()
	addr := netip.AddrPortFrom(loopback[0], freePort(t))
	so, err := listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if r := handle(q, w.LocalAddr().Network() == "tcp"); r != nil {
			_ = w.WriteMsg(r)
		}
	})
	for _, srv := range []*dns.Server{{PacketConn: so.udp, Handler: h}, {Listener: so.tcp, Handler: h}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { _ = srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = srv.ShutdownContext(ctx)
		})
	}
	return &upstream{addr: addr}
}

// replies returns an upstream's reply to q with records in zone file format. Those after "--" go into
// the authority section.
func replies(q *dns.Msg, rcode int, records ...string) *dns.Msg {
	r := new(dns.Msg).SetRcode(q, rcode)
	r.RecursionAvailable = true
	to := &r.Answer
	for _, s := range records {
		if s == "--" {
			to = &r.Ns
			continue
		}
		rr, err := dns.NewRR(s)
		if err != nil {
			panic(err)
		}
		*to = append(*to, rr)
	}
	return r
}

func use(s *Server, host ...*upstream) { s.upstreams.Store(&upstreams{host: host}) }
