package nft

import (
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Packet holds the properties of a packet that rules examine.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         byte
	SrcPort, DstPort uint16
	Iif, Oif         string
	// IifIndex and OifIndex are for rules that match interfaces by index.
	IifIndex, OifIndex uint32
	Reply              bool // whether the packet is in the reply direction of its flow
}

// From returns the packet as it arrives on an interface from an address; link is empty for a packet
// of the host itself.
func (p Packet) From(link string, src netip.Addr) Packet {
	p.Iif, p.Src = link, src
	return p
}

// To returns the packet as it leaves on an interface to an address; link is empty for a packet to
// the host itself.
func (p Packet) To(link string, dst netip.Addr) Packet {
	p.Oif, p.Dst = link, dst
	return p
}

// Answer returns a reply of the same flow.
func (p Packet) Answer() Packet {
	p.Src, p.Dst, p.SrcPort, p.DstPort, p.Iif, p.Oif = p.Dst, p.Src, p.DstPort, p.SrcPort, p.Oif, p.Iif
	p.Reply = !p.Reply
	return p
}

func (p Packet) hasPorts() bool {
	return p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP || p.Protocol == unix.IPPROTO_SCTP
}

func (p Packet) pings() bool {
	return p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6
}

// header returns the known bytes of a packet's headers.
func (p Packet) header(base expr.PayloadBase) (header []byte, known []bool) {
	header, known = make([]byte, 64), make([]bool, 64)
	put := func(offset uint32, value ...byte) {
		for i, b := range value {
			header[int(offset)+i], known[int(offset)+i] = b, true
		}
	}
	is4 := p.Src.Is4()
	switch {
	case base == expr.PayloadBaseTransportHeader && p.hasPorts():
		put(sport.off, binaryutil.BigEndian.PutUint16(p.SrcPort)...)
		put(dport.off, binaryutil.BigEndian.PutUint16(p.DstPort)...)
		if p.Protocol == unix.IPPROTO_TCP {
			put(13, p.flags())
		}
	case base != expr.PayloadBaseNetworkHeader:
	case is4:
		put(6, 0, 0) // the packet is no fragment
		put(9, p.Protocol)
		put(saddr.off4, p.Src.AsSlice()...)
		put(daddr.off4, p.Dst.AsSlice()...)
	default:
		put(6, p.Protocol)
		put(saddr.off6, p.Src.AsSlice()...)
		put(daddr.off6, p.Dst.AsSlice()...)
	}
	return header, known
}

// flags returns TCP's flags: SYN for a new connection, SYN and ACK for a reply.
func (p Packet) flags() byte {
	if p.Reply {
		return 0x12
	}
	return 0x02
}

// state returns conntrack's state: new, or established for a reply.
func (p Packet) state() uint32 {
	if p.Reply {
		return expr.CtStateBitESTABLISHED
	}
	return expr.CtStateBitNEW
}
