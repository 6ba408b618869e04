package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"weft/ipam/slot"
	"weft/mesh/directory"
)

const (
	domainSOA = " NS; weft.internal. 1 SOA 1"
	srv4      = "10-32-0-5.web.weft.internal."
	srv6      = "10-33-0-6.web.weft.internal."
)

func TestMeshNamesAreAnsweredAsTheRFCsRequire(t *testing.T) {
	s := newServer(t, nil)
	arpa6 := func(s slot.Slot) string {
		name, _ := dns.ReverseAddr(universe.Addr6(s).String())
		return name
	}
	for _, tt := range []struct {
		why, name string
		qtype     uint16
		want      string
	}{
		{"RFC 1035 3.4.1: A", "web.weft.internal.", dns.TypeA, "NOERROR aa; web.weft.internal. 1 A 10.32.0.5; web.weft.internal. 1 A 10.33.0.6"},
		{"RFC 3596 2.1: AAAA", "web.prod.weft.internal.", dns.TypeAAAA, "NOERROR aa; web.prod.weft.internal. 1 AAAA fd00:77ef::1:6; web.prod.weft.internal. 1 AAAA fd00:77ef::5"},
		{"an alias", "www.weft.internal.", dns.TypeA, "NOERROR aa; www.weft.internal. 1 A 10.33.0.6"},
		{"addresses outside of the universe", "printer.weft.internal.", dns.TypeA, "NOERROR aa; printer.weft.internal. 1 A 192.0.2.9"},
		{"addresses outside of the universe", "printer.weft.internal.", dns.TypeAAAA, "NOERROR aa; printer.weft.internal. 1 AAAA 2001:db8::9"},
		{"RFC 2308 2.2: no data, SOA with the negative TTL", "web.weft.internal.", dns.TypeMX, "NOERROR aa" + domainSOA},
		{"RFC 2308 2.2: no IPv6", "old.weft.internal.", dns.TypeAAAA, "NOERROR aa" + domainSOA},
		{"RFC 2308 2.1: no such name", "nope.weft.internal.", dns.TypeA, "NXDOMAIN aa" + domainSOA},
		{"RFC 8020: what has a name below it exists", "prod.weft.internal.", dns.TypeA, "NOERROR aa" + domainSOA},
		{"RFC 8020: nothing below a name that has none", "x.web.weft.internal.", dns.TypeA, "NXDOMAIN aa" + domainSOA},
		{"unreachable: exists without data", "db.weft.internal.", dns.TypeA, "NOERROR aa" + domainSOA},
		{"RFC 1035 3.3.14: TXT", "web.weft.internal.", dns.TypeTXT, `NOERROR aa; web.weft.internal. 1 TXT "peer=0100000000000000(host)" "id=a/eth0"; web.weft.internal. 1 TXT "peer=0200000000000000(host)" "id=b\\/eth0"`},
		{"one address of a name, of both families", "10-32-0-5.web.weft.internal.", dns.TypeA, "NOERROR aa; 10-32-0-5.web.weft.internal. 1 A 10.32.0.5"},
		{"one address of a name, of both families", "10-32-0-5.web.weft.internal.", dns.TypeAAAA, "NOERROR aa; 10-32-0-5.web.weft.internal. 1 AAAA fd00:77ef::5"},
		{"one address, written as IPv6", "fd00-77ef--1-6.web.prod.weft.internal.", dns.TypeAAAA, "NOERROR aa; fd00-77ef--1-6.web.prod.weft.internal. 1 AAAA fd00:77ef::1:6"},
		{"one address outside", "2001-db8--9.printer.weft.internal.", dns.TypeA, "NOERROR aa" + domainSOA},
		{"the second slot", "10-32-0-9.old.weft.internal.", dns.TypeA, "NOERROR aa; 10-32-0-9.old.weft.internal. 1 A 10.32.0.9"},
		{"no IPv6, also in dashes", "fd00-77ef--9.old.weft.internal.", dns.TypeAAAA, "NXDOMAIN aa" + domainSOA},
		{"another's address", "10-32-0-8.web.weft.internal.", dns.TypeA, "NXDOMAIN aa" + domainSOA},
		{"RFC 2782: SRV", "_http._tcp.web.weft.internal.", dns.TypeSRV, "NOERROR aa; _http._tcp.web.weft.internal. 1 SRV 0 100 8080 " + srv4 + "; _http._tcp.web.weft.internal. 1 SRV 0 100 8080 " + srv6 +
			" EXTRA; " + srv4 + " 1 A 10.32.0.5; " + srv4 + " 1 AAAA fd00:77ef::5; " + srv6 + " 1 A 10.33.0.6; " + srv6 + " 1 AAAA fd00:77ef::1:6"},
		{"RFC 2782: a name for a service has nothing else", "_http._tcp.web.weft.internal.", dns.TypeA, "NOERROR aa" + domainSOA},
		{"RFC 2782: another protocol", "_http._udp.web.weft.internal.", dns.TypeSRV, "NXDOMAIN aa" + domainSOA},
		{"RFC 8020: parent of a service", "_tcp.web.weft.internal.", dns.TypeSRV, "NOERROR aa" + domainSOA},
		{"RFC 8020: parent of no service", "_sctp.web.weft.internal.", dns.TypeSRV, "NXDOMAIN aa" + domainSOA},
		{"a service of an unreachable endpoint", "_http._tcp.db.weft.internal.", dns.TypeSRV, "NOERROR aa" + domainSOA},
		{"RFC 1035 3.3.13: SOA", "weft.internal.", dns.TypeSOA, "NOERROR aa; weft.internal. 1 SOA 1"},
		{"RFC 1034 4.2.1: NS, with addresses", "weft.internal.", dns.TypeNS, "NOERROR aa; weft.internal. 1 NS ns.dns.weft.internal. EXTRA; ns.dns.weft.internal. 1 A 10.32.0.1; ns.dns.weft.internal. 1 AAAA fd00:77ef::1"},
		{"RFC 1034 4.2.1: the name of NS has addresses", "ns.dns.weft.internal.", dns.TypeA, "NOERROR aa; ns.dns.weft.internal. 1 A 10.32.0.1"},
		{"above it", "dns.weft.internal.", dns.TypeA, "NOERROR aa" + domainSOA},
		{"the domain itself", "weft.internal.", dns.TypeA, "NOERROR aa" + domainSOA},
		{"RFC 1035 3.5: PTR, namespace first", "6.0.33.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa; 6.0.33.10.in-addr.arpa. 1 PTR web.prod.weft.internal.; 6.0.33.10.in-addr.arpa. 1 PTR web.weft.internal.; 6.0.33.10.in-addr.arpa. 1 PTR www.weft.internal."},
		{"RFC 3596 2.5: PTR", arpa6(5), dns.TypePTR, "NOERROR aa; " + arpa6(5) + " 1 PTR web.prod.weft.internal.; " + arpa6(5) + " 1 PTR web.weft.internal."},
		{"an endpoint without a name", "7.0.32.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa NS; 32.10.in-addr.arpa. 1 SOA 1"},
		{"an address without an endpoint", "77.0.47.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN aa NS; 47.10.in-addr.arpa. 1 SOA 1"},
		{"an unreachable address", "10.0.32.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN aa NS; 32.10.in-addr.arpa. 1 SOA 1"},
		{"no IPv6, no IPv6 name", arpa6(8), dns.TypePTR, "NXDOMAIN aa NS; " + arpa6(0)[16:] + " 1 SOA 1"},
		{"the other type", "5.0.32.10.in-addr.arpa.", dns.TypeA, "NOERROR aa NS; 32.10.in-addr.arpa. 1 SOA 1"},
		{"RFC 8020: addresses may have names", "200.40.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa NS; 40.10.in-addr.arpa. 1 SOA 1"},
		{"RFC 8020: nothing below an address", "1.5.0.32.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN aa NS; 32.10.in-addr.arpa. 1 SOA 1"},
		{"RFC 1035 3.5: no octet", "256.32.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN aa NS; 32.10.in-addr.arpa. 1 SOA 1"},
		{"RFC 1035 3.5: an octet with a leading zero", "05.0.32.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN aa NS; 32.10.in-addr.arpa. 1 SOA 1"},
		{"RFC 8020: below no address of a slot", "f" + arpa6(0)[15:], dns.TypePTR, "NXDOMAIN aa NS; " + arpa6(0)[16:] + " 1 SOA 1"},
		{"RFC 8020: below addresses of slots", arpa6(0)[6:], dns.TypePTR, "NOERROR aa NS; " + arpa6(0)[16:] + " 1 SOA 1"},
		{"a reverse zone has SOA", "32.10.in-addr.arpa.", dns.TypeSOA, "NOERROR aa; 32.10.in-addr.arpa. 1 SOA 1"},
		{"a reverse zone has NS", "47.10.in-addr.arpa.", dns.TypeNS, "NOERROR aa; 47.10.in-addr.arpa. 1 NS ns.dns.weft.internal. EXTRA; ns.dns.weft.internal. 1 A 10.32.0.1; ns.dns.weft.internal. 1 AAAA fd00:77ef::1"},
		{"RFC 6761 6.3: localhost", "LocalHost.", dns.TypeA, "NOERROR aa; LocalHost. 1 A 127.0.0.1"},
		{"RFC 6761 6.3: below localhost", "a.localhost.", dns.TypeAAAA, "NOERROR aa; a.localhost. 1 AAAA ::1"},
		{"RFC 6761 6.3: localhost has addresses only", "localhost.", dns.TypeMX, "NOERROR aa NS; localhost. 1 SOA 1"},
		{"RFC 6761 6.4: invalid", "a.invalid.", dns.TypeA, "NXDOMAIN aa NS; invalid. 1 SOA 1"},
		{"RFC 7686 2: onion", "a.onion.", dns.TypeA, "NXDOMAIN aa NS; onion. 1 SOA 1"},
		{"another zone, without upstream", "weft.example.", dns.TypeA, "SERVFAIL"},
		{"another zone with the same ending", "notweft.internal.", dns.TypeA, "SERVFAIL"},
		{"another zone: the dot is escaped", `not\.weft.internal.`, dns.TypeA, "SERVFAIL"},
		{"another zone: parent of the reverse zones", "10.in-addr.arpa.", dns.TypePTR, "SERVFAIL"},
		{"another zone: beside the reverse zones", "1.0.48.10.in-addr.arpa.", dns.TypePTR, "SERVFAIL"},
		{"no name has such labels", `a\.b.weft.internal.`, dns.TypeA, "NXDOMAIN aa" + domainSOA},
		{"no name has such labels", `_a\..web.weft.internal.`, dns.TypeSRV, "NXDOMAIN aa" + domainSOA},
		{"RFC 8482: ANY", "web.weft.internal.", dns.TypeANY, "REFUSED"},
		{"RFC 5936: AXFR", "weft.internal.", dns.TypeAXFR, "REFUSED"},
		{"RFC 1995: IXFR", "weft.internal.", dns.TypeIXFR, "REFUSED"},
		{"RFC 2930: TKEY", "weft.internal.", dns.TypeTKEY, "REFUSED"},
	} {
		if got := told(ask(t, s, query4(tt.name, tt.qtype), false)); got != tt.want {
			t.Errorf("%s: the query %s %s\n got %s\nwant %s", tt.why, tt.name, dns.TypeToString[tt.qtype], got, tt.want)
		}
	}
}

