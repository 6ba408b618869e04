package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func stored(t *testing.T, name string, ttl uint32, life time.Duration) *packed {
	t.Helper()
	p, err := pack(replies(query4(name, dns.TypeA), dns.RcodeSuccess, fmt.Sprintf("%s %d A 192.0.2.1", name, ttl), fmt.Sprintf("%s %d A 192.0.2.2", name, ttl+5)), name, dns.TypeA)
	if err != nil {
		t.Fatal(err)
	}
	p.stored, p.life = time.Now(), life
	return p
}

// RFC 1035 3.2.1, RFC 2181 5.2: TTLs count down, until the answer expires.
func TestTTLsCountDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, nil)
		k := key{name: "www.example.", qtype: dns.TypeA}
		s.cache.put(k, stored(t, k.name, 10, 10*time.Second))
		for _, tt := range []struct {
			after time.Duration
			want  uint32
		}{{0, 10}, {999 * time.Millisecond, 10}, {time.Millisecond, 9}, {8 * time.Second, 1}, {999 * time.Millisecond, 1}} {
			time.Sleep(tt.after)
			r := ask(t, s, query4(k.name, dns.TypeA), false)
			if len(r.Answer) != 2 || r.Answer[0].Header().Ttl != tt.want || r.Answer[1].Header().Ttl != tt.want+5 {
				t.Errorf("want both records with the remaining TTLs, got %v", r)
			}
		}
		time.Sleep(time.Millisecond)
		if s.cache.get(k, time.Now()) != nil || s.Status().Cached != 0 {
			t.Error("an answer outlived its TTL, want it deleted")
		}
	})
}

func TestFailuresAreCachedBriefly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(10, 1<<20)
		k := key{name: "www.example.", qtype: dns.TypeA}
		c.put(k, failure(k.name, k.qtype, time.Now()))
		time.Sleep(failureLife - 1)
		if c.get(k, time.Now()) == nil {
			t.Error("a failure was cached for less than a second, want at least one (RFC 9520 3.2)")
		}
		time.Sleep(time.Nanosecond)
		if c.get(k, time.Now()) != nil {
			t.Error("a failure is still cached, want it deleted")
		}
	})
}

func TestTheCacheKeepsItsLimitsOfEntriesAndBytes(t *testing.T) {
	at := func(i int) key { return key{name: fmt.Sprintf("%d.example.", i), qtype: dns.TypeA} }
	c := newCache(10, 1<<20)
	for i := range 100 {
		c.put(at(i), stored(t, at(i).name, 60, time.Minute))
		c.get(at(0), time.Now()) // used recently, so the cache keeps this answer
	}
	if n, _ := c.fill(); n != 10 || c.get(at(0), time.Now()) == nil || c.get(at(91), time.Now()) == nil || c.get(at(90), time.Now()) != nil {
		t.Errorf("the cache has %d entries, want the 10 most recently used ones", n)
	}
	c = newCache(1000, 5000)
	for i := range 100 {
		c.put(at(i), stored(t, at(i).name, 60, time.Minute))
		if _, bytes := c.fill(); bytes > 5000 {
			t.Fatalf("the cache has %d bytes, want at most 5000", bytes)
		}
	}
	c.put(at(99), stored(t, at(99).name, 60, time.Minute)) // the new answer replaces the old one
	for i := range 100 {
		c.put(at(i), &packed{}) // lifetime 0: not cached
	}
	if n, bytes := c.fill(); n != 0 || bytes != 0 || len(c.all) != c.byAt.Len() {
		t.Errorf("%d entries of %d bytes are left in an empty cache, want none", n, bytes)
	}
}

func TestResolvConfIsParsedAndReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	c := resolvConf{path: path}
	if servers, changed, err := c.changed(); !changed || err == nil || servers != nil {
		t.Error("a missing file gave no error, want one")
	}
	if _, changed, err := c.changed(); changed || err != nil {
		t.Error("a missing file was reported as changed a second time, want once")
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+"~", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"# comment\nsearch corp example\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\noptions ndots:5 timeout:1\n", "[192.0.2.1 2001:db8::1]"},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver junk\nnameserver\n;nameserver 192.0.2.9", "[192.0.2.1 fe80::1%eth0]"},
		{"", "[]"},
	} {
		write(tt.text)
		servers, changed, err := c.changed()
		if got := fmt.Sprint(servers); !changed || err != nil || got != tt.want {
			t.Errorf("the file %q has the servers %v, want %v; error %v", tt.text, got, tt.want, err)
		}
		if _, changed, _ := c.changed(); changed {
			t.Error("an unchanged file was reported as changed, want no report")
		}
	}
	// A file that was changed in place.
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.7"), 0o644); err != nil {
		t.Fatal(err)
	}
	if servers, changed, _ := c.changed(); !changed || !slices.Equal(servers, []netip.Addr{netip.MustParseAddr("192.0.2.7")}) {
		t.Errorf("after a change in place the servers are %v, want 192.0.2.7", servers)
	}
}

// An upstream that stays in resolv.conf keeps its state.
func TestAnUpstreamThatStaysInResolvConfKeepsItsState(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	one := (&upstreams{}).with([]netip.Addr{a, b}, port)
	one.host[1].failed(time.Now(), os.ErrClosed)
	two := one.with([]netip.Addr{c, b}, port)
	if len(two.host) != 2 || two.host[0].addr.Addr() != c || two.host[1] != one.host[1] {
		t.Errorf("the upstreams are %+v; want the new one first, and the unchanged state of the other", two)
	}
}
