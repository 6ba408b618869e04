package router

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/router/link"
	"weft/router/nft"
)

// need is what other firewalls must let pass.
type need struct {
	what string
	hook *nftables.ChainHook
	// The same as firewalls say it. In a link's name, + stands for any end in iptables and ufw, * in nft.
	iptables []string
	nft      []string
	ufw      []string // empty: its command cannot tell it
	port     string   // as firewalld says it; empty: the zone of our links lets it pass; answer: its own rules do
	packet   nft.Packet
}

// Names and ports of packets that stand for all others of their kind.
const (
	somePort    = 40000
	otherPort   = 8080
	endpoints   = link.EndpointPrefix + "0"
	dns         = 53
	answer      = "answer"
	maxUnderlay = 16 // peers whose way is looked at
)

// needs are all of them, in both families.
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
			out = append(out, bothWays("what containers send to other hosts", p.From(endpoints, local).To(link.Device, remote))...)
			out = append(out, bothWays("what other hosts send to containers", p.From(link.Device, remote).To(endpoints, local))...)
			out = append(out, bothWays("what containers here send each other", p.From(endpoints, local).To(link.EndpointPrefix+"1", beside))...)
			if c.Node != 0 {
				out = append(out, c.withHost(p, local, node, remote)...)
			}
		}
		if c.Node != 0 {
			out = append(out, need{
				what: "pings of other hosts and their containers to this host", hook: nftables.ChainHookInput,
				iptables: []string{"-i weft+ -p " + f.word}, nft: []string{`iifname "weft*" meta l4proto ` + f.word}, ufw: []string{"allow in on weft+"},
				packet: nft.Packet{Protocol: f.ping, Iif: link.Device, Src: remote, Dst: node},
			})
		}
	}
	return everywhere(append(out, c.underlay()...))
}

