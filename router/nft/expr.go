package nft

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rule is one rule, in nft's syntax for people and tests, and as expressions for the kernel.
type Rule struct {
	text  []string
	exprs []expr.Any
}

func (r Rule) String() string { return strings.Join(r.text, " ") }

// part is a piece of a rule: a match or a statement.
type part struct {
	text  string
	exprs []expr.Any
}

func rule(parts ...part) Rule {
	var r Rule
	for _, p := range parts {
		if p.text != "" {
			r.text = append(r.text, p.text)
		}
		r.exprs = append(r.exprs, p.exprs...)
	}
	return r
}

const reg = unix.NFT_REG_1

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

// sign returns an operator in nft's syntax.
func sign(op expr.CmpOp) string {
	if op == expr.CmpOpNeq {
		return "!= "
	}
	return ""
}

// ifname matches an interface by name, or by prefix if the name ends in "*".
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
	off4, off6 uint32 // offsets in the IPv4 and the IPv6 header
}

var (
	saddr = field{"saddr", 12, 8}
	daddr = field{"daddr", 16, 24}
)

// load matches the address family and loads the address into the register.
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

// in matches an address inside a prefix, or outside of it.
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

// is matches one address.
func (f field) is(a netip.Addr) part {
	return part{
		fmt.Sprintf("%s %s %v", ip(a.Is4()), f.word, a),
		append(f.load(a.Is4()), compare(expr.CmpOpEq, a.AsSlice())),
	}
}

// inSet matches an address in a named set.
func (f field) inSet(s *Set) part {
	is4 := s.Key[0].size == addr4.size
	return part{
		fmt.Sprintf("%s %s @%s", ip(is4), f.word, s.Name),
		append(f.load(is4), &expr.Lookup{SourceRegister: reg, SetName: s.Name}),
	}
}

// notReverse matches a packet whose source is not routed to its input interface (reverse path
// filter).
func notReverse() part {
	return part{"fib saddr . iif oif missing", []expr.Any{
		&expr.Fib{Register: reg, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(0)),
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

// ctBits matches if any of the given bits of a conntrack value is set.
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

// These are bits of a conntrack entry's status (linux/netfilter/nf_conntrack_common.h).
const (
	statusSNAT = 1 << 4
	statusDNAT = 1 << 5
)

func ctSNAT() part    { return ctBits("ct status snat", expr.CtKeySTATUS, statusSNAT) }
func ctDNAT() part    { return ctBits("ct status dnat", expr.CtKeySTATUS, statusDNAT) }
func ctRelated() part { return ctBits("ct state related", expr.CtKeySTATE, expr.CtStateBitRELATED) }

// ctReply matches a packet in the reply direction of its flow.
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

// snat sets a fixed source address. Unlike masquerade, snat keeps flows when the interface goes
// down.
func snat(to netip.Addr) part { return nat("snat", expr.NATTypeSourceNAT, to) }

// dnat sets another destination address.
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

// counter counts the packets that a rule drops. People read the count in nft's output.
func counter() part { return part{"counter", []expr.Any{&expr.Counter{}}} }

// jump returns the verdict of a map element.
func jump(chain string) *expr.Verdict { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }

// jumpTo continues in another chain and returns from it; goTo does not return.
func jumpTo(chain string) part {
	return part{"jump " + chain, []expr.Any{jump(chain)}}
}

func goTo(chain string) part {
	return part{"goto " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}

func returns() part { return verdict("return", expr.VerdictReturn) }

// vmap jumps to the chain that a map has for an address; if the map has no chain for the address,
// the next rule follows.
func (f field) vmap(m *Set) part {
	is4 := m.Key[0].size == addr4.size
	return part{
		fmt.Sprintf("%s %s vmap @%s", ip(is4), f.word, m.Name),
		append(f.load(is4), &expr.Lookup{SourceRegister: reg, SetName: m.Name, IsDestRegSet: true}),
	}
}

// word32 returns the 32-bit register at an offset after reg.
func word32(offset int) uint32 { return uint32(unix.NFT_REG32_00 + offset/4) }

// pairIn matches source and destination together in a set.
func pairIn(s *Set) part {
	is4, size := s.Key[0].size == addr4.size, s.Key[0].size
	second := daddr.load(is4)[2].(*expr.Payload)
	second.DestRegister = word32(size)
	return part{
		fmt.Sprintf("%s saddr . %[1]s daddr @%[2]s", ip(is4), s.Name),
		append(saddr.load(is4), second, &expr.Lookup{SourceRegister: reg, SetName: s.Name}),
	}
}

// side is the source or destination port of a packet.
type side struct {
	word string
	off  uint32 // the offset, which is the same in the headers of TCP, UDP and SCTP
}

var (
	sport = side{"sport", 0}
	dport = side{"dport", 2}
)

func (s side) load(register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: s.off, Len: 2}
}

// serviceIn matches address, protocol and port together in a set. An earlier part must match the
// protocol.
func (f field) serviceIn(s side, number byte, set *Set) part {
	is4, size := set.Key[0].size == addr4.size, set.Key[0].size
	return part{
		fmt.Sprintf("%s %s . meta l4proto . %s %s @%s", ip(is4), f.word, protocolName(number), s.word, set.Name),
		append(
			f.load(is4),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: word32(size)},
			s.load(word32(size+4)),
			&expr.Lookup{SourceRegister: reg, SetName: set.Name},
		),
	}
}

// l4proto matches a protocol.
func l4proto(number byte) part {
	return part{"meta l4proto " + protocolName(number), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		compare(expr.CmpOpEq, []byte{number}),
	}}
}

// implied returns a part that nft does not print, since a later part of the rule implies it.
func implied(p part) part { return part{exprs: p.exprs} }

// is matches a port of a protocol with ports.
func (s side) is(number byte, port uint16) part {
	return part{fmt.Sprintf("%s %s %d", protocolName(number), s.word, port), append(
		l4proto(number).exprs, s.load(reg), compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(port)))}
}

// inSet matches a port of a protocol in a set.
func (s side) inSet(number byte, set *Set) part {
	return part{fmt.Sprintf("%s %s @%s", protocolName(number), s.word, set.Name), append(
		l4proto(number).exprs, s.load(reg), &expr.Lookup{SourceRegister: reg, SetName: set.Name})}
}

// ctOriginal matches a packet in the original direction of its flow.
func ctOriginal() part {
	return part{"ct direction original", []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg},
		compare(expr.CmpOpEq, []byte{0}),
	}}
}

// snapshot is how many bytes of a logged packet the kernel keeps: enough for the headers.
const snapshot = 128

// logged sends a packet to LogGroup, within a rate limit.
func logged(prefix string) part {
	return part{
		fmt.Sprintf("limit rate 10/second burst 50 packets log prefix %q group %d snaplen %d", prefix, LogGroup, snapshot),
		[]expr.Any{
			&expr.Limit{Type: expr.LimitTypePkts, Rate: 10, Unit: expr.LimitTimeSecond, Burst: 50},
			&expr.Log{
				Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
				Group: LogGroup, Snaplen: snapshot, Data: []byte(prefix),
			},
		},
	}
}