// The reverse zones cover exactly the universe, down to single addresses.
func TestReverseZonesCoverExactlyTheOverlaysAddresses(t *testing.T) {
	for _, tt := range []struct{ v4, v6, name, want string }{
		{"10.0.0.0/8", "fd00::/96", "1.2.3.10.in-addr.arpa.", "10.in-addr.arpa."},
		{"10.32.0.0/16", "fd00::/96", "32.10.in-addr.arpa.", "32.10.in-addr.arpa."},
		{"10.32.16.0/20", "fd00::/96", "1.31.32.10.in-addr.arpa.", "31.32.10.in-addr.arpa."},
		{"10.32.16.0/20", "fd00::/96", "1.32.32.10.in-addr.arpa.", ""},
		{"10.32.16.0/20", "fd00::/96", "32.10.in-addr.arpa.", ""},
		{"10.32.16.16/28", "fd00::/96", "17.16.32.10.in-addr.arpa.", "17.16.32.10.in-addr.arpa."},
		{"10.32.16.16/28", "fd00::/96", "32.16.32.10.in-addr.arpa.", ""},
		{"10.32.0.0/16", "fd00::/96", strings.Repeat("0.", 30) + "d.f.ip6.arpa.", strings.Repeat("0.", 22) + "d.f.ip6.arpa."},
		{"10.32.0.0/16", "fd00::/66", "1.2." + strings.Repeat("0.", 13) + "d.f.ip6.arpa.", ""},
		{"10.32.0.0/16", "fd00::/66", "1.3." + strings.Repeat("0.", 14) + "d.f.ip6.arpa.", "3." + strings.Repeat("0.", 14) + "d.f.ip6.arpa."},
		{"10.32.0.0/16", "fd00::/66", "1.4." + strings.Repeat("0.", 14) + "d.f.ip6.arpa.", ""},
	} {
		u := slot.Universe{V4: netip.MustParsePrefix(tt.v4), V6: netip.MustParsePrefix(tt.v6)}
		p, _, ok := spelled(tt.name)
		if apex, _ := reverseZone(u, tt.name, p); !ok || apex != tt.want {
			t.Errorf("universe %v: the reverse zone of %s is %q, want %q", u, tt.name, apex, tt.want)
		}
	}
}

