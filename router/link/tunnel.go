package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
)

// KernelWireGuard reports whether the kernel of this host has WireGuard. To ask is to make a
// device, and so to load the module.
func KernelWireGuard() (bool, error) {
	h, err := Handle()
	if err != nil {
		return false, err
	}
	defer h.Close()
	probe := &netlink.Wireguard{LinkAttrs: netlink.NewLinkAttrs()}
	probe.Name = "wgprobe"
	switch err := h.LinkAdd(probe); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case err != nil && !errors.Is(err, unix.EEXIST): // left by one that was killed
		return false, fmt.Errorf("whether the kernel has WireGuard: %w", err)
	}
	if err := h.LinkDel(probe); err != nil {
		return false, fmt.Errorf("link %s: %w", probe.Name, Explain(err))
	}
	return true, nil
}

// Overlay is what the host's routes should say of the universe.
type Overlay struct {
	Universe slot.Universe
	Node     slot.Slot // 0: none yet
	MTU      int       // of the device: the largest that goes through any tunnel
	IPv6     bool
	Limits   []Limit
}

// Limit is a part of the universe to which smaller packets than MTU go.
type Limit struct {
	To  netip.Prefix
	MTU int
}

// Metrics of our routes to the universe. Any other route beats the last resort; the
// tunnel's is written out since 0 would mean 1024 in IPv6 and 0 in IPv4.
const (
	tunnelMetric = 512
	lastResort   = 4278198272
)

// universes are the overlay's prefixes in the families that this host carries.
// The guard covers IPv6 in any case.
func (o Overlay) universes() []netip.Prefix {
	if o.IPv6 {
		return []netip.Prefix{o.Universe.V4, o.Universe.V6}
	}
	return []netip.Prefix{o.Universe.V4}
}

// Nodes are the node's addresses, IPv4 first; none while there is no node slot.
func (o Overlay) Nodes() []netip.Addr {
	switch {
	case o.Node == 0:
		return nil
	case o.IPv6:
		return []netip.Addr{o.Universe.Addr4(o.Node), o.Universe.Addr6(o.Node)}
	}
	return []netip.Addr{o.Universe.Addr4(o.Node)}
}

// Close makes the universe unreachable but for what better routes say. It comes
// first: then no packet for the overlay follows the default route, at any moment.
// These routes stay when the device is gone; IPv6's go when lo goes down, so that
// they are applied again and again.
func (o Overlay) Close() error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	have, err := Routes(h)
	if err != nil {
		return err
	}
	for _, p := range o.universes() {
		r, err := unreachable(h, p, lastResort)
		if err != nil {
			return err
		}
		if err := SetRoute(h, have, r); err != nil {
			return err
		}
	}
	return nil
}

// Up gives the device its MTU and brings it up. No route leads into it yet.
func (o Overlay) Up() error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := device(h)
	if err != nil {
		return err
	}
	if o.MTU != 0 && l.Attrs().MTU != o.MTU {
		if err := h.LinkSetMTU(l, o.MTU); err != nil {
			return fmt.Errorf("MTU %d of %s: %w", o.MTU, Device, Explain(err))
		}
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if o.IPv6 {
		if err := NoLinkLocal(h, l); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("link %s up: %w", Device, Explain(err))
	}
	return nil
}

// NoLinkLocal keeps the kernel from giving a link an IPv6 link-local address of its
// own, and from announcing that to neighbours. It has to come before the link is up.
func NoLinkLocal(h *netlink.Handle, l netlink.Link) error {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	if err := h.LinkSetIP6AddrGenMode(l, none); err != nil {
		return fmt.Errorf("address generation of %s: %w", l.Attrs().Name, err)
	}
	return nil
}

func device(h *netlink.Handle) (netlink.Link, error) {
	l, err := h.LinkByName(Device)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", Device, Explain(err))
	}
	return l, nil
}

// Open gives the tunnel its addresses and the universe its way into it. It does
// nothing before there is a node address, since every packet of the host's own
// needs one as its source.
func (o Overlay) Open() error {
	nodes := o.Nodes()
	if nodes == nil {
		return nil
	}
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := device(h)
	if err != nil {
		return err
	}
	if err := setAddresses(h, l, nodes); err != nil {
		return err
	}
	have, err := Routes(h)
	if err != nil {
		return err
	}
	want := map[routeKey]netlink.Route{}
	for _, r := range o.routes(l.Attrs().Index) {
		key := keyOf(r)
		if _, again := want[key]; !again {
			want[key] = r
		}
	}
	right := map[routeKey]bool{}
	for _, r := range have {
		if key := keyOf(r); sameRoute(r, want[key]) {
			right[key] = true
		}
	}
	for key, r := range want {
		if !right[key] {
			if err := replaceRoute(h, r); err != nil {
				return err
			}
		}
	}
	return purgeRoutes(h, "old routes to the universe", func(r netlink.Route) bool {
		return r.Protocol == Protocol && r.LinkIndex == l.Attrs().Index &&
			!sameRoute(r, want[keyOf(r)])
	})
}

