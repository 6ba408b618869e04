// Package mesh provides membership and dissemination over memberlist.
//
// A Mesh owns the records of all peers, the first of the replicated states, and carries the other
// states through the Replica interface. Gossip carries states, not messages. Every state can be
// merged in any order and any number of times, so late or repeated packets do no harm. Push/pull
// delivers the updates that gossip lost. In addition, two peers can exchange a typed request and
// reply.
//
// All gossip travels in sessions between two proven identities (mesh/session), and a peer needs a
// certificate of the cluster's root key. Records, requests and replies are also signed by the identity of
// their peer. A Mesh is safe for concurrent use. Nothing that
// arrives from the network ends it: an invalid message is counted, shown in status and dropped.
package mesh

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"weft/ipam/slot"
	"weft/mesh/judge"
	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/session"
)

// Version is the version of the protocol. Peers with different versions refuse each other.
const Version = 2

// Port is the default port of gossip, TCP and UDP.
const Port = 6783

// Replica is one replicated state. Its methods are called from several goroutines.
type Replica interface {
	// Name identifies the state on the wire.
	Name() string
	// Full returns the whole state for push/pull; nil if there is none.
	Full() []byte
	// Merge merges a state or a part of a state. It returns the news, which are passed on to other
	// peers; nil if there are none. An error is logged and has no other effect.
	Merge(data []byte) (news []byte, err error)
}

// Handler answers a request from another peer.
type Handler func(ctx context.Context, from peer.ID, payload []byte) ([]byte, error)

// Store persists the data that the mesh needs after a restart.
type Store interface {
	// SavePeers stores records by peer. A nil value deletes the peer's record.
	SavePeers(records map[peer.ID][]byte) error
	SaveTargets(targets []string) error
}

// Config configures a Mesh.
type Config struct {
	Identity ed25519.PrivateKey
	Record   peer.Record // this peer's initial record; the mesh numbers and signs it
	// Root certifies the members of the cluster, Certificate this host (mesh/member).
	Root        ed25519.PublicKey
	Certificate []byte
	GossipKey   []byte // only to tell hosts of older versions why they are refused; nil: without the secret
	Universe    slot.Universe
	Targets     []string // hosts to join, as HOST or HOST:PORT
	Peers       [][]byte // stored records of other peers
	Store       Store
	Port        int
	Log         *slog.Logger
	// Admit decides about a host that proved to have a token; nil: this host admits nobody.
	Admit func(Applicant) (Admission, error)
	// Banned returns why a member is banned, or nil. It must not block or call the mesh. If it is nil,
	// nobody is banned.
	Banned func(member.Member) error
	// Owns reports whether a peer owns a part of the ring. Such a peer is never forgotten. Owns
	// must not block or call the mesh. If it is nil, no peer owns anything.
	Owns func(peer.ID) bool
	// Best returns the underlay address at which the tunnel to a peer works best; zero: unknown. Inside returns
	// the peer's own addresses inside the tunnel, which gossip uses if it reaches no other one; empty: there
	// is no tunnel. Neither may block or call the mesh, and both may be nil.
	Best   func(peer.ID) netip.Addr
	Inside func(peer.ID) []netip.Addr
	// Relays returns other peers in a row over which a peer is reached that does not answer directly; empty: none. NoRelay
	// means that this host passes nothing on for others.
	Relays  func(peer.ID) []peer.ID
	NoRelay bool
	// NoDiscovery means that this host connects only to its targets. It reaches others through their tunnels.
	NoDiscovery bool
	// Changed is called after every change to any peer. It must not block.
	Changed func()
	// Transport replaces the network, for simulation.
	Transport memberlist.Transport
}