// In a universe of /28 each address is a zone. It exists, whether or not an endpoint has it.
func TestASingleAddressCanBeAReverseZone(t *testing.T) {
	names := testNames()
	names.universe.V4 = netip.MustParsePrefix("10.32.0.0/28")
	s := newServer(t, func(c *Config) { c.Names = names })
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"5.0.32.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa; 5.0.32.10.in-addr.arpa. 1 PTR web.prod.weft.internal.; 5.0.32.10.in-addr.arpa. 1 PTR web.weft.internal."},
		{"5.0.32.10.in-addr.arpa.", dns.TypeSOA, "NOERROR aa; 5.0.32.10.in-addr.arpa. 1 SOA 1"},
		{"4.0.32.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa NS; 4.0.32.10.in-addr.arpa. 1 SOA 1"},
	} {
		if got := told(ask(t, s, query4(tt.name, tt.qtype), false)); got != tt.want {
			t.Errorf("the query %s %s got %s, want %s", tt.name, dns.TypeToString[tt.qtype], got, tt.want)
		}
	}
}

func TestNamesGetSERVFAILUntilTheAddressRangeIsKnown(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Names = &fakeNames{} })
	if got := told(ask(t, s, query4("web.weft.internal.", dns.TypeA), false)); got != "SERVFAIL" {
		t.Errorf("a query while the universe is unknown got %s, want SERVFAIL", got)
	}
	if _, exists := s.answerTo("web"); exists {
		t.Error("a name exists in an unknown universe, want none")
	}
}

