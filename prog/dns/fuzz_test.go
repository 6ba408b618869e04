package dns

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func seeds() (out [][]byte) {
	for _, m := range []*dns.Msg{
		query4("web.weft.internal.", dns.TypeA), query4("WEB.prod.weft.internal.", dns.TypeAAAA).SetEdns0(4096, true),
		query4("_http._tcp.web.weft.internal.", dns.TypeSRV), query4("10-32-0-5.web.weft.internal.", dns.TypeA),
		query4("fd00-77ef--1-6.web.weft.internal.", dns.TypeTXT), query4("5.0.32.10.in-addr.arpa.", dns.TypePTR),
		query4("32.10.in-addr.arpa.", dns.TypeNS), query4("www.example.", dns.TypeA), query4("a.localhost.", dns.TypeAAAA),
		query4(`_a\..b\\\000.weft.internal.`, dns.TypeSRV), query4(".", dns.TypeNS), query4("weft.internal.", dns.TypeAXFR),
		new(dns.Msg).SetNotify("weft.internal."), new(dns.Msg).SetUpdate("weft.internal."), new(dns.Msg).SetIxfr("weft.internal.", 1, "a.", "b."),
	} {
		out = append(out, packed1(m))
	}
	name, _ := dns.ReverseAddr("fd00:77ef::5")
	return append(out, packed1(query4(name, dns.TypePTR)), nil, make([]byte, headerSize))
}

// No packet causes a panic. An answer has the id and question of the query, and fits the client's
// size.
func FuzzHandler(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b, false)
		f.Add(b, true)
	}
	names := testNames()
	names.entries = append(names.entries, many(100).entries...)
	s := newServer(f, func(c *Config) { c.Names = names })
	cached := replies(query4("www.example.", dns.TypeA), dns.RcodeSuccess, "www.example. 60 CNAME example.", "example. 60 A 192.0.2.1")
	f.Fuzz(func(t *testing.T, in []byte, tcp bool) {
		p, err := pack(cached, "www.example.", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		p.stored, p.life = time.Now(), time.Hour
		s.cache.put(key{name: "www.example.", qtype: dns.TypeA}, p)
		before := bytes.Clone(in)
		out, q, wait := s.serve(nil, in, asker{Client{Name: "client"}, netip.IPv6Loopback(), tcp})
		if !bytes.Equal(in, before) {
			t.Fatal("the server changed the received packet, want it unchanged")
		}
		if wait { // as if no upstream had answered
			out = q.render(nil, failure(q.name, q.qtype, time.Now()), time.Now())
		}
		if out == nil {
			if len(in) >= headerSize && in[2]&0x80 == 0 {
				t.Fatal("a query got no answer, want one")
			}
			return
		}
		limit := maxUDP
		switch {
		case tcp:
			limit = maxTCP
		case !q.edns:
			limit = minUDP
		}
		var r dns.Msg
		if err := r.Unpack(out); err != nil || len(out) > limit {
			t.Fatalf("the answer has %d bytes, want at most %d: %v\n%x", len(out), limit, err, out)
		}
		if !r.Response || r.Id != binary.BigEndian.Uint16(in) || !bytes.HasPrefix(out[headerSize:], q.section) {
			t.Fatalf("the answer is %v, want the id and the question of the query", &r)
		}
	})
}

// Whatever an upstream replies, the resulting answer matches the question.
func FuzzBelieve(f *testing.F) {
	q := query4("www.example.", dns.TypeA)
	for _, r := range []*dns.Msg{
		replies(q, dns.RcodeSuccess, "www.example. 60 CNAME A.example.", "a.example. 60 A 192.0.2.1"),
		replies(q, dns.RcodeSuccess, "example. 60 DNAME example.net.", "www.example. 60 CNAME www.example.net.", "www.example.net. 60 A 192.0.2.1"),
		replies(q, dns.RcodeNameError, "--", "example. 60 SOA a. b. 1 2 3 4 5", "a.example. 9 NSEC z.example. A RRSIG NSEC"),
		replies(q, dns.RcodeSuccess, "--", "example. 60 NS a."),
		replies(q, dns.RcodeSuccess, "www.example. 9 RRSIG A 8 2 9 20300101000000 20200101000000 1 example. AAAA"),
		replies(q, dns.RcodeSuccess, `www.example. 9 TYPE65280 \# 0`, "www.example. 9 CNAME web.weft.internal."),
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeCNAME, dns.TypeRRSIG, 65280} {
			f.Add(packed1(r), qtype, true)
		}
	}
	s := newServer(f, nil)
	f.Fuzz(func(t *testing.T, in []byte, qtype uint16, do bool) {
		var r dns.Msg
		if r.Unpack(in) != nil {
			return
		}
		k := key{name: "www.example.", qtype: qtype, do: do}
		p, err := believe(&r, k, s.authority.owns)
		if err != nil {
			return
		}
		if p.life < 0 || p.life > maxLife {
			t.Fatalf("the lifetime in the cache is %v, want 0 to maxLife", p.life)
		}
		p.stored = time.Unix(0, 0)
		ask, _, ok := parse(packed1(query4("wWw.Example.", qtype).SetEdns0(maxUDP, do)))
		if !ok || len(ask.section) == 0 {
			return
		}
		ask.size = maxTCP
		out := ask.render(nil, p, time.Unix(7, 0))
		var m dns.Msg
		if err := m.Unpack(out); err != nil || m.Question[0].Name != "wWw.Example." {
			t.Fatalf("the rendered answer: error %v, or another name; want wWw.Example.\n%x", err, out)
		}
		if m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 && m.Answer[0].Header().Name != "wWw.Example." && m.Answer[0].Header().Rrtype != dns.TypeDNAME {
			t.Fatalf("the first record of %v has another name, want the question's", &m)
		}
	})
}
