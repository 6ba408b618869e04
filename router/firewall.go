package router

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/router/link"
	"weft/router/nft"
	"weft/router/problem"
)

// need is one kind of packet that the other firewalls of this host must accept.
type need struct {
	what string
	hook *nftables.ChainHook
	// A rule that accepts the packet has these matches, in the syntax of each tool. In link names,
	// iptables and ufw write + for any suffix, nft writes *.
	iptables []string
	nft      []string
	ufw      []string // empty: ufw's command line cannot express this rule
	port     string   // for firewalld's --add-port; empty: the zone of Weft's links accepts the packets; or one of the constants replies and through
	packet   nft.Packet
}

// These are the ports and the link of sample packets. Each packet is an example for all packets of its
// kind.
const (
	somePort    = 40000
	otherPort   = 8080
	endpoints   = link.EndpointPrefix + "0"
	dns         = 53
	replies     = "replies" // firewalld's own rules accept them
	through     = "through" // a zone must forward them
	maxUnderlay = 16        // bounds the peers whose routes are checked, and the pairs of peers
)

// needs returns every kind of packet that this configuration needs, in both families.
func (c Config) needs() (out []need) {
	here, other := c.ends()
	families := []family{{c.Universe.Addr4, unix.IPPROTO_ICMP, "icmp"}, {c.Universe.Addr6, unix.IPPROTO_ICMPV6, "ipv6-icmp"}}
	if !c.IPv6 {
		families = families[:1]
	}
	for _, f := range families {
		local, beside, node, remote := f.addr(here), f.addr(here+1), f.addr(c.Node), f.addr(other)
		for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			p := nft.Packet{Protocol: protocol, SrcPort: somePort, DstPort: otherPort}
			out = append(out, bothWays("packets from containers to other hosts", p.From(endpoints, local).To(link.Device, remote))...)
			out = append(out, bothWays("packets from other hosts to containers", p.From(link.Device, remote).To(endpoints, local))...)
			out = append(out, bothWays("packets between containers of this host", p.From(endpoints, local).To(link.EndpointPrefix+"1", beside))...)
			if c.Node != 0 {
				out = append(out, c.withHost(p, local, node, remote)...)
			}
		}
		if c.Node != 0 {
			out = append(out, need{
				what: "pings from other hosts and their containers to this host", hook: nftables.ChainHookInput,
				iptables: []string{"-i weft+ -p " + f.word}, nft: []string{`iifname "weft*" meta l4proto ` + f.word}, ufw: []string{"allow in on weft+"},
				packet: nft.Packet{Protocol: f.ping, Iif: link.Device, Src: remote, Dst: node},
			})
		}
	}
	return everywhere(slices.Concat(out, c.underlay(), c.relayed()))
}

// everywhere adds the prerouting and postrouting hooks, which the same packets traverse too.
func everywhere(needs []need) (out []need) {
	for _, n := range needs {
		out = append(out, n)
		overlay, forwarded := n.port == "", *n.hook == *nftables.ChainHookForward
		if n.packet.Iif != "" {
			first := n
			first.hook, first.packet = nftables.ChainHookPrerouting, n.packet.To("", n.packet.Dst)
			if overlay && (forwarded || n.packet.Reply) { // no match by state: conntrack may run after this hook
				first.iptables, first.nft = []string{"-i weft+"}, []string{`iifname "weft*"`}
			}
			out = append(out, first)
		}
		if n.packet.Oif != "" {
			last := n
			last.hook = nftables.ChainHookPostrouting
			if overlay && forwarded {
				last.iptables, last.nft = []string{"-o weft+"}, []string{`oifname "weft*"`}
			}
			out = append(out, last)
		}
	}
	return out
}

// family is IPv4 or IPv6, with its ICMP protocol.
type family struct {
	addr func(slot.Slot) netip.Addr
	ping byte   // ICMP's protocol number
	word string // ICMP's name in rules
}

