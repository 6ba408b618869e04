package trace

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"

	"weft/router/packet"
	"weft/router/policy"
)

// These are flags of TCP (RFC 9293).
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// payloadText is what the packet carries, so that whoever sees it knows what it is.
const payloadText = "weft trace"

func (p Packet) pings() bool { return p.Protocol == policy.ICMP || p.Protocol == policy.ICMPv6 }

// echoTypes returns the types of an echo request and its reply (RFC 792, RFC 4443).
func echoTypes(is4 bool) (request, reply byte) {
	if is4 {
		return 8, 0
	}
	return 128, 129
}

// answeredBy reports whether a network header is that of a packet to the source.
func (p Packet) answeredBy(network []byte) bool {
	_, dst, ok := packet.Addresses(network)
	return ok && dst == p.Src
}

// Bytes returns the packet with its network header.
func (p Packet) Bytes() []byte { return packet.IP(p.Src, p.Dst, byte(p.Protocol), p.body()) }

// body returns the transport header and the payload.
func (p Packet) body() []byte {
	b := binary.BigEndian.AppendUint16(nil, p.ID)
	b = binary.BigEndian.AppendUint16(b, p.Port)
	var at int // the offset of the checksum
	switch p.Protocol {
	case policy.TCP:
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, flagSYN, 0xff, 0xff, 0, 0, 0, 0) // sequence number 1, no options
		at = 16
	case policy.UDP:
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(payloadText)))
		b = append(b, 0, 0)
		b = append(b, payloadText...)
		at = 6
	case policy.SCTP: // INIT (RFC 9260, section 3.3.2), with a checksum of its own
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return b
	default:
		request, _ := echoTypes(p.Src.Is4())
		b = append([]byte{request, 0, 0, 0}, binary.BigEndian.AppendUint16(nil, p.ID)...)
		b = append(append(b, 0, 1), payloadText...)
		at = 2
	}
	var pseudo []byte
	if p.Protocol != policy.ICMP {
		pseudo = packet.PseudoHeader(p.Src, p.Dst, byte(p.Protocol), len(b))
	}
	check := packet.Checksum(pseudo, b)
	if check == 0 && p.Protocol == policy.UDP {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], check)
	return b
}

// Answer is what came back to the source.
type Answer struct {
	What    string // such as "SYN-ACK"
	Refused bool   // the destination refuses the packet
	Failed  bool   // a host on the way reports that it could not deliver the packet
}

// AnswerOf reads an answer from its headers.
func (p Packet) AnswerOf(network, transport []byte) (a Answer, ok bool) {
	from, _, ok := packet.Addresses(network)
	if !ok || len(transport) < 4 {
		return a, false
	}
	number := network[6]
	if from.Is4() {
		number = network[9]
	}
	switch protocol := policy.Protocol(number); {
	case (protocol == policy.ICMP || protocol == policy.ICMPv6) && !(p.pings() && echoes(from.Is4(), transport[0])):
		return p.failure(from, transport[0], transport[1]), true
	case protocol == policy.ICMP || protocol == policy.ICMPv6:
		return Answer{What: "echo reply"}, true
	case protocol == policy.TCP && len(transport) > 13:
		switch flags := transport[13]; {
		case flags&flagRST != 0:
			return Answer{What: "RST", Refused: true}, true
		case flags&(flagSYN|flagACK) == flagSYN|flagACK:
			return Answer{What: "SYN-ACK"}, true
		}
		return Answer{What: "a segment without SYN"}, true
	case protocol == policy.SCTP && len(transport) > 12:
		const abort = 6
		if transport[12] == abort {
			return Answer{What: "ABORT", Refused: true}, true
		}
		return Answer{What: "INIT-ACK"}, true
	case protocol == policy.UDP:
		return Answer{What: "a datagram"}, true
	}
	return Answer{What: fmt.Sprintf("a packet of protocol %d", number)}, true
}

func echoes(is4 bool, kind byte) bool {
	_, reply := echoTypes(is4)
	return kind == reply
}

// failure describes an ICMP error (RFC 792, RFC 1812, RFC 4443).
func (p Packet) failure(from netip.Addr, kind, code byte) Answer {
	texts := map[[2]byte]string{
		{1, 0}: "no route", {1, 1}: "administratively prohibited", {1, 3}: "address unreachable", {1, 4}: "port unreachable",
		{1, 5}: "failed policy", {1, 6}: "route rejected", {2, 0}: "packet too big", {3, 0}: "hop limit exceeded",
	}
	if from.Is4() {
		texts = map[[2]byte]string{
			{3, 0}: "network unreachable", {3, 1}: "host unreachable", {3, 2}: "protocol unreachable", {3, 3}: "port unreachable", {3, 4}: "fragmentation needed",
			{3, 9}: "network prohibited", {3, 10}: "host prohibited", {3, 13}: "administratively prohibited", {11, 0}: "time exceeded",
		}
	}
	text := texts[[2]byte{kind, code}]
	if text == "" {
		text = fmt.Sprintf("type %d, code %d", kind, code)
	}
	return Answer{What: "ICMP " + text, Refused: from == p.Dst, Failed: from != p.Dst}
}
