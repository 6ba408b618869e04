package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Status is what a server does.
type Status struct {
	Domain     string        // without a final dot
	TTL        time.Duration // of answers from the domain
	Sockets    []Socket      // what it was told to listen on
	Upstreams  []Upstream    // those of resolv.conf in their order, then those of single domains
	ResolvConf string        // why resolv.conf names no server; "" when it does
	Cached     int           // answers in the cache
	CacheBytes int           // about what they take
	Counts     Counts
}

// Socket is an address to listen on, UDP and TCP.
type Socket struct {
	Addr netip.AddrPort
	Err  string // why it is not listened on; "" when it is. It is tried again every second
}

// Upstream is a server that others' names are forwarded to.
type Upstream struct {
	Addr   netip.AddrPort
	Domain string // "" for resolv.conf
	Err    string // why it did not answer last; "" when it did
	Own    bool   // it is this server, and is never asked
}

// Counts only grow while the server runs.
type Counts struct {
	Queries   uint64 // everything that came over UDP, or over TCP
	Local     uint64 // answered from Names
	Hits      uint64 // answered from the cache
	Forwarded uint64 // questions put to upstreams, each once however many servers were asked
	Joined    uint64 // waited for a question that was put already
	Failed    uint64 // put to upstreams without an answer
	Limited   uint64 // not put, or not waited for to the end, because too many were waiting
	Refused   uint64 // answered with an error, because of what was asked
	Dropped   uint64 // not answered: no client, or no question; connections too
}

type counts struct {
	queries, local, hits, forwarded, joined, failed, limited, refused, dropped atomic.Uint64
}

// Status is what the server does now.
func (s *Server) Status() Status {
	st := Status{
		Domain: strings.TrimSuffix(s.authority.domain, "."), TTL: s.cfg.TTL,
		Counts: Counts{
			Queries: s.counts.queries.Load(), Local: s.counts.local.Load(), Hits: s.counts.hits.Load(),
			Forwarded: s.counts.forwarded.Load(), Joined: s.counts.joined.Load(), Failed: s.counts.failed.Load(),
			Limited: s.counts.limited.Load(), Refused: s.counts.refused.Load(), Dropped: s.counts.dropped.Load(),
		},
	}
	st.Cached, st.CacheBytes = s.cache.fill()
	s.upstreams.Load().all(func(domain string, u *upstream) {
		one := Upstream{Addr: u.addr, Domain: strings.TrimSuffix(domain, "."), Own: s.loop(u.addr)}
		if domain == "." {
			one.Domain = domain
		}
		if why := u.reason.Load(); why != nil {
			one.Err = *why
		}
		st.Upstreams = append(st.Upstreams, one)
	})
	slices.SortStableFunc(st.Upstreams, func(a, b Upstream) int { return cmp.Compare(a.Domain, b.Domain) })
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Sockets, st.ResolvConf = slices.Clone(s.sockets), s.confFail
	return st
}
