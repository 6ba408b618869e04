// Package packet builds the packets that the agent sends as a container or host, and reads their addresses. It is pure.
package packet

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// hops is the TTL of packets.
const hops = 64

// Addresses returns the addresses in a network header.
func Addresses(network []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(network) >= 20 && network[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(network[12:16])), netip.AddrFrom4([4]byte(network[16:20])), true
	case len(network) >= 40 && network[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(network[8:24])), netip.AddrFrom16([16]byte(network[24:40])), true
	}
	return src, dst, false
}

// IP puts a network header before a body, which begins with the header of a protocol. The packet must not be
// fragmented.
func IP(src, dst netip.Addr, protocol byte, body []byte) []byte {
	if src.Is4() {
		b := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, hops, protocol, 0, 0}
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(body)))
		b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[10:], Checksum(b))
		return append(b, body...)
	}
	b := []byte{0x60, 0, 0, 0, 0, 0, protocol, hops}
	binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), body...)
}

// Frame puts an Ethernet header before a packet.
func Frame(to, from net.HardwareAddr, ip []byte) []byte {
	kind := []byte{0x86, 0xdd}
	if ip[0]>>4 == 4 {
		kind = []byte{0x08, 0x00}
	}
	b := make([]byte, 0, 14+len(ip))
	return append(append(append(append(b, to...), from...), kind...), ip...)
}

// Checksum returns the checksum of the Internet (RFC 1071). Each part but the last has an even length.
func Checksum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i, x := range b {
			s += uint32(x) << (8 * (1 - i%2))
		}
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// PseudoHeader is what the checksums of TCP, UDP and ICMPv6 also cover (RFC 9293, RFC 8200).
func PseudoHeader(src, dst netip.Addr, protocol byte, length int) []byte {
	b := append(src.AsSlice(), dst.AsSlice()...)
	return append(binary.BigEndian.AppendUint32(b, uint32(length)), 0, 0, 0, protocol)
}

// EchoTypes returns the protocol of ICMP in a family, and the types of echo requests and their answers.
func EchoTypes(is4 bool) (protocol int, request, reply icmp.Type) {
	if is4 {
		return 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	}
	return 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
}
