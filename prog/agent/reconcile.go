package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"weft/ipam"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/router"
	"weft/router/endpoint"
	"weft/router/link"
)

// period is how often the kernel is compared with what it should be, also when
// nothing changed: so that what others broke is repaired.
const period = 2 * time.Second

// reconcile keeps the data path in step with what the parts know. The first
// configuration is made from what is stored, before gossip says anything, so that
// a restart changes nothing.
func (a *Agent) reconcile(ctx context.Context) error {
	a.releaseVanished(ctx)
	if err := a.findStrays(); err != nil {
		a.log.Warn("cannot look for containers that are plugged in", "err", err)
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		now := time.Now()
		a.turned.Store(&now)
		err := a.step(ctx)
		if fatal, ok := errors.AsType[*fatalError](err); ok {
			return fatal.error
		}
		a.setReady(ctx, err)
		select {
		case <-ctx.Done():
			return nil
		case <-a.kick:
		case <-tick.C:
			a.releaseQueued(ctx)
			a.releaseEnded(ctx)
		}
	}
}

// errUnconfirmed says that WireGuard has not got this host's key yet: two hosts with one key
// would take each other's packets.
var errUnconfirmed = errors.New("waiting for another peer to confirm that no other host has this one's identity; with none that answers, for 10 s")

// fatalError ends the agent: going on would do harm, or never become better.
type fatalError struct{ error }

// step makes the kernel match, and reports why this host is not ready yet.
func (a *Agent) step(ctx context.Context) error {
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return err
	}
	if err := a.refreshRecord(snap); err != nil {
		return err
	}
	a.look(snap)
	a.rename()
	if snap.Ring.IsZero() {
		if snap.Conflict != nil {
			return snap.Conflict
		}
		return ipam.ErrNoRing
	}
	a.mesh.SetHello(snap.Ring.Cluster, snap.Ring.Universe)
	overlap := a.host.overlap(snap.Ring.Universe)
	if _, ok := errors.AsType[*link.OverlapError](overlap); ok && !a.applied {
		return &fatalError{overlap}
	}
	if a.kube != nil && a.kube.State() == nil { // what is in force from before is better than nothing
		if err := a.policiesKnown(); err != nil {
			return err
		}
	}
	if err := a.enforce(); err != nil {
		return err
	}
	cfg, err := a.desired(snap)
	if err != nil {
		return err
	}
	if err := a.router.Apply(ctx, cfg); err != nil {
		return err
	}
	if err := a.cutOff(ctx, snap); err != nil {
		return err
	}
	if err := a.claimStrays(ctx, snap); err != nil {
		return err
	}
	a.applied = true
	if a.dns != nil {
		a.dns.SetAddrs(cfg.NodeAddrs())
	}
	if overlap != nil { // it came later: what is attached goes on, and the guard keeps the rest in
		return overlap
	}
	if !a.mesh.Confirmed() {
		return errUnconfirmed
	}
	if cfg.Node == 0 {
		return errors.New("waiting for a node address from the other peers (see `weft status ipam`)")
	}
	if err := a.policiesKnown(); err != nil {
		return err
	}
	return cmp.Or(CheckDisk(a.opts.StateDir), a.ports.check(), a.releaseQueue().check())
}

