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

// hold is how long an upstream that did not answer is left alone, unless none does.
const hold = 3 * time.Second

// upstreams are the servers to ask. The set is replaced as a whole; an upstream that stays
// keeps what is known of it.
type upstreams struct {
	host  []*upstream            // of resolv.conf
	rules map[string][]*upstream // of Config.Forward
}

// with is u with other servers of resolv.conf.
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

// rule is the domain of Config.Forward that a name falls under, the longest there is.
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

// of is the servers for a name. Those of a domain are not replaced by the host's when
// they fail: whom a name is nobody's business to, must not hear it.
func (u *upstreams) of(name string) []*upstream {
	if domain, ok := u.rule(name); ok {
		return u.rules[domain]
	}
	return u.host
}

// all calls f for every upstream; domain is "" for those of resolv.conf.
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

// loop reports whether asking addr is asking ourselves.
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

// flight is a question that an upstream has; whoever asks it too waits for the same answer.
// It ends when nobody waits any more.
type flight struct {
	done    chan struct{}
	answer  *packed // once done is closed
	waiting int     // under Server.mu
	end     context.CancelFunc
}

// resolve waits for the answer to a question that is not in the cache.
//
// Because the same question is never in flight twice, a loop of servers in which we are one
// ends here: the question that comes round waits for itself until the upstream's time is
// over, and nothing multiplies. Where it comes from an upstream's address, as it does when
// two hosts of a mesh name each other in resolv.conf, it is turned away at once, so that
// the next upstream gets its turn without that delay.
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
		// Those who join go on waiting when the first no longer does.
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

// landed says that nobody can join a flight any more.
func (s *Server) landed(k key, f *flight) {
	if s.flights[k] == f {
		delete(s.flights, k)
	}
}

// fly gets the answer for everybody who waits.
func (s *Server) fly(ctx context.Context, k key, f *flight) {
	defer f.end()
	s.counts.forwarded.Add(1)
	answer := s.ask(ctx, k)
	now := time.Now()
	given := !errors.Is(ctx.Err(), context.Canceled) // else nobody waited for it
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

// heard is what came of asking an upstream, the nth that was.
type heard struct {
	from *upstream
	nth  int
	m    *dns.Msg
	err  error
}

// ask goes from one upstream to the next until one has an answer. One that does not answer
// in time is listened to while others are asked: whoever answers first does. If none as much
// as replies, all are asked once more: a packet may have been lost.
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
			if !next { // else whoever was asked last has replied
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

// choose lists the upstreams for a name, and before them those that are likely to answer.
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

// hear is the answer in what was heard from an upstream, in time or late; nil: there is none.
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
	// An error may be the upstream's own: the next one may know better. It is not held
	// against this one, whose other names may well be in order.
	answer, err := believe(h.m, k, s.authority.owns)
	if err != nil {
		s.cfg.Log.Debug("upstream name server has no answer", keyServer, h.from.addr, keyName, k.name, keyErr, err)
		return nil
	}
	return answer
}

// fails notes that an upstream does not answer.
func (s *Server) fails(u *upstream, err error) {
	if u.failed(time.Now(), err) {
		s.cfg.Log.Warn("upstream name server fails", keyServer, u.addr, keyErr, err)
	}
}

// checkForward makes Config.Forward's domains canonical.
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
			return nil, fmt.Errorf("forwarding: %s needs its servers, once: %s=192.0.2.53", d, d)
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
