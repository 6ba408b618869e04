package endpoint

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/link"
)

// Endpoint is the desired state of the host's end of an attached container.
type Endpoint struct {
	HostLink     string
	ContainerMAC net.HardwareAddr
	Addr4, Addr6 netip.Addr // Addr6 is invalid if IPv6 is disabled on the host
	// MTU is the MTU that the container was given; 0 means that it is not known any longer. The
	// actual MTU of the container's end takes precedence, see Sync.
	MTU int
}

// Equal reports whether two endpoints have the same desired state.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.HostLink == o.HostLink && bytes.Equal(e.ContainerMAC, o.ContainerMAC) && e.Addr4 == o.Addr4 && e.Addr6 == o.Addr6 && e.MTU == o.MTU
}

// Plug programs the host's end: gateway addresses, neighbour entries, and last the routes. From then
// on packets pass. The routes' source is the node's address, which the host uses when it sends to the
// endpoint itself.
func Plug(e Endpoint, node4, node6 netip.Addr) error {
	socket, err := link.OpenSocket()
	if err != nil {
		return err
	}
	defer socket.Close()
	return plug(socket, e, node4, node6)
}

func plug(socket link.Socket, e Endpoint, node4, node6 netip.Addr) error {
	index, err := socket.Index(e.HostLink)
	if err != nil {
		return err
	}
	requests := append([]link.Request{link.Strict4(index), link.Up(index, e.MTU)}, e.requests(index, e.Addr4, node4)...)
	if e.Addr6.IsValid() {
		requests = append(requests, e.requests(index, e.Addr6, node6)...)
	}
	if err := socket.Do(requests...); err != nil {
		return fmt.Errorf("programming link %s: %w", e.HostLink, err)
	}
	return nil
}

// requests returns the changes of the host's end in one family.
func (e Endpoint) requests(index int, addr, node netip.Addr) []link.Request {
	gateway, scope := netip.PrefixFrom(Gateway4, 32), netlink.SCOPE_LINK
	via := link.Via{Index: index, Source: node, Scope: netlink.SCOPE_LINK, Protocol: link.Protocol}
	if addr.Is6() {
		gateway, scope = netip.PrefixFrom(Gateway6, 64), netlink.SCOPE_UNIVERSE
		via.Scope = netlink.SCOPE_UNIVERSE
	}
	return []link.Request{
		link.Address(index, gateway, scope),
		link.Neighbour(index, addr, e.ContainerMAC),
		link.Route(netip.PrefixFrom(addr, addr.BitLen()), via),
	}
}

// ignoreAdvertisements makes the host ignore router advertisements and redirects from an endpoint,
// which would change its IPv6 routes. The nftables table drops them too, so a /proc/sys that is
// read-only or has no IPv6 is no error.
func ignoreAdvertisements(hostLink string) error {
	for _, name := range []string{"accept_ra", "accept_redirects"} {
		err := link.WriteSysctl("0", "ipv6/conf", hostLink, name)
		if err != nil && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// Unplug removes the routes to endpoints, so that no packet reaches them by their addresses.
func Unplug(endpoints ...Endpoint) error {
	addrs := map[netip.Addr]string{}
	for _, e := range endpoints {
		addrs[e.Addr4], addrs[e.Addr6] = e.HostLink, e.HostLink
	}
	return link.RemoveHostRoutes(addrs)
}