// withHost returns the packets between this host and the overlay.
func (c Config) withHost(p nft.Packet, local, node, remote netip.Addr) []need {
	query := p.From(endpoints, local).To("", node)
	query.DstPort = dns
	out := []need{
		{
			what: "replies from containers to this host", hook: nftables.ChainHookInput, packet: p.From("", node).To(endpoints, local).Answer(),
			iptables: []string{"-i weft+ -m conntrack --ctstate RELATED,ESTABLISHED"}, nft: []string{`iifname "weft*" ct state established,related`},
			ufw: []string{"allow in on weft+"},
		},
		leaving("packets from this host to containers", p.From("", node).To(endpoints, local)),
		leaving("packets from this host to containers", p.From("", node).To(link.Device, remote)),
	}
	if word := protocolWord(p.Protocol); c.Resolver {
		out = append(out, need{
			what: "DNS queries from containers to this host's name server", hook: nftables.ChainHookInput, packet: query,
			iptables: []string{"-i weft+ -p " + word + " --dport 53"}, nft: []string{`iifname "weft*" ` + word + " dport 53"},
			ufw: []string{"allow in on weft+ to any port 53"},
		})
	}
	return out
}

// bothWays returns a forwarded packet and its reply.
func bothWays(what string, p nft.Packet) []need {
	return []need{passing(what, p), passing(what, p.Answer())}
}

// ends returns two sample slots. here is a slot of this host, and so is the next slot; other is a
// slot of another host.
func (c Config) ends() (here, other slot.Slot) {
	here = c.Node + 1
	if len(c.Own) > 0 {
		here = c.Own[0].Start + 2
	}
	usable := c.Universe.Usable()
	other = slot.Slot(usable.End - 1)
	for other > usable.Start {
		i := slices.IndexFunc(c.Own, func(r slot.Range) bool { return r.Contains(other) })
		if i < 0 || c.Own[i].Start <= usable.Start { // this host owns every slot: no other host has any yet
			break
		}
		other = c.Own[i].Start - 1
	}
	return here, other
}

func protocolWord(number byte) string {
	if number == unix.IPPROTO_UDP {
		return "udp"
	}
	return "tcp"
}

// passing returns the need for a forwarded packet.
func passing(what string, p nft.Packet) need {
	return need{
		what: what, hook: nftables.ChainHookForward, packet: p,
		iptables: []string{"-i weft+", "-o weft+"}, nft: []string{`iifname "weft*"`, `oifname "weft*"`},
		ufw: []string{"route allow in on weft+", "route allow out on weft+"},
	}
}

// leaving returns the need for a packet that this host itself sends through Weft's links.
func leaving(what string, p nft.Packet) need {
	return need{
		what: what, hook: nftables.ChainHookOutput, packet: p,
		iptables: []string{"-o weft+"}, nft: []string{`oifname "weft*"`}, ufw: []string{"allow out on weft+"},
	}
}

// underlay returns the packets between this host's agent and its peers. They follow the route to each
// peer or, without peers, the default route. The sample packets of the default route have the address
// next to this host's own as peer, since many firewalls accept only neighbours, or drop addresses that
// are not assigned.
func (c Config) underlay() (out []need) {
	h, err := link.Handle()
	if err != nil || c.Gossip == 0 {
		return nil
	}
	defer h.Close()
	var peers []netip.Addr
	for _, t := range c.Tunnels {
		if a := t.Endpoint.Addr().Unmap(); a.IsValid() && len(peers) < maxUnderlay {
			peers = append(peers, a)
		}
	}
	unpeered := len(peers) == 0
	if unpeered { // follow the route to addresses for documentation (RFC 5737, RFC 3849), which no host has
		peers = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
	}
	for _, p := range peers {
		name, own := routeTo(h, p)
		if name == "" || !own.IsValid() {
			continue
		}
		if unpeered {
			p = own.Next()
		}
		for _, port := range []struct {
			what     string
			protocol byte
			number   uint16
		}{
			{"gossip over TCP", unix.IPPROTO_TCP, c.Gossip}, {udpGossip, unix.IPPROTO_UDP, c.Gossip}, {"the encrypted tunnel", unix.IPPROTO_UDP, c.Port},
		} {
			out = append(out, hostPort(port.what, port.protocol, port.number, name, p, own)...)
		}
	}
	return out
}

// routeTo returns the link and the own address of this host's route to an address; empty and invalid: there is none.
func routeTo(h *netlink.Handle, to netip.Addr) (name string, own netip.Addr) {
	route, err := h.RouteGet(to.AsSlice())
	if err != nil || len(route) == 0 {
		return "", own
	}
	own, _ = netip.AddrFromSlice(route[0].Src)
	l, err := h.LinkByIndex(route[0].LinkIndex)
	if err != nil {
		return "", own
	}
	return l.Attrs().Name, own.Unmap()
}

