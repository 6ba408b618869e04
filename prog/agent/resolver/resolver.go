// Package resolver connects the name server (prog/dns) to this host: it provides the directory of the
// last view, and identifies clients. It also decides the content of a container's resolv.conf.
//
// A Resolver is safe for concurrent use. Off is the Resolver without a name server (--no-dns).
package resolver

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/agent/config"
	"weft/prog/agent/live"
	"weft/prog/agent/metric"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/dns"
	"weft/router/endpoint"
	"weft/router/link"
)

// Directory has the endpoints of all peers.
type Directory interface {
	Lookup(name string, ring directory.Ring) ([]directory.Entry, bool)
	At(s slot.Slot, ring directory.Ring) (directory.Entry, bool)
	Named(ring directory.Ring) int
}

// Names is the directory, with the ring and the reachable peers of the last view.
type Names struct {
	Directory Directory
	View      live.Reader[*view.View]
}

// Universe returns the universe; zero before there is a ring.
func (n Names) Universe() slot.Universe {
	if v := n.View.Get(); v != nil {
		return v.Ring.Universe
	}
	return slot.Universe{}
}

// Lookup lists the endpoints that have a name and can be reached, and reports whether the name
// exists.
func (n Names) Lookup(name string) ([]directory.Entry, bool) {
	v := n.View.Get()
	if v == nil {
		return nil, false
	}
	entries, exists := n.Directory.Lookup(name, v.Ring)
	return slices.DeleteFunc(entries, func(e directory.Entry) bool { return !v.Present[e.Owner] }), exists
}

// At returns the endpoint that has a slot, and whether it can be reached.
func (n Names) At(s slot.Slot) (directory.Entry, bool) {
	v := n.View.Get()
	if v == nil {
		return directory.Entry{}, false
	}
	e, ok := n.Directory.At(s, v.Ring)
	return e, ok && v.Present[e.Owner]
}

// PeerName returns a peer's name for output.
func (n Names) PeerName(id peer.ID) string { return n.View.Get().Name(id) }

// Resolver is this host's name server, and the configuration of containers for it.
type Resolver interface {
	// Run serves until ctx ends.
	Run(ctx context.Context) error
	// SetAddrs listens on the node addresses.
	SetAddrs([]netip.Addr)
	// Container returns the content of resolv.conf for the endpoints of a namespace; nil: it stays as
	// it is.
	Container(namespace string) *api.Resolver
	Status(*view.View) api.DNS
	Metrics(metric.Out)
}

// Config configures a Resolver.
type Config struct {
	Self  peer.ID
	DNS   config.DNS
	Names Names
	IPv6  bool
	Log   *slog.Logger
}

// New makes a resolver; it listens on no address before Run.
func New(cfg Config) (Resolver, error) {
	if cfg.DNS.Off {
		return off{}, nil
	}
	o := cfg.DNS
	r := &server{cfg: cfg, forwarded: metric.NewDurations("dns_forward_duration_seconds", "How long questions took that needed an upstream server.")}
	var err error
	r.dns, err = dns.New(dns.Config{
		Domain: o.Domain, TTL: o.TTL, PreferLocal: o.PreferLocal, Self: cfg.Self, Names: cfg.Names,
		Client: r.client, Forward: o.Forward, ResolvConf: o.ResolvConf, Log: cfg.Log,
		Forwarded: func(took time.Duration) { r.forwarded.Note(took) },
		Own:       func(addr netip.Addr) bool { return addr == endpoint.Gateway4 || addr.WithZone("") == endpoint.Gateway6 },
	})
	return r, err
}

// server is the Resolver of an agent that runs a name server.
type server struct {
	cfg       Config
	dns       *dns.Server
	forwarded metric.Durations
}

func (r *server) Run(ctx context.Context) error { return r.dns.Run(ctx) }
func (r *server) SetAddrs(addrs []netip.Addr)   { r.dns.SetAddrs(addrs) }

