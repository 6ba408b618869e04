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

// Socket is a netlink route socket of the network namespace in which it was opened. It sends
// several requests in one message. An endpoint takes about ten requests, and a round trip for each
// would take most of the time. Every request replaces an existing object.
type Socket int

// OpenSocket opens a Socket in the network namespace of the calling thread.
func OpenSocket() (Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("opening a netlink route socket: %w", err)
	}
	return Socket(fd), nil
}

// Close closes the socket.
func (s Socket) Close() { _ = unix.Close(int(s)) }

// Index returns the index of the link with a name.
func (s Socket) Index(name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(int(s), unix.SIOCGIFINDEX, request)
	}
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", name, err)
	}
	return int(request.Uint32()), nil
}

// Request is one change for Do, such as an address of a link or a route.
type Request struct {
	what string
	*nl.NetlinkRequest
	harmless unix.Errno // an error of the kernel that counts as success
}

func request(what string, kind int, parts ...nl.NetlinkRequestData) Request {
	r := Request{what: what, NetlinkRequest: nl.NewNetlinkRequest(kind, unix.NLM_F_ACK)}
	if kind != unix.RTM_SETLINK {
		r.Flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	for _, p := range parts {
		r.AddData(p)
	}
	return r
}

// Up returns the request that sets a link up, with an MTU unless that is 0.
func Up(index, mtu int) Request {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	r := request(fmt.Sprintf("setting the link up with MTU %d", mtu), unix.RTM_SETLINK, msg)
	if mtu != 0 {
		r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	return r
}

// Attributes of RTM_SETLINK that no library names (linux/ip.h, linux/if_link.h).
const (
	inetConf            = 1 // IFLA_INET_CONF: the values that /proc/sys/net/ipv4/conf also has
	confAcceptRedirects = 4
	confSendRedirects   = 6
	confRPFilter        = 8
)

// Strict4 returns the request for strict reverse path filtering (rp_filter=1) on a link. The link
// also sends no ICMP redirects, and ignores them, so that no neighbour changes the host's routes. The
// request does not need /proc/sys, which is read-only in most containers.
func Strict4(index int) Request {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil)
	conf.AddRtAttr(confRPFilter, nl.Uint32Attr(1))
	conf.AddRtAttr(confAcceptRedirects, nl.Uint32Attr(0))
	conf.AddRtAttr(confSendRedirects, nl.Uint32Attr(0))
	return request("strict reverse path filtering (rp_filter)", unix.RTM_SETLINK, msg, spec)
}

// Address returns the request that adds an address to a link, without duplicate address detection.
func Address(index int, p netip.Prefix, scope netlink.Scope) Request {
	msg := nl.NewIfAddrmsg(nl.GetIPFamily(p.Addr().AsSlice()))
	msg.Index, msg.Prefixlen, msg.Scope = uint32(index), uint8(p.Bits()), uint8(scope)
	if p.Addr().Is6() {
		msg.Flags = unix.IFA_F_NODAD
	}
	return request(fmt.Sprintf("adding the address %v", p), unix.RTM_NEWADDR, msg,
		nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()), nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
}

// Neighbour returns the request that adds a permanent neighbour entry.
func Neighbour(index int, addr netip.Addr, mac net.HardwareAddr) Request {
	msg := &netlink.Ndmsg{Family: uint8(nl.GetIPFamily(addr.AsSlice())), Index: uint32(index), State: netlink.NUD_PERMANENT}
	return request(fmt.Sprintf("adding the neighbour entry of %v", addr), unix.RTM_NEWNEIGH, msg,
		nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()), nl.NewRtAttr(netlink.NDA_LLADDR, mac))
}

// Via is the part of a route that says how it leads through a link. Gateway and Source are
// optional. A zero Table or Metric leaves the choice to the kernel.
type Via struct {
	Index           int
	Gateway, Source netip.Addr
	Scope           netlink.Scope
	Protocol        netlink.RouteProtocol
	Table, Metric   int
}

