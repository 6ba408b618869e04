// Package underlay owns this host's state on the network below the overlay: its addresses, the MTUs
// of its links, other uses of the overlay's ranges, and this host's own record, which tells other
// peers how to reach it.
//
// An Underlay publishes the addresses and MTUs as a Host. Its goroutine compares them with the
// kernel whenever a view is published, at least every two seconds. It only reads links, addresses
// and routes after the kernel announced a change.
package underlay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/live"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
	"weft/router/link"
)

// ErrMoved means that this host's address has changed and its agent must restart, since gossip cannot
// change its advertised address.
var ErrMoved = errors.New("this host has another address now")

// settle is how long the advertised address must be gone before the agent restarts with another one.
const settle = 30 * time.Second

// Host is where other peers reach this host, in the order of its record.
type Host struct {
	Addrs []netip.Addr
	MTUs  []uint32 // the MTU of the link with each address
}

// Node is this host's Node in Kubernetes; the zero Node outside Kubernetes.
type Node struct {
	UID   string
	Addrs []netip.Addr
}

// Mesh announces this host to the other peers.
type Mesh interface {
	Update(func(*peer.Record)) error
	// SetHello sets the universe that joining peers must agree with.
	SetHello(u slot.Universe)
}

// Config configures an Underlay.
type Config struct {
	Watch     *link.Watch   // nil: everything is read each time
	Last      []netip.Addr  // this host's addresses in the last agent's record
	Universe  slot.Universe // the parts known at the start
	Advertise []netip.Addr  // addresses that the operator gave
	MTU       int           // the MTU that the operator gave; 0: none
	Node      func() Node   // this host's Node in Kubernetes
}

// Inputs are the parts of this host's own record besides its addresses.
type Inputs struct {
	Mesh     Mesh
	NodeAddr live.Reader[slot.Slot]
	View     live.Reader[*view.View]
}

// Underlay watches this host's addresses and links.
type Underlay struct {
	live.Value[Host]

	cfg        Config
	order      []netip.Addr // see link.Order
	advertised netip.Addr   // this host's address in gossip
	movedAt    time.Time    // since when that is none of this host's addresses

	failed live.Value[error] // why the record of this host is not up to date

	mu    sync.Mutex
	reads struct {
		addrs   link.Reading[[]link.HostAddr]
		mtus    link.Reading[link.MTUs]
		routes  link.Reading[map[netip.Addr]int]
		foreign link.Reading[struct{}]
	}
}

// New makes an underlay; Look reads it for the first time, and Run keeps it.
func New(cfg Config) *Underlay { return &Underlay{cfg: cfg, order: cfg.Last} }

// Look reads the addresses, and publishes them. The first one is what gossip advertises.
func (u *Underlay) Look() error {
	addrs, err := u.addrs()
	if err != nil {
		return err
	}
	mtus, err := u.linkMTUs(addrs)
	if err != nil {
		return err
	}
	u.advertised = addrs[0]
	u.Set(Host{Addrs: addrs, MTUs: mtus})
	return nil
}

// Run keeps the addresses and this host's own record until ctx ends. It returns ErrMoved when
// the advertised address is gone for good.
func (u *Underlay) Run(ctx context.Context, in Inputs) error {
	for {
		v, viewed := in.View.Read()
		node, claimed := in.NodeAddr.Read()
		err := u.step(in.Mesh, v, node, time.Now())
		if errors.Is(err, ErrMoved) {
			return err
		}
		u.failed.Set(err)
		select {
		case <-ctx.Done():
			return nil
		case <-in.View.Changed(viewed):
		case <-in.NodeAddr.Changed(claimed):
		}
	}
}

// Check reports why this host's record cannot be announced to the other peers.
func (u *Underlay) Check() error { return u.failed.Get() }

// step publishes changes, and announces them to the mesh.
func (u *Underlay) step(mesh Mesh, v *view.View, node slot.Slot, now time.Time) error {
	host := u.Get()
	addrs, err := u.addrs()
	switch {
	case err != nil: // links change at any time: use the last known addresses
		addrs = host.Addrs
	case u.moved(addrs, now):
		return ErrMoved
	}
	mtus, err := u.linkMTUs(addrs)
	if err != nil {
		mtus = host.MTUs
	}
	if !slices.Equal(addrs, host.Addrs) || !slices.Equal(mtus, host.MTUs) {
		u.Set(Host{Addrs: addrs, MTUs: mtus})
	}
	if v != nil && !v.Ring.IsZero() {
		mesh.SetHello(v.Ring.Universe)
	}
	return mesh.Update(func(r *peer.Record) { u.describe(r, Host{addrs, mtus}, v, node) })
}

