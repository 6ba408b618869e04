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

// Socket is a route socket of the network namespace that it was opened in. It sends
// requests together: setting up an endpoint takes ten, and a round trip for each is
// most of what they cost. All of its requests replace what is there.
type Socket int

// OpenSocket opens one in the calling thread's network namespace.
func OpenSocket() (Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("route socket: %w", err)
	}
	return Socket(fd), nil
}

// Close closes the socket.
func (s Socket) Close() { _ = unix.Close(int(s)) }

// Index is the index of the link with a name.
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

// Request is one change of a link.
type Request struct {
	what string
	*nl.NetlinkRequest
	fine unix.Errno // what the kernel may answer as well
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

// Up brings a link up, with an MTU unless that is 0.
func Up(index, mtu int) Request {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	r := request(fmt.Sprintf("link up with MTU %d", mtu), unix.RTM_SETLINK, msg)
	if mtu != 0 {
		r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	}
	return r
}

// Attributes of RTM_SETLINK that the libraries do not name (linux/ip.h, linux/if_link.h).
const (
	inetConf            = 1 // IFLA_INET_CONF: values that are also at /proc/sys/net/ipv4/conf
	confAcceptRedirects = 4
	confSendRedirects   = 6
	confRPFilter        = 8
)

// Strict4 checks the source addresses of what comes in by a link against the routes, strictly
// (rp_filter=1), and lets nobody there change the host's routes. It does without /proc/sys,
// which is read-only in most containers.
func Strict4(index int) Request {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil)
	conf.AddRtAttr(confRPFilter, nl.Uint32Attr(1))
	conf.AddRtAttr(confAcceptRedirects, nl.Uint32Attr(0))
	conf.AddRtAttr(confSendRedirects, nl.Uint32Attr(0))
	return request("source address check", unix.RTM_SETLINK, msg, spec)
}

// Address gives a link an address, without duplicate address detection.
func Address(index int, p netip.Prefix, scope netlink.Scope) Request {
	msg := nl.NewIfAddrmsg(nl.GetIPFamily(p.Addr().AsSlice()))
	msg.Index, msg.Prefixlen, msg.Scope = uint32(index), uint8(p.Bits()), uint8(scope)
	if p.Addr().Is6() {
		msg.Flags = unix.IFA_F_NODAD
	}
	return request(fmt.Sprintf("address %v", p), unix.RTM_NEWADDR, msg,
		nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()), nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
}

// Neighbour tells the MAC address of a neighbour, for good.
func Neighbour(index int, addr netip.Addr, mac net.HardwareAddr) Request {
	msg := &netlink.Ndmsg{Family: uint8(nl.GetIPFamily(addr.AsSlice())), Index: uint32(index), State: netlink.NUD_PERMANENT}
	return request(fmt.Sprintf("neighbour %v", addr), unix.RTM_NEWNEIGH, msg,
		nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()), nl.NewRtAttr(netlink.NDA_LLADDR, mac))
}

// Via is a route through a link; Gateway and Source are optional. Table and Metric are the
// kernel's own, unless given.
type Via struct {
	Index           int
	Gateway, Source netip.Addr
	Scope           netlink.Scope
	Protocol        netlink.RouteProtocol
	Table, Metric   int
}

// Route leads a prefix through a link.
func Route(to netip.Prefix, via Via) Request {
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len, msg.Scope = uint8(nl.GetIPFamily(to.Addr().AsSlice())), uint8(to.Bits()), uint8(via.Scope)
	if via.Protocol != 0 {
		msg.Protocol = uint8(via.Protocol)
	}
	r := request(fmt.Sprintf("route to %v", to), unix.RTM_NEWROUTE, msg,
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

// SpecificFirst makes a family ask the main table first, for all but default routes.
func SpecificFirst(is4 bool, priority int) Request {
	from := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if is4 {
		from = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	r := rule(from, unix.RT_TABLE_MAIN, priority, 0)
	r.AddData(nl.NewRtAttr(nl.FRA_SUPPRESS_PREFIXLEN, nl.Uint32Attr(0)))
	return r
}

// findSource makes a rule of IPv6 hold also for what has no source address yet, if it would
// get one of the rule's prefix (FIB_RULE_FIND_SADDR, linux/fib_rules.h).
const findSource = 0x10000

// Chooses are the rules by which what has a source of a prefix, or none yet, asks a table.
func Chooses(from netip.Prefix, table, priority int) []Request {
	if from.Addr().Is6() {
		return []Request{rule(from, table, priority, findSource)}
	}
	return []Request{rule(netip.PrefixFrom(netip.IPv4Unspecified(), 32), table, priority, 0), rule(from, table, priority, 0)}
}

// rule is a policy routing rule. One that is there already stays.
func rule(from netip.Prefix, table, priority, flags int) Request {
	msg := nl.NewRtMsg() // struct fib_rule_hdr has the layout of struct rtmsg, Type being the action
	msg.Family, msg.Src_len, msg.Table, msg.Type, msg.Flags = uint8(nl.GetIPFamily(from.Addr().AsSlice())), uint8(from.Bits()), unix.RT_TABLE_UNSPEC, nl.FR_ACT_TO_TBL, uint32(flags)
	msg.Scope, msg.Protocol = 0, 0
	r := request(fmt.Sprintf("rule for what comes from %v", from), unix.RTM_NEWRULE, msg,
		nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(priority))), nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(uint32(table))))
	if from.Bits() > 0 {
		r.AddData(nl.NewRtAttr(nl.FRA_SRC, from.Addr().AsSlice()))
	}
	r.Flags = r.Flags&^unix.NLM_F_REPLACE | unix.NLM_F_EXCL
	r.fine = unix.EEXIST
	return r
}

// Do makes all changes, in order. The kernel tries each; the first that failed is the error.
func (s Socket) Do(requests ...Request) error {
	var out []byte
	for i, r := range requests {
		r.Seq = uint32(i)
		out = append(out, r.Serialize()...)
	}
	if err := unix.Sendto(int(s), out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("route socket: %w", err)
	}
	var failed error
	in := make([]byte, 16<<10)
	for answered := 0; answered < len(requests); {
		n, _, err := unix.Recvfrom(int(s), in, unix.MSG_DONTWAIT) // the kernel answers before it returns from Sendto
		if err != nil {
			return fmt.Errorf("route socket: %w", err)
		}
		answers, err := syscall.ParseNetlinkMessage(in[:n])
		if err != nil {
			return fmt.Errorf("route socket: %w", err)
		}
		for _, m := range answers {
			answered++
			if len(m.Data) < 4 || int(m.Header.Seq) >= len(requests) {
				return fmt.Errorf("route socket: an answer of %d bytes to request %d", len(m.Data), m.Header.Seq)
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
			if errno != 0 && errno != requests[m.Header.Seq].fine && failed == nil {
				failed = fmt.Errorf("%s: %w", requests[m.Header.Seq].what, Explain(errno))
			}
		}
	}
	return failed
}
