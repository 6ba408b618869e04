package dns

import (
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestNamesAreForwardedByTheLongestMatchingDomain(t *testing.T) {
	var host, corp, lab atomic.Int32
	rule := func(u *upstream) []netip.AddrPort { return []netip.AddrPort{u.addr} }
	s := newServer(t, func(c *Config) {
		c.Forward = map[string][]netip.AddrPort{
			"Corp":      rule(counted(t, &corp, 0, dns.RcodeNameError)),
			"lab.corp.": rule(counted(t, &lab, 0, dns.RcodeServerFailure)),
			"x.onion":   rule(counted(t, &corp, 0, dns.RcodeNameError)),
		}
	})
	s.upstreams.Store(&upstreams{rules: s.upstreams.Load().rules, host: []*upstream{counted(t, &host, 0, dns.RcodeNameError)}})
	for _, tt := range []struct {
		name string
		n    *atomic.Int32
		want int
	}{
		{"corp.", &corp, dns.RcodeNameError},
		{"a.b.CORP.", &corp, dns.RcodeNameError},
		{"acorp.", &host, dns.RcodeNameError},
		{"lab.corp.", &lab, dns.RcodeServerFailure},
		{"a.lab.corp.", &lab, dns.RcodeServerFailure},
		{"b.local.", &host, dns.RcodeNameError},
		{".", &host, dns.RcodeNameError},
		{"a.x.onion.", &corp, dns.RcodeNameError},
	} {
		before := tt.n.Load()
		if r := ask(t, s, query4(tt.name, dns.TypeA), false); r.Rcode != tt.want || tt.n.Load() != before+1 {
			t.Errorf("the query %s: want one answer of its rule's server, got %v", tt.name, r)
		}
	}
	if n := host.Load() + corp.Load() + lab.Load(); n != 8 {
		t.Errorf("%d queries, want 8: queries that match a rule must not go to other servers", n)
	}
}

func TestForwardingOfAllNamesExceptsLocalhost(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, func(c *Config) {
		c.Forward = map[string][]netip.AddrPort{".": {counted(t, &n, 0, dns.RcodeNameError).addr}}
	})
	if r := ask(t, s, query4("a.example.", dns.TypeA), false); r.Rcode != dns.RcodeNameError {
		t.Error(r)
	}
	if r := ask(t, s, query4("localhost.", dns.TypeA), false); len(r.Answer) != 1 || n.Load() != 1 {
		t.Errorf("RFC 6761 6.3: want localhost answered here, and not forwarded; got %v", r)
	}
}

// The cache stays bounded while 50,000 names pass through it.
func TestCacheIsBoundedWithManyNames(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds")
	}
	s := newServer(t, func(c *Config) { c.CacheEntries, c.Timeout = 1000, 5*time.Second })
	use(s, fakeUpstream(t, func(q *dns.Msg, _ bool) *dns.Msg {
		return replies(q, dns.RcodeSuccess, q.Question[0].Name+" 60 A 192.0.2.1")
	}))
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := range 2500 {
				name := "n" + strconv.Itoa(w*2500+i) + ".example."
				if r := ask(t, s, query4(name, dns.TypeA), false); len(r.Answer) != 1 {
					t.Errorf("the query %s got %v, want one record", name, r)
					return
				}
			}
		})
	}
	wg.Wait()
	if st := s.Status(); st.Cached != 1000 || st.CacheBytes > 1000*500 || st.Counts.Forwarded != 50_000 {
		t.Errorf("the status is %+v; want 1,000 cached answers of at most 500 bytes, and 50,000 forwarded queries", st)
	}
}