// Mesh is this host's view of all peers, and its connection to them.
type Mesh struct {
	cfg       Config
	self      peer.ID
	name      string // this run's name in memberlist, see nodeName
	list      *memberlist.Memberlist
	transport *session.Transport
	judge     *judge.Judge
	queue     *memberlist.TransmitLimitedQueue
	outgoing  outgoing
	inbox     chan []byte
	queued    atomic.Int64 // bytes of large messages in inbox
	started   chan struct{}
	replicas  map[string]Replica
	handlers  map[string]Handler

	mu         sync.Mutex
	peers      map[peer.ID]*known
	targets    map[string]*target
	hello      hello
	announced  hello // the greeting that memberlist announces: hello, or an earlier one
	farewell   peer.State
	refuted    time.Time   // when we last refuted a newer record of this peer
	later      *time.Timer // runs a refutation that is pending
	nonce      uint32      // identifies this run in the ids of its requests
	asked      uint32      // number of requests that this run has sent
	pending    map[uint64]chan reply
	rejections map[string]*Rejection
	rejected   time.Time   // when a rejection was last logged
	moved      chan string // runs whose packets were lost for a while, see lostPackets
	copied     chan error  // receives the error if an older host has our identity

	renewal  chan struct{} // wakes renew
	members  members
	verified verified
	doubts   doubts
	budget   budget

	proof proof      // which runs are alive, and whether our identity is unique
	kept  remembered // bounds and bookkeeping of the records
}

// known is the state of one peer.
type known struct {
	signed peer.Signed
	size   int        // bytes of signed
	saved  bool       // whether signed is on disk
	holder bool       // whether the peer holds the secret
	node   string     // its name in memberlist while gossip reaches it, else empty
	addr   netip.Addr // the address at which gossip reaches the peer
	since  time.Time  // when node last changed
	heard  time.Time  // when gossip last reached the peer, or its record arrived
	met    bool       // whether the peer proved to be alive since our start
	mute   muteness
	retry  backoff
	losses []loss
	turn   int                // index of the address to try first at the next join
	runs   map[string]*run    // all runs of the peer that memberlist reports, including node
	asked  map[uint32]*window // the requests received from the peer; key: the nonce of the run that sent them
}

// New returns a Mesh; Run starts it. Add replicas and handlers in between.
func New(cfg Config) (*Mesh, error) {
	self := peer.IDOf(cfg.Identity.Public().(ed25519.PublicKey))
	m := &Mesh{
		cfg:        cfg,
		self:       self,
		name:       nodeName(self, time.Now()),
		inbox:      make(chan []byte, 1024),
		started:    make(chan struct{}),
		replicas:   map[string]Replica{},
		handlers:   map[string]Handler{},
		peers:      map[peer.ID]*known{},
		targets:    map[string]*target{},
		hello:      hello{Version: Version, V4: cfg.Universe.V4, Certificate: cfg.Certificate, Ceiling: ceilingStep},
		announced:  hello{Ceiling: ceilingStep},
		renewal:    make(chan struct{}, 1),
		farewell:   peer.Stopped,
		nonce:      rand.Uint32(),
		pending:    map[uint64]chan reply{},
		rejections: map[string]*Rejection{},
		moved:      make(chan string, 64),
		copied:     make(chan error, 1),
		proof:      newProof(),
		kept:       newRemembered(),
	}
	for _, t := range cfg.Targets {
		m.targets[t] = &target{}
	}
	cfg.Record.State, cfg.Record.Certificate = peer.Running, cfg.Certificate
	m.keepKey(self, cfg.Record.WireGuard)
	for _, data := range cfg.Peers {
		s, err := peer.Decode(data)
		if err != nil { // written by a newer version; its peer sends it again
			cfg.Log.Warn("ignoring an unreadable stored peer record: the peer will send its record again", "err", err)
			continue
		}
		if id := s.Record.ID(); id == self {
			cfg.Record.Sequence = max(cfg.Record.Sequence, s.Record.Sequence)
		} else if err := m.keep(id, s, len(data)); err != nil {
			cfg.Log.Warn("ignoring a stored peer record", "err", err)
		} else {
			m.peers[id].saved = true
		}
	}
	// A new peer cannot have a copy elsewhere, and without other peers there is no peer to ask
	// whether there is a copy.
	if len(m.peers) == 0 && (len(cfg.Record.Ring) == 0 || len(cfg.Targets) == 0) {
		m.proof.confirmed = true
		close(m.proof.sure)
	}
	own, err := peer.Sign(cfg.Record, cfg.Identity)
	if err != nil {
		return nil, fmt.Errorf("mesh: signing this host's record: %w", err)
	}
	m.peers[self] = &known{signed: own}
	m.judge = judge.New(rules{m})
	m.Replicate(peersReplica{m})
	m.Handle(requestForget, m.serveForget)
	return m, nil
}

