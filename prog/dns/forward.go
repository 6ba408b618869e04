package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// hold is how long an upstream that did not answer is not asked, unless all fail.
const hold = 3 * time.Second

// upstreams are the servers to forward to. The set is replaced as a whole; an upstream that stays
// keeps its state.
type upstreams struct {
	host  []*upstream            // the servers of resolv.conf
	rules map[string][]*upstream // the servers of each domain of Config.Forward
}

// with returns a copy of u with other servers of resolv.conf.
func (u *upstreams) with(servers []netip.Addr, port uint16) *upstreams {
	known := map[netip.AddrPort]*upstream{}
	for _, h := range u.host {
		known[h.addr] = h
	}
	next := &upstreams{rules: u.rules}
	for _, a := range servers {
		addr := netip.AddrPortFrom(a, port)
		if known[addr] == nil {
			known[addr] = &upstream{addr: addr}
		}
		next.host = append(next.host, known[addr])
	}
	for _, h := range u.host {
		if !slices.Contains(next.host, h) {
			h.lines.close(time.Time{})
		}
	}
	return next
}

// rule returns the longest domain of Config.Forward that contains a name.
func (u *upstreams) rule(name string) (domain string, ok bool) {
	if len(u.rules) == 0 {
		return "", false
	}
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if _, ok := u.rules[name[off:]]; ok {
			return name[off:], true
		}
	}
	_, ok = u.rules["."]
	return ".", ok
}

// of returns the servers for a name. If those of a domain fail, the host's are not used: falling back
// would leak private names to the host's resolver.
func (u *upstreams) of(name string) []*upstream {
	if domain, ok := u.rule(name); ok {
		return u.rules[domain]
	}
	return u.host
}

// all calls f for each upstream; domain is "" for those of resolv.conf.
func (u *upstreams) all(f func(domain string, u *upstream)) {
	for _, h := range u.host {
		f("", h)
	}
	for domain, servers := range maps.All(u.rules) {
		for _, s := range servers {
			f(domain, s)
		}
	}
}

// loop reports whether addr is this server's own address.
func (s *Server) loop(addr netip.AddrPort) bool {
	if addr.Port() != s.port {
		return false
	}
	for _, a := range s.nodes() {
		if a == addr.Addr().WithZone("") {
			return true
		}
	}
	return s.cfg.Own != nil && s.cfg.Own(addr.Addr().WithZone(""))
}

// flight is a forwarded query. Identical queries wait for the same answer. It ends when no client
// waits any more.
type flight struct {
	done    chan struct{}
	answer  *packed // valid once done is closed
	waiting int     // number of waiting clients; guarded by Server.mu
	end     context.CancelFunc
}

// resolve waits for the answer to a question that is not in the cache.
//
// Identical queries are never forwarded at the same time. So a forwarding loop through this server
// ends here: the returning query waits for itself until the upstream's timeout, and nothing
// multiplies. Two hosts of a mesh may name each other in resolv.conf. Then the query comes from an
// upstream's address. It is refused at once, so that the next upstream is asked without that delay.
func (s *Server) resolve(ctx context.Context, k key, from netip.Addr) *packed {
	s.mu.Lock()
	f, joined := s.flights[k]
	if joined {
		s.counts.joined.Add(1)
		for _, u := range s.upstreams.Load().of(k.name) {
			if u.addr.Addr().WithZone("") == from {
				s.mu.Unlock()
				return failure(k.name, k.qtype, time.Now())
			}
		}
	} else {
		// The query continues for other clients when the first one stops waiting.
		flying, end := context.WithTimeout(context.WithoutCancel(ctx), s.budget)
		f = &flight{done: make(chan struct{}), end: end}
		s.flights[k] = f
		s.tasks.Go(func() { s.fly(flying, k, f) })
	}
	f.waiting++
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.answer
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiting--; f.waiting == 0 {
		f.end()
		s.landed(k, f)
	}
	return failure(k.name, k.qtype, time.Now())
}

// landed removes a flight, so that no client can join it any more.
func (s *Server) landed(k key, f *flight) {
	if s.flights[k] == f {
		delete(s.flights, k)
	}
}

// fly gets the answer for all clients that wait.
func (s *Server) fly(ctx context.Context, k key, f *flight) {
	defer f.end()
	s.counts.forwarded.Add(1)
	answer := s.ask(ctx, k)
	now := time.Now()
	given := !errors.Is(ctx.Err(), context.Canceled) // otherwise no client waits for it
	if answer == nil {
		s.counts.failed.Add(1)
		answer = failure(k.name, k.qtype, now)
	}
	answer.stored = now
	if given {
		s.cache.put(k, answer)
	}
	f.answer = answer
	s.mu.Lock()
	s.landed(k, f)
	s.mu.Unlock()
	close(f.done)
}

