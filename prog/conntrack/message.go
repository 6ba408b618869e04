package conntrack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/prog/flows"
	"weft/router/policy"
)

// These are the parts of ctnetlink's messages that this package uses
// (linux/netfilter/nfnetlink_conntrack.h).
const (
	messageNew    = unix.NFNL_SUBSYS_CTNETLINK << 8 // also the answer to messageGet
	messageGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	messageDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	attrOriginal        = 1
	attrReply           = 2
	attrProtocolInfo    = 4
	attrCountersSent    = 9
	attrCountersReceive = 10
	attrID              = 12
	attrZone            = 18

	tupleIP       = 1
	tupleProtocol = 2

	ipV4Src = 1
	ipV4Dst = 2
	ipV6Src = 3
	ipV6Dst = 4

	protocolNumber   = 1
	protocolSrcPort  = 2
	protocolDstPort  = 3
	protocolICMPID   = 4
	protocolICMPType = 5
	protocolICMPCode = 6
	protocolV6ID     = 7
	protocolV6Type   = 8
	protocolV6Code   = 9

	infoTCP      = 1
	infoTCPState = 1

	counterPackets = 1
	counterBytes   = 2
)

// tcpTimeWait is the first state of conntrack in which both ends have closed a TCP connection
// (linux/netfilter/nf_conntrack_tcp.h).
const tcpTimeWait = 7

// headers is the length of a message before its attributes: struct nlmsghdr and struct nfgenmsg.
const headers = unix.SizeofNlMsghdr + 4

// message is one netlink message in a buffer.
type message struct {
	kind     uint16
	flags    uint16
	sequence uint32
	body     []byte // after struct nlmsghdr
}

// messages calls f for each whole message in a buffer.
func messages(b []byte, f func(message)) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return
		}
		f(message{
			kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			sequence: binary.NativeEndian.Uint32(b[8:]), body: b[unix.SizeofNlMsghdr:size],
		})
		b = b[min(align(size), len(b)):]
	}
}

func align(n int) int { return (n + 3) &^ 3 }

// attributes calls f for each whole attribute in a buffer.
func attributes(b []byte, f func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < unix.SizeofNlAttr || size > len(b) {
			return
		}
		f(kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:size])
		b = b[min(align(size), len(b)):]
	}
}

// parse reads the connection in the body of a message. keep is asked with the addresses of both
// directions before the rest is read.
func parse(body []byte, keep func(flows.Entry) bool) (e flows.Entry, ok bool) {
	if len(body) < 4 {
		return e, false
	}
	var reply flows.Tuple
	attrs := body[4:]
	attributes(attrs, func(kind uint16, value []byte) {
		switch kind {
		case attrOriginal:
			e.Original = parseTuple(value)
		case attrReply:
			reply = parseTuple(value)
		}
	})
	e.ReplySrc, e.ReplyDst = reply.Src, reply.Dst
	o := e.Original
	if !o.Src.IsValid() || !o.Dst.IsValid() || !reply.Src.IsValid() || !reply.Dst.IsValid() || o.Protocol == 0 || !keep(e) {
		return e, false
	}
	attributes(attrs, func(kind uint16, value []byte) {
		switch kind {
		case attrCountersSent:
			e.Sent = parseCount(value)
		case attrCountersReceive:
			e.Received = parseCount(value)
		case attrID:
			e.ID = uint32(number(value))
		case attrZone:
			e.Original.Zone = uint16(number(value))
		case attrProtocolInfo:
			e.Closed = o.Protocol == policy.TCP && closed(value)
		}
	})
	return e, true
}

// closed reports whether the state of a TCP connection says that both ends have closed it.
func closed(info []byte) (yes bool) {
	attributes(info, func(kind uint16, value []byte) {
		if kind != infoTCP {
			return
		}
		attributes(value, func(kind uint16, value []byte) {
			if kind == infoTCPState {
				yes = number(value) >= tcpTimeWait
			}
		})
	})
	return yes
}

