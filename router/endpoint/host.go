package endpoint

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/link"
)

// Endpoint is the host side of an attached container.
type Endpoint struct {
	HostLink     string
	ContainerMAC net.HardwareAddr
	Addr4, Addr6 netip.Addr // Addr6 is invalid where the host carries no IPv6
	MTU          int
}

// Plug programs the host side: gateway addresses, neighbours, and last the routes, from which on packets pass. The sources are the node's addresses, for
// what the host itself sends to the endpoint.
func Plug(e Endpoint, node4, node6 netip.Addr) error {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(e.HostLink)
	if err != nil {
		return fmt.Errorf("link %s: %w", e.HostLink, err)
	}
	return plug(h, l, e, node4, node6)
}

func plug(h *netlink.Handle, l netlink.Link, e Endpoint, node4, node6 netip.Addr) error {
	if l.Attrs().MTU != e.MTU {
		if err := h.LinkSetMTU(l, e.MTU); err != nil {
			return fmt.Errorf("link %s: MTU %d: %w", e.HostLink, e.MTU, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("link %s up: %w", e.HostLink, err)
		}
	}
	if err := plugFamily(h, l, e, e.Addr4, node4); err != nil {
		return err
	}
	if e.Addr6.IsValid() {
		return plugFamily(h, l, e, e.Addr6, node6)
	}
	return nil
}

func plugFamily(h *netlink.Handle, l netlink.Link, e Endpoint, addr, node netip.Addr) error {
	gateway := &netlink.Addr{IPNet: link.IPNet(netip.PrefixFrom(Gateway4, 32)), Scope: unix.RT_SCOPE_LINK}
	if addr.Is6() {
		gateway = &netlink.Addr{IPNet: link.IPNet(netip.PrefixFrom(Gateway6, 64)), Flags: unix.IFA_F_NODAD}
	}
	if err := h.AddrReplace(l, gateway); err != nil {
		return fmt.Errorf("link %s: gateway %v: %w", e.HostLink, gateway.IPNet, err)
	}
	if err := setNeighbour(h, l.Attrs().Index, addr, e.ContainerMAC); err != nil {
		return fmt.Errorf("link %s: %w", e.HostLink, err)
	}
	route := &netlink.Route{
		Dst: link.IPNet(netip.PrefixFrom(addr, addr.BitLen())), LinkIndex: l.Attrs().Index,
		Scope: netlink.SCOPE_LINK, Protocol: link.Protocol,
	}
	if addr.Is6() {
		route.Scope = netlink.SCOPE_UNIVERSE
	}
	if node.IsValid() {
		route.Src = node.AsSlice()
	}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("route to %v: %w", addr, err)
	}
	return nil
}

// sysctls are the per-link settings: strict reverse path for IPv4, and nothing
// that an endpoint says changes the host's routing. The guard sees to both as well,
// so that a /proc/sys that is read-only, or has no IPv6, is no obstacle.
func sysctls(hostLink string) error {
	for _, s := range []struct{ tree, name, value string }{
		{"ipv4/conf", "rp_filter", "1"},
		{"ipv4/conf", "accept_redirects", "0"},
		{"ipv4/conf", "send_redirects", "0"},
		{"ipv6/conf", "accept_ra", "0"},
		{"ipv6/conf", "accept_redirects", "0"},
	} {
		err := link.Sysctl(s.value, s.tree, hostLink, s.name)
		if err != nil && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// Unplug removes the routes to an endpoint; those that went with its link are no error.
func Unplug(e Endpoint) error {
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, addr := range []netip.Addr{e.Addr4, e.Addr6} {
		if !addr.IsValid() {
			continue
		}
		r := &netlink.Route{Dst: link.IPNet(netip.PrefixFrom(addr, addr.BitLen())), Protocol: link.Protocol, Table: unix.RT_TABLE_MAIN}
		if err := h.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove route to %v: %w", addr, err)
		}
	}
	return nil
}
