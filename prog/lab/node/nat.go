package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NATKind says how a NAT maps ports and which packets from outside it lets in, in the terms of RFC 4787.
type NATKind string

// The kinds differ for UDP. Of TCP, all let in only what answers.
const (
	// FullCone has endpoint-independent mapping and endpoint-independent filtering.
	FullCone NATKind = "full-cone"
	// Restricted has endpoint-independent mapping and address and port-dependent filtering.
	Restricted NATKind = "restricted"
	// Symmetric has address and port-dependent mapping, with random ports, and such filtering.
	Symmetric NATKind = "symmetric"
)

// NATKinds lists all kinds.
var NATKinds = []NATKind{FullCone, Restricted, Symmetric}

// NAT configures a router.
type NAT struct {
	Kind       NATKind
	UDPTimeout time.Duration // time after which an idle mapping ends; 0: conntrack's, and two minutes for the port
	Outer      netip.Addr    // address of HostLink, the router's link to the underlay; SecondLink leads inside
	Hosts      []string      // hosts inside; the router only remembers them, also while they are powered off
}

const routerPrefix = "nat-"

// RouterOf returns the name of the router whose outer address is a host's underlay address. RouterHost
// is its inverse.
func RouterOf(host string) string { return routerPrefix + host }

// RouterHost returns the host after which a router is named, if a node with this name is a router.
func RouterHost(router string) (string, bool) { return strings.CutPrefix(router, routerPrefix) }

// InsideBridge returns the name of the switch inside a host's NAT.
func InsideBridge(host string) string { return "inside-" + host }

// conntrack's own timeouts of UDP, for a flow without and with answers.
const (
	udpTimeout       = 30 * time.Second
	udpStreamTimeout = 120 * time.Second
)

// setNAT configures this router. A new kind or timeout ends all mappings.
func (s *server) setNAT(nat NAT) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := s.nat != nil && s.nat.Kind == nat.Kind && s.nat.UDPTimeout == nat.UDPTimeout && s.nat.Outer == nat.Outer
	if !same {
		if err := loadNAT(nat); err != nil {
			return fmt.Errorf("load the rules of a %s NAT: %w: the kernel needs nf_tables with NAT and conntrack", nat.Kind, err)
		}
	}
	s.nat = &nat
	return nil
}

func loadNAT(nat NAT) error {
	if !slices.Contains(NATKinds, nat.Kind) {
		return fmt.Errorf("unknown kind %q", nat.Kind)
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	cutting.Lock() // protects the library's counter of sets
	defer cutting.Unlock()
	if err := addNATTable(conn, nat); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	idle, stream := nat.UDPTimeout, nat.UDPTimeout
	if nat.UDPTimeout == 0 {
		idle, stream = udpTimeout, udpStreamTimeout
	}
	for key, timeout := range map[string]time.Duration{"udp_timeout": idle, "udp_timeout_stream": stream} {
		if err := sysctl("net/netfilter/nf_conntrack_"+key, strconv.Itoa(int(timeout.Seconds()))); err != nil {
			return err
		}
	}
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("end the old mappings: %w", err)
	}
	return nil
}

// rules adds rules to one table.
type rules struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func (r rules) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, policy nftables.ChainPolicy) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Table: r.table, Name: name, Type: kind, Hooknum: hook, Priority: &priority, Policy: &policy})
}

func (r rules) add(chain *nftables.Chain, exprs ...[]expr.Any) {
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: slices.Concat(exprs...)})
}

