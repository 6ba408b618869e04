package agent

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/mesh/topology"
	"weft/prog/api"
	"weft/prog/dns"
	"weft/prog/kube"
	"weft/prog/state"
	"weft/router"
	"weft/router/datapath"
	"weft/router/link"
)

// nodeKey is the allocation of the node address. It is no container's: those have a slash.
const nodeKey = "node"

// Agent is the daemon.
type Agent struct {
	opts   Options
	log    *slog.Logger
	token  secret.Token
	keys   state.Keys
	public wgtypes.Key
	store  *state.Store
	mesh   *mesh.Mesh
	ipam   *ipam.Allocator
	router *router.Router
	kick   chan struct{} // something changed: reconcile now
	named  chan struct{} // what the directory says of this host may have changed
	view   atomic.Pointer[view]

	directory *mesh.Directory
	documents *mesh.Documents
	kube      *kube.Source // nil outside Kubernetes, as is cluster
	cluster   *kubeCluster
	policies  policies
	policed   chan struct{} // policies or endpoints may have changed
	drops     drops
	ports     ports
	hearing   hearing
	dns       *dns.Server // nil where there is to be none

	stop context.CancelFunc

	lostNode chan struct{}                     // the node address was taken over
	mtu      atomic.Int64                      // of the device, and of containers that are attached now
	tunnels  atomic.Pointer[[]topology.Tunnel] // as last planned
	cni      atomic.Pointer[api.CNI]           // as it was installed; nil: not yet, or not at all
	ipv6     bool
	started  time.Time
	turned   atomic.Pointer[time.Time] // when the reconciler last came round

	host    surroundings
	applied bool                  // the data path was set up once; of reconcile's goroutine
	strays  map[string]netip.Addr // links that the state does not know, until their addresses are kept

	order      []netip.Addr // of this host's addresses, see link.Order
	advertised netip.Addr   // where gossip tells the others to answer
	movedAt    time.Time    // since when that is none of this host's addresses

	releasing sync.Mutex // held while queued releases are done
	changing  sync.Mutex // held while settings are changed

	ended ended // attachments that Docker's containers lost

	mu        sync.Mutex
	node      slot.Slot
	settings  settings
	endpoints map[string]*endpointRecord // by api.EndpointRef.Key
	changes   uint64                     // of endpoints
	busy      map[string]chan struct{}   // keys being attached or detached
	notReady  string                     // why; empty once ready
	waiting   bool                       // to be told which network this host belongs to
}

// settings are what the operator changes at run time.
type settings struct {
	Exposed bool           `json:"exposed"`
	Exclude []netip.Prefix `json:"exclude,omitempty"` // as last given
	Names   []givenName    `json:"names,omitempty"`
	// Withdrawn are the keys of endpoints whose own names nobody is to find while they run.
	Withdrawn []string `json:"withdrawn,omitempty"`
	// Founding is what the cluster's Secret said when this host made its ring; no operator's.
	Founding *kube.Founding `json:"founding,omitempty"`
}

// New makes an agent; Run starts it.
func New(opts Options) *Agent {
	return &Agent{
		opts: opts, log: opts.Log, kick: make(chan struct{}, 1), named: make(chan struct{}, 1), policed: make(chan struct{}, 1), lostNode: make(chan struct{}, 1),
		endpoints: map[string]*endpointRecord{}, busy: map[string]chan struct{}{},
		notReady: "the agent is starting",
	}
}

// ErrMoved says that this host has another address now, and that its agent is to run
// anew: gossip cannot change the one that it advertises.
var ErrMoved = errors.New("this host has another address now")

// ErrTwin says that this host is a copy of another one, which goes on. It is not to be started
// again before somebody has looked.
var ErrTwin = mesh.ErrTwin

// settle is how long the advertised address is gone before the agent runs anew for another.
const settle = 30 * time.Second

// moved reports that the advertised address has been none of this host's for a while.
func (a *Agent) moved(addrs []netip.Addr, now time.Time) bool {
	switch {
	case slices.Contains(addrs, a.advertised):
		a.movedAt = time.Time{}
	case a.movedAt.IsZero():
		a.movedAt = now
	}
	return !a.movedAt.IsZero() && now.Sub(a.movedAt) >= settle
}

