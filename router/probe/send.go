package probe

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// family is what differs between the IPv4 and the IPv6 socket.
type family struct {
	name   string
	domain int
	header int // bytes of the IP header
	// nowhere is a multicast address for documentation (RFC 5771 and RFC 6676). A socket bound to it
	// receives no packet, and still sends from any address.
	nowhere netip.Addr
	options []option
	level   int32
	hops    int32 // the control message of the TTL or hop limit
}

type option struct{ level, name, value int }

var (
	family4 = &family{
		name: "IPv4", domain: unix.AF_INET, header: ipv4Header,
		nowhere: netip.MustParseAddr("233.252.0.1"),
		// "Don't fragment", and the path MTU that the kernel has learned from ICMP is ignored.
		options: []option{{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE}},
		level:   unix.IPPROTO_IP, hops: unix.IP_TTL,
	}
	family6 = &family{
		name: "IPv6", domain: unix.AF_INET6, header: ipv6Header,
		nowhere: netip.MustParseAddr("ff0e::db8:0:1"),
		options: []option{
			{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
			{unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1},
			{unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, checksumAt}, // the kernel fills in the checksum
		},
		level: unix.IPPROTO_IPV6, hops: unix.IPV6_HOPLIMIT,
	}
)

// checksumAt is the offset of the checksum in UDP's header (RFC 768).
const checksumAt = 6

// sender is the raw socket of one family.
type sender struct {
	*family
	fd int
	// route finds source addresses. Of protocol 255 (IPPROTO_RAW), it receives nothing and needs no
	// port. IPv6 does not use it: the kernel chooses the source and fills in the checksum.
	route int
}

func (s *sender) close() error { return errors.Join(unix.Close(s.fd), unix.Close(s.route)) }

// openSender opens a raw socket that receives nothing. It returns nil if the kernel lacks the family.
func openSender(f *family) (*sender, error) {
	fd, err := unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT):
		return nil, nil
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("opening a raw %s socket: %w: give this process the capability NET_RAW", f.name, err)
	case err != nil:
		return nil, fmt.Errorf("opening a raw %s socket: %w", f.name, err)
	}
	// A raw socket gets a clone of every UDP packet of the host, all of WireGuard's included. Bound
	// to an address that no packet has, it gets none, and the kernel makes no clone. The filter also
	// drops what arrives before the bind.
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{
		Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	})
	if err == nil {
		err = unix.Bind(fd, destination(f.nowhere))
	}
	for _, o := range f.options {
		if err == nil {
			err = unix.SetsockoptInt(fd, o.level, o.name, o.value)
		}
	}
	route := -1
	if err == nil {
		route, err = unix.Socket(f.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("setting up a raw %s socket: %w", f.name, err)
	}
	return &sender{f, fd, route}, nil
}

// Send sends one datagram. from is the source; of port 0 it is WireGuard's port, and of an invalid address the
// kernel chooses one by the route. size is the size of the whole IP packet in bytes: zeros follow the
// payload up to it (0: none). No host on the way may fragment the packet.
//
// If the packet exceeds the MTU of the interface that it leaves by, the error is EMSGSIZE. A smaller
// MTU of the route, set or learned, is ignored. If a firewall of this host drops the packet, the error
// is EPERM. A packet that is lost later gives no error.
func (c *Conn) Send(to, from netip.AddrPort, payload []byte, size int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.send(netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), netip.AddrPortFrom(from.Addr().Unmap(), cmp.Or(from.Port(), c.port)), payload, size); err != nil {
		return fmt.Errorf("probe: sending to %v: %w", to, err)
	}
	return nil
}