// desired is the data path as it should be: a pure function of what the parts know.
func (a *Agent) desired(snap ipam.Snapshot) (router.Config, error) {
	self := a.self()
	route, done, err := a.host.routes()
	if err != nil {
		return router.Config{}, err
	}
	defer done()
	in := topology.Input{
		Self: self, Ring: snap.Ring.ID[:], Universe: snap.Ring.Universe, IPv6: a.ipv6,
		Owned:        snap.Ring.Owned(),
		Preferred:    map[peer.ID]netip.Addr{},
		Reach:        map[peer.ID]topology.Reach{},
		Route:        route,
		PresharedKey: func(other peer.ID) [32]byte { return a.token.Secret.PresharedKey(self, other) },
	}
	peers := a.mesh.Peers()
	for _, p := range peers {
		id := p.Record.ID()
		if p.Record.Identity == nil || len(in.Owned[id]) == 0 && !p.Met { // a tunnel for whoever signed a record would be one for each that a member makes up
			continue
		}
		in.Peers = append(in.Peers, p.Record)
		if p.Addr.IsValid() {
			in.Preferred[id] = p.Addr
		}
		in.Reach[id] = a.reach(p, time.Now())
	}
	own := a.mesh.Own()
	for _, addr := range own.Underlay {
		in.Underlay4 = in.Underlay4 || addr.Is4()
		in.Underlay6 = in.Underlay6 || addr.Is6()
	}
	tunnels := a.plan(in, own)
	a.mu.Lock()
	defer a.mu.Unlock()
	cfg := router.Config{
		Universe: snap.Ring.Universe, Node: a.node,
		PrivateKey: a.keys.WireGuard, Port: uint16(a.opts.Port), MTU: int(a.mtu.Load()),
		Own: in.Owned[self], Tunnels: tunnels,
		Gossip:      uint16(a.opts.GossipPort),
		Unconfirmed: !a.mesh.Confirmed(),
		Hosts:       guarded(own, peers, snap.Ring, a.opts.StatusAddr),
		Exposed:     a.settings.Exposed, Resolver: a.dns != nil, Exempt: a.opts.Exempt, IPv6: a.ipv6,
	}
	if s, ok := snap.Allocations[nodeKey]; ok {
		cfg.Node = s
		a.node = s
	}
	if _, lost := snap.Lost[nodeKey]; lost {
		cfg.Node = 0
	}
	for key, e := range a.endpoints {
		if _, lost := snap.Lost[key]; !lost {
			cfg.Endpoints = append(cfg.Endpoints, a.plug(e, snap))
		}
	}
	slices.SortFunc(cfg.Endpoints, func(x, y endpoint.Endpoint) int { return x.Addr4.Compare(y.Addr4) })
	return cfg, nil
}

// cutOff ends the routes to endpoints whose address is another peer's now: somebody else
// may have it by this time. They stay attached, so that people see them.
func (a *Agent) cutOff(ctx context.Context, snap ipam.Snapshot) error {
	var lost []endpoint.Endpoint
	for key := range snap.Lost {
		if key == nodeKey {
			select {
			case a.lostNode <- struct{}{}:
			default:
			}
		} else if e := a.endpoint(key); e != nil {
			lost = append(lost, a.plug(e, snap))
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return a.router.Unplug(ctx, lost...)
}

// refreshRecord tells the mesh what changed about this host.
func (a *Agent) refreshRecord(snap ipam.Snapshot) error {
	addrs, err := a.underlay()
	switch {
	case err != nil: // Links come and go; the last known addresses are the best guess.
		addrs = a.mesh.Own().Underlay
	case a.moved(addrs, time.Now()):
		return &fatalError{ErrMoved}
	}
	mtus, err := a.linkMTUs(addrs)
	if err != nil {
		mtus = a.mesh.Own().MTUs
	}
	return a.mesh.Update(func(r *peer.Record) {
		r.Underlay, r.MTUs = addrs, mtus
		r.Ring = nil
		if !snap.Ring.IsZero() {
			r.Ring = snap.Ring.ID[:]
		}
		if uid := a.ownNode().UID; uid != "" { // while the Node is deleted, it is the one that was
			r.Host = uid
		}
		r.Node = snap.Allocations[nodeKey]
		if _, lost := snap.Lost[nodeKey]; lost {
			r.Node = 0
		}
	})
}

// setReady notes whether the host is ready. The first time that it is, the CNI
// configuration is written, last of all: from then on pods are started here.
func (a *Agent) setReady(ctx context.Context, why error) {
	if ctx.Err() != nil {
		return
	}
	if why == nil {
		why = a.installCNI(ctx)
	}
	now := ""
	if why != nil {
		now = why.Error()
	}
	a.mu.Lock()
	before := a.notReady
	a.notReady = now
	a.mu.Unlock()
	switch {
	case before == now:
	case now == "":
		notify("STATUS=ready")
		a.log.Info("ready", "after", time.Since(a.started).Round(time.Millisecond))
	default:
		notify("STATUS=not ready: " + now)
		a.log.Warn("not ready", "why", now)
	}
}

// CheckPrivileges says at once what would fail in many places later.
func CheckPrivileges() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("agent: read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return errors.New("this needs root: run it with sudo. (The capability NET_ADMIN is missing, by which Weft makes links, routes and nftables rules; a container or a unit can be given that alone)")
	}
	return nil
}

// lostAfter is how long gossip does not reach a peer before its tunnel is left alone.
const lostAfter = 5 * time.Minute

// reach is what gossip says of a peer. One that it never reached counts from our start.
func (a *Agent) reach(p mesh.Peer, now time.Time) topology.Reach {
	since := p.Since
	if since.IsZero() {
		since = a.started
	}
	switch {
	case p.Reachable:
		return topology.Reached
	case now.Sub(since) > lostAfter:
		return topology.Lost
	}
	return topology.Unsure
}