// addNATTable replaces the whole table. (nft 1.0.6 cannot list it: it aborts at ct in a concatenation.)
//
//	table ip weft-lab {
//	    chain input {                       # Without this chain, the router itself would receive what it maps to
//	        policy drop                     # no host. Its conntrack entry would take the port from the mapping of
//	        iifname eth1 accept             # a host that sends to the same peer afterwards.
//	        ct state established,related accept
//	    }
//	    chain forward {
//	        policy drop
//	        iifname eth1 accept
//	        ct state established,related accept
//	        ct status dnat accept           # full-cone
//	    }
//	    chain out {                         # postrouting, srcnat
//	        …                               # full-cone, restricted: see addMapping
//	        oifname eth0 masquerade         # symmetric: fully-random
//	    }
//	}
func addNATTable(conn *nftables.Conn, nat NAT) error {
	table := &nftables.Table{Name: cutTable, Family: nftables.TableFamilyIPv4}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	r := rules{conn, conn.AddTable(table)}
	input := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	forward := r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	for _, chain := range []*nftables.Chain{input, forward} {
		r.add(chain, matchLink(expr.MetaKeyIIFNAME, SecondLink), accept)
		r.add(chain, hasBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	}
	if nat.Kind == FullCone {
		const ipsDstNAT = 1 << 5 // IPS_DST_NAT in linux/netfilter/nf_conntrack_common.h
		r.add(forward, hasBits(expr.CtKeySTATUS, ipsDstNAT), accept)
	}
	out := r.chain("out", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)
	if nat.Kind != Symmetric {
		if err := r.addMapping(out, nat); err != nil {
			return err
		}
	}
	r.add(out, matchLink(expr.MetaKeyOIFNAME, HostLink), []expr.Any{&expr.Masq{FullyRandom: nat.Kind == Symmetric}})
	return nil
}

// addMapping adds endpoint-independent mapping of UDP. Conntrack alone maps each flow for itself: two hosts
// that use the same port would get a mapping that depends on who sent first to which destination. So maps keep
// the outer port of each inner socket:
//
//	map ports   { type ipv4_addr . inet_service : inet_service; timeout … }    # inner socket: outer port
//	map sockets { type inet_service : ipv4_addr . inet_service; timeout … }    # outer port: inner socket
//	chain out {
//	    oifname eth0 udp snat to OUTER : ip saddr . udp sport map @ports
//	    oifname eth0 udp sport @sockets masquerade random                      # another socket has this port
//	    oifname eth0 masquerade
//	}
//	chain learn {                                                              # postrouting, after srcnat
//	    oifname eth0 udp ct direction original update @ports   { ct original ip saddr . ct original proto-src : udp sport }
//	    oifname eth0 udp ct direction original update @sockets { udp sport : ct original ip saddr . ct original proto-src }
//	    …                                                                      # the same for answers: reply
//	}
//	chain in {                                                                 # prerouting, dstnat; full-cone
//	    iifname eth0 udp dnat to udp dport map @sockets
//	}
func (r rules) addMapping(out *nftables.Chain, nat NAT) error {
	socket := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	timeout := nat.UDPTimeout
	if timeout == 0 {
		timeout = udpStreamTimeout
	}
	ports := &nftables.Set{
		Table: r.table, Name: "ports", IsMap: true, Dynamic: true, HasTimeout: true, Timeout: timeout, Size: 1 << 16,
		Concatenation: true, KeyType: socket, DataType: nftables.TypeInetService,
	}
	sockets := &nftables.Set{
		Table: r.table, Name: "sockets", IsMap: true, Dynamic: true, HasTimeout: true, Timeout: timeout, Size: 1 << 16,
		KeyType: nftables.TypeInetService, DataType: socket,
	}
	for _, set := range []*nftables.Set{ports, sockets} {
		if err := r.conn.AddSet(set, nil); err != nil {
			return err
		}
	}
	outside := slices.Concat(matchLink(expr.MetaKeyOIFNAME, HostLink), udp)
	r.add(out, outside, []expr.Any{
		&expr.Payload{DestRegister: inner, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		udpPort(sourcePort, inner+1),
		&expr.Lookup{SourceRegister: inner, DestRegister: port, IsDestRegSet: true, SetName: ports.Name, SetID: ports.ID},
		&expr.Immediate{Register: addr, Data: nat.Outer.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: addr, RegProtoMin: port, Specified: true},
	})
	r.add(out, outside, []expr.Any{
		udpPort(sourcePort, port),
		&expr.Lookup{SourceRegister: port, DestRegister: inner, IsDestRegSet: true, SetName: sockets.Name, SetID: sockets.ID},
		&expr.Masq{Random: true},
	})
	r.addLearning(outside, ports, sockets)
	if nat.Kind == FullCone {
		r.addOpening(sockets)
	}
	return nil
}

// Registers of four bytes; a socket takes two.
const (
	inner = unix.NFT_REG32_00
	port  = unix.NFT_REG32_02
	addr  = unix.NFT_REG32_03
)

// addLearning adds the chain that keeps the mappings of packets on their way outside.
func (r rules) addLearning(outside []expr.Any, ports, sockets *nftables.Set) {
	learn := r.chain("learn", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource+1, nftables.ChainPolicyAccept)
	for _, direction := range []byte{ctOriginal, ctReply} {
		mapping := slices.Concat(outside, []expr.Any{
			&expr.Ct{Key: expr.CtKeyDIRECTION, Register: port},
			&expr.Cmp{Op: expr.CmpOpEq, Register: port, Data: []byte{direction}},
			&expr.Ct{Key: expr.CtKeySRC, Direction: uint32(direction), Register: inner},
			&expr.Ct{Key: expr.CtKeyPROTOSRC, Direction: uint32(direction), Register: inner + 1},
			udpPort(sourcePort, port),
		})
		r.add(learn, mapping, []expr.Any{
			&expr.Dynset{Operation: unix.NFT_DYNSET_OP_UPDATE, SrcRegKey: inner, SrcRegData: port, SetName: ports.Name, SetID: ports.ID},
		})
		r.add(learn, mapping, []expr.Any{
			&expr.Dynset{Operation: unix.NFT_DYNSET_OP_UPDATE, SrcRegKey: port, SrcRegData: inner, SetName: sockets.Name, SetID: sockets.ID},
		})
	}
}

// addOpening adds the chain that lets packets in to every mapping.
func (r rules) addOpening(sockets *nftables.Set) {
	in := r.chain("in", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, nftables.ChainPolicyAccept)
	r.add(in, matchLink(expr.MetaKeyIIFNAME, HostLink), udp, []expr.Any{
		udpPort(destinationPort, port),
		&expr.Lookup{SourceRegister: port, DestRegister: inner, IsDestRegSet: true, SetName: sockets.Name, SetID: sockets.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: inner, RegProtoMin: inner + 1, Specified: true},
	})
}

// IP_CT_DIR_ORIGINAL and IP_CT_DIR_REPLY in linux/netfilter/nf_conntrack_tuple_common.h.
const ctOriginal, ctReply = 0, 1

// Offsets in the UDP header.
const sourcePort, destinationPort = 0, 2

func udpPort(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

var (
	accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	udp    = []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
	}
)

// matchLink matches the link on which a packet arrived or leaves.
func matchLink(key expr.MetaKey, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

// hasBits matches a flow with any of these bits.
func hasBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
