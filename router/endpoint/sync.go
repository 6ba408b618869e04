package endpoint

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/link"
)

// Sync makes the host side of each endpoint what Plug makes it. It looks at all of
// them at once and touches only what differs: the kernel drops an endpoint's route
// when the node address goes, and others make mistakes. An endpoint whose link is
// gone is left out: it is its owner's to detach.
//
// Both ends of a link have the container's MTU, whatever became of the tunnel's since: with less
// here, larger packets of the container would vanish; with more, those to it. What does not fit
// elsewhere is answered with an ICMP error.
func Sync(endpoints []Endpoint, node4, node6 netip.Addr) error {
	if len(endpoints) == 0 {
		return nil
	}
	h, err := link.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	socket, err := link.OpenSocket()
	if err != nil {
		return err
	}
	defer socket.Close()
	now, err := look(h)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range endpoints {
		l, there := now.links[e.HostLink]
		if !there {
			continue
		}
		e.MTU = cmp.Or(socket.OtherEndMTU(l), e.MTU)
		if now.right(l, e, node4, node6) {
			continue
		}
		if err := plug(socket, e, node4, node6); err != nil && exists(e.HostLink) == nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Routed lists the host sides that exist, with the IPv4 address that is routed to each.
func Routed() (map[string]netip.Addr, error) {
	h, err := link.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	now, err := look(h)
	if err != nil {
		return nil, err
	}
	out := map[string]netip.Addr{}
	for name, l := range now.links {
		for addr, r := range now.routes {
			if strings.HasPrefix(name, link.EndpointPrefix) && r.LinkIndex == l.Attrs().Index && addr.Is4() {
				out[name] = addr
			}
		}
	}
	return out, nil
}

// state is what the kernel has of our endpoints.
type state struct {
	links      map[string]netlink.Link
	addresses  map[place]bool
	neighbours map[place]string // permanent ones, with their MAC address
	routes     map[netip.Addr]netlink.Route
}

type place struct {
	link int
	addr netip.Addr
}

func look(h *netlink.Handle) (state, error) {
	s := state{map[string]netlink.Link{}, map[place]bool{}, map[place]string{}, map[netip.Addr]netlink.Route{}}
	links, err := link.Dump(h.LinkList)
	if err != nil {
		return s, fmt.Errorf("links: %w", err)
	}
	for _, l := range links {
		s.links[l.Attrs().Name] = l
	}
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return s, fmt.Errorf("addresses: %w", err)
	}
	for _, a := range addrs {
		s.addresses[place{a.LinkIndex, addrOf(a.IP)}] = true
	}
	neighbours, err := link.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return s, fmt.Errorf("neighbours: %w", err)
	}
	for _, n := range neighbours {
		if n.State&netlink.NUD_PERMANENT != 0 {
			s.neighbours[place{n.LinkIndex, addrOf(n.IP)}] = n.HardwareAddr.String()
		}
	}
	routes, err := link.Routes(h)
	if err != nil {
		return s, err
	}
	for _, r := range routes {
		if ones, bits := r.Dst.Mask.Size(); ones == bits && r.Type != unix.RTN_UNREACHABLE { // of a slot that is all we own
			s.routes[addrOf(r.Dst.IP)] = r
		}
	}
	return s, nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// right reports whether an endpoint's host side is as Plug makes it.
func (s state) right(l netlink.Link, e Endpoint, node4, node6 netip.Addr) bool {
	attrs := l.Attrs()
	family := func(addr, gateway, node netip.Addr) bool {
		r, ok := s.routes[addr]
		return ok && r.LinkIndex == attrs.Index && addrOf(r.Src) == node &&
			s.addresses[place{attrs.Index, gateway}] && s.neighbours[place{attrs.Index, addr}] == e.ContainerMAC.String()
	}
	return attrs.Flags&net.FlagUp != 0 && (e.MTU == 0 || attrs.MTU == e.MTU) && family(e.Addr4, Gateway4, node4) &&
		(!e.Addr6.IsValid() || family(e.Addr6, Gateway6, node6))
}
