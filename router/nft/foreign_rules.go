package nft

import (
	"bytes"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// foreign evaluates expressions that only other programs' rules have.
func (m *machine) foreign(e expr.Any) (*expr.Verdict, answer) {
	switch e := e.(type) {
	case *expr.Reject:
		return &expr.Verdict{Kind: expr.VerdictDrop}, yes
	case *expr.Notrack, *expr.Dup, *expr.FlowOffload:
		return nil, yes
	case *expr.Immediate:
		m.set(e.Register, e.Data)
		return nil, yes
	case *expr.Range:
		if !m.knows(e.Register, len(e.FromData)) {
			return nil, maybe
		}
		value := m.reg(e.Register)
		in := bytes.Compare(e.FromData, value[:len(e.FromData)]) <= 0 && bytes.Compare(value[:len(e.ToData)], e.ToData) <= 0
		return nil, is(in == (e.Op == expr.CmpOpEq))
	case *expr.Fib:
		m.mark(e.Register, 16, false)
		return nil, yes
	case *expr.Byteorder:
		m.mark(e.DestRegister, int(e.Len), false)
		return nil, yes
	case *expr.Objref:
		const counter = 1 // NFT_OBJECT_COUNTER; another object may be a limit
		if e.Type == counter {
			return nil, yes
		}
	case *expr.Queue:
		return unsure(true), yes
	case *expr.Match:
		return nil, m.match(e)
	case *expr.Target:
		return target(e.Name)
	}
	for i := range m.known { // an unknown expression may change any register
		m.known[i] = false
	}
	return nil, maybe
}

// match evaluates an iptables match that nftables does not have.
func (m *machine) match(e *expr.Match) answer {
	p := m.packet
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.ConntrackMtinfo1:
		return p.conntrack(info.MatchFlags, info.InvertFlags, uint16(info.StateMask))
	case *xt.ConntrackMtinfo2:
		return p.conntrack(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.ConntrackMtinfo3:
		return p.conntrack(info.MatchFlags, info.InvertFlags, info.StateMask)
	case *xt.Udp:
		if p.Protocol != unix.IPPROTO_UDP {
			return no
		}
		return is(between(p.SrcPort, info.SrcPorts) != (info.InvFlags&xt.UdpInvSrcPorts != 0) &&
			between(p.DstPort, info.DstPorts) != (info.InvFlags&xt.UdpInvDestPorts != 0))
	case *xt.Tcp:
		if p.Protocol != unix.IPPROTO_TCP {
			return no
		}
		if info.Option != 0 {
			return maybe
		}
		return is(between(p.SrcPort, info.SrcPorts) != (info.InvFlags&xt.TcpInvSrcPorts != 0) &&
			between(p.DstPort, info.DstPorts) != (info.InvFlags&xt.TcpInvDestPorts != 0) &&
			(p.flags()&info.FlagsMask == info.FlagsCmp) != (info.InvFlags&xt.TcpInvFlags != 0))
	case *xt.Unknown:
		switch e.Name {
		case "multiport":
			return p.multiport(*info)
		case "icmp", "icmp6":
			return min(is(p.pings()), maybe)
		case "state": // an older form of the conntrack match: one word of states
			if len(*info) >= 1 {
				return is(p.state()&uint32((*info)[0]) != 0)
			}
		}
	}
	return maybe
}

func between(port uint16, ports [2]uint16) bool { return ports[0] <= port && port <= ports[1] }

// conntrack evaluates a match on the state (linux/netfilter/xt_conntrack.h).
func (p Packet) conntrack(flags, inverted, states uint16) answer {
	const state, alias = 1 << 0, 1 << 13
	if flags&^alias != state {
		return maybe // the match also depends on something else
	}
	return is((p.state()&uint32(states) != 0) != (inverted&state != 0))
}

// multiport evaluates a match on ports and port ranges (linux/netfilter/xt_multiport.h, revision
// 1).
func (p Packet) multiport(info []byte) answer {
	const most = 15
	if len(info) < 2+2*most+most+1 || !p.hasPorts() {
		return min(is(p.hasPorts()), maybe)
	}
	kind, count, inverted := info[0], int(min(info[1], most)), info[2+2*most+most] != 0
	asked := [][]uint16{{p.SrcPort}, {p.DstPort}, {p.SrcPort, p.DstPort}}
	if int(kind) >= len(asked) {
		return maybe
	}
	port := func(i int) uint16 { return binaryutil.NativeEndian.Uint16(info[2+2*i : 4+2*i]) }
	found := false
	for i := 0; i < count; i++ {
		ports := [2]uint16{port(i), port(i)}
		if ranged := info[2+2*most+i] != 0; ranged && i+1 < count {
			i++
			ports[1] = port(i)
		}
		found = found || slices.ContainsFunc(asked[kind], func(n uint16) bool { return between(n, ports) })
	}
	return is(found != inverted)
}

// goesOn are iptables targets after which the next rule follows.
var goesOn = []string{
	"AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "HL", "LED", "LOG", "MARK", "NFLOG",
	"NOTRACK", "RATEEST", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TRACE", "TTL",
}

func target(name string) (*expr.Verdict, answer) {
	switch {
	case name == "REJECT":
		return &expr.Verdict{Kind: expr.VerdictDrop}, yes
	case slices.Contains(goesOn, name):
		return nil, yes
	}
	return unsure(true), maybe
}
