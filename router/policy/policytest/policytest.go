// Package policytest draws random policies, packets and clusters, and interprets compiled programs.
// Tests use it to compare implementations of policy. It keeps no state.
package policytest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/router/policy"
)

// World returns the cluster of Kubernetes' test suite (kubernetes/test/e2e/network/netpol). It has the
// namespaces x, y and z with pods a, b and c, which serve port 80 as a named port.
//
//	x/a 10.0.1.1   x/b 10.0.1.2   x/c 10.0.1.3      and the same with fd00::
//	y/a 10.0.2.1   …              z/c 10.0.3.3
//
// Its two hosts have the known addresses 192.0.2.1 and 192.0.2.2, and the overlay addresses
// 10.0.9.1 and 10.0.9.2.
func World() policy.World {
	w := policy.World{Namespaces: map[string]map[string]string{}}
	for i, ns := range namespaces {
		w.Namespaces[ns] = map[string]string{"ns": ns}
		for j, pod := range pods {
			e := policy.Endpoint{ID: ns + "/" + pod, Namespace: ns, Name: pod, Labels: map[string]string{"pod": pod}, Addrs: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 0, byte(i + 1), byte(j + 1)}),
				netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i + 1), 15: byte(j + 1)}),
			}}
			for _, proto := range protocols {
				e.Ports = append(e.Ports, policy.NamedPort{Name: "serve-" + strings.ToLower(proto.String()), Protocol: proto, Number: 80})
			}
			w.Endpoints = append(w.Endpoints, e)
		}
	}
	for i, known := range [][]netip.Addr{{addr("192.0.2.1"), addr("2001:db8::1")}, {addr("192.0.2.2")}} { // the second host has only IPv4
		w.Hosts = append(w.Hosts, policy.Host{Addrs: known, Overlay: []netip.Addr{
			netip.AddrFrom4([4]byte{10, 0, 9, byte(i + 1)}), netip.AddrFrom16([16]byte{0: 0xfd, 14: 9, 15: byte(i + 1)}),
		}})
	}
	return w
}

var addr = netip.MustParseAddr

var (
	namespaces = []string{"x", "y", "z"}
	pods       = []string{"a", "b", "c"}
	protocols  = []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP}
)

// Random returns a number below n, from rand.IntN or a property test.
type Random func(n int) int

func one[T any](r Random, list []T) T { return list[r(len(list))] }

// Selector draws a selector on the labels of the world.
func (r Random) Selector() *policy.Selector {
	s := &policy.Selector{}
	for _, of := range []struct {
		key    string
		values []string
	}{{"pod", pods}, {"ns", namespaces}} {
		switch r(6) {
		case 0:
			s.Labels = map[string]string{of.key: one(r, of.values)}
		case 1:
			values := []string{one(r, of.values)}
			if r(2) == 0 {
				values = append(values, one(r, of.values))
			}
			s.Expressions = append(s.Expressions, policy.Expression{Key: of.key, Op: one(r, []policy.Op{policy.In, policy.NotIn}), Values: values})
		case 2:
			s.Expressions = append(s.Expressions, policy.Expression{Key: of.key, Op: one(r, []policy.Op{policy.Exists, policy.DoesNotExist})})
		}
	}
	return s
}

func block(cidr string, except ...string) policy.Peer {
	b := &policy.Block{CIDR: netip.MustParsePrefix(cidr)}
	for _, e := range except {
		b.Except = append(b.Except, netip.MustParsePrefix(e))
	}
	return policy.Peer{Block: b}
}

var blocks = []policy.Peer{
	block("10.0.0.0/16"), block("10.0.2.0/24", "10.0.2.2/32"), block("10.0.0.0/8", "10.0.1.0/24", "10.0.1.0/31"),
	block("fd00::/96", "fd00::200/120"), block("::/0"), block("0.0.0.0/0", "10.0.3.0/24"),
	block("192.0.2.0/30"), block("192.0.2.0/24", "192.0.2.2/32"), block("2001:db8::/64"), block("0.0.0.0/0", "192.0.2.0/24"),
	block("10.0.9.0/24", "10.0.9.1/32"),
	block("10.0.1.0/24", "10.0.0.0/8"), // no address is in this block
}

func (r Random) peer() policy.Peer {
	switch r(9) {
	case 0, 1:
		return policy.Peer{Pods: r.Selector()}
	case 2, 3:
		return policy.Peer{Namespaces: r.Selector()}
	case 4:
		return policy.Peer{Unread: true}
	case 5, 6:
		return policy.Peer{Namespaces: r.Selector(), Pods: r.Selector()}
	}
	return one(r, blocks)
}

func (r Random) port() policy.Port {
	p := one(r, []policy.Port{
		{}, {Number: 80}, {Number: 81}, {Number: 70, End: 90}, {Name: "serve-tcp"}, {Name: "serve-udp"}, {Name: "nothing"}, {Unread: true},
	})
	if !p.Unread {
		p.Protocol = one(r, protocols)
	}
	return p
}

