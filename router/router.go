// Package router owns this host's data path: it takes the complete desired state and makes the
// kernel match it, in this order.
//
//	nftables table, unreachable routes → device → tunnels → addresses, routes → endpoints
//
// The order is a promise: the rules that prevent plaintext on the underlay are in force before
// anything that could carry a packet. These rules stay when the agent exits. Apply may be repeated,
// and repairs changes by other programs. A Router is safe for concurrent use: it makes one change
// at a time. It never decides the desired state itself.
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
	"weft/router/problem"
	"weft/router/trace"
	"weft/router/wg"
)

// Options configure a Router.
type Options struct {
	Log *slog.Logger
	// StartDatapath starts the userspace WireGuard process and returns when the process answers.
	StartDatapath func(context.Context) error
	// Watch lets Apply skip the listing of links and routes if none has changed. If it is nil,
	// Apply lists them each time.
	Watch *link.Watch
	// Changing is called once before a sysctl is changed, with the sysctl's value. It may be nil.
	Changing func(name, was, set string) error
}

// Config is the desired state of the data path.
type Config struct {
	Universe   slot.Universe
	Node       slot.Slot // 0: the host has no slot yet
	PrivateKey [32]byte
	Port       uint16
	Gossip     uint16 // the port of gossip, TCP and UDP; 0: other firewalls are not checked for it
	MTU        int    // the MTU of the device; the MTU of a tunnel may be smaller
	Own        []slot.Range
	Tunnels    []topology.Tunnel
	Endpoints  []endpoint.Endpoint
	Exposed    bool // the overlay is reachable from outside through this host
	Hosts      nft.Hosts
	Relays     nft.Relays
	Resolver   bool // a name server listens on the node addresses
	IPv6       bool
	// If Unconfirmed is set, WireGuard's configuration stays as it is: another host may have the
	// same key.
	Unconfirmed bool
}

