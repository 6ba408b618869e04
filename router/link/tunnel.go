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

// Overlay is what the host's routes should say of the universe.
type Overlay struct {
	Universe slot.Universe
	Node     slot.Slot // 0: none yet
	MTU      int
	IPv6     bool
}

// lastResort is the metric of the unreachable routes: any other route beats them.
const lastResort = 4278198272

// universes are the overlay's prefixes in the families that this host carries.
// The guard covers IPv6 in any case.
func (o Overlay) universes() []netip.Prefix {
	if o.IPv6 {
		return []netip.Prefix{o.Universe.V4, o.Universe.V6}
	}
	return []netip.Prefix{o.Universe.V4}
}

// Close makes the universe unreachable but for what better routes say. It comes
// first: then no packet for the overlay follows the default route, at any moment.
func (o Overlay) Close() error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, p := range o.universes() {
		r := &netlink.Route{Dst: IPNet(p), Type: unix.RTN_UNREACHABLE, Priority: lastResort, Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
		if p.Addr().Is6() {
			lo, err := h.LinkByName("lo") // IPv6 hangs them on lo, and drops them with it
			if err != nil {
				return fmt.Errorf("unreachable route: %w", err)
			}
			r.LinkIndex = lo.Attrs().Index
		}
		if err := replaceRoute(h, r); err != nil {
			return err
		}
	}
	return nil
}

// Open gives the tunnel its addresses and the universe its way into it. It does
// nothing before there is a node address, since every packet of the host's own
// needs one as its source.
func (o Overlay) Open() error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(Device)
	if err != nil {
		return fmt.Errorf("link %s: %w", Device, err)
	}
	if l.Attrs().MTU != o.MTU {
		if err := h.LinkSetMTU(l, o.MTU); err != nil {
			return fmt.Errorf("MTU %d of %s: %w", o.MTU, Device, err)
		}
	}
	if o.IPv6 {
		// No link-local address is needed there, and none is announced.
		if err := Sysctl("1", "ipv6/conf", Device, "addr_gen_mode"); err != nil {
			return err
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("link %s up: %w", Device, err)
		}
	}
	if o.Node == 0 {
		return nil
	}
	nodes := []netip.Addr{o.Universe.Addr4(o.Node)}
	if o.IPv6 {
		nodes = append(nodes, o.Universe.Addr6(o.Node))
	}
	if err := setAddresses(h, l, nodes); err != nil {
		return err
	}
	for i, p := range o.universes() {
		r := &netlink.Route{
			Dst: IPNet(p), LinkIndex: l.Attrs().Index, Src: nodes[i].AsSlice(),
			Scope: netlink.SCOPE_LINK, Protocol: Protocol, Table: unix.RT_TABLE_MAIN, Priority: tunnelMetric,
		}
		if p.Addr().Is6() {
			r.Scope = netlink.SCOPE_UNIVERSE
		}
		if err := replaceRoute(h, r); err != nil {
			return err
		}
	}
	return nil
}

// tunnelMetric is the metric of the universe's way into the tunnel; 0 would mean
// 1024 in IPv6 and 0 in IPv4.
const tunnelMetric = 512

// setAddresses makes the single addresses of a link exactly these; link-local ones stay.
func setAddresses(h *netlink.Handle, l netlink.Link, want []netip.Addr) error {
	have, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
	}
	for _, a := range have {
		addr, _ := netip.AddrFromSlice(a.IP)
		addr = addr.Unmap()
		if i := slices.Index(want, addr); i >= 0 {
			want = slices.Delete(slices.Clone(want), i, i+1)
		} else if !addr.IsLinkLocalUnicast() {
			if err := h.AddrDel(l, &a); err != nil {
				return fmt.Errorf("remove address %v of %s: %w", addr, l.Attrs().Name, err)
			}
		}
	}
	for _, addr := range want {
		a := &netlink.Addr{IPNet: IPNet(netip.PrefixFrom(addr, addr.BitLen()))}
		if addr.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrReplace(l, a); err != nil {
			return fmt.Errorf("address %v of %s: %w", addr, l.Attrs().Name, err)
		}
	}
	return nil
}

// replaceRoute sets a route unless it is there already: replacing an equal IPv6
// route would take it away for a moment.
func replaceRoute(h *netlink.Handle, r *netlink.Route) error {
	family := netlink.FAMILY_V4
	if r.Dst.IP.To4() == nil {
		family = netlink.FAMILY_V6
	}
	have, err := h.RouteListFiltered(family, &netlink.Route{Dst: r.Dst, Table: r.Table}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("routes to %v: %w", r.Dst, err)
	}
	for _, old := range have {
		if old.Priority == r.Priority && old.LinkIndex == r.LinkIndex && old.Src.Equal(r.Src) && old.Protocol == r.Protocol && sameType(old.Type, r.Type) {
			return nil
		}
	}
	if err := h.RouteReplace(r); err != nil {
		return fmt.Errorf("route to %v: %w", r.Dst, err)
	}
	return nil
}

func sameType(a, b int) bool {
	if a == 0 {
		a = unix.RTN_UNICAST
	}
	if b == 0 {
		b = unix.RTN_UNICAST
	}
	return a == b
}

// Remove deletes the tunnel's link and every route of ours, for a reset.
func Remove() error {
	h, err := Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route to %v: %w", r.Dst, err)
		}
	}
	l, err := h.LinkByName(Device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("remove link %s: %w", Device, err)
	}
	return nil
}