// Run serves until ctx ends or the operator stops the agent, or returns ErrMoved. The
// data path stays.
func (a *Agent) Run(ctx context.Context) (err error) {
	ctx, a.stop = context.WithCancel(ctx)
	defer a.stop()
	a.started = time.Now()
	if err := CheckPrivileges(); err != nil {
		return err
	}
	if a.opts.SysctlDir != "" {
		link.SetSysctlRoot(a.opts.SysctlDir)
	}
	if a.store, err = state.Open(a.opts.StateDir); err != nil {
		return err
	}
	defer func() { a.store.Close() }()
	control, err := listenSocket(a.opts.socket())
	if err != nil {
		return err
	}
	defer control.Close()
	status, err := a.listenStatus()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	front := newFront(a) // it may be long until there is something behind it
	notify("READY=1", "STATUS=starting")
	group.Go(func() error { return serve(ctx, control, front.all) })
	if status != nil {
		group.Go(func() error { return serve(ctx, status, front.readOnly) })
	}
	if err := a.prepare(ctx); err != nil {
		a.stop()
		return cmp.Or(group.Wait(), unlessStopped(err))
	}
	defer a.host.watch.Close()
	defer a.router.Close()
	front.open(a)
	a.runParts(ctx, group)
	stopDNS := a.serveDNS(ctx)
	err = group.Wait()
	stopDNS()
	if errors.Is(err, ErrTwin) {
		err = errors.Join(err, a.router.Disarm())
	}
	a.log.Info("agent ends", failure(err)...)
	return err
}

// failure is an error as the attribute of a log's line; of none there is no attribute.
func failure(err error) []any {
	if err == nil {
		return nil
	}
	return []any{"err", err}
}

// unlessStopped is the error of who was told to stop, or was not.
func unlessStopped(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// runParts starts all that an agent does.
func (a *Agent) runParts(ctx context.Context, group *errgroup.Group) {
	group.Go(func() error { return a.mesh.Run(ctx) })
	group.Go(func() error { return a.ipam.Run(ctx) })
	group.Go(func() error { return a.directory.Run(ctx) })
	group.Go(func() error { return a.documents.Run(ctx) })
	a.runCluster(ctx, group)
	group.Go(func() error { return a.publish(ctx) })
	group.Go(func() error { return a.police(ctx) })
	group.Go(func() error { return a.watchDrops(ctx) })
	group.Go(func() error { return a.watchPorts(ctx) })
	group.Go(func() error { return a.watchTable(ctx) })
	group.Go(func() error { return a.claimNode(ctx) })
	group.Go(func() error { return a.reconcile(ctx) })
	group.Go(func() error { return a.ended.follow(ctx) })
}

// prepare reads what is stored and makes the parts from it.
func (a *Agent) prepare(ctx context.Context) (err error) {
	if err := a.makeKeys(); err != nil {
		return err
	}
	if err := a.store.Settings(&a.settings); err != nil {
		return err
	}
	if a.opts.Exclude != nil {
		a.settings.Exclude = a.opts.Exclude
		if err := a.store.SaveSettings(a.settings); err != nil {
			return err
		}
	}
	if err := a.loadEndpoints(); err != nil {
		return err
	}
	if err := a.makeKube(); err != nil {
		return err
	}
	if err := a.bootstrap(ctx); err != nil {
		return err
	}
	targets, err := a.targets()
	if err != nil {
		return err
	}
	if a.token, err = readSecret(filepath.Join(a.opts.StateDir, SecretFile)); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	a.ipv6 = link.IPv6Enabled()
	if a.host.watch, err = link.OpenWatch(); err != nil {
		return err
	}
	found, elect, err := a.founding(ctx, targets)
	if err != nil {
		return err
	}
	if err := a.makeMesh(targets); err != nil {
		return err
	}
	if err := a.makeDirectory(); err != nil {
		return err
	}
	if err := a.makeDocuments(found != nil); err != nil {
		return err
	}
	if err := a.makeDNS(); err != nil {
		return err
	}
	a.makeIPAM(found, elect)
	return a.makeRouter()
}

func (a *Agent) makeKeys() (err error) {
	if a.keys, err = a.store.Keys(rand.Reader); err != nil {
		return err
	}
	private, err := wgtypes.NewKey(a.keys.WireGuard[:])
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	a.public = private.PublicKey()
	return nil
}

func (a *Agent) makeRouter() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	a.router = router.New(router.Options{
		Log: a.log, Watch: a.host.watch, Changing: a.store.SaveSysctl,
		StartDatapath: func(ctx context.Context) error {
			if a.opts.DatapathElsewhere {
				return datapath.Await(ctx)
			}
			return datapath.Start(ctx, exe, filepath.Join(a.opts.StateDir, "datapath.log"))
		},
	})
	return nil
}

// targets are those that are given now and those from before; what is new is kept.
func (a *Agent) targets() ([]string, error) {
	kept, _, err := a.store.Targets()
	if err != nil {
		return nil, err
	}
	for _, t := range a.opts.Targets {
		if err := mesh.CheckTarget(t); err != nil {
			return nil, err
		}
		if !slices.Contains(kept, t) {
			kept = append(kept, t)
		}
	}
	return kept, a.store.SaveTargets(kept)
}

