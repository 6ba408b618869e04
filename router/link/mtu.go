package link

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// MTUs holds the MTUs of this host's links.
type MTUs struct {
	ByAddr  map[netip.Addr]int // the MTU of the link with an address; loopback and dummy links are left out, since they send nothing
	Default int                // the MTU of the link with the best default route; 0: there is none
}

// ReadMTUs reads the MTUs of this host's links from the kernel.
func ReadMTUs() (MTUs, error) {
	out := MTUs{ByAddr: map[netip.Addr]int{}}
	h, err := Handle()
	if err != nil {
		return out, err
	}
	defer h.Close()
	links, err := Dump(h.LinkList)
	if err != nil {
		return out, fmt.Errorf("listing links: %w", err)
	}
	preferred, byIndex := defaultLink(h), map[int]int{}
	for _, l := range links {
		attrs := l.Attrs()
		if attrs.Flags&net.FlagLoopback != 0 || l.Type() == "dummy" {
			continue
		}
		byIndex[attrs.Index] = attrs.MTU
		if attrs.Index == preferred {
			out.Default = attrs.MTU
		}
	}
	addrs, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return out, fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && byIndex[a.LinkIndex] != 0 {
			out.ByAddr[addr.Unmap()] = byIndex[a.LinkIndex]
		}
	}
	return out, nil
}

// TunnelBytes returns how many bytes the tunnel device has received and sent.
func TunnelBytes() (uint64, error) {
	h, err := Handle()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	l, err := h.LinkByName(Device)
	if err != nil {
		return 0, fmt.Errorf("reading the counters of %s: %w", Device, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return 0, nil
	}
	return s.RxBytes + s.TxBytes, nil
}

// Way is the route by which this host sends to an address.
type Way struct {
	Link int // index of the link
	// MTU is the path MTU, if an ICMP message has reported one to the kernel. Otherwise it is the
	// MTU of the route, or of its link.
	MTU int
}

// WayTo looks up the route to an address in the kernel. from is the source address, if it is chosen
// already.
func WayTo(h *netlink.Handle, to, from netip.Addr) (Way, error) {
	var options netlink.RouteGetOptions
	if from.IsValid() {
		options.SrcAddr = from.AsSlice()
	}
	routes, err := h.RouteGetWithOptions(to.AsSlice(), &options)
	if err != nil {
		return Way{}, fmt.Errorf("looking up the route to %v: %w", to, err)
	}
	if len(routes) == 0 {
		return Way{}, fmt.Errorf("looking up the route to %v: %w", to, unix.ENETUNREACH)
	}
	way := Way{routes[0].LinkIndex, routes[0].MTU}
	if way.MTU == 0 {
		l, err := h.LinkByIndex(way.Link)
		if err != nil {
			return Way{}, fmt.Errorf("reading the link of the route to %v: %w", to, err)
		}
		way.MTU = l.Attrs().MTU
	}
	return way, nil
}

// skipStats leaves a link's statistics out of the answer (RTEXT_FILTER_SKIP_STATS of
// linux/rtnetlink.h).
const skipStats = 1 << 3

// OtherEndMTU returns the MTU of a veth's other end, in any network namespace; 0 if the kernel does
// not report it.
func (s Socket) OtherEndMTU(l netlink.Link) int {
	attrs := l.Attrs()
	if attrs.ParentIndex == 0 || attrs.NetNsID < 0 {
		return 0
	}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(attrs.ParentIndex)
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	for _, part := range []nl.NetlinkRequestData{
		msg, nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(attrs.NetNsID))), nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)),
	} {
		request.AddData(part)
	}
	if err := unix.Sendto(int(s), request.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0
	}
	in := make([]byte, 16<<10)
	n, _, err := unix.Recvfrom(int(s), in, unix.MSG_DONTWAIT) // the kernel has answered when Sendto returns
	if err != nil {
		return 0
	}
	answers, err := syscall.ParseNetlinkMessage(in[:n])
	if err != nil || len(answers) == 0 || answers[0].Header.Seq != request.Seq || answers[0].Header.Type != unix.RTM_NEWLINK || len(answers[0].Data) < unix.SizeofIfInfomsg {
		return 0
	}
	values, err := nl.ParseRouteAttr(answers[0].Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return 0
	}
	for _, v := range values {
		if v.Attr.Type == unix.IFLA_MTU && len(v.Value) == 4 {
			return int(binary.NativeEndian.Uint32(v.Value))
		}
	}
	return 0
}