// Rule draws a rule, which may match nothing.
func (r Random) Rule() (out policy.Rule) {
	for range r(3) {
		out.Peers = append(out.Peers, r.peer())
	}
	for range r(3) {
		out.Ports = append(out.Ports, r.port())
	}
	return out
}

// Policies draws up to four policies; one in eight is in audit mode.
func (r Random) Policies() (out []policy.Policy) {
	for n := range r(5) {
		p := policy.Policy{
			Namespace: one(r, namespaces), Name: fmt.Sprint("p", n), Pods: *r.Selector(), Audit: r(8) == 0,
			Isolates: one(r, []policy.Directions{policy.Of(policy.Ingress), policy.Of(policy.Egress), policy.Both}),
		}
		for range r(3) {
			p.Ingress = append(p.Ingress, r.Rule())
		}
		for range r(3) {
			p.Egress = append(p.Egress, r.Rule())
		}
		out = append(out, p)
	}
	return out
}

// outside are addresses, by family, that are outside the world or belong to its hosts.
var outside = [][]netip.Addr{
	{addr("192.0.2.7"), addr("192.0.2.1"), addr("10.0.2.77"), addr("10.0.9.1"), addr("10.0.9.2")},
	{addr("2001:db8::1"), addr("fd00::901"), addr("fd00::902")},
}

// Packet draws a packet between two endpoints of the world. One packet in five comes from outside
// or from a host. The ports are the ports of the rules, and the numbers next to these.
func (r Random) Packet(w policy.World) policy.Packet {
	family := r(2)
	p := policy.Packet{
		Src: one(r, w.Endpoints).Addrs[family], Dst: one(r, w.Endpoints).Addrs[family],
		Protocol: one(r, append(protocols[:3:3], policy.ICMP)), SrcPort: 40000, DstPort: one(r, []uint16{69, 70, 80, 81, 90, 91}),
	}
	if r(5) == 0 {
		p.Src = one(r, outside[family])
	}
	if p.Protocol == policy.ICMP {
		p.SrcPort, p.DstPort = 0, 0
		p.Protocol = [...]policy.Protocol{policy.ICMP, policy.ICMPv6}[family]
	}
	return p
}

// Answer returns the reply to a packet.
func Answer(p policy.Packet) policy.Packet {
	p.Src, p.Dst, p.SrcPort, p.DstPort, p.Reply = p.Dst, p.Src, p.DstPort, p.SrcPort, !p.Reply
	return p
}

// Allows returns a program's verdict on a packet of the side that opened the connection.
func Allows(prog policy.Program, p policy.Packet) bool {
	return p.FromOwnHost || AllowsIn(prog, prog.Isolated, policy.Egress, p) && AllowsIn(prog, prog.Isolated, policy.Ingress, p)
}

// AllowsIn returns the verdict for one direction, with the chains of Isolated or of Tried.
func AllowsIn(prog policy.Program, list []policy.Isolated, d policy.Direction, p policy.Packet) bool {
	own, other := p.Src, p.Dst
	if d == policy.Ingress {
		own, other = other, own
	}
	i := slices.IndexFunc(list, func(i policy.Isolated) bool { return i.Direction == d && i.Addr == own })
	if i < 0 || slices.Contains(list[i].Self, other) {
		return true
	}
	c := slices.IndexFunc(prog.Chains, func(c *policy.Chain) bool { return c.Name == list[i].Chain })
	return slices.ContainsFunc(prog.Chains[c].Matches, func(m policy.Match) bool { return fits(prog, m, other, p) })
}

func fits(prog policy.Program, m policy.Match, other netip.Addr, p policy.Packet) bool {
	switch {
	case m.Peers != "" && !contains(set(prog, m.Peers), other), m.Protocol != 0 && m.Protocol != p.Protocol:
		return false
	case m.Named != "":
		return slices.Contains(set(prog, m.Named).Services, policy.Service{Addr: p.Dst, Protocol: p.Protocol, Port: p.DstPort})
	case len(m.Ports) > 0:
		return slices.ContainsFunc(m.Ports, func(r policy.Range) bool { return r.First <= p.DstPort && p.DstPort <= r.Last })
	}
	return true
}

func set(prog policy.Program, name string) *policy.Set {
	return prog.Sets[slices.IndexFunc(prog.Sets, func(s *policy.Set) bool { return s.Name == name })]
}

func contains(s *policy.Set, a netip.Addr) bool {
	return slices.Contains(s.Addrs, a) || slices.ContainsFunc(s.Blocks, func(i policy.Interval) bool {
		return a.BitLen() == i.First.BitLen() && !a.Less(i.First) && !i.Last.Less(a)
	})
}