// NodeAddrs returns the node addresses, IPv4 first; none while the host has no slot.
func (c Config) NodeAddrs() (out []netip.Addr) {
	v4, v6 := c.node()
	for _, a := range []netip.Addr{v4, v6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// String describes the configuration without its keys, so that they never reach logs.
func (c Config) String() string {
	return fmt.Sprintf("data path of %v in %v: %d tunnels, %d endpoints", c.Node, c.Universe, len(c.Tunnels), len(c.Endpoints))
}

// GoString is the same as String, so that %#v shows no keys either.
func (c Config) GoString() string { return c.String() }

// node returns the node address of each family; an address that the host does not have is invalid.
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

// limits returns the destinations behind tunnels whose MTU is below the MTU of the device.
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

// Router programs this host's data path.
type Router struct {
	opts     Options
	warnings firewallCache

	mu       sync.Mutex
	kernel   nft.Kernel
	builder  nft.Builder
	device   *wg.Device
	applied  Config      // the last configuration whose links were programmed
	verified uint64      // the version of the kernel's links and routes when they last matched the field applied; 0: never
	policy   *nft.Policy // nil: not known yet
}

// New makes a Router. It changes nothing in the kernel yet.
func New(opts Options) *Router {
	return &Router{opts: opts, device: wg.New(opts.StartDatapath)}
}

// ErrNoPolicies reports that Apply did nothing, since Enforce was not called yet. The policy rules of an
// earlier agent may be in force, and Apply would remove them.
var ErrNoPolicies = errors.New("router: the network policies are not known yet: the kernel's rules stay as they are until the agent has read them")

// Enforce makes the kernel evaluate every packet by the given policies, and returns when it does.
// Before the first Apply, Enforce only stores the policies, and Apply then loads them.
func (r *Router) Enforce(p nft.Policy) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.policy = &p
	if r.applied.Universe.IsZero() {
		return nil
	}
	return r.loadTable(r.applied)
}

// Evaluate returns the decision of the kernel's rules on a packet, by the policies of one endpoint.
// own is the address of that endpoint, the packet's source or destination.
func (r *Router) Evaluate(d policy.Direction, own netip.Addr, p nft.Packet) (nft.Evaluation, error) {
	return r.kernel.Evaluate(d, own, p)
}

// Rules returns Weft's nftables rules as text.
func (r *Router) Rules() string { return r.kernel.Text() }

// Protected reports whether the kernel lets no other program change the table.
func (r *Router) Protected() bool { return r.kernel.Owned() }

// Dropped returns the number of packets in a direction that policies dropped.
func (r *Router) Dropped(d policy.Direction) (uint64, error) { return r.kernel.DroppedAll(d) }

// GuardDropped returns the number of packets that each chain of the guard dropped.
func (r *Router) GuardDropped() (map[string]uint64, error) { return r.kernel.GuardDropped() }

// Forwarded returns what the kernel forwarded between two hosts for which this one is the relay.
func (r *Router) Forwarded(p nft.Pair) ([2]nft.Forwarded, error) { return r.kernel.Forwarded(p) }

// loadTable makes the nftables table match a configuration.
func (r *Router) loadTable(c Config) error {
	v4, v6 := c.node()
	guard := nft.Guard{Universe: c.Universe, Node4: v4, Node6: v6, Own: c.Own, Exposed: c.Exposed, Port: c.Port, Resolver: c.Resolver, Hosts: c.Hosts}
	return r.kernel.Apply(r.builder.Build(nft.Config{Guard: guard, Policy: *r.policy, Relays: c.Relays}))
}

// Apply makes the kernel match a configuration.
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
	known := r.verified != 0 && version == r.verified && sameLinks(r.applied, c)
	overlay := link.Overlay{Universe: c.Universe, Node: c.Node, MTU: c.MTU, IPv6: c.IPv6, Limits: c.limits()}
	if !known {
		if err := overlay.SetUnreachable(); err != nil {
			return err
		}
	}
	if err := link.Forwarding(c.IPv6, r.opts.Changing); err != nil {
		return err
	}
	if err := r.device.Ensure(ctx); err != nil {
		return err
	}
	known = known && r.opts.Watch.Version() == version // Ensure may have replaced the device
	// The link is set up before the tunnels are configured, so that a port in use is an error at once. No route
	// leads to the device yet.
	if !known {
		if err := overlay.Up(); err != nil {
			return err
		}
	}
	if c.Unconfirmed {
		// The configuration of an earlier agent stays in force.
	} else if err := r.device.Apply(wg.Config{PrivateKey: c.PrivateKey, Port: c.Port, Tunnels: c.Tunnels}); err != nil {
		return err
	}
	if known {
		r.applied = c
		return nil
	}
	r.verified = 0
	if err := overlay.SetRoutes(); err != nil {
		return err
	}
	if err := overlay.RejectUnassigned(c.Own); err != nil {
		return err
	}
	r.applied = c
	v4, v6 := c.node()
	if err := endpoint.Sync(c.Endpoints, v4, v6); err != nil {
		return err
	}
	r.verified = version
	return nil
}

// sameLinks reports whether two configurations ask for the same links, addresses and routes.
func sameLinks(a, b Config) bool {
	return a.Universe == b.Universe && a.Node == b.Node && a.MTU == b.MTU && a.IPv6 == b.IPv6 &&
		slices.Equal(a.limits(), b.limits()) && slices.Equal(a.Own, b.Own) &&
		slices.EqualFunc(a.Endpoints, b.Endpoints, endpoint.Endpoint.Equal)
}

// ErrNotApplied reports that Apply has not succeeded yet, so that an endpoint cannot be programmed.
var ErrNotApplied = errors.New("router: the data path is not set up yet: endpoints cannot be attached; try again in a few seconds")

// Plug programs one endpoint without waiting for the next Apply.
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

// Disarm removes the key and all tunnels from the device, because another host uses the same key.
func (r *Router) Disarm() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.device.Disarm()
}

// Observed is the actual state of the data path.
type Observed struct {
	wg.Observed
	Problems []problem.Problem
}

// Observe reads the state of the data path from the kernel.
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
	blocked, err := r.warnings.get(c.needs(), firewalls)
	if err != nil {
		return Observed{}, err
	}
	o.Problems = blocked
	return o, nil
}

// Remove deletes everything that Weft made on this host: endpoints, the device, routes, the
// userspace process, and the nftables table last.
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
	if err := trace.Clean(); err != nil {
		return err
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

// Close closes the connection to nftables. Everything that is programmed stays in force.
func (r *Router) Close() { r.kernel.Close() }