// relayed returns the packets that this host forwards between its peers, as they are after the prerouting hook.
func (c Config) relayed() (out []need) {
	h, err := link.Handle()
	if err != nil {
		return nil
	}
	defer h.Close()
	for _, pair := range c.Relays.Pairs[:min(len(c.Relays.Pairs), maxUnderlay)] {
		for i, source := range pair {
			target := pair[1-i]
			from, to := source.Host.Addr().Unmap(), target.Host.Addr().Unmap()
			p := nft.Packet{Protocol: unix.IPPROTO_UDP, SrcPort: target.Own.Port(), DstPort: target.Host.Port()}
			in, _ := routeTo(h, from)
			leaves, _ := routeTo(h, to)
			side, whence := "sport", "from"
			if target.Own.Port() != c.Port { // another relay comes next
				side, whence = "dport", "to"
			}
			out = append(out, need{
				what: "tunnels between other hosts, which this host relays", hook: nftables.ChainHookForward, packet: p.From(in, from).To(leaves, to),
				iptables: []string{fmt.Sprintf("-p udp --%s %d", side, c.Port)}, nft: []string{fmt.Sprintf("udp %s %d", side, c.Port)},
				ufw: []string{fmt.Sprintf("route allow proto udp %s any port %d", whence, c.Port)}, port: through,
			})
		}
	}
	return out
}

const udpGossip = "gossip over UDP"

// hostPort returns the packets to a port of this host, the packets to the same port of a peer, and
// the replies to both.
func hostPort(what string, protocol byte, port uint16, link string, peer, own netip.Addr) (out []need) {
	word := protocolWord(protocol)
	incoming := nft.Packet{Protocol: protocol, SrcPort: somePort, DstPort: port}
	if protocol == unix.IPPROTO_UDP { // hosts send from the port that they listen on
		incoming.SrcPort = port
	}
	outgoing := incoming.From("", own).To(link, peer)
	incoming = incoming.From(link, peer).To("", own)
	for _, side := range []struct {
		direction         string
		hook              *nftables.ChainHook
		ufw               string
		requests, answers nft.Packet
	}{
		{"from other hosts", nftables.ChainHookInput, "allow", incoming, outgoing.Answer()},
		{"to other hosts", nftables.ChainHookOutput, "allow out", outgoing, incoming.Answer()},
	} {
		named := func(suffix string) string {
			return fmt.Sprintf("%s%s %s (%s %d)", what, suffix, side.direction, strings.ToUpper(word), port)
		}
		request := need{
			what: named(""), hook: side.hook, packet: side.requests, port: fmt.Sprintf("%d/%s", port, word),
			iptables: []string{fmt.Sprintf("-p %s --dport %d", word, port)}, nft: []string{fmt.Sprintf("%s dport %d", word, port)},
			ufw: []string{fmt.Sprintf("%s %d/%s", side.ufw, port, word)},
		}
		reply := request
		reply.packet = side.answers
		if protocol == unix.IPPROTO_TCP { // matched by flags: a firewall that drops replies may not use conntrack
			reply.what, reply.port, reply.ufw = named(": replies"), replies, nil
			reply.iptables, reply.nft = []string{fmt.Sprintf("-p tcp --sport %d ! --syn", port)}, []string{fmt.Sprintf("tcp sport %d tcp flags ack", port)}
		}
		out = append(out, request, reply)
	}
	return out
}

// firewalls returns one problem for each other firewall on this host that drops packets of a need. The
// problem's Fix has the commands that make the firewall accept these packets.
func firewalls(needs []need) ([]problem.Problem, error) {
	indices := map[string]uint32{}
	number := func(name string) uint32 {
		if name == "" {
			return 0
		}
		if _, ok := indices[name]; !ok {
			indices[name] = 1 << 30 // no link has this index: rules that match by index do not apply
			if l, err := net.InterfaceByName(name); err == nil {
				indices[name] = uint32(l.Index)
			}
		}
		return indices[name]
	}
	ways := make([]nft.Way, len(needs))
	for i, n := range needs {
		n.packet.IifIndex, n.packet.OifIndex = number(n.packet.Iif), number(n.packet.Oif)
		ways[i] = nft.Way{Hook: n.hook, Packet: n.packet}
	}
	blocks, err := nft.Blocks(ways)
	if err != nil {
		return nil, err
	}
	return blockProblems(needs, blocks), nil
}
