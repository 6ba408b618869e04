// Package dns is the name server of the mesh. Each host runs one on its node address. It answers
// from this host's own directory. So a container's query for a name of the mesh stays on its host,
// and is answered while other hosts are unreachable.
//
// There are three kinds of queries. For the domain (weft.internal) and the reverse zones of the
// universe the server is authoritative: answer.go computes the answer from the question and the
// directory, so nothing is cached or stale. Earlier answers of other servers come from the cache in
// wire format; only the id, the name's case and the TTLs are replaced. Both kinds are answered on
// the goroutine that reads packets. All other queries are forwarded to the servers of the host's
// resolv.conf, or to the servers of Config.Forward for the domain. Each such query has its own
// goroutine. Their number is limited and shared fairly among clients (see sharing).
//
// The names, with NAME for an endpoint's name and DOMAIN for the domain:
//
//	NAME.DOMAIN                    A, AAAA of the endpoints; TXT: the peer and the id of each
//	ADDRESS.NAME.DOMAIN            one of these endpoints, by its address with dashes: 10-32-0-5
//	                               or fd00-77ef--5. Both names have its IPv4 and IPv6 address
//	_PORT._PROTOCOL.NAME.DOMAIN    SRV for a named port of endpoints; targets ADDRESS.NAME.DOMAIN
//	*.in-addr.arpa, *.ip6.arpa     PTR for addresses of the universe, NAMESPACE's name first
//	DOMAIN, the reverse zones      SOA, and NS: ns.dns.DOMAIN, the addresses of this node
//
// A name whose endpoints are all unreachable has no data. The reverse name of an endpoint without
// a name has no data either. Until the universe is known, names in the domain get SERVFAIL, since
// no name is known not to exist. localhost. is answered here (RFC 6761); names below invalid. and
// onion. do not exist. Rules of Config.Forward override these. local. is forwarded like any other
// name (see special).
//
// The server is no open resolver. It only binds to the node addresses, and Config.Client decides
// about each packet and connection. Other sources get no answer at all.
//
// It does not validate DNSSEC and never sets AD. If a client sets DO, it gets the records that it
// needs to validate. Only those parts of an upstream's answer that answer the question are passed on
// (see believe). Answers larger than the client's UDP size are sent empty with TC set, so that it
// retries over TCP.
//
// New only checks its Config. Run owns all goroutines, sockets and files. All methods are safe for
// concurrent use. No lock is held while a function of Config is called.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
)

const (
	keyAddr   = "addr"
	keyErr    = "err"
	keyName   = "name"
	keyServer = "server"
)

// Defaults of Config.
const (
	DefaultDomain       = "weft.internal"
	DefaultTTL          = time.Second
	DefaultResolvConf   = "/etc/resolv.conf"
	MaxTTL              = 24 * time.Hour
	DefaultCacheEntries = 10_000
	DefaultCacheBytes   = 16 << 20
	DefaultTimeout      = 2 * time.Second
)

// These are the default port, the time limits, and the limits of one client (see sharing).
const (
	port        = 53
	budget      = 5 * time.Second  // the time of one query at all upstreams; resolvers give up after that time
	forwardsOf  = 100              // queries of one client that wait for an upstream
	connsOf     = 20               // TCP connections of one client
	idleTimeout = 10 * time.Second // within this time a client must have sent its next message over TCP
)

var (
	forwards = limits{most: 1000, remote: 500, host: 200, each: forwardsOf} // queries that wait for an upstream
	conns    = limits{most: 200, remote: 100, host: 40, each: connsOf}      // TCP connections
)

// Names is the directory. Its methods are called for each query, from many goroutines, and must not
// block. The server does not change entries.
type Names interface {
	// Universe is zero until it is known.
	Universe() slot.Universe
	// Lookup returns the entries with a name, and whether the name exists. The name is relative to
	// the domain and in lower case: "web", "web.prod". A name also exists if there is a name below it
	// ("prod": RFC 8020), or if all its entries are on unreachable peers, which are not returned.
	Lookup(name string) (entries []directory.Entry, exists bool)
	// At returns the entry of a slot, if it exists and is reachable.
	At(s slot.Slot) (directory.Entry, bool)
	// PeerName returns a peer's name for output: id(nickname).
	PeerName(id peer.ID) string
}

// Config configures a Server. Names and Client are required.
type Config struct {
	// Domain is the mesh's own zone, with or without a final dot. Its labels consist of a-z, 0-9, -
	// and _. Default: DefaultDomain.
	Domain string
	// TTL of answers from Names, positive and negative, in whole seconds: 0 (do not cache) to MaxTTL.
	// New has no default for it; DefaultTTL is the default of the command line.
	TTL time.Duration
	// PreferLocal answers with the addresses of endpoints on this peer, Self, first.
	PreferLocal bool
	Self        peer.ID
	Names       Names
	// Client identifies the client of a packet or connection, for fair sharing. zone is the interface
	// of a link-local source, and remote has no zone. If ok is false, the source gets no answer, not
	// even a refusal. It is called for every packet.
	Client func(remote netip.AddrPort, zone string) (client Client, ok bool)
	// ResolvConf is the file with the servers for all other names. It is checked every second.
	// Default: DefaultResolvConf.
	ResolvConf string
	// Forward has servers for a domain and the names below it. The longest matching domain wins; "."
	// matches all. Domains must not lie within Domain.
	Forward map[string][]netip.AddrPort
	// Own reports whether this server is reached at an address on port 53, apart from the addresses
	// of SetAddrs. Such upstreams are skipped.
	Own func(netip.Addr) bool
	// Port to listen on, UDP and TCP. Default: 53.
	Port uint16
	// Timeout is the time limit of one upstream. Default: DefaultTimeout. The whole query has 5 s.
	Timeout time.Duration
	// CacheEntries and CacheBytes limit the cache. Defaults: DefaultCacheEntries, DefaultCacheBytes.
	CacheEntries int
	CacheBytes   int
	// Forwarded is called with the time that each question took that needed an upstream. Default: none.
	Forwarded func(time.Duration)
	Log       *slog.Logger // default: none
}

