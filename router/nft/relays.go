package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft/mesh/path"
)

// Relays configures the section that carries WireGuard's packets over relays. The packets stay sealed: the rules
// replace addresses and ports only. WireGuard keeps its endpoints, so it notices nothing, and packets that are on
// their way by either path arrive while the path changes.
//
//	host A ── A:s → R ──▶ relay R ── R → B:t ──▶ host B
//
// The port s stands for B between A and the relay, and t for A between B and the relay. Both hosts send to and
// receive from the relay's only port, so firewalls and NAT see one flow per pair. On the hosts the rules run outside
// of conntrack, which sees that flow; on the relay conntrack sees nothing.
type Relays struct {
	Detours []Detour
	Pairs   []Pair
	Late    []Late
}

// Late is the way of packets that come by an address which the tunnel has left. WireGuard would follow them back, so
// they get the addresses of the way that the tunnel uses now.
type Late struct {
	From, Peer netip.AddrPort // the peer's address then and now
	Own        netip.Addr     // this host's address now
}

// Detour is a way of this host's tunnel to a peer through a relay.
type Detour struct {
	Peer  netip.AddrPort // WireGuard's endpoint for the peer; invalid: only probes travel this way
	Relay netip.AddrPort // the relay's address and port
	Own   netip.AddrPort // this host's address towards the relay, and the port that stands for the peer
	// Used means that packets to the peer take this way. Those that come by it are accepted in any case.
	Used bool
}

// Leg is the way between a relay and the next host towards one end, which may be another relay. The relay knows that
// host by the source of its packets, which may be that of a NAT. Own has this host's port for the pair: usually the
// tunnel's, and with another relay that this host asked to forward, the one that stands for the pair.
type Leg struct{ Host, Own netip.AddrPort }

// Pair is two hosts between which this host is a relay.
type Pair [2]Leg

// PairRate limits what a relay forwards from one host to another, in MiB per second. The kernel lets the amount of a
// second and pairBurst, in MiB, pass at once.
const PairRate, pairBurst = 512, 64

func (r Relays) equal(o Relays) bool {
	return slices.Equal(r.Detours, o.Detours) && slices.Equal(r.Pairs, o.Pairs) && slices.Equal(r.Late, o.Late)
}

func (r Relays) clone() Relays {
	return Relays{slices.Clone(r.Detours), slices.Clone(r.Pairs), slices.Clone(r.Late)}
}

const relayChain = "relay" // begins the names of the chains that forward

// These hooks are outside of conntrack (-200) on a host, and before it on a relay. What comes by a relay is
// rewritten after the usual firewalls, like probes.
const (
	outsideConntrack = -350
	arrivedByRelay   = 190
	leavesRelay      = 310
)

// build returns the rules. port is WireGuard's port of this host.
func (r Relays) build(port uint16) (p Program) {
	if len(r.Detours) > 0 {
		p.append(r.host(port))
	}
	if len(r.Pairs) > 0 {
		p.append(r.relay())
	}
	if len(r.Late) > 0 {
		p.append(r.late(port))
	}
	return p
}

func (p *Program) append(o Program) {
	p.Sets, p.Chains = append(p.Sets, o.Sets...), append(p.Chains, o.Chains...)
}

// host returns the rules of a host whose tunnels use relays. Probes from the tunnel's port are left alone: they measure
// the direct path meanwhile. Probes that come by a relay go to the agent as they are. So an answer to one proves that
// WireGuard's packets are accepted there too.
func (r Relays) host(port uint16) (p Program) {
	to, from := newJumps("detours"), newJumps("relayed")
	for _, d := range r.Detours {
		if d.Used {
			to.add(d.Peer, 0, rule(sport.set(d.Own.Port()), dport.set(d.Relay.Port()), saddr.set(d.Own.Addr()), daddr.set(d.Relay.Addr())))
		}
		// The relay sends from one port, so its address and this host's port are the key.
		rules := []Rule{rule(sport.is(unix.IPPROTO_UDP, d.Relay.Port()), magic(expr.CmpOpEq), goTo(probeChain))}
		if d.Peer.IsValid() {
			rules = append(rules, rule(sport.is(unix.IPPROTO_UDP, d.Relay.Port()), sport.set(d.Peer.Port()), dport.set(port), saddr.setArriving(d.Peer.Addr())))
		}
		from.add(netip.AddrPortFrom(d.Relay.Addr(), d.Own.Port()), 0, rules...)
	}
	var out, in []Rule
	leaving, arriving := to.sets(), from.sets()
	for i := range leaving {
		out = append(out, rule(sport.is(unix.IPPROTO_UDP, port), magic(expr.CmpOpNeq), daddr.vmapWith(dport, leaving[i])))
		in = append(in, rule(notIif(tunnel), notIif(endpoints), implied(l4proto(unix.IPPROTO_UDP)), saddr.vmapWith(dport, arriving[i])))
	}
	p.Sets = slices.Concat(leaving, arriving)
	p.Chains = append(slices.Concat(to.chains, from.chains),
		&Chain{"detours", nftables.ChainTypeRoute, nftables.ChainHookOutput, "output", outsideConntrack, out},
		&Chain{"relayed", nftables.ChainTypeFilter, nftables.ChainHookInput, "input", arrivedByRelay, in})
	return p
}

