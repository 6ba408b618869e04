package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"weft/mesh/meshtest/eventually"
)

// No limit is ever exceeded. A client is refused at its own limit. Otherwise it is only refused if no
// client from which it may take a place has at least two more places.
func TestClientsShareLimitsFairly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sharing{limits: limits{most: 9, remote: 6, host: 4, each: 3}}
		held := map[Client][]*place{}
		count := func(match func(Client) bool) (n, greatest int) {
			for c, places := range held {
				if match(c) {
					n, greatest = n+len(places), max(greatest, len(places))
				}
			}
			return n, greatest
		}
		drop := func(p *place) {
			i := slices.Index(held[p.client], p)
			if i < 0 {
				t.Fatalf("%v lost a place that it does not have, want only its own places taken", p.client)
			}
			held[p.client] = slices.Delete(held[p.client], i, i+1)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			c := Client{
				Name: rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "name"),
				Host: rapid.SampledFrom([]string{"", "", "h1", "h2"}).Draw(t, "host"),
			}
			if mine := held[c]; len(mine) > 0 && rapid.Bool().Draw(t, "leave") {
				s.leave(mine[0])
				drop(mine[0])
				continue
			}
			everybody := func(Client) bool { return true }
			remote := func(o Client) bool { return o.Host != "" }
			neighbours := func(o Client) bool { return o.Host == c.Host }
			mine := len(held[c])
			var p *place
			p = s.enter(c, func() { drop(p) })
			if p != nil {
				held[c] = append(held[c], p)
			}
			all, greatest := count(everybody)
			others, ofRemote := count(remote)
			host, ofHost := count(neighbours)
			switch {
			case all > s.most || others > s.limits.remote || c.Host != "" && host > s.host || len(held[c]) > s.each:
				t.Fatalf("the places %v exceed the limits, want at most those", held)
			case p != nil || mine == s.each:
			case c.Host != "" && host == s.host && ofHost <= mine+1:
			case c.Host != "" && others == s.limits.remote && ofRemote <= mine+1:
			case all == s.most && greatest <= mine+1:
			default:
				t.Fatalf("client %v, which has %d places, is refused; want one more place; all places are %v", c, mine, held)
			}
		}
		for _, places := range held {
			for _, p := range slices.Clone(places) {
				s.leave(p)
				s.leave(p) // no effect if another client has taken it
			}
		}
		if s.total != 0 || s.remote != 0 || len(s.hosts) != 0 || len(s.held) != 0 {
			t.Fatalf("places are left after all clients left, want none: %+v", &s)
		}
	})
}

// taken returns the number of places in use.
func taken(s *sharing) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// byLoopback identifies clients by address, 127.1.HOST.NUMBER. Host 0 is this host.
func byLoopback(remote netip.AddrPort, _ string) (Client, bool) {
	c := Client{Name: remote.Addr().String()}
	if host := remote.Addr().As4()[2]; remote.Addr().Is4() && host != 0 {
		c.Host = fmt.Sprint(host)
	}
	return c, true
}

// connect opens n connections from an address.
func connect(t *testing.T, s *Server, host, number byte, n int) (out []net.Conn) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, host, number)}}
	for range n {
		c, err := d.Dial("tcp4", at(s, loopback[0]))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		out = append(out, c)
	}
	return out
}

func answersOver(c net.Conn) error {
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(query4("web.weft.internal.", dns.TypeA)); err != nil {
		return err
	}
	_, err := conn.ReadMsg()
	return err
}

// However many connections other clients hold, a new client of this host or of another one gets a
// connection.
func TestGreedyClientsCannotTakeAllTCPConnections(t *testing.T) {
	for name, greedy := range map[string]func(t *testing.T, s *Server){
		"20 containers of another host": func(t *testing.T, s *Server) {
			for i := range byte(20) {
				connect(t, s, 1, 10+i, connsOf)
			}
		},
		"20 containers of 5 other hosts": func(t *testing.T, s *Server) {
			for i := range byte(20) {
				connect(t, s, 1+i%5, 10+i, connsOf)
			}
		},
		"20 containers of this host": func(t *testing.T, s *Server) {
			for i := range byte(20) {
				connect(t, s, 0, 10+i, connsOf)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := runServer(t, func(c *Config) { c.Client = byLoopback })
			greedy(t, s)
			for _, host := range []byte{0, 1, 6} {
				if err := answersOver(connect(t, s, host, 1, 1)[0]); err != nil {
					t.Errorf("a new container of host %d gets no connection, want one: %v", host, err)
				}
			}
			if n := taken(&s.conns); n > conns.most {
				t.Errorf("%d connections are open, want at most the limit", n)
			}
		})
	}
}

// flood sends n queries of a client, each for another name, and returns the number of errors so far.
func flood(t *testing.T, s *Server, c Client, n int) (failed *atomic.Int32) {
	t.Helper()
	failed = new(atomic.Int32)
	for i := range n {
		in := packed1(query4(fmt.Sprintf("n%d.%s.example.", i, strings.ReplaceAll(c.Name+c.Host, "/", "")), dns.TypeA))
		out, q, wait := s.serve(nil, in, asker{client: c})
		if !wait {
			t.Fatalf("the query was answered without the upstream, want it to wait: %x", out)
		}
		s.later(t.Context(), q, asker{client: c}, func([]byte) { failed.Add(1) })
	}
	return failed
}