func (a *Agent) self() peer.ID { return peer.IDOf(a.keys.Identity.Public().(ed25519.PublicKey)) }

func (a *Agent) makeMesh(targets []string) error {
	known, err := a.store.Peers()
	if err != nil {
		return err
	}
	a.order = lastOrder(known, a.self())
	addrs, err := a.underlay()
	if err != nil {
		return err
	}
	mtus, err := a.linkMTUs(addrs)
	if err != nil {
		return err
	}
	a.mtu.Store(int64(topology.SetMTUs(nil, int(mtus[0]), a.opts.MTU)))
	a.advertised = addrs[0]
	st, err := a.store.Load()
	if err != nil {
		return err
	}
	// Complete from the first word on: a record without a ring would end the tunnels
	// that the last agent left.
	record := peer.Record{
		WireGuard: a.public, Nickname: a.nickname(), Underlay: addrs, MTUs: mtus,
		Port: uint16(a.opts.Port), Gossip: uint16(a.opts.GossipPort), Node: st.Allocations[nodeKey],
		Host: a.ownNode().UID,
	}
	owners := map[peer.ID][]slot.Range{}
	if r, err := ring.Restore(st.Ring); err == nil {
		record.Ring, owners = r.ID[:], r.Owned()
	}
	a.mesh, err = mesh.New(mesh.Config{
		Identity:  a.keys.Identity,
		Record:    record,
		GossipKey: a.token.Secret.GossipKey(),
		Cluster:   a.token.Cluster,
		Universe:  a.opts.Universe.asked(),
		Targets:   targets,
		Peers:     known,
		Store:     a.store,
		Port:      a.opts.GossipPort,
		Log:       a.log,
		Changed:   a.changed,
		Owns: func(id peer.ID) bool {
			if v := a.view.Load(); v != nil {
				return len(v.owners[id]) > 0
			}
			return len(owners[id]) > 0
		},
	})
	return err
}

func (a *Agent) makeIPAM(found *ring.Ring, elect *ipam.Election) {
	a.ipam = ipam.New(ipam.Config{
		Self: a.self(), Store: a.store, Mesh: a.mesh, Log: a.log, Found: found, Elect: elect,
		Cluster: a.token.Cluster, Universe: a.opts.Universe.asked(), Excluded: a.settings.Exclude, Rest: a.opts.Rest,
		Held: a.directory.Taken, Listed: a.directory.Listed, Heard: a.heard, Changed: a.changed,
	})
	a.mesh.Replicate(a.ipam)
	a.mesh.Replicate(a.ipam.Votes())
	for kind, h := range a.ipam.Handlers() {
		a.mesh.Handle(kind, h)
	}
}

// lastOrder are this host's addresses as its last agent told them.
func lastOrder(known [][]byte, self peer.ID) []netip.Addr {
	for _, data := range known {
		if s, err := peer.Decode(data); err == nil && s.Record.ID() == self {
			return s.Record.Underlay
		}
	}
	return nil
}

// underlay is where other peers reach this host.
func (a *Agent) underlay() (addrs []netip.Addr, err error) {
	now, err := a.host.underlay(a.opts.Universe.asked())
	if err != nil {
		return nil, err
	}
	if own := a.ownNode().Addrs; len(own) > 0 {
		now = nil
		for _, addr := range own {
			now = append(now, link.HostAddr{Addr: addr})
		}
	}
	if a.order, addrs = link.Order(a.order, now); len(a.opts.Advertise) > 0 {
		addrs = a.opts.Advertise
	}
	if len(addrs) == 0 {
		return nil, errors.New("this host has no address that others could reach: give it one, or name it with --advertise ADDR")
	}
	return addrs, nil
}

// changed asks for a reconciliation. It never blocks: one that is asked for already will do.
func (a *Agent) changed() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// claimNode allocates the node address, as soon as there is a ring with space, and
// another one when that was taken over.
func (a *Agent) claimNode(ctx context.Context) error {
	for ctx.Err() == nil {
		s, err := a.ipam.Allocate(ctx, nodeKey, nil)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("no node address yet", "err", err)
				sleep(ctx, time.Second)
			}
			continue
		}
		a.setNode(s)
		select {
		case <-ctx.Done():
		case <-a.lostNode:
			if err := a.ipam.Free(ctx, nodeKey); err == nil {
				a.setNode(0)
			}
		}
	}
	return nil
}

func (a *Agent) setNode(s slot.Slot) {
	a.mu.Lock()
	a.node = s
	a.mu.Unlock()
	a.changed()
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
