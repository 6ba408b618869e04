package discover

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"weft/mesh/discovery"
)

// Port is the UDP port of announcements, and group4 and group6 are their multicast groups: one of the
// administrative scope (RFC 2365), and one of a link that is not assigned (RFC 4291).
const Port = 6785

var (
	group4 = netip.MustParseAddr("239.255.67.85")
	group6 = netip.MustParseAddr("ff12::7765:6674")
)

// place is where a socket listens: a link and a family.
type place struct {
	link int
	is6  bool
}

// socket receives the announcements of one link and sends this host's own ones there. It is bound to the
// link and to the group. So it gets nothing from other links, such as those of containers, and nothing
// that is addressed to this host alone.
type socket struct {
	net.PacketConn
	place
	v4 *ipv4.PacketConn // nil: IPv6
	v6 *ipv6.PacketConn
}

// open opens the socket of a place.
func open(at place) (*socket, error) {
	s, err := bind(at)
	if err != nil {
		return nil, fmt.Errorf("announcements on link %d: %w", at.link, err)
	}
	return s, nil
}

func bind(at place) (*socket, error) {
	family, group, addr := unix.AF_INET, group4, unix.Sockaddr(&unix.SockaddrInet4{Port: Port, Addr: group4.As4()})
	if at.is6 {
		family, group, addr = unix.AF_INET6, group6, &unix.SockaddrInet6{Port: Port, Addr: group6.As16(), ZoneId: uint32(at.link)}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "announcements")
	defer file.Close() // net.FilePacketConn duplicates the descriptor
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, at.link); err != nil {
		return nil, fmt.Errorf("binding to the link: %w", err)
	}
	if err := unix.Bind(fd, addr); err != nil {
		return nil, fmt.Errorf("binding to UDP port %d: %w", Port, err)
	}
	c, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	s := &socket{PacketConn: c, place: at}
	if err := s.join(group); err != nil {
		c.Close()
		return nil, fmt.Errorf("joining the multicast group %v: %w", group, err)
	}
	return s, nil
}

// join joins the group. What this host sends stays on the link, and does not come back.
func (s *socket) join(group netip.Addr) error {
	on, to := &net.Interface{Index: s.link}, &net.UDPAddr{IP: group.AsSlice()}
	if s.is6 {
		s.v6 = ipv6.NewPacketConn(s.PacketConn)
		return firstError(s.v6.JoinGroup(on, to), s.v6.SetMulticastHopLimit(1), s.v6.SetMulticastLoopback(false))
	}
	s.v4 = ipv4.NewPacketConn(s.PacketConn)
	return firstError(s.v4.JoinGroup(on, to), s.v4.SetMulticastTTL(1), s.v4.SetMulticastLoopback(false))
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// send sends a packet from an address of the link: receivers take the source as this host's address.
func (s *socket) send(packet []byte, from netip.Addr) (err error) {
	if s.is6 {
		_, err = s.v6.WriteTo(packet, &ipv6.ControlMessage{Src: from.AsSlice(), IfIndex: s.link}, &net.UDPAddr{IP: group6.AsSlice(), Port: Port})
	} else {
		_, err = s.v4.WriteTo(packet, &ipv4.ControlMessage{Src: from.AsSlice(), IfIndex: s.link}, &net.UDPAddr{IP: group4.AsSlice(), Port: Port})
	}
	return err
}

// read calls heard with each packet, until the socket is closed.
func (s *socket) read(heard func(packet []byte, from netip.Addr)) {
	for buffer := make([]byte, discovery.MaxSize+1); ; {
		n, from, err := s.ReadFrom(buffer)
		if err != nil {
			return
		}
		if udp, ok := from.(*net.UDPAddr); ok {
			heard(buffer[:n], udp.AddrPort().Addr().Unmap())
		}
	}
}