// number reads a number in network byte order, as all numbers in ctnetlink's attributes are.
func number(b []byte) (n uint64) {
	for _, x := range b[:min(len(b), 8)] {
		n = n<<8 | uint64(x)
	}
	return n
}

func parseCount(b []byte) (c flows.Count) {
	attributes(b, func(kind uint16, value []byte) {
		switch kind {
		case counterPackets:
			c.Packets = number(value)
		case counterBytes:
			c.Bytes = number(value)
		}
	})
	return c
}

func parseTuple(b []byte) (t flows.Tuple) {
	var src, dst netip.Addr
	var srcPort, dstPort uint16
	attributes(b, func(kind uint16, value []byte) {
		switch kind {
		case tupleIP:
			attributes(value, func(kind uint16, value []byte) {
				switch kind {
				case ipV4Src, ipV6Src:
					src, _ = netip.AddrFromSlice(value)
				case ipV4Dst, ipV6Dst:
					dst, _ = netip.AddrFromSlice(value)
				}
			})
		case tupleProtocol:
			attributes(value, func(kind uint16, value []byte) {
				n := number(value)
				switch kind {
				case protocolNumber:
					t.Protocol = policy.Protocol(n)
				case protocolSrcPort:
					srcPort = uint16(n)
				case protocolDstPort:
					dstPort = uint16(n)
				case protocolICMPID, protocolV6ID:
					t.ID = uint16(n)
				case protocolICMPType, protocolV6Type:
					t.Type = uint8(n)
				case protocolICMPCode, protocolV6Code:
					t.Code = uint8(n)
				}
			})
		}
	})
	t.Src, t.Dst = netip.AddrPortFrom(src, srcPort), netip.AddrPortFrom(dst, dstPort)
	return t
}

// request appends a request for one connection to a buffer.
func request(b []byte, t flows.Tuple, sequence uint32) []byte {
	at := len(b)
	family, src, dst := byte(unix.AF_INET), uint16(ipV4Src), uint16(ipV4Dst)
	if t.Src.Addr().Is6() {
		family, src, dst = unix.AF_INET6, ipV6Src, ipV6Dst
	}
	b = header(b, family, unix.NLM_F_REQUEST, sequence)
	b = nested(b, attrOriginal, func(b []byte) []byte {
		b = nested(b, tupleIP, func(b []byte) []byte {
			return attribute(attribute(b, src, t.Src.Addr().AsSlice()), dst, t.Dst.Addr().AsSlice())
		})
		return nested(b, tupleProtocol, func(b []byte) []byte {
			b = attribute(b, protocolNumber, []byte{byte(t.Protocol)})
			id, kind, code := uint16(protocolICMPID), uint16(protocolICMPType), uint16(protocolICMPCode)
			switch t.Protocol {
			case policy.ICMPv6:
				id, kind, code = protocolV6ID, protocolV6Type, protocolV6Code
				fallthrough
			case policy.ICMP:
				b = attribute(b, id, binary.BigEndian.AppendUint16(nil, t.ID))
				return attribute(attribute(b, kind, []byte{t.Type}), code, []byte{t.Code})
			}
			b = attribute(b, protocolSrcPort, binary.BigEndian.AppendUint16(nil, t.Src.Port()))
			return attribute(b, protocolDstPort, binary.BigEndian.AppendUint16(nil, t.Dst.Port()))
		})
	})
	if t.Zone != 0 {
		b = attribute(b, attrZone, binary.BigEndian.AppendUint16(nil, t.Zone))
	}
	binary.NativeEndian.PutUint32(b[at:], uint32(len(b)-at))
	return b
}

// header appends struct nlmsghdr, whose length the caller sets, and struct nfgenmsg.
func header(b []byte, family byte, flags uint16, sequence uint32) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, messageGet)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	return append(b, 0, 0, 0, 0, family, unix.NFNETLINK_V0, 0, 0)
}

func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

func nested(b []byte, kind uint16, fill func([]byte) []byte) []byte {
	at := len(b)
	b = fill(attribute(b, kind|unix.NLA_F_NESTED, nil))
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	return b
}
