package dns

import (
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Replies of upstreams, and the resulting answers for A of www.example. At the end of want is the
// lifetime in the cache, in seconds.
func TestUpstreamRepliesKeepOnlyWhatAnswersTheQuestion(t *testing.T) {
	const soa = "example. 600 SOA ns.example. h.example. 1 2 3 4 60"
	for _, tt := range []struct {
		why     string
		rcode   int
		records []string
		do      bool
		want    string
	}{
		{"RFC 1034 4.3.1", dns.RcodeSuccess, []string{"www.example. 300 A 192.0.2.1", "www.example. 200 A 192.0.2.2"}, false, "NOERROR; www.example. 300 A 192.0.2.1; www.example. 200 A 192.0.2.2 |200"},
		{"kept for an hour at most", dns.RcodeSuccess, []string{"www.example. 86400 A 192.0.2.1"}, false, "NOERROR; www.example. 3600 A 192.0.2.1 |3600"},
		{"RFC 2181 8: no TTL", dns.RcodeSuccess, []string{"www.example. 4294967295 A 192.0.2.1"}, false, "NOERROR; www.example. 0 A 192.0.2.1 |0"},
		{"RFC 1034 3.6.2: aliases, in any order", dns.RcodeSuccess, []string{"b.example. 9 A 192.0.2.1", "a.example. 8 CNAME B.example.", "WWW.example. 7 CNAME a.example."}, false, "NOERROR; www.example. 7 CNAME a.example.; a.example. 8 CNAME B.example.; b.example. 9 A 192.0.2.1 |7"},
		{"RFC 6672: DNAME", dns.RcodeSuccess, []string{"example. 9 DNAME example.net.", "www.example. 9 CNAME www.example.net.", "www.example.net. 8 A 192.0.2.1"}, false, "NOERROR; example. 9 DNAME example.net.; www.example. 9 CNAME www.example.net.; www.example.net. 8 A 192.0.2.1 |8"},
		{"unasked records", dns.RcodeSuccess, []string{"www.example. 9 A 192.0.2.1", "bank.example. 9 A 192.0.2.66", "www.example. 9 MX 1 m.example.", "--", "example. 9 NS evil.example."}, false, "NOERROR; www.example. 9 A 192.0.2.1 |9"},
		{"records of another name only", dns.RcodeSuccess, []string{"bank.example. 9 A 192.0.2.66"}, false, "NOERROR |0"},
		{"an alias to a name of the mesh gives no address for it", dns.RcodeSuccess, []string{"www.example. 9 CNAME web.weft.internal.", "web.weft.internal. 9 A 192.0.2.66"}, false, "NOERROR; www.example. 9 CNAME web.weft.internal. |0"},
		{"a loop of aliases", dns.RcodeSuccess, []string{"www.example. 9 CNAME a.example.", "a.example. 9 CNAME www.example."}, false, "NOERROR" + strings.Repeat("; www.example. 9 CNAME a.example.; a.example. 9 CNAME www.example.", maxChain/2) + " |0"},
		{"RFC 2308 5: no name", dns.RcodeNameError, []string{"--", soa}, false, "NXDOMAIN NS; example. 60 SOA 60 |60"},
		{"RFC 2308 5: no data", dns.RcodeSuccess, []string{"--", soa}, false, "NOERROR NS; example. 60 SOA 60 |60"},
		{"RFC 2308 5: SOA's TTL, where that is less", dns.RcodeSuccess, []string{"--", "example. 30 SOA ns.example. h.example. 1 2 3 4 60"}, false, "NOERROR NS; example. 30 SOA 60 |30"},
		{"RFC 2308 5: five minutes at most", dns.RcodeNameError, []string{"--", "example. 9000 SOA ns.example. h.example. 1 2 3 4 8000"}, false, "NXDOMAIN NS; example. 300 SOA 8000 |300"},
		{"RFC 2308 5: no SOA, not kept", dns.RcodeNameError, nil, false, "NXDOMAIN |0"},
		{"RFC 2308 2.1: an alias to no name", dns.RcodeNameError, []string{"www.example. 20 CNAME a.example.", "--", soa}, false, "NXDOMAIN; www.example. 20 CNAME a.example. NS; example. 60 SOA 60 |20"},
		{"the SOA of another zone", dns.RcodeNameError, []string{"--", "bank.example. 600 SOA ns.example. h.example. 1 2 3 4 60"}, false, "NXDOMAIN |0"},
		{"RFC 4035 3.2.1: no signatures unasked", dns.RcodeSuccess, []string{"www.example. 9 A 192.0.2.1", "www.example. 9 RRSIG A 8 2 9 20300101000000 20200101000000 1 example. AAAA"}, false, "NOERROR; www.example. 9 A 192.0.2.1 |9"},
		{"RFC 4035 3.2.1: signatures with DO", dns.RcodeSuccess, []string{"www.example. 9 A 192.0.2.1", "www.example. 9 RRSIG A 8 2 9 20300101000000 20200101000000 1 example. AAAA"}, true, "NOERROR; www.example. 9 A 192.0.2.1; www.example. 9 RRSIG A 8 2 9 20300101000000 20200101000000 1 example. AAAA |9"},
		{"RFC 4035 3.1.3: proof of absence with DO", dns.RcodeNameError, []string{"--", soa, "a.example. 9 NSEC z.example. A RRSIG NSEC"}, true, "NXDOMAIN NS; example. 60 SOA 60; a.example. 9 NSEC z.example. A RRSIG NSEC |60"},
		{"RFC 1034 4.3.1: a referral is no answer", dns.RcodeSuccess, []string{"--", "example. 9 NS ns.example."}, false, "SERVFAIL |1"},
		{"SERVFAIL", dns.RcodeServerFailure, nil, false, "SERVFAIL |1"},
		{"REFUSED", dns.RcodeRefused, nil, false, "SERVFAIL |1"},
		{"YXDOMAIN", dns.RcodeYXDomain, nil, false, "SERVFAIL |1"},
	} {
		t.Run(tt.why, func(t *testing.T) {
			s := newServer(t, nil)
			use(s, fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
				o := q.IsEdns0()
				if !q.RecursionDesired || o == nil || o.UDPSize() != maxUDP || o.Do() != tt.do || q.Question[0].Name != "www.example." {
					t.Errorf("the upstream got %v; want RD, OPT with DO as in the query, and the name in lower case", q)
				}
				return replies(q, tt.rcode, tt.records...)
			}))
			m := query4("www.example.", dns.TypeA)
			m.SetEdns0(4096, tt.do)
			got := told(ask(t, s, m, false)) + " |0"
			if p := s.cache.get(key{"www.example.", dns.TypeA, tt.do, false}, time.Now()); p != nil {
				got = strings.TrimSuffix(got, "0") + strconv.Itoa(int(p.life.Seconds()))
			}
			if got != tt.want {
				t.Errorf("wrong answer:\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

var answerA = []string{"www.example. 60 A 192.0.2.1"}

// liar is an upstream that sends false answers, also from another socket.
func liar(t *testing.T, lie func(q *dns.Msg, send, other func([]byte))) *upstream {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	d, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			var q dns.Msg
			if q.Unpack(buf[:n]) == nil {
				lie(&q, func(b []byte) { _, _ = c.WriteToUDPAddrPort(b, from) }, func(b []byte) { _, _ = d.WriteToUDPAddrPort(b, from) })
			}
		}
	}()
	return &upstream{addr: c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// A false answer before the true one is ignored.
func TestForgedAnswersAreIgnored(t *testing.T) {
	for name, lie := range map[string]func(r *dns.Msg, send, other func([]byte)){
		"wrong id":    func(r *dns.Msg, send, _ func([]byte)) { r.Id++; send(packed1(r)) },
		"wrong name":  func(r *dns.Msg, send, _ func([]byte)) { r.Question[0].Name = "w.example."; send(packed1(r)) },
		"wrong type":  func(r *dns.Msg, send, _ func([]byte)) { r.Question[0].Qtype = dns.TypeMX; send(packed1(r)) },
		"wrong class": func(r *dns.Msg, send, _ func([]byte)) { r.Question[0].Qclass = dns.ClassCHAOS; send(packed1(r)) },
		"two questions": func(r *dns.Msg, send, _ func([]byte)) {
			r.Question = append(r.Question, r.Question[0])
			send(packed1(r))
		},
		"no question":       func(r *dns.Msg, send, _ func([]byte)) { r.Question = nil; send(packed1(r)) },
		"the question":      func(r *dns.Msg, send, _ func([]byte)) { r.Response = false; send(packed1(r)) },
		"another opcode":    func(r *dns.Msg, send, _ func([]byte)) { r.Opcode = dns.OpcodeNotify; send(packed1(r)) },
		"garbage":           func(r *dns.Msg, send, _ func([]byte)) { send([]byte("garbage")) },
		"half an answer":    func(r *dns.Msg, send, _ func([]byte)) { b := packed1(r); send(b[:len(b)-3]) },
		"nothing":           func(r *dns.Msg, send, _ func([]byte)) { send(nil) },
		"from another port": func(r *dns.Msg, _, other func([]byte)) { other(packed1(r)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, nil)
			use(s, liar(t, func(q *dns.Msg, send, other func([]byte)) {
				lie(replies(q, dns.RcodeSuccess, "www.example. 60 A 192.0.2.66"), send, other)
				time.Sleep(10 * time.Millisecond)
				send(packed1(replies(q, dns.RcodeSuccess, answerA...)))
			}))
			if got := told(ask(t, s, query4("www.example.", dns.TypeA), false)); got != "NOERROR; www.example. 60 A 192.0.2.1" {
				t.Errorf("the answer is %s, want the true one", got)
			}
		})
	}
}

func packed1(m *dns.Msg) []byte {
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// counted is an upstream that counts its queries.
func counted(t *testing.T, n *atomic.Int32, delay time.Duration, rcode int, records ...string) *upstream {
	return fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		n.Add(1)
		time.Sleep(delay)
		return replies(q, rcode, records...)
	})
}

func silent(t *testing.T, n *atomic.Int32) *upstream {
	return fakeUpstream(t, func(*dns.Msg, bool) *dns.Msg { n.Add(1); return nil })
}

func refusing(t *testing.T) *upstream {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return &upstream{addr: c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

func TestNextUpstreamIsAskedWhenOneFails(t *testing.T) {
	var slow, dead, broken, good atomic.Int32
	s := newServer(t, nil)
	use(s, refusing(t), silent(t, &dead), counted(t, &slow, time.Second, dns.RcodeSuccess, answerA...),
		counted(t, &broken, 0, dns.RcodeServerFailure), counted(t, &good, 0, dns.RcodeNameError))
	if r := ask(t, s, query4("a.example.", dns.TypeA), false); r.Rcode != dns.RcodeNameError {
		t.Fatalf("the answer is %v; want NXDOMAIN of the fifth upstream before the slow one answers", r)
	}
	var failed int
	for _, u := range s.Status().Upstreams {
		if u.Err != "" {
			failed++
		}
	}
	if failed != 3 {
		t.Errorf("%d upstreams count as failed, want 3: %+v", failed, s.Status().Upstreams)
	}
	// Upstreams that do not answer are not asked now. An error concerns only one name.
	if r := ask(t, s, query4("b.example.", dns.TypeA), false); r.Rcode != dns.RcodeNameError {
		t.Fatalf("the answer is %v; want NXDOMAIN of the fifth upstream", r)
	}
	if dead.Load() != 1 || slow.Load() != 1 || broken.Load() != 2 || good.Load() != 2 {
		t.Errorf("queries to dead %d, slow %d, broken %d, good %d; want 1, 1, 2, 2", dead.Load(), slow.Load(), broken.Load(), good.Load())
	}
}

// If no upstream answers, each is asked once more. The answer is SERVFAIL, which is cached for a
// while.
func TestQueriesGetSERVFAILIfNoUpstreamAnswers(t *testing.T) {
	var one, two atomic.Int32
	s := newServer(t, nil)
	use(s, silent(t, &one), silent(t, &two))
	for range 2 {
		if r := ask(t, s, query4("a.example.", dns.TypeA), false); r.Rcode != dns.RcodeServerFailure {
			t.Fatal(r)
		}
	}
	if one.Load() != 2 || two.Load() != 2 {
		t.Errorf("the upstreams were asked %d and %d times, want 2 each (RFC 9520)", one.Load(), two.Load())
	}
	c := s.Status().Counts
	if c.Failed != 1 || c.Forwarded != 1 || c.Hits != 1 {
		t.Errorf("the counts are %+v; want 1 forwarded, 1 failed, 1 from the cache", c)
	}
}

// If the packet to or from an upstream is lost, the query is sent once more.
func TestQueryIsRepeatedAfterPacketLoss(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, nil)
	use(s, fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		if n.Add(1) == 1 {
			return nil
		}
		return replies(q, dns.RcodeSuccess, answerA...)
	}))
	if r := ask(t, s, query4("www.example.", dns.TypeA), false); len(r.Answer) != 1 {
		t.Error(r)
	}
	if st := s.Status(); st.Upstreams[0].Err != "" {
		t.Errorf("the status still has an error of the upstream, want none: %+v", st)
	}
}

// A late answer of an upstream is accepted, whether others are asked meanwhile or not. The status
// does not call that upstream silent.
func TestLateAnswersAreAccepted(t *testing.T) {
	for name, others := range map[string]func(n *atomic.Int32) []*upstream{
		"alone":                  func(*atomic.Int32) []*upstream { return nil },
		"before one is silent":   func(n *atomic.Int32) []*upstream { return []*upstream{silent(t, n)} },
		"before one that errs":   func(n *atomic.Int32) []*upstream { return []*upstream{counted(t, n, 0, dns.RcodeServerFailure)} },
		"before one that is not": func(*atomic.Int32) []*upstream { return []*upstream{refusing(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			s := newServer(t, nil)
			var again atomic.Bool
			slow := fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
				if again.Swap(true) {
					return nil
				}
				for s.Status().Upstreams[0].Err == "" && t.Context().Err() == nil { // until it counts as silent
					time.Sleep(time.Millisecond)
				}
				return replies(q, dns.RcodeSuccess, answerA...)
			})
			use(s, append([]*upstream{slow}, others(&n)...)...)
			if r := ask(t, s, query4("www.example.", dns.TypeA), false); len(r.Answer) != 1 {
				t.Error(r)
			}
			if why := s.Status().Upstreams[0].Err; why != "takes more than 200ms to answer" {
				t.Errorf("the status has the error %q, want that the upstream is slow", why)
			}
		})
	}
}

// An upstream that answers with an error is not reported as silent if another upstream is silent.
func TestAnUpstreamThatAnswersWithAnErrorIsNotReportedAsSilent(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, nil)
	use(s, counted(t, &n, 5*s.cfg.Timeout/2, dns.RcodeSuccess, answerA...), counted(t, &n, 0, dns.RcodeServerFailure))
	if r := ask(t, s, query4("www.example.", dns.TypeA), false); len(r.Answer) != 1 {
		t.Error(r)
	}
	if why := s.Status().Upstreams[1].Err; why != "" {
		t.Errorf("the status has the error %q for an upstream that answered, want none", why)
	}
}