// While an upstream hangs, a client that floods only gets its share, and new clients get theirs.
func TestAFloodingClientDoesNotBlockForwardingForOthers(t *testing.T) {
	const domain = "quick.test."
	newSlow := func(t *testing.T) *Server {
		var n atomic.Int32
		s := newServer(t, func(c *Config) { c.Timeout = 5 * time.Second })
		s.upstreams.Store(&upstreams{
			host:  []*upstream{silent(t, &n)},
			rules: map[string][]*upstream{domain: {counted(t, &n, 0, dns.RcodeNameError)}},
		})
		t.Cleanup(s.tasks.Wait)
		return s
	}
	t.Run("one client", func(t *testing.T) {
		s := newSlow(t)
		failed := flood(t, s, Client{Name: "a"}, forwardsOf+10)
		if n := taken(&s.forwards); n != forwardsOf || failed.Load() != 10 {
			t.Errorf("%d queries wait and %d failed, want the client's limit and the rest", n, failed.Load())
		}
	})
	for name, host := range map[string]func(i int) string{
		"many of this host": func(int) string { return "" }, "many of another": func(int) string { return "h" },
		"many of many": func(i int) string { return fmt.Sprint("h", i%6) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSlow(t)
			for i := range 20 {
				flood(t, s, Client{Name: fmt.Sprint("c", i), Host: host(i)}, forwardsOf)
			}
			for _, from := range []Client{{Name: "new"}, {Name: "new", Host: "h"}, {Name: "new", Host: "elsewhere"}} {
				out := raw(t, s, packed1(query4("n"+from.Host+"."+domain, dns.TypeA)), asker{client: from})
				if rcode := int(out[3] & 0xf); rcode != dns.RcodeNameError {
					t.Errorf("the new client %+v got rcode %d, want NXDOMAIN", from, rcode)
				}
			}
			if n := taken(&s.forwards); n > forwards.most {
				t.Errorf("%d queries wait, want at most the limit", n)
			}
		})
	}
}

// A query continues for the clients that still wait, and ends when none does.
func TestForwardedQueriesEndWhenNoClientWaits(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, func(c *Config) { c.Timeout = 4 * time.Second })
	use(s, counted(t, &n, 500*time.Millisecond, dns.RcodeNameError))
	k := key{name: "slow.example.", qtype: dns.TypeA}
	first, endFirst := context.WithCancel(t.Context())
	answers := make(chan *packed, 2)
	go func() { answers <- s.resolve(first, k, netip.Addr{}) }()
	waiting := func(want int) func() bool {
		return func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			f := s.flights[k]
			return f == nil && want == 0 || f != nil && f.waiting == want
		}
	}
	eventually.True(t, wait, "one waits", waiting(1))
	go func() { answers <- s.resolve(t.Context(), k, netip.Addr{}) }()
	eventually.True(t, wait, "two wait", waiting(2))
	endFirst()
	if p := <-answers; rcodeOf(p) != dns.RcodeServerFailure {
		t.Errorf("the client that stopped waiting got rcode %d, want SERVFAIL", rcodeOf(p))
	}
	if p := <-answers; rcodeOf(p) != dns.RcodeNameError {
		t.Errorf("the client that still waits got rcode %d, want NXDOMAIN", rcodeOf(p))
	}
	use(s, silent(t, &n))
	k.name = "silent.example."
	alone, end := context.WithCancel(t.Context())
	go func() { answers <- s.resolve(alone, k, netip.Addr{}) }()
	eventually.True(t, wait, "one waits", waiting(1))
	s.mu.Lock()
	f := s.flights[k]
	s.mu.Unlock()
	end()
	<-answers
	select {
	case <-f.done:
	case <-time.After(s.cfg.Timeout / 2):
		t.Error("the query to the upstream continues without clients, want it cancelled")
	}
	if s.cache.get(k, time.Now()) != nil {
		t.Error("the cache has a failure, want none: only the clients stopped waiting")
	}
}

func rcodeOf(p *packed) int { return int(p.wire[3] & 0xf) }

// A client that does not read answers is not served further: the answers kept for it are bounded.
func TestAnswersForClientsThatDoNotReadAreBounded(t *testing.T) {
	var n atomic.Int32
	s := newServer(t, nil)
	use(s, counted(t, &n, 0, dns.RcodeNameError))
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close(); s.tasks.Wait() })
	go s.stream(t.Context(), server, asker{client: Client{Name: "a"}, tcp: true})
	for i := range 3 * forwardsOf {
		_ = client.SetDeadline(time.Now().Add(time.Second))
		conn := &dns.Conn{Conn: client}
		if err := conn.WriteMsg(query4(fmt.Sprintf("n%d.example.", i), dns.TypeA)); err != nil {
			return
		}
		eventually.True(t, wait, "nothing is forwarded any more", func() bool { return taken(&s.forwards) == 0 })
	}
	t.Errorf("the server read all %d queries of a client that reads no answer, want it to stop", 3*forwardsOf)
}
