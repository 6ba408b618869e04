// Package datapath keeps the kernel's data path equal to the plan. It owns the last applied plan,
// and the time of the last attempt.
//
// Its goroutine applies a plan when an input changes, and with each view, at least every two seconds,
// to repair changes by others. Endpoints are no such input: attach adds and removes them in the kernel
// itself, and the next plan includes them. It starts with the stored state, before gossip arrives, so
// that a restart changes nothing.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/attach"
	"weft/prog/agent/live"
	"weft/prog/agent/measure"
	"weft/prog/agent/plan"
	"weft/prog/agent/settings"
	"weft/prog/agent/underlay"
	"weft/prog/agent/view"
	"weft/router"
	"weft/router/endpoint"
	"weft/router/link"
	"weft/router/nft"
	"weft/router/problem"
)

// stuck is the time limit for applying one plan. Single operations have much shorter timeouts.
const stuck = 2 * time.Minute

// Router makes the kernel match.
type Router interface {
	Apply(context.Context, router.Config) error
	Unplug(context.Context, ...endpoint.Endpoint) error
	Protected() bool
	Observe() (router.Observed, error)
	GuardDropped() (map[string]uint64, error)
}

// Underlay returns the state of the hosts' own network.
type Underlay interface {
	Overlap(slot.Universe) error
	Routes() (carry func(netip.Addr) int, done func(), err error)
}

// Config configures a Datapath.
type Config struct {
	View     live.Reader[*view.View]
	Host     live.Reader[underlay.Host]
	NodeAddr live.Reader[slot.Slot]
	Attached live.Reader[[]attach.Endpoint]
	Paths    live.Reader[measure.Paths]
	Relayed  live.Reader[measure.Relayed]
	Settings live.Reader[settings.Values]
	Underlay Underlay
	Router   Router
	Fixed    plan.Fixed
	// NoDiscovery means that this host may connect only to its targets.
	NoDiscovery bool
	Targets     func() []mesh.Target
	// PresharedKey returns WireGuard's pre-shared key for the tunnel to a peer; zero if there is none yet.
	PresharedKey func(peer.ID) [32]byte
	// Empty reports why the rules of an earlier agent stay in force: no policies are known at all.
	Empty func() error
	// Isolate returns once the kernel enforces all policies for the attached endpoints.
	Isolate func() error
	// Applied is called with the node addresses after a plan was applied.
	Applied func([]netip.Addr)
	// Tried is called after each attempt to apply a plan, whether it succeeded or not.
	Tried func()
	Log   *slog.Logger
}

// Datapath applies plans, and publishes the last one that was applied.
type Datapath struct {
	live.Value[*plan.Plan] // the last plan that was applied; nil before the first one

	cfg    Config
	wake   chan struct{}
	failed live.Value[error]
	begun  atomic.Pointer[time.Time] // when the last application of a plan began
}

// New makes a datapath; Run starts it.
func New(cfg Config) *Datapath {
	d := &Datapath{cfg: cfg, wake: make(chan struct{}, 1)}
	d.failed.Set(errors.New("the agent is starting"))
	return d
}

// Run applies plans until ctx ends. It returns an error only if another attempt cannot succeed and
// going on would do harm.
func (d *Datapath) Run(ctx context.Context) error {
	for {
		now := time.Now()
		d.begun.Store(&now)
		_, viewed := d.cfg.View.Read()
		_, hosted := d.cfg.Host.Read()
		_, claimed := d.cfg.NodeAddr.Read()
		_, set := d.cfg.Settings.Read()
		_, measured := d.cfg.Paths.Read()
		err := d.step(ctx)
		if overlap, ok := errors.AsType[*link.OverlapError](err); ok && d.Get() == nil {
			return overlap
		}
		d.failed.Set(err)
		d.cfg.Tried()
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-d.cfg.View.Changed(viewed):
		case <-d.cfg.Host.Changed(hosted):
		case <-d.cfg.NodeAddr.Changed(claimed):
		case <-d.cfg.Settings.Changed(set):
		case <-d.cfg.Paths.Changed(measured):
		}
	}
}

