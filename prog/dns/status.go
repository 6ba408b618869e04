package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Status is the state of a server.
type Status struct {
	Domain     string        // the domain without a final dot
	TTL        time.Duration // the TTL of answers from the domain
	Sockets    []Socket      // the addresses to listen on
	Upstreams  []Upstream    // the servers of resolv.conf in its order, then those of single domains
	ResolvConf string        // why resolv.conf gives no server; "" if it gives one
	Cached     int           // answers in the cache
	CacheBytes int           // the approximate size of the cached answers
	Counts     Counts
}

// Socket is an address to listen on, over UDP and TCP.
type Socket struct {
	Addr netip.AddrPort
	Err  string // why it is not bound; "" if it is. The server retries every second
}

// Upstream is a server to which queries for other names are forwarded.
type Upstream struct {
	Addr   netip.AddrPort
	Domain string // the domain of Config.Forward; "" for a server of resolv.conf
	Err    string // why its last query failed; "" if it was answered
	Own    bool   // the upstream is this server itself, so it is never used
}

// Counts are counters since the server started.
type Counts struct {
	Queries   uint64 // all received queries, over UDP and TCP
	Local     uint64 // answered from Names
	Hits      uint64 // answered from the cache
	Forwarded uint64 // queries forwarded; each counts once, however many servers were asked
	Joined    uint64 // waited for the answer to an identical forwarded query
	Failed    uint64 // no upstream answered
	Limited   uint64 // not forwarded, or aborted, because too many queries were waiting
	Refused   uint64 // answered with an error because of the question
	Dropped   uint64 // not answered: the source is no client, or the message no query; also connections
}

type counts struct {
	queries, local, hits, forwarded, joined, failed, limited, refused, dropped atomic.Uint64
}

// Status returns the state of the server.
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
