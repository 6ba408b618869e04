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

// KernelWireGuard reports whether this host's kernel has WireGuard. It makes a device to find out,
// which also loads the module.
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
	case err != nil && !errors.Is(err, unix.EEXIST): // the link exists already if a process was killed before it deleted it
		return false, fmt.Errorf("finding out whether the kernel has WireGuard, by making the link wgprobe: %w", err)
	}
	if err := h.LinkDel(probe); err != nil {
		return false, fmt.Errorf("deleting link %s: %w", probe.Name, Explain(err))
	}
	return true, nil
}

// Overlay is the desired state of the device and of this host's routes to the universe.
type Overlay struct {
	Universe slot.Universe
	Node     slot.Slot // 0: the node has no slot yet
	MTU      int       // of the device: the largest MTU of any tunnel
	IPv6     bool
	Limits   []Limit
}

// Limit is a part of the universe whose tunnel has a smaller MTU than the device.
type Limit struct {
	To  netip.Prefix
	MTU int
}

// These are the metrics of Weft's routes to the universe. Every other route has priority over the
// fallback. The tunnel's metric is explicit, because 0 would mean 1024 in IPv6 and 0 in IPv4.
const (
	tunnelMetric   = 512
	fallbackMetric = 4278198272
)

// universes returns the overlay's prefixes in the families that this host has enabled. The nftables
// table covers IPv6 in any case.
func (o Overlay) universes() []netip.Prefix {
	if o.IPv6 {
		return []netip.Prefix{o.Universe.V4, o.Universe.V6}
	}
	return []netip.Prefix{o.Universe.V4}
}

// Nodes returns the node's addresses, IPv4 first; none while the node has no slot.
func (o Overlay) Nodes() []netip.Addr {
	switch {
	case o.Node == 0:
		return nil
	case o.IPv6:
		return []netip.Addr{o.Universe.Addr4(o.Node), o.Universe.Addr6(o.Node)}
	}
	return []netip.Addr{o.Universe.Addr4(o.Node)}
}

// SetUnreachable makes the universe unreachable, except for routes with a smaller metric. It must
// be called first, so that no packet for the overlay ever follows the default route. These routes
// stay when the device is deleted. The IPv6 routes disappear when lo goes down, so each Apply sets
// them again.
func (o Overlay) SetUnreachable() error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	_, _, err = reject(h, o.universes(), func(netip.Prefix) int { return fallbackMetric })
	return err
}

// Up sets the device's MTU and sets the device up. No route leads to it yet.
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
			return fmt.Errorf("setting MTU %d of %s: %w", o.MTU, Device, Explain(err))
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
		return fmt.Errorf("setting link %s up: %w", Device, Explain(err))
	}
	return nil
}

// NoLinkLocal stops the kernel from giving a link an IPv6 link-local address and from announcing
// that address to neighbours. It must be called before the link is up.
func NoLinkLocal(h *netlink.Handle, l netlink.Link) error {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	if err := h.LinkSetIP6AddrGenMode(l, none); err != nil {
		return fmt.Errorf("turning off IPv6 address generation of %s: %w", l.Attrs().Name, err)
	}
	return nil
}

func device(h *netlink.Handle) (netlink.Link, error) {
	l, err := h.LinkByName(Device)
	if err != nil {
		return nil, fmt.Errorf("reading link %s: %w", Device, Explain(err))
	}
	return l, nil
}

// SetRoutes gives the tunnel its addresses, and routes the universe through it. It does nothing
// while there is no node address, since every packet that the host itself sends needs a node
// address as its source.
func (o Overlay) SetRoutes() error {
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
	present := map[routeKey]bool{}
	for _, r := range have {
		if key := keyOf(r); sameRoute(r, want[key]) {
			present[key] = true
		}
	}
	for key, r := range want {
		if !present[key] {
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

// routes returns the routes of the universe through the tunnel, and the routes with a smaller MTU.
func (o Overlay) routes(device int) (out []netlink.Route) {
	nodes := o.Nodes()
	into := func(p netip.Prefix, mtu int) {
		r := netlink.Route{
			Dst: IPNet(p), LinkIndex: device, Src: nodes[0].AsSlice(), MTU: mtu,
			Scope: netlink.SCOPE_LINK, Protocol: Protocol, Table: unix.RT_TABLE_MAIN, Priority: tunnelMetric,
		}
		if p.Addr().Is6() {
			r.Src, r.Scope = nodes[1].AsSlice(), netlink.SCOPE_UNIVERSE
			// When Linux forwards an IPv6 packet, it first checks the packet against a route's MTU
			// only if that MTU is locked. Otherwise it only checks the packet's size when it sends
			// the packet. Older versions then let packets pass that segmentation offload has
			// joined.
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

// routeKey identifies a route in one table: no two routes of the table have the same key.
type routeKey struct {
	to     netip.Prefix
	metric int
}

func keyOf(r netlink.Route) routeKey {
	to, _ := prefixOf(r.Dst)
	return routeKey{to, r.Priority}
}

// setAddresses gives a link exactly the addresses in want. Link-local addresses stay.
func setAddresses(h *netlink.Handle, l netlink.Link, want []netip.Addr) error {
	list := func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) }
	prefix := func(a netlink.Addr) netip.Prefix {
		p, _ := prefixOf(a.IPNet)
		return p
	}
	err := Purge("old addresses of link "+l.Attrs().Name, func() ([]netlink.Addr, error) {
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
		return fmt.Errorf("listing the addresses of %s: %w", l.Attrs().Name, Explain(err))
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

// SetAddress gives a link an address that is usable at once. Weft assigned it to this host alone,
// so IPv6's duplicate address detection is turned off.
func SetAddress(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: IPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if p.Addr().IsLinkLocalUnicast() {
		a.Scope = unix.RT_SCOPE_LINK
	}
	if err := h.AddrReplace(l, a); err != nil {
		return fmt.Errorf("setting address %v of %s: %w", p, l.Attrs().Name, Explain(err))
	}
	return nil
}

// SetRoute sets a route unless have, the result of Routes, contains it. The reason is that
// replacing an equal IPv6 route would remove the route for a moment.
func SetRoute(h *netlink.Handle, have []netlink.Route, r netlink.Route) error {
	if slices.ContainsFunc(have, func(old netlink.Route) bool { return sameRoute(old, r) }) {
		return nil
	}
	return replaceRoute(h, r)
}

func replaceRoute(h *netlink.Handle, r netlink.Route) error {
	if err := h.RouteReplace(&r); err != nil {
		return fmt.Errorf("setting the route to %v: %w", r.Dst, Explain(err))
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

// Remove deletes the tunnel's link and every route of Weft, for a reset.
func Remove() error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := DeleteLink(h, Device); err != nil {
		return err
	}
	// The routes come last: while the link exists, the universe needs its unreachable routes.
	return purgeRoutes(h, "routes", func(r netlink.Route) bool { return r.Protocol == Protocol })
}