// step makes the kernel match, or reports why it cannot.
func (d *Datapath) step(ctx context.Context) error {
	v := d.cfg.View.Get()
	switch {
	case v == nil:
		return ipam.ErrNoRing
	case v.Ring.IsZero() && v.Conflict != nil:
		return v.Conflict
	case v.Ring.IsZero():
		return ipam.ErrNoRing
	}
	overlap := d.cfg.Underlay.Overlap(v.Ring.Universe)
	if _, ok := errors.AsType[*link.OverlapError](overlap); ok && d.Get() == nil {
		return overlap
	}
	if err := d.cfg.Empty(); err != nil { // keep the rules of the earlier agent
		return err
	}
	attached := d.cfg.Attached.Get() // first, since Attach isolates endpoints that are added meanwhile
	if err := d.cfg.Isolate(); err != nil {
		return err
	}
	p, err := d.desired(v, attached)
	if err != nil {
		return err
	}
	if err := d.cfg.Router.Apply(ctx, p.Config); err != nil {
		return err
	}
	if len(p.Lost) > 0 {
		if err := d.cfg.Router.Unplug(ctx, p.Lost...); err != nil {
			return err
		}
	}
	d.Set(&p)
	d.cfg.Applied(p.NodeAddrs())
	return overlap // the overlap is new: endpoints keep working, and nftables rules keep their packets in the overlay
}

// desired returns the plan for the components' current states.
func (d *Datapath) desired(v *view.View, attached []attach.Endpoint) (plan.Plan, error) {
	route, done, err := d.cfg.Underlay.Routes()
	if err != nil {
		return plan.Plan{}, err
	}
	defer done()
	relayed := d.cfg.Relayed.Get()
	var targets []mesh.Target
	if d.cfg.NoDiscovery {
		targets = append([]mesh.Target{}, d.cfg.Targets()...)
	}
	return plan.Desired(plan.Inputs{
		View: v, Node: d.cfg.NodeAddr.Get(), LinkMTU: d.linkMTU(), Endpoints: attached, Settings: d.cfg.Settings.Get(),
		Route: route, PresharedKey: d.cfg.PresharedKey, Targets: targets, Paths: d.cfg.Paths.Get(), Ways: relayed.Ways, Pairs: relayed.Pairs, Fixed: d.cfg.Fixed,
	}), nil
}

// linkMTU returns the MTU of the link with this host's first address; 0: unknown.
func (d *Datapath) linkMTU() int {
	if h := d.cfg.Host.Get(); len(h.MTUs) > 0 {
		return int(h.MTUs[0])
	}
	return 0
}

// MTU returns the MTU of the tunnel device, which new containers get as well.
func (d *Datapath) MTU() int {
	if p := d.Get(); p != nil {
		return p.MTU
	}
	return topology.SetMTUs(nil, d.linkMTU(), d.cfg.Fixed.MTU)
}

// Tunnels returns the tunnels as they were applied last.
func (d *Datapath) Tunnels() []topology.Tunnel {
	if p := d.Get(); p != nil {
		return p.Tunnels
	}
	return nil
}

// errUnconfirmed means that WireGuard does not have this host's key yet: two hosts with the same key
// would receive each other's packets.
var errUnconfirmed = errors.New("waiting for another peer to confirm that no other host has this host's identity; if no peer answers, this wait ends after 10 s")

// Check reports why a new container could not send or receive.
func (d *Datapath) Check() error {
	if err := d.failed.Get(); err != nil {
		return err
	}
	switch p := d.Get(); {
	case p.Unconfirmed:
		return errUnconfirmed
	case p.Node == 0:
		return errors.New("waiting for a node address from the other peers (see `weft status ipam`)")
	}
	return nil
}

// Alive returns an error if applying a plan hangs: restarting the agent could help. Before the first
// plan the agent has nothing to apply.
func (d *Datapath) Alive() error {
	since := d.begun.Load()
	if since == nil || time.Since(*since) < stuck {
		return nil
	}
	return fmt.Errorf("the data path has not been compared with the plan for %v", time.Since(*since).Round(time.Second))
}

// Problems names changes that other programs on this host make to the data path.
func (d *Datapath) Problems() []problem.Problem {
	seen, err := d.cfg.Router.Observe()
	switch {
	case err == nil:
		return seen.Problems
	case d.Get() == nil || d.failed.Get() != nil: // the status reports it as well
		return nil
	}
	return []problem.Problem{{
		Reason: problem.DataPath, What: err.Error(), Effect: "the agent makes it again within seconds", Fix: "if this warning stays, see the agent's log",
	}}
}

// WatchTable makes the data path match at once when another program deletes the nftables rules that
// keep packets in the overlay, until ctx ends.
func (d *Datapath) WatchTable(ctx context.Context) error {
	removed := func() {
		if !d.cfg.Router.Protected() {
			select {
			case d.wake <- struct{}{}:
			default:
			}
		}
	}
	for ctx.Err() == nil {
		if err := nft.Removed(ctx, removed); err != nil && ctx.Err() == nil {
			d.cfg.Log.Warn("cannot watch nftables: other programs' changes are only repaired every two seconds", "err", err)
			live.Pause(ctx, time.Minute)
		}
	}
	return nil
}