// late returns the rules for packets by addresses that tunnels have left.
func (r Relays) late(port uint16) (p Program) {
	from := newJumps("late")
	for _, l := range r.Late {
		from.add(l.From, 0, rule(sport.set(l.Peer.Port()), saddr.setArriving(l.Peer.Addr()), daddr.setArriving(l.Own)))
	}
	var in []Rule
	p.Sets = from.sets()
	for _, s := range p.Sets {
		in = append(in, rule(dport.is(unix.IPPROTO_UDP, port), magic(expr.CmpOpNeq), saddr.vmapWith(sport, s)))
	}
	p.Chains = slices.Concat(from.chains, []*Chain{{"late", nftables.ChainTypeFilter, nftables.ChainHookInput, "input", arrivedByRelay, in}})
	return p
}

// relay returns the rules of a relay. Only what comes from a known host, from the port that stands for the other
// one, is forwarded; all else is this host's own, like probes for the relay itself.
func (r Relays) relay() (p Program) {
	from, to := newJumps(relayChain), newJumps("leaving")
	from.ports, to.ports = 2, 2
	for _, pair := range r.Pairs {
		for i, source := range pair {
			target := pair[1-i]
			from.add(source.Host, source.Own.Port(), rule(above(PairRate, pairBurst), counter(), drop()),
				rule(counter(), notrack(), sport.set(target.Own.Port()), dport.set(target.Host.Port()), daddr.set(target.Host.Addr())))
			// An own source address is refused by routing, so it is set afterwards. Two pairs may leave in the same way.
			to.add(target.Host, target.Own.Port(), rule(saddr.set(target.Own.Addr())))
		}
	}
	var in, out []Rule
	arriving, leaving := from.sets(), to.sets()
	for i := range arriving {
		in = append(in, rule(notIif(tunnel), notIif(endpoints), implied(l4proto(unix.IPPROTO_UDP)), beginning(expr.CmpOpNeq, path.ForRelays[:]), saddr.vmapWith(sport, arriving[i])))
		out = append(out, rule(untracked(), implied(l4proto(unix.IPPROTO_UDP)), daddr.vmapWith(dport, leaving[i])))
	}
	p.Sets = slices.Concat(arriving, leaving)
	p.Chains = append(slices.Concat(from.chains, to.chains),
		&Chain{"relay", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, "prerouting", outsideConntrack, in},
		&Chain{"leaving", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, "postrouting", leavesRelay, out})
	return p
}

// jumps leads packets to chains by an address and its port, and perhaps by the port of the other side as well.
type jumps struct {
	name     string
	ports    int
	elements [2][]Element
	chains   []*Chain
	names    map[string]bool // of the chains
}

func newJumps(name string) *jumps { return &jumps{name: name, ports: 1, names: map[string]bool{}} }

// chain returns the name of a chain. It follows from the key, so that a chain stays while others come and go.
func (j *jumps) chain(of netip.AddrPort, other uint16) string {
	name := fmt.Sprintf("%s-%s-%d", j.name, strings.ReplaceAll(plain(of.Addr()).String(), ":", "_"), of.Port())
	if j.ports == 2 {
		name += fmt.Sprintf("-%d", other)
	}
	return name
}

// add adds a chain for the packets of an address and port, and of the other port if that is a part of the key. The first
// chain for a key counts: peers choose their addresses, and a table that names a chain twice cannot be changed.
func (j *jumps) add(of netip.AddrPort, other uint16, rules ...Rule) {
	addr := plain(of.Addr())
	c := &Chain{Name: j.chain(of, other), Rules: rules}
	if !addr.IsValid() || j.names[c.Name] {
		return
	}
	j.names[c.Name] = true
	j.chains = append(j.chains, c)
	i := 1
	if addr.Is4() {
		i = 0
	}
	parts := [][]byte{addr.AsSlice(), []byte(bigEndian(of.Port()))}
	if j.ports == 2 {
		parts = append(parts, []byte(bigEndian(other)))
	}
	j.elements[i] = append(j.elements[i], Element{First: j.key(addr.Is4()).encode(parts...), Chain: c.Name})
}

