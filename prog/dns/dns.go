// Package dns is the mesh's name server. Every host has one, on its node address, and it
// answers from what that host knows: for a container, asking a name costs no more than a
// way into the kernel and back, and goes on while the rest of the mesh is away.
//
// A packet takes one of three ways. For the domain (weft.internal) and for the reverse
// zones of the universe the server is the authority: answer.go is a function of the
// question and the directory, which is why nothing of it is ever cached or stale. What
// other servers said before comes from the cache, ready on the wire, so that only the id,
// the name as the client spells it and the TTLs are put in. Both happen where the packet
// was read. Everything else is forwarded to the servers of the host's resolv.conf, or to
// those that Config.Forward names for a domain; that takes time, so each such question
// gets a goroutine, of which there is a bounded number, shared fairly among clients (see
// sharing).
//
// The names, NAME being what an endpoint is called and DOMAIN the domain:
//
//	NAME.DOMAIN                    A, AAAA of the endpoints; TXT: the peer and the id of each
//	ADDRESS.NAME.DOMAIN            one of them; ADDRESS has dashes: 10-32-0-5, fd00-77ef--5.
//	                               Both addresses of that interface, whichever was named
//	_PORT._PROTOCOL.NAME.DOMAIN    SRV for a port that endpoints declare; targets as above
//	*.in-addr.arpa, *.ip6.arpa     PTR for addresses of the universe, NAMESPACE's name first
//	DOMAIN, the reverse zones      SOA, and NS: ns.dns.DOMAIN, the addresses of this node
//
// A name that exists while none of its endpoints can be reached has no data, and so has an
// endpoint's address that has no name. While the universe is not known, the domain's
// names get SERVFAIL: nothing is known to be missing. localhost. is answered here
// (RFC 6761), names below invalid. and onion. do not exist; a rule of Config.Forward goes
// before that. local. is forwarded like any other name (see special).
//
// The server is no open resolver: it binds to the node addresses only, and Config.Client
// decides about every packet and every connection. Who is no client gets silence.
//
// It does not check signatures: AD is never set, and the records that a client needs to
// check for itself are passed on when it sets DO. Of what an upstream says, only what
// answers the question is passed on (see believe). Answers that do not fit the client's
// UDP size are left out whole, with TC set, for it to ask again over TCP.
//
// New does nothing but check; Run owns all goroutines, sockets and files. All methods can
// be called from anywhere at any time. No lock is held while a function of Config is called.
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

// Bounds on what goes on at a time.
const (
	port        = 53
	budget      = 5 * time.Second // for one question to all upstreams; resolvers give up after that
	forwardsOf  = 100
	connsOf     = 20
	idleTimeout = 10 * time.Second
)

var (
	forwards = limits{most: 1000, remote: 500, host: 200, each: forwardsOf} // questions that wait for an upstream
	conns    = limits{most: 200, remote: 100, host: 40, each: connsOf}      // TCP connections
)

// Names is where answers come from. Its methods are called for every question, from many
// goroutines, and must not wait. Entries are not changed by the server.
type Names interface {
	// Universe is zero while it is not known.
	Universe() slot.Universe
	// Lookup lists the entries that have a name, and says whether the name exists at all. The
	// name is relative to the domain and in lower case: "web", "web.prod". A name also exists
	// when there is one below it ("prod": RFC 8020), and when all its entries are on peers
	// that cannot be reached now, which are not listed.
	Lookup(name string) (entries []directory.Entry, exists bool)
	// At is the entry that holds a slot, if there is one and it can be reached.
	At(s slot.Slot) (directory.Entry, bool)
	// PeerName is how people see a peer: id(nickname).
	PeerName(id peer.ID) string
}

