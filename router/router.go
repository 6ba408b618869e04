// Package router is how packets travel: it takes the whole desired state of this
// host's data path and makes the kernel match.
//
//	guard, unreachable routes → device → tunnels → addresses, routes → endpoints
//
// The order is the promise: what keeps packets from leaving in plaintext is in
// force before anything that could carry one, and stays when the agent goes.
// Apply tolerates repeats and repairs what others broke. A Router is safe for
// concurrent use; one change is made at a time.
package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"weft/ipam/slot"
	"weft/mesh/topology"
	"weft/router/datapath"
	"weft/router/endpoint"
	"weft/router/link"
	"weft/router/nft"
	"weft/router/policy"
	"weft/router/wg"
)

// Options are what a Router is made of.
type Options struct {
	Log *slog.Logger
	// StartDatapath runs the userspace process and returns once it answers.
	StartDatapath func(context.Context) error
	// Watch spares Apply to read all links and routes when none has changed; nil: it reads them each time.
	Watch *link.Watch
	// Changing hears of a sysctl before it is changed, once, with the value that it has; nil: nobody does.
	Changing func(name, was, set string) error
}

// Config is the data path as it should be.
type Config struct {
	Universe   slot.Universe
	Node       slot.Slot // 0: none yet
	PrivateKey [32]byte
	Port       uint16
	Gossip     uint16 // the port of gossip, TCP and UDP; 0: a firewall's is not looked at
	MTU        int    // of the device; a tunnel's may be smaller
	Own        []slot.Range
	Tunnels    []topology.Tunnel
	Endpoints  []endpoint.Endpoint
	Exposed    bool
	Hosts      nft.Hosts
	Resolver   bool // a name server listens on the node addresses
	Exempt     nft.Exempt
	IPv6       bool
	// Unconfirmed leaves WireGuard as it is: another host may have our key.
	Unconfirmed bool
}

// NodeAddrs are the node addresses, IPv4 first; none while there is no slot.
func (c Config) NodeAddrs() (out []netip.Addr) {
	v4, v6 := c.node()
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// String keeps the keys out of logs; Format verbs use it.
func (c Config) String() string {
	return fmt.Sprintf("data path of %v in %v: %d tunnels, %d endpoints", c.Node, c.Universe, len(c.Tunnels), len(c.Endpoints))
}

// GoString is String: %#v shows no keys either.
func (c Config) GoString() string { return c.String() }

// node is the node address of either family; invalid where there is none.
func (c Config) node() (v4, v6 netip.Addr) {
	if c.Node == 0 {
		return v4, v6
	}
	v4 = c.Universe.Addr4(c.Node)
	if c.IPv6 {
		v6 = c.Universe.Addr6(c.Node)
	}
	return v4, v6
}

// limits are what goes through tunnels that carry less than the device's MTU.
func (c Config) limits() (out []link.Limit) {
	for _, t := range c.Tunnels {
		for _, p := range t.AllowedIPs {
			if mtu := t.MTUFor(p.Addr().Is6()); t.MTU != 0 && mtu < c.MTU {
				out = append(out, link.Limit{To: p, MTU: mtu})
			}
		}
	}
	return out
}

// Router is this host's data path.
type Router struct {
	opts   Options
	warned kept

	mu      sync.Mutex
	kernel  nft.Kernel
	builder nft.Builder
	device  *wg.Device
	applied Config
	right   uint64          // version of the links and routes that were found to be as applied says; 0: none
	policy  *policy.Program // nil: not known yet
}

// New makes a router; it touches nothing yet.
func New(opts Options) *Router {
	return &Router{opts: opts, device: wg.New(opts.StartDatapath)}
}

// ErrNoPolicies says that Enforce was not called yet: the rules of an earlier agent may be in
// force, and would be lost.
var ErrNoPolicies = errors.New("router: the policies are not known yet")

// Enforce makes every packet be judged by a program, and returns once the kernel does; before
// the first Apply, once that has been called.
func (r *Router) Enforce(p policy.Program) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.policy = &p
	if r.applied.Universe.IsZero() {
		return nil
	}
	return r.loadTable(r.applied)
}

// Evaluate reads what the kernel makes of a packet by the policies of one of its ends, own.
func (r *Router) Judge(d policy.Direction, own netip.Addr, p nft.Packet) (nft.Evaluation, error) {
	return r.kernel.Evaluate(d, own, p)
}

// Protected reports whether the kernel lets nobody else change the table.
func (r *Router) Protected() bool { return r.kernel.Owned() }