// describe completes this host's own record.
func (u *Underlay) describe(r *peer.Record, h Host, v *view.View, node slot.Slot) {
	r.Underlay, r.MTUs, r.Node = h.Addrs, h.MTUs, node
	if v != nil {
		r.Ring = nil
		if !v.Ring.IsZero() {
			r.Ring = v.Ring.ID[:]
		}
		if s, lost := v.Lost[settings.NodeKey]; lost && s == node {
			r.Node = 0
		}
	}
	if uid := u.cfg.Node().UID; uid != "" { // a deleted Node keeps the UID that it had
		r.Host = uid
	}
}

// moved reports that this host has not had the advertised address for a while.
func (u *Underlay) moved(addrs []netip.Addr, now time.Time) bool {
	switch {
	case slices.Contains(addrs, u.advertised):
		u.movedAt = time.Time{}
	case u.movedAt.IsZero():
		u.movedAt = now
	}
	return !u.movedAt.IsZero() && now.Sub(u.movedAt) >= settle
}

// addrs lists where other peers reach this host.
func (u *Underlay) addrs() (addrs []netip.Addr, err error) {
	u.mu.Lock()
	now, err := u.reads.addrs.Get(u.cfg.Watch, func() ([]link.HostAddr, error) { return link.Underlay(u.cfg.Universe) })
	u.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if own := u.cfg.Node().Addrs; len(own) > 0 {
		now = nil
		for _, addr := range own {
			now = append(now, link.HostAddr{Addr: addr})
		}
	}
	if u.order, addrs = link.Order(u.order, now); len(u.cfg.Advertise) > 0 {
		addrs = u.cfg.Advertise
	}
	if len(addrs) == 0 {
		return nil, errors.New("this host has no address that other hosts could reach: configure an address, or name one with --advertise ADDR")
	}
	return addrs, nil
}

// linkMTUs returns the MTUs of the links with these addresses. An address that no link has, as behind
// NAT, uses the link of the default route.
func (u *Underlay) linkMTUs(addrs []netip.Addr) ([]uint32, error) {
	out := make([]uint32, len(addrs))
	if u.cfg.MTU != 0 { // other hosts limit their packets to this host by this MTU, too
		for i := range out {
			out[i] = uint32(u.cfg.MTU + topology.Overhead)
		}
		return out, nil
	}
	u.mu.Lock()
	mtus, err := u.reads.mtus.Get(u.cfg.Watch, link.ReadMTUs)
	u.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for i, addr := range addrs {
		mtu, ok := mtus.ByAddr[addr]
		if !ok {
			mtu = mtus.Default
		}
		out[i] = uint32(mtu)
	}
	return out, nil
}

// Overlap reports routes of other programs to addresses of the universe.
func (u *Underlay) Overlap(universe slot.Universe) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, err := u.reads.foreign.Get(u.cfg.Watch, func() (struct{}, error) { return struct{}{}, link.Overlap(universe) })
	return err
}

// Routes returns two functions. carry returns the MTU of this host's route to an address, or 0
// without a route; done ends its use. Only one caller may use it at a time. Each address is looked up
// once until something changes. Path MTUs learned from ICMP errors cause no notification, so they are
// only seen at the next full read.
func (u *Underlay) Routes() (carry func(netip.Addr) int, done func(), err error) {
	u.mu.Lock()
	known, err := u.reads.routes.Get(u.cfg.Watch, func() (map[netip.Addr]int, error) { return map[netip.Addr]int{}, nil })
	u.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	h, err := link.Handle()
	if err != nil {
		return nil, nil, err
	}
	return func(to netip.Addr) int {
		if mtu, ok := known[to]; ok {
			return mtu
		}
		way, err := link.WayTo(h, to, netip.Addr{})
		if err != nil {
			way.MTU = 0
		}
		known[to] = way.MTU
		return way.MTU
	}, h.Close, nil
}