// heard is the result of asking an upstream. nth numbers the upstreams asked for a query, from 1.
type heard struct {
	from *upstream
	nth  int
	m    *dns.Msg
	err  error
}

// ask queries one upstream after the other until one answers. While it asks others, it still accepts
// a late answer: the first answer wins. If no upstream replies at all, it asks all of them once more,
// since a packet may have been lost.
func (s *Server) ask(ctx context.Context, k key) *packed {
	usable, all := s.choose(k.name)
	order := slices.Concat(usable, all)
	replies := make(chan heard, len(order))
	patience := time.NewTimer(s.cfg.Timeout)
	defer patience.Stop()
	asked, open := 0, 0
	for next, replied := true, false; ; {
		if next && asked < len(order) && (asked < len(usable) || !replied) {
			u, nth := order[asked], asked+1
			s.tasks.Go(func() {
				m, err := u.exchange(ctx, k)
				replies <- heard{u, nth, m, err}
			})
			patience.Reset(s.cfg.Timeout)
			asked, open, next = nth, open+1, false
		}
		if open == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-patience.C:
			if !next { // otherwise the upstream asked last has replied
				s.fails(order[asked-1], errSilent)
			}
			next = true
		case h := <-replies:
			open--
			last := h.nth == asked && !next
			if answer := s.hear(ctx, h, k, last); answer != nil {
				return answer
			}
			replied = replied || h.err == nil
			next = next || last
		}
	}
}

// choose returns the upstreams for a name that probably answer, and all of them.
func (s *Server) choose(name string) (usable, all []*upstream) {
	now := time.Now()
	for _, u := range s.upstreams.Load().of(name) {
		if s.loop(u.addr) {
			continue
		}
		all = append(all, u)
		if u.usable(now) {
			usable = append(usable, u)
		}
	}
	if len(usable) == 0 {
		usable = all
	}
	return usable, all
}

// hear returns the answer in a reply that came in time or late; nil if the reply has none.
func (s *Server) hear(ctx context.Context, h heard, k key, inTime bool) *packed {
	switch {
	case ctx.Err() != nil:
		return nil
	case h.err != nil:
		s.fails(h.from, h.err)
		return nil
	case !inTime:
		h.from.late(s.cfg.Timeout)
	case h.from.answered():
		s.cfg.Log.Info("upstream name server answers again", keyServer, h.from.addr)
	}
	// An error may be specific to this upstream, so the next one is asked. The upstream does not
	// count as failed, since it may answer for other names.
	answer, err := believe(h.m, k, s.authority.owns)
	if err != nil {
		s.cfg.Log.Debug("upstream name server has no answer", keyServer, h.from.addr, keyName, k.name, keyErr, err)
		return nil
	}
	return answer
}

// fails records that an upstream does not answer.
func (s *Server) fails(u *upstream, err error) {
	if u.failed(time.Now(), err) {
		s.cfg.Log.Warn("upstream name server fails", keyServer, u.addr, keyErr, err)
	}
}

// checkForward returns the servers of Config.Forward by canonical domain.
func checkForward(forward map[string][]netip.AddrPort, domain string) (map[string][]*upstream, error) {
	rules := map[string][]*upstream{}
	for d, servers := range forward {
		zone := dns.CanonicalName(strings.TrimSpace(d))
		if _, ok := dns.IsDomainName(zone); !ok || d == "" {
			return nil, fmt.Errorf("forwarding: %q is not a domain", d)
		}
		if _, ours := within(zone, domain); ours {
			return nil, fmt.Errorf("forwarding: %s lies in %s, which this mesh answers for", d, strings.TrimSuffix(domain, "."))
		}
		if len(servers) == 0 || rules[zone] != nil {
			return nil, fmt.Errorf("forwarding: %s has no server, or is given twice with different spellings: give it once, such as %s=192.0.2.53", d, d)
		}
		for _, a := range servers {
			if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
				return nil, fmt.Errorf("forwarding: %s: %v is not the address of a server", d, a)
			}
			rules[zone] = append(rules[zone], &upstream{addr: netip.AddrPortFrom(a.Addr().Unmap(), a.Port())})
		}
	}
	return rules, nil
}