// routes lead the universe into the tunnel, and say where less fits through.
func (o Overlay) routes(device int) (out []netlink.Route) {
	nodes := o.Nodes()
	into := func(p netip.Prefix, mtu int) {
		r := netlink.Route{
			Dst: IPNet(p), LinkIndex: device, Src: nodes[0].AsSlice(), MTU: mtu,
			Scope: netlink.SCOPE_LINK, Protocol: Protocol, Table: unix.RT_TABLE_MAIN, Priority: tunnelMetric,
		}
		if p.Addr().Is6() {
			r.Src, r.Scope = nodes[1].AsSlice(), netlink.SCOPE_UNIVERSE
			// When it forwards IPv6, Linux looks at a route's MTU only if that is locked; else when it
			// sends, and older versions then let pass what segmentation offload joined.
			r.MTULock = mtu != 0
		}
		out = append(out, r)
	}
	for _, p := range o.universes() {
		into(p, 0)
	}
	for _, limit := range o.Limits {
		if o.IPv6 || limit.To.Addr().Is4() {
			into(limit.To, limit.MTU)
		}
	}
	return out
}

// routeKey is what two routes of one table cannot both have.
type routeKey struct {
	to     netip.Prefix
	metric int
}

func keyOf(r netlink.Route) routeKey {
	to, _ := prefixOf(r.Dst)
	return routeKey{to, r.Priority}
}

// setAddresses makes the single addresses of a link exactly these; link-local ones stay.
func setAddresses(h *netlink.Handle, l netlink.Link, want []netip.Addr) error {
	list := func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) }
	prefix := func(a netlink.Addr) netip.Prefix {
		p, _ := prefixOf(a.IPNet)
		return p
	}
	err := Purge("old addresses of "+l.Attrs().Name, func() ([]netlink.Addr, error) {
		have, err := list()
		return slices.DeleteFunc(have, func(a netlink.Addr) bool {
			p := prefix(a)
			return p.IsSingleIP() && slices.Contains(want, p.Addr()) || p.Addr().IsLinkLocalUnicast()
		}), err
	}, func(a netlink.Addr) error { return h.AddrDel(l, &a) })
	if err != nil {
		return err
	}
	have, err := Dump(list)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", l.Attrs().Name, Explain(err))
	}
	for _, addr := range want {
		p := netip.PrefixFrom(addr, addr.BitLen())
		if slices.ContainsFunc(have, func(a netlink.Addr) bool { return prefix(a) == p }) {
			continue
		}
		if err := SetAddress(h, l, p); err != nil {
			return err
		}
	}
	return nil
}

// SetAddress gives a link an address, usable at once: nobody else can have it, so
// IPv6 need not ask.
func SetAddress(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: IPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if p.Addr().IsLinkLocalUnicast() {
		a.Scope = unix.RT_SCOPE_LINK
	}
	if err := h.AddrReplace(l, a); err != nil {
		return fmt.Errorf("address %v of %s: %w", p, l.Attrs().Name, Explain(err))
	}
	return nil
}

// SetRoute sets a route unless it is among those there are (see Routes): replacing
// an equal IPv6 route would take it away for a moment.
func SetRoute(h *netlink.Handle, have []netlink.Route, r netlink.Route) error {
	if slices.ContainsFunc(have, func(old netlink.Route) bool { return sameRoute(old, r) }) {
		return nil
	}
	return replaceRoute(h, r)
}

func replaceRoute(h *netlink.Handle, r netlink.Route) error {
	if err := h.RouteReplace(&r); err != nil {
		return fmt.Errorf("route to %v: %w", r.Dst, Explain(err))
	}
	return nil
}

func sameRoute(a, b netlink.Route) bool {
	return a.Dst != nil && b.Dst != nil && a.Dst.String() == b.Dst.String() && a.Priority == b.Priority &&
		a.LinkIndex == b.LinkIndex && a.Src.Equal(b.Src) && a.Protocol == b.Protocol && routeType(a) == routeType(b) &&
		a.MTU == b.MTU && a.MTULock == b.MTULock
}

func routeType(r netlink.Route) int {
	if r.Type == 0 {
		return unix.RTN_UNICAST
	}
	return r.Type
}

// Remove deletes the tunnel's link and every route of ours, for a reset.
func Remove() error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := DeleteLink(h, Device); err != nil {
		return err
	}
	// Last, since the way through a link that is gone no longer needs a last resort.
	return purgeRoutes(h, "routes", func(r netlink.Route) bool { return r.Protocol == Protocol })
}
