package node

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/link"
)

// setMTU sets the MTU of one link.
func setMTU(name string, mtu int) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetMTU(l, mtu)
	}
	if err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", name, mtu, err)
	}
	return nil
}

// setRouteMTU sets the MTU of the main table's route to a prefix, and keeps its other attributes.
func setRouteMTU(prefix string, mtu int) error {
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return fmt.Errorf("%q is no prefix: want one such as 192.0.2.0/24", prefix)
	}
	family := netlink.FAMILY_V4
	if dst.IP.To4() == nil {
		family = netlink.FAMILY_V6
	}
	filter := &netlink.Route{Dst: dst, Table: unix.RT_TABLE_MAIN}
	routes, err := link.Dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list the routes to %v: %w", dst, err)
	}
	if len(routes) == 0 {
		return fmt.Errorf("there is no route to %v: see `ip route`", dst)
	}
	for _, route := range routes {
		route.MTU, route.Flags = mtu, 0
		if err := netlink.RouteReplace(&route); err != nil {
			return fmt.Errorf("set the MTU of the route to %v to %d: %w", dst, mtu, err)
		}
	}
	return nil
}

// listPorts adds the hosts' ports on all switches. A router's ports are left out: what they carry has also
// passed, or will pass, a host's port.
func listPorts(info *Info) error {
	links, err := link.Dump(netlink.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		if _, router := RouterHost(l.Attrs().Name); l.Attrs().MasterIndex != 0 && !router {
			info.Ports = append(info.Ports, l.Attrs().Name)
		}
	}
	return nil
}