// Route returns the request that routes a prefix through a link.
func Route(to netip.Prefix, via Via) Request {
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len, msg.Scope = uint8(nl.GetIPFamily(to.Addr().AsSlice())), uint8(to.Bits()), uint8(via.Scope)
	if via.Protocol != 0 {
		msg.Protocol = uint8(via.Protocol)
	}
	r := request(fmt.Sprintf("adding the route to %v", to), unix.RTM_NEWROUTE, msg,
		nl.NewRtAttr(unix.RTA_DST, to.Addr().AsSlice()), nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(via.Index))))
	if via.Gateway.IsValid() {
		r.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, via.Gateway.AsSlice()))
	}
	if via.Source.IsValid() {
		r.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, via.Source.AsSlice()))
	}
	if via.Table != 0 {
		msg.Table = unix.RT_TABLE_UNSPEC
		r.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(via.Table))))
	}
	if via.Metric != 0 {
		r.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(uint32(via.Metric))))
	}
	return r
}

// MainTableFirst returns the rule that looks up the main table first, and ignores that table's
// default routes.
func MainTableFirst(is4 bool, priority int) Request {
	from := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if is4 {
		from = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	r := rule(from, unix.RT_TABLE_MAIN, priority, 0)
	r.AddData(nl.NewRtAttr(nl.FRA_SUPPRESS_PREFIXLEN, nl.Uint32Attr(0)))
	return r
}

// findSource makes an IPv6 rule also match packets without a source address, if the kernel would
// choose a source in the rule's prefix (FIB_RULE_FIND_SADDR, linux/fib_rules.h).
const findSource = 0x10000

// SourceRules returns the rules that make packets use a table if their source is in a prefix, or if
// they have no source yet.
func SourceRules(from netip.Prefix, table, priority int) []Request {
	if from.Addr().Is6() {
		return []Request{rule(from, table, priority, findSource)}
	}
	return []Request{rule(netip.PrefixFrom(netip.IPv4Unspecified(), 32), table, priority, 0), rule(from, table, priority, 0)}
}

// rule returns the request for a policy routing rule. An existing rule stays.
func rule(from netip.Prefix, table, priority, flags int) Request {
	msg := nl.NewRtMsg() // struct fib_rule_hdr has the layout of struct rtmsg, Type is the action
	msg.Family, msg.Src_len, msg.Table, msg.Type, msg.Flags = uint8(nl.GetIPFamily(from.Addr().AsSlice())), uint8(from.Bits()), unix.RT_TABLE_UNSPEC, nl.FR_ACT_TO_TBL, uint32(flags)
	msg.Scope, msg.Protocol = 0, 0
	r := request(fmt.Sprintf("adding the routing rule for packets from %v", from), unix.RTM_NEWRULE, msg,
		nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(priority))), nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(uint32(table))))
	if from.Bits() > 0 {
		r.AddData(nl.NewRtAttr(nl.FRA_SRC, from.Addr().AsSlice()))
	}
	r.Flags = r.Flags&^unix.NLM_F_REPLACE | unix.NLM_F_EXCL
	r.harmless = unix.EEXIST
	return r
}

// Do makes all changes in order. The kernel tries each change. The error is that of the first
// change that failed.
func (s Socket) Do(requests ...Request) error {
	var out []byte
	for i, r := range requests {
		r.Seq = uint32(i)
		out = append(out, r.Serialize()...)
	}
	if err := unix.Sendto(int(s), out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sending to the netlink route socket: %w", err)
	}
	var failed error
	in := make([]byte, 16<<10)
	for answered := 0; answered < len(requests); {
		n, _, err := unix.Recvfrom(int(s), in, unix.MSG_DONTWAIT) // the kernel has answered when Sendto returns
		if err != nil {
			return fmt.Errorf("reading the netlink route socket: %w", err)
		}
		answers, err := syscall.ParseNetlinkMessage(in[:n])
		if err != nil {
			return fmt.Errorf("parsing the kernel's netlink answer: %w", err)
		}
		for _, m := range answers {
			answered++
			if len(m.Data) < 4 || int(m.Header.Seq) >= len(requests) {
				return fmt.Errorf("parsing the kernel's netlink answer: it belongs to request %d of %d and has length %d; want an error code of 4 bytes", m.Header.Seq, len(requests), len(m.Data))
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			if errno != 0 && errno != requests[m.Header.Seq].harmless && failed == nil {
				failed = fmt.Errorf("%s: %w", requests[m.Header.Seq].what, Explain(errno))
			}
		}
	}
	return failed
}