// Config is what a server is made of. Names and Client are needed.
type Config struct {
	// Domain is the zone that the mesh answers for, with or without a final dot: labels of
	// a-z, 0-9, - and _. Default: DefaultDomain.
	Domain string
	// TTL of what is answered from Names, positive and negative, in whole seconds: 0, which is
	// "ask every time", to MaxTTL. New takes it as it is; DefaultTTL is what to offer people.
	TTL time.Duration
	// PreferLocal puts the addresses of endpoints on this peer, Self, before all others.
	PreferLocal bool
	Self        peer.ID
	Names       Names
	// Client names who asks, for sharing between clients, from the source of a packet or a
	// connection; zone is the interface of a link-local source, and remote is without it.
	// Who is not ok gets no answer, not even a refusal. Called for every packet.
	Client func(remote netip.AddrPort, zone string) (client Client, ok bool)
	// ResolvConf is the file that names the servers for everything else, looked at every
	// second. Default: DefaultResolvConf.
	ResolvConf string
	// Forward has servers for single domains and what is below them; the longest domain that
	// fits counts, "." fits all. It cannot have domains within Domain.
	Forward map[string][]netip.AddrPort
	// Own reports whether this server is reached at an address on port 53, besides those
	// given to SetAddrs. Such an upstream is left out.
	Own func(netip.Addr) bool
	// Port to listen on, UDP and TCP. Default: 53.
	Port uint16
	// Timeout is how long one upstream has for one answer. Default: DefaultTimeout; the
	// question as a whole has 5 s.
	Timeout time.Duration
	// CacheEntries and CacheBytes bound the cache. Defaults: DefaultCacheEntries, DefaultCacheBytes.
	CacheEntries int
	CacheBytes   int
	Log          *slog.Logger // default: none
}

// Server is a name server. New makes one.
type Server struct {
	cfg       Config
	port      uint16
	hostPort  uint16 // of the servers in resolv.conf
	budget    time.Duration
	authority authority
	cache     *cache
	upstreams atomic.Pointer[upstreams]
	addrs     atomic.Pointer[[]netip.Addr] // to listen on
	wake      chan struct{}                // the addresses changed
	forwards  sharing
	conns     sharing
	tasks     *crew // what Run waits for
	counts    counts

	mu       sync.Mutex
	flights  map[key]*flight
	sockets  []Socket
	confFail string
}

// New checks cfg. Nothing happens before Run.
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
		tasks:    newCrew(),
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

// Check reports what cannot be in what people choose: Domain, TTL and Forward.
func (c Config) Check() error {
	_, _, err := c.checked()
	return err
}

// checked is the domain with its final dot, and the servers for other ones.
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
		return fmt.Errorf("names below %s have a meaning of their own: take weft.internal, or a domain of yours", zone)
	}
	if _, _, ok := spelled(domain); ok || domain == "arpa." {
		return errors.New("this is where names of addresses are: take weft.internal, or a domain of yours")
	}
	if len(domain) > maxDomain {
		return fmt.Errorf("at most %d bytes leave room for names", maxDomain-1)
	}
	return nil
}

// maxDomain is how long the domain may be with its final dot, bytes.
const maxDomain = 128

// nodes are the addresses that the server is reached at.
func (s *Server) nodes() []netip.Addr { return *s.addrs.Load() }

// SetAddrs says where to listen: the addresses of this node, on Config.Port, UDP and TCP.
// Run binds to them as soon as that is possible, and leaves others. They are the addresses
// of ns.dns.DOMAIN, too.
func (s *Server) SetAddrs(addrs []netip.Addr) {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	s.addrs.Store(&addrs)
	select {
	case s.wake <- struct{}{}:
	default: // Run looks anyway
	}
}

// Run serves until ctx ends, and returns nil then. It is called once.
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

// readConf takes over what resolv.conf says, if that is something new.
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
		why = conf.path + " names no server"
	}
	if why != "" {
		s.cfg.Log.Warn("only names of the mesh and of forwarded domains are answered", keyErr, why)
	}
	s.upstreams.Store(s.upstreams.Load().with(servers, s.hostPort))
	s.cache.clear() // other servers may know other names, those of a company's network for example
	s.mu.Lock()
	s.confFail = why
	s.mu.Unlock()
}