func (c *Conn) send(to, from netip.AddrPort, payload []byte, size int) error {
	s, f := c.v6, family6
	if to.Addr().Is4() {
		s, f = c.v4, family4
	}
	switch {
	case c.closed:
		return net.ErrClosed
	case !to.IsValid():
		return errors.New("the address is invalid")
	case from.Addr().IsValid() && from.Addr().Is4() != to.Addr().Is4():
		return fmt.Errorf("the source address %v is of the other family", from.Addr())
	case s == nil:
		return fmt.Errorf("the kernel of this host has no %s", f.name)
	}
	whole := max(size, f.header+udpHeader+len(payload))
	switch {
	case whole > maxPacket:
		return fmt.Errorf("packet size %d: %w", whole, unix.EMSGSIZE)
	case size != 0 && whole > size:
		return fmt.Errorf("the payload of %d bytes does not fit into a packet of %d", len(payload), size)
	}
	udp := c.packet[:whole-f.header]
	defer clear(udp[:udpHeader+len(payload)])
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpHeader:], payload)

	// UDP_GRO, which wireguard-go sets on its socket, merges consecutive datagrams of a flow before
	// the rules see them, and the rules see only the first. Datagrams whose TTL differs stay apart.
	// So probes have a TTL that WireGuard's packets do not have, and each another than the one before.
	c.sent++
	source, err := s.source(to.Addr(), from.Addr(), udp, len(payload))
	if err != nil {
		return err
	}
	control := slices.Concat(source, s.hopLimit(255-int32(c.sent%16)))
	_, err = unix.SendmsgN(s.fd, udp, control, destination(to.Addr()), unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EMSGSIZE) {
		return fmt.Errorf("packet size %d: %w", whole, err)
	}
	return err
}

// hopLimit returns the control message that sets the TTL or hop limit.
func (s *sender) hopLimit(n int32) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = s.level, s.hops
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(n))
	return b
}

// source returns the control message that sets the source address. For IPv4 it also fills in the
// checksum, of which the source address is a part.
func (s *sender) source(to, from netip.Addr, udp []byte, payload int) (control []byte, err error) {
	switch {
	case to.Is6() && !from.IsValid():
		return nil, nil
	case to.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()}), nil
	case !from.IsValid():
		if from, err = s.sourceTo(to); err != nil {
			return nil, err
		}
	}
	binary.BigEndian.PutUint16(udp[checksumAt:], checksum4(from, to, udp, payload))
	return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()}), nil
}

// sourceTo returns the address from which the kernel sends to an IPv4 address.
func (s *sender) sourceTo(to netip.Addr) (from netip.Addr, err error) {
	if err := unix.Connect(s.route, destination(to)); err != nil {
		return from, err
	}
	local, err := unix.Getsockname(s.route)
	// Without the source and destination of before, the next call chooses anew.
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, failed := unix.Syscall(unix.SYS_CONNECT, uintptr(s.route), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)); failed != 0 {
		return from, failed
	}
	if err != nil {
		return from, err
	}
	v4, ok := local.(*unix.SockaddrInet4)
	if !ok {
		return from, errors.New("the kernel returned no IPv4 source address")
	}
	return netip.AddrFrom4(v4.Addr), nil
}

// destination returns an address for the kernel; raw sockets have no port.
func destination(to netip.Addr) unix.Sockaddr {
	if to.Is4() {
		return &unix.SockaddrInet4{Addr: to.As4()}
	}
	return &unix.SockaddrInet6{Addr: to.As16()}
}

// checksum4 returns UDP's checksum over IPv4 (RFC 768). The padding is zero and adds nothing.
func checksum4(from, to netip.Addr, udp []byte, payload int) uint16 {
	a, b := from.As4(), to.As4()
	sum := uint32(unix.IPPROTO_UDP) + uint32(len(udp))
	for _, bytes := range [][]byte{a[:], b[:], udp[:udpHeader+payload]} {
		for i := 0; i+1 < len(bytes); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(bytes[i:]))
		}
		if len(bytes)%2 == 1 {
			sum += uint32(bytes[len(bytes)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff { // a checksum of zero would mean that there is none
		return 0xffff
	}
	return ^uint16(sum)
}
