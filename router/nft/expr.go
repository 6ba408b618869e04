package nft

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rule is one rule: the same in nft's own syntax, for people and tests, and as
// expressions, for the kernel.
type Rule struct {
	text  []string
	exprs []expr.Any
}

func (r Rule) String() string { return strings.Join(r.text, " ") }

// part is a piece of a rule: a match, or a statement at its end.
type part struct {
	text  string
	exprs []expr.Any
}

func rule(parts ...part) Rule {
	var r Rule
	for _, p := range parts {
		r.text = append(r.text, p.text)
		r.exprs = append(r.exprs, p.exprs...)
	}
	return r
}

const reg = unix.NFT_REG_1

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

// sign is an operator as it prints.
func sign(op expr.CmpOp) string {
	if op == expr.CmpOpNeq {
		return "!= "
	}
	return ""
}

// ifname matches a link by name, or by prefix if the name ends in "*".
func ifname(keyword string, key expr.MetaKey, op expr.CmpOp, name string) part {
	data := []byte(strings.TrimSuffix(name, "*"))
	if !strings.HasSuffix(name, "*") {
		padded := make([]byte, unix.IFNAMSIZ)
		copy(padded, data)
		data = padded
	}
	return part{
		fmt.Sprintf("%s %s%q", keyword, sign(op), name),
		[]expr.Any{&expr.Meta{Key: key, Register: reg}, compare(op, data)},
	}
}

func iif(name string) part    { return ifname("iifname", expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func notIif(name string) part { return ifname("iifname", expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func oif(name string) part    { return ifname("oifname", expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func notOif(name string) part { return ifname("oifname", expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

// field is the source or destination address of a packet.
type field struct {
	word       string
	off4, off6 uint32 // in the IPv4 and the IPv6 header
}

var (
	saddr = field{"saddr", 12, 8}
	daddr = field{"daddr", 16, 24}
)

// load matches the family and puts the address into the register.
func (f field) load(is4 bool) []expr.Any {
	proto, off, size := byte(unix.NFPROTO_IPV6), f.off6, uint32(16)
	if is4 {
		proto, off, size = unix.NFPROTO_IPV4, f.off4, 4
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg},
		compare(expr.CmpOpEq, []byte{proto}),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: size},
	}
}

func ip(is4 bool) string {
	if is4 {
		return "ip"
	}
	return "ip6"
}

// in matches an address in a prefix, or outside it.
func (f field) in(op expr.CmpOp, p netip.Prefix) part {
	is4, size := p.Addr().Is4(), p.Addr().BitLen()/8
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return part{
		fmt.Sprintf("%s %s %s%v", ip(is4), f.word, sign(op), p),
		append(f.load(is4),
			&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
			compare(op, p.Addr().AsSlice())),
	}
}

// inSet matches an address in a named set.
func (f field) inSet(s Set) part {
	return part{
		fmt.Sprintf("%s %s @%s", ip(s.Is4), f.word, s.Name),
		append(f.load(s.Is4), &expr.Lookup{SourceRegister: reg, SetName: s.Name}),
	}
}

// notReverse matches a packet whose source is not routed to the link that it came from.
func notReverse() part {
	return part{"fib saddr . iif oif missing", []expr.Any{
		&expr.Fib{Register: reg, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(0)),
	}}
}

// dport matches a destination port of a protocol with ports.
func dport(name string, proto byte, port uint16) part {
	return part{fmt.Sprintf("%s dport %d", name, port), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		compare(expr.CmpOpEq, []byte{proto}),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)),
	}}
}

// icmp6 matches an ICMPv6 type (RFC 4861).
func icmp6(name string, number byte) part {
	return part{"icmpv6 type " + name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		compare(expr.CmpOpEq, []byte{unix.IPPROTO_ICMPV6}),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Len: 1},
		compare(expr.CmpOpEq, []byte{number}),
	}}
}

// ctBits matches if any of some bits of a conntrack value is set.
func ctBits(text string, key expr.CtKey, bits uint32) part {
	return part{text, []expr.Any{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}}
}

// Bits of a conntrack entry's status (linux/netfilter/nf_conntrack_common.h).
const (
	statusSNAT = 1 << 4
	statusDNAT = 1 << 5
)

func ctSNAT() part    { return ctBits("ct status snat", expr.CtKeySTATUS, statusSNAT) }
func ctDNAT() part    { return ctBits("ct status dnat", expr.CtKeySTATUS, statusDNAT) }
func ctRelated() part { return ctBits("ct state related", expr.CtKeySTATE, expr.CtStateBitRELATED) }

// ctReply matches a packet that answers: the flow began on the other side.
func ctReply() part {
	return part{"ct direction reply", []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg},
		compare(expr.CmpOpEq, []byte{1}),
	}}
}

func verdict(text string, kind expr.VerdictKind) part {
	return part{text, []expr.Any{&expr.Verdict{Kind: kind}}}
}

func drop() part   { return verdict("drop", expr.VerdictDrop) }
func accept() part { return verdict("accept", expr.VerdictAccept) }

func masquerade() part { return part{"masquerade", []expr.Any{&expr.Masq{}}} }

// snat gives a packet a fixed source. Unlike masquerade it forgets no flow when
// the link goes down.
func snat(to netip.Addr) part { return nat("snat", expr.NATTypeSourceNAT, to) }

// dnat gives a packet another destination.
func dnat(to netip.Addr) part { return nat("dnat", expr.NATTypeDestNAT, to) }

func nat(word string, kind expr.NATType, to netip.Addr) part {
	family := uint32(unix.NFPROTO_IPV6)
	if to.Is4() {
		family = unix.NFPROTO_IPV4
	}
	return part{fmt.Sprintf("%s %s to %v", word, ip(to.Is4()), to), []expr.Any{
		&expr.Immediate{Register: reg, Data: to.AsSlice()},
		&expr.NAT{Type: kind, Family: family, RegAddrMin: reg},
	}}
}

// counter counts what a rule dropped, for people who look.
func counter() part { return part{"counter", []expr.Any{&expr.Counter{}}} }
