// Package mesh is who is here: membership and dissemination over memberlist.
//
// It owns the peers, the first of the replicated states, and carries the others
// through the Replica interface. Gossip carries states, not messages: every
// replica can be merged in any order and any number of times, so a lost, late or
// repeated packet does no harm, and push/pull heals what gossip missed. Beside
// that there is one typed request and reply between two peers.
//
// All gossip is encrypted with a key derived from the cluster secret; records,
// requests and replies are also signed by the identity of the peer that they come
// from. Nothing from the network ends the mesh: what cannot be understood is
// counted, shown in status, and dropped.
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
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// Version of the protocol. Peers of another version refuse each other by name.
const Version = 1

// Port is where gossip listens, TCP and UDP, unless told otherwise.
const Port = 6783

// Replica is one replicated state. Its methods are called from several goroutines.
type Replica interface {
	// Name tells the states apart on the wire.
	Name() string
	// Full is the whole state, for push/pull; nil while there is none.
	Full() []byte
	// Merge takes in a state, whole or in part, and returns what was news, which
	// is passed on; nil if nothing was. An error is logged and ends nothing.
	Merge(data []byte) (news []byte, err error)
}

// Handler answers a request of another peer.
type Handler func(ctx context.Context, from peer.ID, payload []byte) ([]byte, error)

// Store keeps what the mesh must remember over a restart.
type Store interface {
	// SavePeers keeps records, or forgets those of whom it is nil.
	SavePeers(records map[peer.ID][]byte) error
	SaveTargets(targets []string) error
}

// Config is what a Mesh is made of.
type Config struct {
	Identity  ed25519.PrivateKey
	Record    peer.Record // this peer's record as it is at the start; the mesh numbers and signs it
	GossipKey []byte      // 32 bytes
	Cluster   [16]byte    // zero: any
	Universe  slot.Universe
	Targets   []string // hosts to join, as HOST or HOST:PORT
	Peers     [][]byte // records known from the last run
	Store     Store
	Port      int
	Log       *slog.Logger
	// Owns reports whether a peer owns a part of the ring: it is remembered however long it is
	// silent. It must not block, nor call the mesh. nil: nobody does.
	Owns func(peer.ID) bool
	// Changed is called after every change among the peers. It must not block.
	Changed func()
	// Transport replaces the network; for simulation.
	Transport memberlist.Transport
}

// Mesh is this peer's membership.
type Mesh struct {
	cfg      Config
	self     peer.ID
	name     string // in memberlist: PeerID and a start nonce, see nodeName
	list     *memberlist.Memberlist
	door     *door
	queue    *memberlist.TransmitLimitedQueue
	inbox    chan []byte
	started  chan struct{}
	replicas map[string]Replica
	handlers map[string]Handler

	mu         sync.Mutex
	peers      map[peer.ID]*known
	targets    map[string]*target
	hello      hello
	farewell   peer.State
	insisted   time.Time   // when we last contradicted the mesh about ourselves
	later      *time.Timer // until we do so again
	nonce      uint32      // of this run, in the ids of its requests
	asked      uint32      // requests made
	pending    map[uint64]chan reply
	rejections map[string]*Rejection
	rejected   time.Time  // when one was last logged
	copied     chan error // that another host has our identity, and had it first

	members members
	ways    ways

	proof proof      // who is alive, and that nobody else is us
	kept  remembered // the records, bounded
}

// known is what we know of one peer.
type known struct {
	signed peer.Signed
	size   int        // of that, in bytes
	saved  bool       // that is on disk
	node   string     // its name in memberlist while gossip reaches it, else empty
	addr   netip.Addr // where gossip reaches it
	since  time.Time  // when node last changed
	heard  time.Time  // when that was last so, or its record came
	met    bool       // it proved to be alive, since our start
	mute   muteness
	retry  backoff
	losses []loss
	turn   int                // of its addresses, which is to be joined next
	runs   map[string]*run    // all its runs that memberlist believes in, node among them
	asked  map[uint32]*window // what it asked us, by its run
}