func TestAFailedUpstreamIsTriedAgainAfterAPause(t *testing.T) {
	u, now := &upstream{}, time.Unix(100, 0)
	if !u.usable(now) || !u.failed(now, net.ErrClosed) || u.failed(now, net.ErrClosed) || u.usable(now.Add(hold-1)) {
		t.Error("want a failed upstream usable only after the hold")
	}
	if !u.usable(now.Add(hold)) || u.usable(now.Add(hold)) {
		t.Error("want one query to test a failed upstream after the hold")
	}
	if !u.answered() || u.answered() || !u.usable(now) {
		t.Error("an upstream that answered again is not usable, want it usable")
	}
}

// RFC 7766 5: if an upstream's answer is truncated, the server fetches it over TCP, and the client
// does the same.
func TestTruncatedAnswerOfUpstreamIsFetchedOverTCP(t *testing.T) {
	s := newServer(t, nil)
	use(s, fakeUpstream(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		r := replies(q, dns.RcodeSuccess)
		if !tcp {
			r.Truncated = true
			return r
		}
		for i := range 200 {
			r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: "www.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 9}, A: net.IPv4(192, 0, 2, byte(i))})
		}
		return r
	}))
	if r := ask(t, s, query4("www.example.", dns.TypeA), false); !r.Truncated || len(r.Answer) > 0 {
		t.Error(r)
	}
	if r := ask(t, s, query4("www.example.", dns.TypeA), true); r.Truncated || len(r.Answer) != 200 {
		t.Error(r)
	}
}