// Server is a name server. New returns one.
type Server struct {
	cfg       Config
	port      uint16
	hostPort  uint16 // the port of the servers in resolv.conf
	budget    time.Duration
	authority authority
	cache     *cache
	upstreams atomic.Pointer[upstreams]
	addrs     atomic.Pointer[[]netip.Addr] // the addresses to listen on
	wake      chan struct{}                // signals that the addresses changed
	forwards  sharing
	conns     sharing
	tasks     *workers // goroutines that Run waits for
	counts    counts

	mu       sync.Mutex
	flights  map[key]*flight
	sockets  []Socket
	confFail string
}

// New checks cfg. It starts nothing; Run does.
func New(cfg Config) (*Server, error) {
	if cfg.Names == nil || cfg.Client == nil {
		return nil, errors.New("dns: Names and Client are needed")
	}
	domain, rules, err := cfg.checked()
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = DefaultResolvConf
	}
	if cfg.Forwarded == nil {
		cfg.Forwarded = func(time.Duration) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, port: cmp.Or(cfg.Port, port), hostPort: port, budget: budget,
		cache:    newCache(cmp.Or(cfg.CacheEntries, DefaultCacheEntries), cmp.Or(cfg.CacheBytes, DefaultCacheBytes)),
		wake:     make(chan struct{}, 1),
		forwards: sharing{limits: forwards},
		conns:    sharing{limits: conns},
		flights:  map[key]*flight{},
		tasks:    newWorkers(),
	}
	s.cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	s.authority = authority{
		domain: domain, ttl: uint32(cfg.TTL / time.Second), preferLocal: cfg.PreferLocal,
		self: cfg.Self, names: cfg.Names, nodes: s.nodes,
	}
	s.addrs.Store(new([]netip.Addr))
	s.upstreams.Store(&upstreams{rules: rules})
	return s, nil
}

// Check reports invalid values that users can choose: Domain, TTL and Forward.
func (c Config) Check() error {
	_, _, err := c.checked()
	return err
}

// checked returns the domain with a final dot, and the servers of other domains.
func (c Config) checked() (domain string, rules map[string][]*upstream, err error) {
	domain = dns.CanonicalName(cmp.Or(c.Domain, DefaultDomain))
	if err := checkDomain(domain); err != nil {
		return "", nil, fmt.Errorf("domain %q: %w", c.Domain, err)
	}
	if c.TTL < 0 || c.TTL > MaxTTL || c.TTL%time.Second != 0 {
		return "", nil, fmt.Errorf("TTL %v: want whole seconds from 0s to %v", c.TTL, MaxTTL)
	}
	rules, err = checkForward(c.Forward, domain)
	return domain, rules, err
}

// checkDomain reports why a fully qualified name cannot be the mesh's domain.
func checkDomain(domain string) error {
	if err := directory.CheckName(strings.TrimSuffix(domain, ".")); err != nil {
		return err
	}
	if zone, ok := isSpecial(domain); ok {
		return fmt.Errorf("names below %s are reserved and have a meaning of their own: take weft.internal, or a domain of yours", zone)
	}
	if _, _, ok := spelled(domain); ok || domain == "arpa." {
		return errors.New("arpa. is reserved for names of addresses: take weft.internal, or a domain of yours")
	}
	if len(domain) > maxDomain {
		return fmt.Errorf("it is too long: at most %d bytes leave room for names", maxDomain-1)
	}
	return nil
}

// maxDomain is the maximum length of the domain with its final dot, in bytes.
const maxDomain = 128

// nodes returns the addresses that the server listens on.
func (s *Server) nodes() []netip.Addr { return *s.addrs.Load() }

// SetAddrs sets the addresses of this node, on which the server listens over UDP and TCP. Run binds to
// them as soon as possible, and closes the sockets of former addresses. They are also the addresses of
// ns.dns.DOMAIN.
func (s *Server) SetAddrs(addrs []netip.Addr) {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	s.addrs.Store(&addrs)
	select {
	case s.wake <- struct{}{}:
	default: // a signal waits already, and Run will read the new addresses
	}
}

// Run serves until ctx ends, and then returns nil. It must be called only once.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.tasks.Wait()
	defer cancel()
	open := map[netip.Addr]*socket{}
	defer func() {
		for _, so := range open {
			so.close()
		}
	}()
	conf := resolvConf{path: s.cfg.ResolvConf}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.readConf(&conf)
		s.bind(ctx, open)
		s.upstreams.Load().all(func(_ string, u *upstream) { u.lines.close(time.Now()) })
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// readConf applies changes of resolv.conf.
func (s *Server) readConf(conf *resolvConf) {
	servers, changed, err := conf.changed()
	if !changed {
		return
	}
	why := ""
	switch {
	case err != nil:
		why = err.Error()
	case len(servers) == 0:
		why = conf.path + " has no nameserver line"
	}
	if why != "" {
		s.cfg.Log.Warn("no upstream name server for other names: only names of the mesh and of --dns-forward are answered; check resolv.conf", keyErr, why)
	}
	s.upstreams.Store(s.upstreams.Load().with(servers, s.hostPort))
	s.cache.clear() // other servers may know other names, for example of a company's network
	s.mu.Lock()
	s.confFail = why
	s.mu.Unlock()
}