// Dropped counts the packets that policies dropped in a direction.
func (r *Router) Dropped(d policy.Direction) (uint64, error) { return r.kernel.DroppedAll(d) }

// loadTable makes nftables match.
func (r *Router) loadTable(c Config) error {
	v4, v6 := c.node()
	return r.kernel.Apply(r.builder.Build(nft.Config{
		Universe: c.Universe, Node4: v4, Node6: v6, Own: c.Own, Exposed: c.Exposed, Resolver: c.Resolver,
		Hosts: c.Hosts, Policy: r.policy, Exempt: c.Exempt,
	}))
}

// Apply makes the kernel match.
func (r *Router) Apply(ctx context.Context, c Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.policy == nil {
		return ErrNoPolicies
	}
	if err := r.loadTable(c); err != nil {
		return err
	}
	version := r.opts.Watch.Version()
	known := r.right != 0 && version == r.right && sameLinks(r.applied, c)
	overlay := link.Overlay{Universe: c.Universe, Node: c.Node, MTU: c.MTU, IPv6: c.IPv6, Limits: c.limits()}
	if !known {
		if err := overlay.Close(); err != nil {
			return err
		}
	}
	if err := link.Forwarding(c.IPv6, r.opts.Changing); err != nil {
		return err
	}
	if err := r.device.Ensure(ctx); err != nil {
		return err
	}
	known = known && r.opts.Watch.Version() == version // the device may be another one now
	// Up before the tunnels are set: then a port that is taken is an error at once.
	// No route leads into the device yet.
	if !known {
		if err := overlay.Up(); err != nil {
			return err
		}
	}
	if c.Unconfirmed {
		// What an earlier agent configured goes on.
	} else if err := r.device.Apply(wg.Config{PrivateKey: c.PrivateKey, Port: c.Port, Tunnels: c.Tunnels}); err != nil {
		return err
	}
	if known {
		r.applied = c
		return nil
	}
	r.right = 0
	if err := overlay.Open(); err != nil {
		return err
	}
	if err := overlay.Vacant(c.Own); err != nil {
		return err
	}
	r.applied = c
	v4, v6 := c.node()
	if err := endpoint.Sync(c.Endpoints, v4, v6); err != nil {
		return err
	}
	r.right = version
	return nil
}

// sameLinks reports whether two configurations ask for the same links, addresses and routes.
func sameLinks(a, b Config) bool {
	return a.Universe == b.Universe && a.Node == b.Node && a.MTU == b.MTU && a.IPv6 == b.IPv6 &&
		slices.Equal(a.limits(), b.limits()) && slices.Equal(a.Own, b.Own) &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, endpoint.Endpoint.Equal)
}

// ErrNotApplied says that there is no configuration yet that an endpoint could be part of.
var ErrNotApplied = errors.New("router: the data path is not set up yet")

// Plug programs one endpoint, between two calls of Apply.
func (r *Router) Plug(_ context.Context, e endpoint.Endpoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.applied.Universe.IsZero() {
		return ErrNotApplied
	}
	v4, v6 := r.applied.node()
	return endpoint.Plug(e, v4, v6)
}

// Unplug removes the routes to endpoints.
func (r *Router) Unplug(_ context.Context, endpoints ...endpoint.Endpoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return endpoint.Unplug(endpoints...)
}

// Disarm takes the key and all tunnels from the device: another host goes on with them.
func (r *Router) Disarm() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.device.Disarm()
}

// Observed is the data path as it is.
type Observed struct {
	wg.Observed
	Warnings []string // each with what to do
}

// Observe reads the kernel.
func (r *Router) Observe() (Observed, error) {
	dev, err := wg.Observe()
	if err != nil {
		return Observed{}, err
	}
	o := Observed{Observed: dev}
	r.mu.Lock()
	c := r.applied
	r.mu.Unlock()
	if c.Universe.IsZero() {
		return o, nil
	}
	blocked, err := r.warned.ask(c.needs(), firewalls)
	if err != nil {
		return Observed{}, err
	}
	o.Warnings = blocked
	return o, nil
}

// Remove takes everything away that Weft made on this host: endpoints, device,
// routes, the userspace process, and last the guard.
func Remove(ctx context.Context) error {
	links, err := endpoint.List()
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := endpoint.Delete(l); err != nil {
			return err
		}
	}
	if err := datapath.Stop(ctx); err != nil {
		return err
	}
	if err := link.Remove(); err != nil {
		return err
	}
	var kernel nft.Kernel
	return kernel.Delete()
}

// Close lets go of the kernel's tables; everything stays in force.
func (r *Router) Close() { r.kernel.Close() }