// RFC 6891 7: an upstream that does not support EDNS is asked without it.
func TestUpstreamWithoutEDNSIsAskedWithoutIt(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		s := newServer(t, nil)
		use(s, fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
			if q.IsEdns0() != nil {
				return &dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Rcode: rcode}}
			}
			return replies(q, dns.RcodeSuccess, answerA...)
		}))
		if r := ask(t, s, query4("www.example.", dns.TypeA), false); len(r.Answer) != 1 {
			t.Error(r)
		}
	}
}

// Identical queries are forwarded once. Each client gets its own id and spelling.
func TestIdenticalQueriesAreForwardedOnce(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, func(c *Config) { c.Timeout = 5 * time.Second })
	use(s, counted(t, &n, time.Second, dns.RcodeSuccess, answerA...)) // the delay suffices for all clients to ask, even on a busy machine
	var wg sync.WaitGroup
	for _, name := range []string{"www.example.", "WWW.example.", "www.EXAMPLE.", "wWw.example."} {
		for range 20 {
			wg.Go(func() {
				if r := ask(t, s, query4(name, dns.TypeA), false); len(r.Answer) != 1 || r.Answer[0].Header().Name != name {
					t.Error(r)
				}
			})
		}
	}
	wg.Wait()
	c := s.Status().Counts
	if n.Load() != 1 || c.Joined+c.Hits != 79 {
		t.Errorf("the upstream got %d queries, want 1; the counts are %+v", n.Load(), c)
	}
}

