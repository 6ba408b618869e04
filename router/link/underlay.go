package link

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
)

// maxUnderlay is the maximum number of addresses in a peer's record (peer.MaxUnderlay). It is
// repeated here so that weft-cni, which links this package, does not import package peer.
const maxUnderlay = 16

// HostAddr is an address of this host, at which other hosts may reach it, as the kernel reports it.
type HostAddr struct {
	Addr netip.Addr
	Rank int // new addresses are ordered by rank, the smallest first
	// Unstable is set if the address is about to be removed (deprecated, RFC 4862), or changes by
	// itself (temporary, RFC 8981). Order advertises such an address only if it was advertised
	// before.
	Unstable bool
	Link     int  // the index of the link with the address; 0: unknown
	Tunnel   bool // that link encapsulates its packets in other packets
}

// maxRemembered limits the addresses in an order, including addresses that no longer exist.
const maxRemembered = 4 * maxUnderlay

// Order returns a host's addresses in a stable order. An address keeps its place as long as it
// exists, and has the same place again when it returns. Gossip advertises the first address, and
// peers send to it. So the first address must not change with the default route, which any VPN
// replaces. next is the order to pass the next time; addrs are the existing addresses in that order.
func Order(before []netip.Addr, now []HostAddr) (next, addrs []netip.Addr) {
	now = slices.Clone(now)
	slices.SortStableFunc(now, func(a, b HostAddr) int { return cmp.Compare(a.Rank, b.Rank) })
	next = slices.Clone(before)
	for _, a := range now {
		if !a.Unstable && !slices.Contains(next, a.Addr) {
			next = append(next, a.Addr)
		}
	}
	exists := func(a netip.Addr) bool {
		return slices.ContainsFunc(now, func(n HostAddr) bool { return n.Addr == a })
	}
	for i := len(next) - 1; i >= 0 && len(next) > maxRemembered; i-- {
		if !exists(next[i]) {
			next = slices.Delete(next, i, i+1)
		}
	}
	next = next[:min(len(next), maxRemembered)]
	for _, a := range next {
		if exists(a) && len(addrs) < maxUnderlay {
			addrs = append(addrs, a)
		}
	}
	return next, addrs
}

// These are the ranks of IPv4 addresses. The rank of an IPv6 address is larger by one.
const (
	onDefaultLink  = 0  // on the link with the best default route
	onOtherLink    = 10 // on a link to another network
	onTunnel       = 20 // on the link of a VPN or another overlay
	besidesAnother = 30 // a /32 beside an address with a network: a virtual address, which moves from host to host
)

// Underlay lists the addresses at which other hosts may reach this host, in the kernel's order.
func Underlay(universe slot.Universe) (out []HostAddr, err error) {
	h, err := Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	preferred := defaultLink(h)
	for _, l := range links {
		attrs := l.Attrs()
		switch {
		case Ours(attrs.Name) || attrs.Flags&net.FlagLoopback != 0 || attrs.Flags&net.FlagUp == 0:
			continue
		case attrs.Index != preferred && forContainers(l, links):
			continue
		}
		addrs, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("listing the addresses of %s: %w", attrs.Name, err)
		}
		rank := onOtherLink
		switch {
		case attrs.Index == preferred:
			rank = onDefaultLink
		case isTunnel(l):
			rank = onTunnel
		}
		network := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return !single4(a) && a.IP.To4() != nil })
		for _, a := range addrs {
			addr, ok := underlayAddr(a, universe)
			switch {
			case !ok:
				continue
			case network && single4(a):
				addr.Rank = besidesAnother
			default:
				addr.Rank = rank
			}
			if addr.Addr.Is6() {
				addr.Rank++
			}
			addr.Link, addr.Tunnel = attrs.Index, rank == onTunnel
			out = append(out, addr)
		}
	}
	return out, nil
}

// single4 reports whether an address is an IPv4 address with the prefix length 32.
func single4(a netlink.Addr) bool {
	ones, bits := a.Mask.Size()
	return bits == 32 && ones == 32
}

// forContainers reports whether a link serves containers or virtual machines of this host. Such a
// link is a bridge without a port to another network; its addresses are the same on many hosts.
// kube-proxy's link also counts: its addresses belong to services.
func forContainers(l netlink.Link, all []netlink.Link) bool {
	if l.Attrs().Name == "kube-ipvs0" {
		return true
	}
	return l.Type() == "bridge" && !slices.ContainsFunc(all, func(port netlink.Link) bool {
		return port.Attrs().MasterIndex == l.Attrs().Index && port.Type() != "veth" && port.Type() != "tuntap"
	})
}

// isTunnel reports whether a link encapsulates its packets in other packets.
func isTunnel(l netlink.Link) bool {
	switch l.Type() {
	case "tuntap", "wireguard", "vxlan", "geneve", "gre", "gretap", "ip6gre", "ipip", "ip6tnl", "sit", "vti", "vti6", "xfrm":
		return true
	}
	return false
}

// underlayAddr converts an address, and reports whether other hosts may use it.
func underlayAddr(a netlink.Addr, universe slot.Universe) (HostAddr, bool) {
	ip, ok := netip.AddrFromSlice(a.IP)
	ip = ip.Unmap()
	out := HostAddr{Addr: ip}
	if ip.Is6() {
		out.Unstable = a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY) != 0
		if a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			return out, false
		}
	}
	_, inside := universe.Slot(ip)
	return out, ok && ip.IsGlobalUnicast() && !inside
}

// defaultLink returns the index of the link with the best default route, or 0 if there is none.
func defaultLink(h *netlink.Handle) int {
	routes, err := listRoutes(h, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return 0
	}
	best, index := 0, 0
	for _, r := range routes {
		if isDefault(r) && r.LinkIndex != 0 && (index == 0 || r.Priority < best) {
			best, index = r.Priority, r.LinkIndex
		}
	}
	return index
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}