// Answers repeat the spelling of the question (RFC 4343; some resolvers check it:
// draft-vixie-dnsext-dns0x20).
func TestAnswersKeepTheSpellingOfTheQuestion(t *testing.T) {
	s := newServer(t, nil)
	for _, tt := range []struct {
		name  string
		qtype uint16
	}{{"wEb.WEFT.Internal.", dns.TypeA}, {"wEb.WEFT.Internal.", dns.TypeTXT}, {"_HTTP._tcP.Web.weft.INTERNAL.", dns.TypeSRV}, {"5.0.32.10.IN-addr.arpA.", dns.TypePTR}} {
		r := ask(t, s, query4(tt.name, tt.qtype), false)
		if len(r.Answer) == 0 || r.Question[0].Name != tt.name {
			t.Fatalf("the query %s got the answer %v, want records, and the same spelling", tt.name, r)
		}
		for _, rr := range r.Answer {
			if rr.Header().Name != tt.name {
				t.Errorf("the question %s was answered with the name %s, want the same spelling", tt.name, rr.Header().Name)
			}
		}
	}
}

func TestAnswersHaveTheConfiguredTTL(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Hour} {
		s := newServer(t, func(c *Config) { c.TTL = ttl })
		for _, name := range []string{"web.weft.internal.", "nope.weft.internal."} {
			r := ask(t, s, query4(name, dns.TypeA), false)
			for _, rr := range slices.Concat(r.Answer, r.Ns) {
				if got := rr.Header().Ttl; got != uint32(ttl.Seconds()) {
					t.Errorf("%s: want a record with TTL %v, got %v", name, ttl, rr)
				}
				if soa, ok := rr.(*dns.SOA); ok && soa.Minttl != uint32(ttl.Seconds()) {
					t.Errorf("%s: want an SOA with the negative TTL %v, got %v", name, ttl, rr)
				}
			}
		}
	}
}

