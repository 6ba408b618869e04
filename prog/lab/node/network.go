package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bridge is the underlay's switch. Its ports have the hosts' names.
const Bridge = "underlay"

// SecondBridge is the switch for the hosts' second links. It is made together with the first such link.
const SecondBridge = "underlay2"

// SecondPort returns the name of a host's port on SecondBridge.
func SecondPort(host string) string { return host + "-2" }

// HostLink is the name of a host's link to the underlay. SecondLink is the name of its second link, if
// it has one.
const (
	HostLink   = "eth0"
	SecondLink = "eth1"
)

// Uplink describes one link of a host: the port on a switch, and the host's end.
type Uplink struct {
	Link, Port, Switch string
	MAC                string
	Addrs              []netip.Prefix
	Gateways           []netip.Addr // next hops of the default routes; they need not exist
	GatewayMAC         string       // static neighbour entry of all gateways
	Metric             int          // metric of the default routes
}

func setupNetwork(cfg Config) error {
	if err := linkUp("lo"); err != nil {
		return err
	}
	switch cfg.Role {
	case Underlay:
		// A switch must send nothing itself, so that captures only show frames of hosts.
		if err := sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
			return err
		}
		return ensureBridge(Bridge)
	case Router:
		if err := sysctl("net/ipv6/conf/all/disable_ipv6", "1"); err != nil {
			return err
		}
		if err := sysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
		return setupUplink(*cfg.Uplink)
	case Host:
		return setupUplink(*cfg.Uplink)
	}
	return nil
}

func ensureBridge(name string) error {
	snooping := false // there is no multicast querier, so snooping would only delay neighbour discovery
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the underlay's bridge: %w: load the bridge module", err)
	}
	return linkUp(name)
}

// plugHost connects the node with this pid to a switch. It runs in the underlay.
func plugHost(up Uplink, pid int) error {
	if err := ensureBridge(up.Switch); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(up.Switch)
	if err != nil {
		return err
	}
	hw, err := net.ParseMAC(up.MAC)
	if err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: up.Port, MasterIndex: bridge.Attrs().Index, MTU: 1500},
		PeerName:  up.Link, PeerNamespace: netlink.NsPid(pid), PeerHardwareAddr: hw,
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("connect %s to the underlay: %w", up.Port, err)
	}
	return linkUp(up.Port)
}

// unplugHost removes a host's ports. The kernel removes them when it frees the host's network
// namespace, but that is too late for a host that restarts at once.
func unplugHost(host string) error {
	for _, name := range []string{host, SecondPort(host)} {
		if err := removePort(name); err != nil {
			return err
		}
	}
	return nil
}

// removePort removes a port, and so the other end of its link. A missing port is no error.
func removePort(name string) error {
	link, err := netlink.LinkByName(name)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the port %s: %w", name, err)
	}
	return nil
}

func setupUplink(up Uplink) error {
	// Addresses are unique by construction, so duplicate address detection would only cost a second
	// per start.
	if err := sysctl("net/ipv6/conf/"+up.Link+"/accept_dad", "0"); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := linkUp(up.Link); err != nil {
		return err
	}
	link, err := netlink.LinkByName(up.Link)
	if err != nil {
		return err
	}
	for _, p := range up.Addrs {
		ip := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		addr := &netlink.Addr{IPNet: ip}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %v to %s: %w", p, up.Link, err)
		}
	}
	return addGateways(link, up)
}

// addGateways adds the default routes. The gateways need not exist: with a static neighbour entry the
// host sends anyway, so that a capture sees packets that leak towards the internet.
func addGateways(link netlink.Link, up Uplink) error {
	hw, err := net.ParseMAC(up.GatewayMAC)
	if err != nil {
		return err
	}
	for _, gw := range up.Gateways {
		neigh := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, IP: gw.AsSlice(), HardwareAddr: hw, State: netlink.NUD_PERMANENT,
		}
		if err := netlink.NeighSet(neigh); err != nil {
			return fmt.Errorf("add neighbour %v: %w", gw, err)
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Priority: up.Metric}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route via %v: %w", gw, err)
		}
	}
	return nil
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func sysctl(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
}

// addresses returns the addresses of each interface except lo, without link-local ones.
func addresses() (map[string][]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	all := make(map[string][]string)
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue // the interface has just been removed
		}
		for _, a := range addrs {
			ip, ok := a.(*net.IPNet)
			if ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
				all[link.Name] = append(all[link.Name], ip.IP.String())
			}
		}
	}
	return all, nil
}