// New makes a mesh; Run starts it. Replicas and handlers are added in between.
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
		hello:      hello{Version: Version, Cluster: cfg.Cluster, V4: cfg.Universe.V4},
		farewell:   peer.Stopped,
		nonce:      rand.Uint32(),
		pending:    map[uint64]chan reply{},
		rejections: map[string]*Rejection{},
		copied:     make(chan error, 1),
		proof:      newProof(),
		kept:       newRemembered(),
	}
	for _, t := range cfg.Targets {
		m.targets[t] = &target{}
	}
	cfg.Record.State = peer.Running
	m.keepKey(self, cfg.Record.WireGuard)
	for _, data := range cfg.Peers {
		s, err := peer.Decode(data)
		if err != nil { // of a newer version that allowed more; its peer says it again
			cfg.Log.Warn("a stored record is not readable", "err", err)
			continue
		}
		if id := s.Record.ID(); id == self {
			cfg.Record.Sequence = max(cfg.Record.Sequence, s.Record.Sequence)
		} else if err := m.keep(id, s, len(data)); err != nil {
			cfg.Log.Warn("a stored record is left out", "err", err)
		} else {
			m.peers[id].saved = true
		}
	}
	// Nobody can know a peer that is new, and nobody can be asked where there are no others.
	if len(m.peers) == 0 && (len(cfg.Record.Ring) == 0 || len(cfg.Targets) == 0) {
		m.proof.confirmed = true
		close(m.proof.sure)
	}
	own, err := peer.Sign(cfg.Record, cfg.Identity)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	m.peers[self] = &known{signed: own}
	m.ways.others = m.recorded
	m.Replicate(peersReplica{m})
	m.Handle(requestForget, m.serveForget)
	return m, nil
}

// nodeName is the name under which memberlist knows one run of one peer.
// memberlist refuses a known name at a new address until the old one is long
// dead, so every start has a name of its own. Of two runs, the later one's is the
// greater.
func nodeName(id peer.ID, start time.Time) string {
	return fmt.Sprintf("%v-%012x%08x", id, start.UnixMilli(), rand.Uint32())
}

// Self is this peer's id.
func (m *Mesh) Self() peer.ID { return m.self }

// Replicate adds a replicated state; before Run only.
func (m *Mesh) Replicate(r Replica) { m.replicas[r.Name()] = r }

// Handle answers requests of one kind; before Run only.
func (m *Mesh) Handle(kind string, h Handler) { m.handlers[kind] = h }

// Run joins and serves until ctx ends, then says goodbye. It owns all goroutines
// of the mesh, but for memberlist's own.
func (m *Mesh) Run(ctx context.Context) error {
	// Every run speaks under a number of its own, or its word would not count as new.
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
	door, err := m.transport(ctx, conf)
	if err == nil {
		conf.Transport, m.door = door, door
		if m.list, err = memberlist.Create(conf); err != nil {
			_ = door.Shutdown()
		}
	}
	if err != nil {
		if strings.Contains(err.Error(), "address already in use") {
			return fmt.Errorf("mesh: port %d is taken by another program; find it with `ss -lntup sport = :%d`, or use --port: %w", m.cfg.Port, m.cfg.Port, err)
		}
		return fmt.Errorf("mesh: %w", err)
	}
	close(m.started)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.prove(ctx) })
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

// running reports whether memberlist is there to be used.
func (m *Mesh) running() bool {
	select {
	case <-m.started:
		return true
	default:
		return false
	}
}

// listConfig is memberlist's configuration.
func (m *Mesh) listConfig() (*memberlist.Config, error) {
	conf := memberlist.DefaultLANConfig()
	conf.Name = m.name
	conf.BindAddr, conf.BindPort, conf.AdvertisePort = bindAddress(), m.cfg.Port, m.cfg.Port
	own := m.Own()
	if len(own.Underlay) == 0 {
		return nil, errors.New("mesh: this host has no address that others could reach; give it one, or name it with --advertise")
	}
	conf.AdvertiseAddr = own.Underlay[0].String()
	keyring, err := memberlist.NewKeyring(nil, m.cfg.GossipKey)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	conf.Keyring = keyring
	conf.TCPTimeout = streamTimeout
	conf.RetransmitMult = retransmits
	conf.EnableCompression = false // LZW makes what is mostly keys and signatures longer, by up to a half
	conf.GossipToTheDeadTime = 10 * time.Second
	conf.Delegate = delegate{m}
	conf.Events = events{m}
	conf.Merge = gate{m}
	conf.Alive = gate{m}
	conf.Logger = m.listLogger()
	return conf, nil
}

// transport is the network, behind the door.
func (m *Mesh) transport(ctx context.Context, conf *memberlist.Config) (*door, error) {
	t := m.cfg.Transport
	if t == nil {
		var err error
		t, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{conf.BindAddr}, BindPort: conf.BindPort, Logger: conf.Logger})
		if err != nil {
			return nil, err
		}
	}
	return newDoor(t, &m.ways, m.cfg.GossipKey, m.reject, func(s *stream) bool { return m.answer(ctx, s) })
}

// bindAddress is the wildcard of both families, or of IPv4 where there is no IPv6.
func bindAddress() string {
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		return "0.0.0.0"
	}
	l.Close()
	return "::"
}

// SetHello tells peers that join what they must agree with.
func (m *Mesh) SetHello(cluster [16]byte, u slot.Universe) {
	next := hello{Version: Version, Cluster: cluster, V4: u.V4}
	m.mu.Lock()
	changed := m.hello != next
	m.hello = next
	m.mu.Unlock()
	if changed && m.running() {
		go m.list.UpdateNode(time.Second) //nolint:errcheck // gossip repeats it
	}
}