// many returns n endpoints with one name, every tenth of them on this host.
func many(n int) *fakeNames {
	names := &fakeNames{universe: universe}
	for i := range n {
		e := directory.Entry{Endpoint: directory.Endpoint{ID: "x", Slots: []slot.Slot{slot.Slot(i)}, Name: "many"}, Owner: there}
		if i%10 == 0 {
			e.Owner = here
		}
		names.entries = append(names.entries, e)
	}
	return names
}

func TestAddressOrderIsRandom(t *testing.T) {
	for _, prefer := range []bool{false, true} {
		names := many(20)
		names.entries = append(names.entries, names.entries[3]) // a duplicate address
		s := newServer(t, func(c *Config) { c.Names, c.PreferLocal = names, prefer })
		first := map[netip.Addr]int{}
		for range 400 {
			addrs, exists := s.answerTo("many")
			if !exists || len(addrs) != 40 {
				t.Fatalf("%d addresses, want 20 of each family", len(addrs))
			}
			if prefer && (addrs[1] != universe.Addr4(0) && addrs[1] != universe.Addr4(10)) {
				t.Fatalf("the second address is %v, want both addresses on this host first", addrs[1])
			}
			first[addrs[0]]++
		}
		if want := map[bool]int{false: 20, true: 2}[prefer]; len(first) != want {
			t.Errorf("prefer local %v: %d of the addresses came first in 400 answers, want %d: %v", prefer, len(first), want, first)
		}
	}
}

func TestAnswersAboveTheSizeLimitAreTruncated(t *testing.T) {
	s := newServer(t, func(c *Config) { c.Names = many(5000) })
	q := query4("many.weft.internal.", dns.TypeA)
	for _, size := range []uint16{0, 100, 4096} {
		m := q.Copy()
		if size > 0 {
			m.SetEdns0(size, false)
		}
		if r := ask(t, s, m, false); !r.Truncated || len(r.Answer) > 0 || !r.Authoritative {
			t.Errorf("RFC 2181 9: for a UDP size of %d bytes, want an empty answer with TC, got %v", size, r)
		}
	}
	if r := ask(t, s, q, true); r.Truncated || len(r.Answer) != (maxTCP-headerSize-24)/16 {
		t.Errorf("the answer over TCP is truncated, or has %d addresses; want as many as fit", len(r.Answer))
	}
	if r := ask(t, s, query4("many.weft.internal.", dns.TypeTXT), true); r.Truncated || len(r.Answer) < 500 {
		t.Errorf("the answer over TCP is truncated, or has only %d texts, want at least 500", len(r.Answer))
	}
}

// Near the size limit, all records fit, or the answer is empty with TC.
func TestTruncatedAnswersAreEmpty(t *testing.T) {
	for n := 20; n < 80; n++ {
		s := newServer(t, func(c *Config) { c.Names = many(n) })
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT} {
			for _, size := range []uint16{0, 700, maxUDP} {
				m := query4("many.weft.internal.", qtype)
				if size > 0 {
					m.SetEdns0(size, true)
				}
				if r := ask(t, s, m, false); r.Truncated != (len(r.Answer) != n) {
					t.Fatalf("%d of %d records in %d bytes, truncated: %v; want all records, or TC", len(r.Answer), n, size, r.Truncated)
				}
			}
		}
	}
}

// Addresses of targets are dropped before the answer is truncated (RFC 2181 9).
func TestAdditionalRecordsAreDroppedBeforeAnswersAreTruncated(t *testing.T) {
	names := many(6)
	for i := range names.entries {
		names.entries[i].Ports = []directory.Port{{Name: "p", Protocol: "tcp", Number: 1}}
	}
	s := newServer(t, func(c *Config) { c.Names = names })
	r := ask(t, s, query4("_p._tcp.many.weft.internal.", dns.TypeSRV), false)
	if r.Truncated || len(r.Answer) != 6 || len(r.Extra) > 0 {
		t.Errorf("want 6 SRV records without additional ones and without TC, got %v", r)
	}
}