// everywhere adds the hooks that the same packets meet in front of routing and behind it.
func everywhere(needs []need) (out []need) {
	for _, n := range needs {
		out = append(out, n)
		overlay, forwarded := n.port == "", *n.hook == *nftables.ChainHookForward
		if n.packet.Iif != "" {
			first := n
			first.hook, first.packet = nftables.ChainHookPrerouting, n.packet.To("", n.packet.Dst)
			if overlay && (forwarded || n.packet.Reply) { // no match by state: conntrack may come later
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

// family is IPv4 or IPv6.
type family struct {
	addr func(slot.Slot) netip.Addr
	ping byte
	word string // for ping's protocol
}

// withHost is what this host and the overlay send each other.
func (c Config) withHost(p nft.Packet, local, node, remote netip.Addr) []need {
	question := p.From(endpoints, local).To("", node)
	question.DstPort = dns
	out := []need{
		{
			what: "containers' answers to this host", hook: nftables.ChainHookInput, packet: p.From("", node).To(endpoints, local).Answer(),
			iptables: []string{"-i weft+ -m conntrack --ctstate RELATED,ESTABLISHED"}, nft: []string{`iifname "weft*" ct state established,related`},
			ufw: []string{"allow in on weft+"},
		},
		leaving("what this host sends to containers", p.From("", node).To(endpoints, local)),
		leaving("what this host sends to containers", p.From("", node).To(link.Device, remote)),
	}
	if word := protocolWord(p.Protocol); c.Resolver {
		out = append(out, need{
			what: "containers' questions to the name server", hook: nftables.ChainHookInput, packet: question,
			iptables: []string{"-i weft+ -p " + word + " --dport 53"}, nft: []string{`iifname "weft*" ` + word + " dport 53"},
			ufw: []string{"allow in on weft+ to any port 53"},
		})
	}
	return out
}

// bothWays is what is forwarded, and its answer.
func bothWays(what string, p nft.Packet) []need {
	return []need{passing(what, p), passing(what, p.Answer())}
}

// ends are a slot of this host, with another behind it, and one of another host.
func (c Config) ends() (here, other slot.Slot) {
	here = c.Node + 1
	if len(c.Own) > 0 {
		here = c.Own[0].Start + 2
	}
	usable := c.Universe.Usable()
	other = slot.Slot(usable.End - 1)
	for other > usable.Start {
		i := slices.IndexFunc(c.Own, func(r slot.Range) bool { return r.Contains(other) })
		if i < 0 || c.Own[i].Start <= usable.Start { // all is ours: no other host is there yet
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

// passing is what is forwarded.
func passing(what string, p nft.Packet) need {
	return need{
		what: what, hook: nftables.ChainHookForward, packet: p,
		iptables: []string{"-i weft+", "-o weft+"}, nft: []string{`iifname "weft*"`, `oifname "weft*"`},
		ufw: []string{"route allow in on weft+", "route allow out on weft+"},
	}
}

// leaving is what this host itself sends by our links.
func leaving(what string, p nft.Packet) need {
	return need{
		what: what, hook: nftables.ChainHookOutput, packet: p,
		iptables: []string{"-o weft+"}, nft: []string{`oifname "weft*"`}, ufw: []string{"allow out on weft+"},
	}
}

// underlay is what hosts say to each other: by the way to each peer or, while there is none, by
// the default route. The address beside ours then stands for a peer's: many firewalls let only
// neighbours pass, or drop addresses that are nobody's.
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
	alone := len(peers) == 0
	if alone { // the way to addresses for documentation (RFC 5737, RFC 3849), which are nobody's
		peers = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
	}
	for _, p := range peers {
		way, err := h.RouteGet(p.AsSlice())
		if err != nil || len(way) == 0 || way[0].Src == nil {
			continue
		}
		own, _ := netip.AddrFromSlice(way[0].Src)
		own = own.Unmap()
		if alone {
			p = own.Next()
		}
		l, err := h.LinkByIndex(way[0].LinkIndex)
		if err != nil {
			continue
		}
		for _, port := range []struct {
			what     string
			protocol byte
			number   uint16
		}{
			{"gossip over TCP", unix.IPPROTO_TCP, c.Gossip}, {udpGossip, unix.IPPROTO_UDP, c.Gossip}, {"the encrypted tunnel", unix.IPPROTO_UDP, c.Port},
		} {
			out = append(out, hostPort(port.what, port.protocol, port.number, l.Attrs().Name, p, own)...)
		}
	}
	return out
}

const udpGossip = "gossip over UDP"

// hostPort is what comes to a port of this host, what goes to the same port of another, and
// the answers to both.
func hostPort(what string, protocol byte, port uint16, link string, peer, own netip.Addr) (out []need) {
	word := protocolWord(protocol)
	asked := nft.Packet{Protocol: protocol, SrcPort: somePort, DstPort: port}
	if protocol == unix.IPPROTO_UDP { // hosts send from the port that they listen at
		asked.SrcPort = port
	}
	asking := asked.From("", own).To(link, peer)
	asked = asked.From(link, peer).To("", own)
	for _, side := range []struct {
		what          string
		hook          *nftables.ChainHook
		ufw           string
		asks, answers nft.Packet
	}{
		{"from other hosts", nftables.ChainHookInput, "allow", asked, asking.Answer()},
		{"to other hosts", nftables.ChainHookOutput, "allow out", asking, asked.Answer()},
	} {
		named := func(how string) string {
			return fmt.Sprintf("%s%s %s (%s %d)", what, how, side.what, strings.ToUpper(word), port)
		}
		ask := need{
			what: named(""), hook: side.hook, packet: side.asks, port: fmt.Sprintf("%d/%s", port, word),
			iptables: []string{fmt.Sprintf("-p %s --dport %d", word, port)}, nft: []string{fmt.Sprintf("%s dport %d", word, port)},
			ufw: []string{fmt.Sprintf("%s %d/%s", side.ufw, port, word)},
		}
		back := ask
		back.packet = side.answers
		if protocol == unix.IPPROTO_TCP { // told by flags: a firewall that drops answers may know no connections
			back.what, back.port, back.ufw = named(": answers"), answer, nil
			back.iptables, back.nft = []string{fmt.Sprintf("-p tcp --sport %d ! --syn", port)}, []string{fmt.Sprintf("tcp sport %d tcp flags ack", port)}
		}
		out = append(out, ask, back)
	}
	return out
}

// firewalls are warnings about what other firewalls on this host drop, each with what to do.
func firewalls(needs []need) ([]string, error) {
	indices := map[string]uint32{}
	number := func(name string) uint32 {
		if name == "" {
			return 0
		}
		if _, ok := indices[name]; !ok {
			indices[name] = 1 << 30 // no link's, so that rules by number are for other links
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
	return blockWarnings(needs, blocks), nil
}