// client identifies the client of a query. It is an endpoint of this host, whose link-local address
// is only unique per interface, or a host with an address of the network. The guard has checked that
// source address. Other clients get no answer, since this is no open resolver. Both addresses of a
// slot are one client.
func (r *server) client(remote netip.AddrPort, zone string) (client dns.Client, ok bool) {
	addr := remote.Addr().Unmap().WithZone("")
	if addr.IsLinkLocalUnicast() {
		return dns.Client{Name: zone}, strings.HasPrefix(zone, link.EndpointPrefix)
	}
	v := r.cfg.Names.View.Get()
	if v == nil || addr.IsLoopback() {
		return dns.Client{Name: addr.String()}, addr.IsLoopback()
	}
	s, inside := v.Ring.Universe.Slot(addr)
	if !inside {
		return dns.Client{}, false
	}
	client.Name = v.Ring.Universe.Addr4(s).String()
	if owner, _ := v.Ring.Owner(s); owner != r.cfg.Self {
		client.Host = owner.String()
	}
	return client, true
}

func (r *server) Container(namespace string) *api.Resolver {
	domain := r.cfg.DNS.Domain
	out := &api.Resolver{
		Servers: []string{endpoint.Gateway4.String()}, Domain: domain, Search: []string{domain},
		Options: []string{"ndots:2"}, // NAME.NAMESPACE is first looked up in the domain, and only then as a full name
	}
	if namespace != "" {
		out.Search = []string{strings.ToLower(namespace) + "." + domain, domain}
	}
	if r.cfg.DNS.Fallback {
		for _, u := range r.dns.Status().Upstreams {
			if u.Domain == "" && !u.Own && !u.Addr.Addr().IsLoopback() { // a loopback server of this host cannot be reached from a container
				out.Servers = append(out.Servers, u.Addr.Addr().String())
				break
			}
		}
	}
	return out
}

// Status describes the name server.
func (r *server) Status(v *view.View) api.DNS {
	s := r.dns.Status()
	out := api.DNS{
		Domain: s.Domain, TTL: s.TTL.Seconds(), Containers: []netip.Addr{endpoint.Gateway4}, Upstreams: []api.Upstream{},
		NoUpstream: s.ResolvConf, Cached: s.Cached, Counts: api.DNSCounts(s.Counts),
	}
	if v != nil {
		out.Entries = r.cfg.Names.Directory.Named(v.Ring)
	}
	for _, at := range s.Sockets {
		if at.Err != "" {
			out.Problem = at.Err
			continue
		}
		out.Listening = append(out.Listening, at.Addr.Addr())
	}
	if r.cfg.IPv6 {
		out.Containers = append(out.Containers, endpoint.Gateway6)
	}
	for _, u := range s.Upstreams {
		out.Upstreams = append(out.Upstreams, api.Upstream{Domain: u.Domain, Server: u.Addr.String(), Error: u.Err, Own: u.Own})
	}
	return out
}

var (
	metricNames     = metric.Desc("dns_entries", "Endpoints and hosts with a name, in the whole network.")
	metricListening = metric.Desc("dns_listening", "Whether the name server listens on all its addresses.")
	metricCached    = metric.Desc("dns_cached_answers", "Answers of upstreams in the cache.")
	metricQueries   = metric.Desc("dns_queries_total", "Questions, by what became of them: local, cached, forwarded, joined, limited, refused or dropped.", "outcome")
	metricFailed    = metric.Desc("dns_upstream_failures_total", "Questions that no upstream answered.")
)

// Metrics exports the name server's counters.
func (r *server) Metrics(out metric.Out) {
	s := r.Status(r.cfg.Names.View.Get())
	out.Gauge(metricNames, float64(s.Entries))
	out.Gauge(metricCached, float64(s.Cached))
	out.Bool(metricListening, s.Problem == "" && len(s.Listening) > 0)
	out.Counter(metricFailed, float64(s.Counts.Failed))
	out.Durations(r.forwarded)
	for outcome, n := range map[string]uint64{
		"local": s.Counts.Local, "cached": s.Counts.Hits, "forwarded": s.Counts.Forwarded, "joined": s.Counts.Joined,
		"limited": s.Counts.Limited, "refused": s.Counts.Refused, "dropped": s.Counts.Dropped,
	} {
		out.Counter(metricQueries, float64(n), outcome)
	}
}

// off is a Resolver without a name server.
type off struct{}

func (off) Run(ctx context.Context) error  { <-ctx.Done(); return nil }
func (off) SetAddrs([]netip.Addr)          {}
func (off) Container(string) *api.Resolver { return nil }
func (off) Status(*view.View) api.DNS      { return api.DNS{Off: true} }
func (off) Metrics(metric.Out)             {}