// A query with RD=0 is only answered from this server's data.
func TestQueryWithoutRecursionIsNotForwarded(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, nil)
	use(s, counted(t, &n, 0, dns.RcodeSuccess, answerA...))
	m := query4("www.example.", dns.TypeA)
	m.RecursionDesired = false
	if r := ask(t, s, m, false); r.Rcode != dns.RcodeRefused || n.Load() != 0 {
		t.Error(r)
	}
	ask(t, s, query4("www.example.", dns.TypeA), false)
	if r := ask(t, s, m, false); len(r.Answer) != 1 {
		t.Error(r)
	}
	m = query4("web.weft.internal.", dns.TypeA)
	m.RecursionDesired = false
	if r := ask(t, s, m, false); len(r.Answer) != 2 {
		t.Error(r)
	}
}

// Queries with different DO or CD bits are cached separately (RFC 4035 3.2.2), but not those with
// different case.
func TestCacheKeyIncludesDOAndCD(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, nil)
	use(s, counted(t, &n, 0, dns.RcodeSuccess, answerA...))
	for range 2 {
		for _, name := range []string{"www.example.", "WWW.Example."} {
			for _, do := range []bool{false, true} {
				for _, cd := range []bool{false, true} {
					m := query4(name, dns.TypeA).SetEdns0(maxUDP, do)
					m.CheckingDisabled = cd
					if r := ask(t, s, m, false); len(r.Answer) != 1 || r.Answer[0].Header().Name != name {
						t.Error(r)
					}
				}
			}
		}
	}
	if n.Load() != 4 {
		t.Errorf("the upstream got %d queries, want 4", n.Load())
	}
}
