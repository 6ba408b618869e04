package nft

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// segments lowers the maximum segment size of TCP connections through the tunnel to what the route's MTU allows
// (RFC 9293, section 3.7.1). The peer's host does so for the other direction. So already the first segments
// fit, and ICMP errors are needed only if the MTU becomes smaller later. The kernel never raises the size. In the
// postrouting hook, packets of this host to a service have the route to the service's endpoint.
func segments() []Rule { return []Rule{rule(oif(tunnel), opens(), maxSegment())} }

// opens matches the first TCP segment of each direction.
func opens() part {
	const flagsAt, syn, rst = 13, 0x02, 0x04
	return part{"tcp flags syn / syn,rst", append(l4proto(unix.IPPROTO_TCP).exprs,
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		compare(expr.CmpOpEq, []byte{syn}),
	)}
}

// maxSegment sets TCP's option by the MTU of the route.
func maxSegment() part {
	const option, valueAt, size = 2, 2, 2 // RFC 9293, section 3.2
	return part{"tcp option maxseg size set rt mtu", []expr.Any{
		&expr.Rt{Register: reg, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: size, Size: size},
		&expr.Exthdr{SourceRegister: reg, Type: option, Offset: valueAt, Len: size, Op: expr.ExthdrOpTcpopt},
	}}
}