func (j *jumps) key(is4 bool) Key {
	k := Key{addrKind(is4), port}
	if j.ports == 2 {
		k = append(k, port)
	}
	return k
}

// sets returns the maps for IPv4 and IPv6.
func (j *jumps) sets() (out []*Set) {
	for i, is4 := range []bool{true, false} {
		out = append(out, &Set{Name: j.name + family(is4), Key: j.key(is4), Jumps: true, Elements: encoded(j.elements[i])})
	}
	return out
}

// vmapWith jumps to the chain that a map has for an address and a port, and for the other port if that is a part of its
// key. An earlier part must match the protocol.
func (f field) vmapWith(s side, m *Set) part {
	is4, size := m.Key[0].size == addr4.size, m.Key[0].size
	text, load := fmt.Sprintf("%s %s . udp %s", ip(is4), f.word, s.word), append(f.load(is4), s.load(word32(size)))
	if len(m.Key) == 3 {
		other := dport
		if s.word == dport.word {
			other = sport
		}
		text, load = text+" . udp "+other.word, append(load, other.load(word32(size+4)))
	}
	return part{text + " vmap @" + m.Name, append(load, &expr.Lookup{SourceRegister: reg, SetName: m.Name, IsDestRegSet: true})}
}

// set replaces an address of a UDP packet that leaves this host. The kernel mends the checksums: that of IPv4's header, and
// UDP's, of which the addresses are a part.
func (f field) set(to netip.Addr) part {
	// IPv6's header has no checksum. But google/nftables drops the flags unless there is one. The kernel mends it before it
	// writes the address. So the checksum is said to be where the address is, which replaces it.
	return f.write(to, f.off6, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR)
}

// setArriving replaces an address of a UDP packet that has arrived. With the flags, the kernel takes an IPv6 packet of more
// than 76 bytes that conntrack has checked for spoiled (seen on Linux 6.18): it corrects its own sum of the packet, though
// address and checksum cancel out there. So UDP's checksum is said to be that of IPv6's header. A checksum that a virtual
// interface has left out stays wrong. Nothing checks it from here on.
func (f field) setArriving(to netip.Addr) part {
	const udpChecksumAt = 40 + 6 // after IPv6's header
	return f.write(to, udpChecksumAt, 0)
}

// write replaces an address. Of an IPv6 packet the kernel mends what is at an offset in the header, and by the flags.
func (f field) write(to netip.Addr, checksumAt, flags uint32) part {
	to = plain(to)
	write := &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: f.off6, Len: 16,
		CsumType: expr.CsumTypeInet, CsumOffset: checksumAt, CsumFlags: flags,
	}
	if to.Is4() {
		const headerChecksumAt = 10
		write.Offset, write.Len, write.CsumOffset, write.CsumFlags = f.off4, 4, headerChecksumAt, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR
	}
	return part{fmt.Sprintf("%s %s set %v", ip(to.Is4()), f.word, to), append(f.load(to.Is4())[:2], &expr.Immediate{Register: reg, Data: to.AsSlice()}, write)}
}

// set replaces a port of a UDP packet.
func (s side) set(port uint16) part {
	const checksumAt = 6 // in UDP's header
	return part{fmt.Sprintf("udp %s set %d", s.word, port), append(l4proto(unix.IPPROTO_UDP).exprs,
		&expr.Immediate{Register: reg, Data: []byte(bigEndian(port))},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: s.off, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: checksumAt,
		})}
}

// notrack keeps conntrack from a packet.
func notrack() part { return part{"notrack", []expr.Any{&expr.Notrack{}}} }

// untracked matches packets that notrack has marked.
func untracked() part {
	const bit = 1 << 6 // NF_CT_STATE_UNTRACKED_BIT
	mask := binaryutil.NativeEndian.PutUint32(bit)
	return part{"ct state untracked", []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		compare(expr.CmpOpNeq, make([]byte, 4)),
	}}
}

// above matches packets above a rate in MiB per second.
func above(rate uint64, burst uint32) part {
	const mib = 1 << 20
	return part{
		fmt.Sprintf("limit rate over %d mbytes/second burst %d mbytes", rate, burst),
		[]expr.Any{&expr.Limit{Type: expr.LimitTypePktBytes, Rate: rate * mib, Unit: expr.LimitTimeSecond, Burst: burst * mib, Over: true}},
	}
}