func TestNamesTooLongForARecordAreLeftOut(t *testing.T) {
	long := strings.Repeat("a123456789.", 20) + "abcdefghi" // 229 bytes: DASHED.NAME.DOMAIN has more than 255
	names := &fakeNames{universe: universe, entries: []directory.Entry{{Endpoint: directory.Endpoint{
		ID: strings.Repeat("i", 320), Slots: []slot.Slot{5}, Name: long, Ports: []directory.Port{{Name: "p", Protocol: "tcp", Number: 1}},
	}, Owner: here}}}
	s := newServer(t, func(c *Config) { c.Names, c.Domain = names, "wefts.internal" })
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  int
	}{
		{long + ".wefts.internal.", dns.TypeA, 1},
		{long + ".wefts.internal.", dns.TypeTXT, 1},
		{"_p._tcp." + long + ".wefts.internal.", dns.TypeSRV, 0},
		{"5.0.32.10.in-addr.arpa.", dns.TypePTR, 1},
	} {
		r := ask(t, s, query4(tt.name, tt.qtype), true)
		if r.Rcode != dns.RcodeSuccess || len(r.Answer) != tt.want {
			t.Errorf("%s: answer %v, want the row's number of records", tt.name, r)
		}
	}
}

func TestInvalidConfigsAreRefused(t *testing.T) {
	server := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
	for _, tt := range []struct {
		why    string
		change func(*Config)
		want   string
	}{
		{"defaults", func(*Config) {}, ""},
		{"an upper case domain", func(c *Config) { c.Domain = "Mesh.Example" }, ""},
		{"no domain", func(c *Config) { c.Domain = "a..b" }, "each part between dots"},
		{"too long a domain", func(c *Config) { c.Domain = strings.Repeat("a.", 70) + "b" }, "leave room"},
		{"a special domain", func(c *Config) { c.Domain = "weft.localhost" }, "meaning of their own"},
		{"a reverse domain", func(c *Config) { c.Domain = "10.in-addr.arpa" }, "names of addresses"},
		{"negative TTL", func(c *Config) { c.TTL = -1 }, "whole seconds"},
		{"half a second", func(c *Config) { c.TTL = time.Second / 2 }, "whole seconds"},
		{"two days", func(c *Config) { c.TTL = 48 * time.Hour }, "whole seconds"},
		{"a rule", func(c *Config) { c.Forward = map[string][]netip.AddrPort{"Corp": server, ".": server} }, ""},
		{"a rule for ours", func(c *Config) { c.Forward = map[string][]netip.AddrPort{"x.weft.internal": server} }, "answers for"},
		{"a rule without servers", func(c *Config) { c.Forward = map[string][]netip.AddrPort{"corp": nil} }, "has no server"},
		{"two rules", func(c *Config) { c.Forward = map[string][]netip.AddrPort{"corp": server, "corp.": server} }, "once"},
		{"a rule for nothing", func(c *Config) { c.Forward = map[string][]netip.AddrPort{"": server} }, "not a domain"},
		{"no server", func(c *Config) {
			c.Forward = map[string][]netip.AddrPort{"corp": {netip.MustParseAddrPort("0.0.0.0:53")}}
		}, "not the address"},
		{"no names", func(c *Config) { c.Names = nil }, "are needed"},
	} {
		cfg := Config{Names: testNames(), Client: func(netip.AddrPort, string) (Client, bool) { return Client{}, true }}
		tt.change(&cfg)
		_, err := New(cfg)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: New returned %v, want an error that contains %q", tt.why, err, tt.want)
		}
	}
}

// answerTo returns what the domain answers about a name: the addresses of each family in order, and
// whether the name exists. The name may omit the domain.
func (s *Server) answerTo(name string) (addrs []netip.Addr, exists bool) {
	name = dns.CanonicalName(name)
	rel, ok := within(name, s.authority.domain)
	if !ok {
		rel = strings.TrimSuffix(name, ".")
	}
	u := s.cfg.Names.Universe()
	if rel == "" || u.IsZero() {
		return nil, rel == ""
	}
	n := s.authority.find(u, rel)
	return append(s.authority.order(u, n, true), s.authority.order(u, n, false)...), n.exists
}