// nodeName returns the name of one run of a peer in memberlist. A run lasts from one start of the
// agent to its end. memberlist refuses a known name at a new address for a long time, so every run
// has its own name. A later run has a greater name.
func nodeName(id peer.ID, start time.Time) string {
	return fmt.Sprintf("%v-%012x%08x", id, start.UnixMilli(), rand.Uint32())
}

// Self returns this peer's id.
func (m *Mesh) Self() peer.ID { return m.self }

// Replicate adds a replicated state. Call it before Run.
func (m *Mesh) Replicate(r Replica) { m.replicas[r.Name()] = r }

// Handle sets the handler of one kind of requests. Call it before Run.
func (m *Mesh) Handle(kind string, h Handler) { m.handlers[kind] = h }

// Run joins the mesh and serves until ctx ends, then announces that this peer leaves. Run owns all
// goroutines of the mesh, except those of memberlist.
func (m *Mesh) Run(ctx context.Context) error {
	// Every run needs a new sequence number: peers ignore a record that is not newer.
	if err := m.update(func(*peer.Record) {}); err != nil {
		return err
	}
	conf, err := m.listConfig()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.proof.start, m.proof.advertised = time.Now(), m.peers[m.self].signed.Record.Underlay[0]
	m.mu.Unlock()
	m.queue = &memberlist.TransmitLimitedQueue{RetransmitMult: retransmits, NumNodes: m.reachableCount}
	if m.transport, err = m.newTransport(ctx, conf); err == nil {
		m.outgoing.listen()
		conf.Transport = m.transport
		if m.list, err = memberlist.Create(conf); err != nil {
			_ = m.transport.Shutdown()
		}
	}
	if err != nil {
		if strings.Contains(err.Error(), "address already in use") {
			return fmt.Errorf("mesh: port %d is in use by another program: find it with `ss -lntup sport = :%d`, or use --port: %w", m.cfg.Port, m.cfg.Port, err)
		}
		return fmt.Errorf("mesh: starting gossip: %w", err)
	}
	close(m.started)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.prove(ctx) })
	group.Go(func() error { return m.renew(ctx) })
	group.Go(func() error { return m.exchange(ctx) })
	group.Go(func() error { return m.remember(ctx) })
	group.Go(func() error { return m.consume(ctx) })
	group.Go(func() error { return m.rejoin(ctx, false) })
	group.Go(func() error { return m.rejoin(ctx, true) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case err := <-m.copied:
			return err
		}
	})
	err = group.Wait()
	m.mu.Lock()
	if m.later != nil {
		m.later.Stop()
	}
	m.mu.Unlock()
	m.leave(err)
	return err
}

// running reports whether memberlist has started.
func (m *Mesh) running() bool {
	select {
	case <-m.started:
		return true
	default:
		return false
	}
}

// listConfig returns memberlist's configuration.
func (m *Mesh) listConfig() (*memberlist.Config, error) {
	conf := memberlist.DefaultLANConfig()
	conf.Name = m.name
	conf.BindAddr, conf.BindPort, conf.AdvertisePort = bindAddress(), m.cfg.Port, m.cfg.Port
	own := m.Own()
	if len(own.Underlay) == 0 {
		return nil, errors.New("mesh: this host has no address that other hosts can reach: configure one, or set it with --advertise")
	}
	conf.AdvertiseAddr = own.Underlay[0].String()
	conf.UDPBufferSize -= session.Overhead
	conf.TCPTimeout = streamTimeout
	conf.RetransmitMult = retransmits
	conf.EnableCompression = false // LZW enlarges messages of keys and signatures by up to a half
	conf.GossipToTheDeadTime = 10 * time.Second
	conf.PushPullInterval = pushPull
	conf.Delegate = delegate{m}
	conf.Events = events{m}
	conf.Merge = gate{m}
	conf.Alive = gate{m}
	conf.Logger = m.listLogger()
	return conf, nil
}

// bindAddress returns the IPv6 wildcard, which also covers IPv4, or 0.0.0.0 without IPv6.
func bindAddress() string {
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		return "0.0.0.0"
	}
	l.Close()
	return "::"
}

// SetHello sets the universe that joining peers must share with this one.
func (m *Mesh) SetHello(u slot.Universe) {
	m.mu.Lock()
	changed := m.hello.V4 != u.V4
	m.hello.V4 = u.V4
	m.mu.Unlock()
	if changed {
		m.renewHello()
	}
}
