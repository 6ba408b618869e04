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

// Sync makes the host's end of each endpoint as Plug programs it. Sync reads the host's ends of all
// endpoints at once, and changes only what differs. Differences occur: the kernel deletes an endpoint's route
// together with the node address, and other programs make mistakes. Sync ignores an endpoint whose
// link is missing: the program that attached it must detach it.
//
// Both ends of a link have the container's MTU, also after the MTU of the tunnel has changed. With
// a smaller MTU on the host's end, larger packets from the container would be lost. With a larger
// MTU there, packets to the container would be lost. A packet that is too big for its next link is
// answered with an ICMP error.
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
	now, err := readState(h)
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
		if now.matches(l, e, node4, node6) {
			continue
		}
		if err := plug(socket, e, node4, node6); err != nil && exists(e.HostLink) == nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Routed returns the host's ends that exist, each with the IPv4 address that is routed to it.
func Routed() (map[string]netip.Addr, error) {
	h, err := link.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	now, err := readState(h)
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

// state is the kernel's state of all endpoints.
type state struct {
	links      map[string]netlink.Link
	addresses  map[place]bool
	neighbours map[place]string // permanent entries, with their MAC address
	routes     map[netip.Addr]netlink.Route
}

type place struct {
	link int
	addr netip.Addr
}

func readState(h *netlink.Handle) (state, error) {
	s := state{map[string]netlink.Link{}, map[place]bool{}, map[place]string{}, map[netip.Addr]netlink.Route{}}
	links, err := link.Dump(h.LinkList)
	if err != nil {
		return s, fmt.Errorf("listing links: %w", err)
	}
	for _, l := range links {
		s.links[l.Attrs().Name] = l
	}
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return s, fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range addrs {
		s.addresses[place{a.LinkIndex, addrOf(a.IP)}] = true
	}
	neighbours, err := link.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return s, fmt.Errorf("listing neighbour entries: %w", err)
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
		if ones, bits := r.Dst.Mask.Size(); ones == bits && r.Type != unix.RTN_UNREACHABLE { // an unreachable route leads to no endpoint: it rejects a range of one slot, see link.RejectUnassigned
			s.routes[addrOf(r.Dst.IP)] = r
		}
	}
	return s, nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// matches reports whether an endpoint's host end is as Plug makes it.
func (s state) matches(l netlink.Link, e Endpoint, node4, node6 netip.Addr) bool {
	attrs := l.Attrs()
	family := func(addr, gateway, node netip.Addr) bool {
		r, ok := s.routes[addr]
		return ok && r.LinkIndex == attrs.Index && addrOf(r.Src) == node &&
			s.addresses[place{attrs.Index, gateway}] && s.neighbours[place{attrs.Index, addr}] == e.ContainerMAC.String()
	}
	return attrs.Flags&net.FlagUp != 0 && (e.MTU == 0 || attrs.MTU == e.MTU) && family(e.Addr4, Gateway4, node4) &&
		(!e.Addr6.IsValid() || family(e.Addr6, Gateway6, node6))
}
