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

// maxUnderlay is what a peer's record holds (peer.MaxUnderlay); written out, since
// weft-cni links this package.
const maxUnderlay = 16

// HostAddr is one at which other hosts may reach this one, as the kernel has it.
type HostAddr struct {
	Addr netip.Addr
	Rank int // of those that are new, the smallest goes first
	// Old says that nobody is told of it who does not know it already: it is about to go
	// (deprecated, RFC 4862), or changes by itself (temporary, RFC 8981).
	Old bool
}

// maxRemembered bounds the order of addresses, those that are gone included.
const maxRemembered = 4 * maxUnderlay

// Order is the order of a host's addresses: what was there before keeps its place, as long as
// it exists, and gets it back when it returns. The first is the one that gossip advertises,
// and that peers send to: it must not follow a default route, which any VPN changes. Next is the
// order to give the next time; addrs are those of it that exist.
func Order(before []netip.Addr, now []HostAddr) (next, addrs []netip.Addr) {
	now = slices.Clone(now)
	slices.SortStableFunc(now, func(a, b HostAddr) int { return cmp.Compare(a.Rank, b.Rank) })
	next = slices.Clone(before)
	for _, a := range now {
		if !a.Old && !slices.Contains(next, a.Addr) {
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

// Ranks of addresses; those of IPv6 are one more.
const (
	onDefaultLink  = 0  // of the link with the best default route
	onOtherLink    = 10 // of a link of another network
	onTunnel       = 20 // of a VPN or another overlay
	besidesAnother = 30 // of a link that has an address with a network: a virtual address, which moves from host to host
)

// Underlay lists the addresses at which other hosts may reach this one, in the kernel's order.
func Underlay(universe slot.Universe) (out []HostAddr, err error) {
	h, err := Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
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
			return nil, fmt.Errorf("addresses of %s: %w", attrs.Name, err)
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
			out = append(out, addr)
		}
	}
	return out, nil
}

// single4 reports whether an IPv4 address comes without a network.
func single4(a netlink.Addr) bool {
	ones, bits := a.Mask.Size()
	return bits == 32 && ones == 32
}

// forContainers reports whether a link serves containers or virtual machines of this host: a
// bridge without a port that leads out of it. Its addresses are the same on many hosts. So are
// those of kube-proxy's link, which are services'.
func forContainers(l netlink.Link, all []netlink.Link) bool {
	if l.Attrs().Name == "kube-ipvs0" {
		return true
	}
	return l.Type() == "bridge" && !slices.ContainsFunc(all, func(port netlink.Link) bool {
		return port.Attrs().MasterIndex == l.Attrs().Index && port.Type() != "veth" && port.Type() != "tuntap"
	})
}

// isTunnel reports whether a link's packets travel inside others.
func isTunnel(l netlink.Link) bool {
	switch l.Type() {
	case "tuntap", "wireguard", "vxlan", "geneve", "gre", "gretap", "ip6gre", "ipip", "ip6tnl", "sit", "vti", "vti6", "xfrm":
		return true
	}
	return false
}

// underlayAddr is an address that others can be told of.
func underlayAddr(a netlink.Addr, universe slot.Universe) (HostAddr, bool) {
	ip, ok := netip.AddrFromSlice(a.IP)
	ip = ip.Unmap()
	out := HostAddr{Addr: ip}
	if ip.Is6() {
		out.Old = a.Flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY) != 0
		if a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			return out, false
		}
	}
	_, inside := universe.Slot(ip)
	return out, ok && ip.IsGlobalUnicast() && !inside
}

// defaultLink is the index of the link with the best default route, 0 if there is none.
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
