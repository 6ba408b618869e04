package nft

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"weft/router/policy"
)

// Hosts lists the addresses and ports that endpoints must not reach: those of the agents and
// tunnels of all hosts. A container's packet to an agent would have its host's source address, so
// the agent would accept it as a packet of that host.
type Hosts struct {
	TCP, UDP []uint16         // ports of this host, at all its addresses
	Peers    []policy.Service // ports of other hosts, at their underlay and overlay addresses
	Nodes    []netip.Addr     // node addresses of other hosts
}

func (h Hosts) equal(o Hosts) bool {
	return slices.Equal(h.TCP, o.TCP) && slices.Equal(h.UDP, o.UDP) && slices.Equal(h.Peers, o.Peers) && slices.Equal(h.Nodes, o.Nodes)
}

func (h Hosts) clone() Hosts {
	return Hosts{slices.Clone(h.TCP), slices.Clone(h.UDP), slices.Clone(h.Peers), slices.Clone(h.Nodes)}
}

// hostSets holds Hosts as sets. These sets can change without a change of the guard's rules.
type hostSets struct {
	tcp, udp     *Set
	peers, nodes [2]*Set // for IPv4 and IPv6
}

func (h hostSets) list() []*Set {
	return []*Set{h.tcp, h.udp, h.peers[0], h.peers[1], h.nodes[0], h.nodes[1]}
}

// sets builds the sets. Addresses and ports may come in any order and form, since other hosts
// announce them.
func (h Hosts) sets() (out hostSets) {
	ports := func(name string, list []uint16) *Set {
		var elements []Element
		for _, p := range list {
			elements = append(elements, Element{First: bigEndian(p)})
		}
		return &Set{Name: name, Key: Key{port}, Elements: encoded(elements)}
	}
	out.tcp, out.udp = ports("ports-tcp", h.TCP), ports("ports-udp", h.UDP)
	peers := make([]policy.Service, 0, len(h.Peers))
	for _, p := range h.Peers {
		if p.Addr.IsValid() {
			peers = append(peers, policy.Service{Addr: plain(p.Addr), Protocol: p.Protocol, Port: p.Port})
		}
	}
	nodes := make([]netip.Addr, 0, len(h.Nodes))
	for _, a := range h.Nodes {
		if a.IsValid() {
			nodes = append(nodes, plain(a))
		}
	}
	slices.SortFunc(peers, policy.Service.Compare)
	slices.SortFunc(nodes, netip.Addr.Compare)
	peers, nodes = slices.Compact(peers), slices.Compact(nodes)
	for i, is4 := range []bool{true, false} {
		p := &Set{Name: "peers" + family(is4), Key: Key{addrKind(is4), proto, port}}
		p.Elements = services(p.Key, ofFamily(peers, is4, func(s policy.Service) netip.Addr { return s.Addr }))
		n := &Set{Name: "nodes" + family(is4), Key: Key{addrKind(is4)}}
		n.Elements = addresses(ofFamily(nodes, is4, func(a netip.Addr) netip.Addr { return a }))
		out.peers[i], out.nodes[i] = p, n
	}
	return out
}

// plain returns an address in the form that packets have.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// toHosts returns the rules for packets of endpoints that leave this host or go to the host itself.
// They run after the translation of service addresses and before masquerading. Replies to
// connections from other hosts pass.
func toHosts(h hostSets) []Rule {
	rules := []Rule{rule(ctReply(), returns())}
	for _, s := range h.peers {
		for _, number := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			rules = append(rules, rule(implied(l4proto(number)), daddr.serviceIn(dport, number, s), counter(), drop()))
		}
	}
	return rules
}

// toPorts drops packets to this host's agent and tunnel.
func (h hostSets) toPorts() []Rule {
	return []Rule{
		rule(dport.inSet(unix.IPPROTO_TCP, h.tcp), counter(), drop()),
		rule(dport.inSet(unix.IPPROTO_UDP, h.udp), counter(), drop()),
	}
}

func fromEndpointToHost(h hostSets) []Rule {
	return append([]Rule{
		rule(icmp6("nd-router-advert", 134), counter(), drop()),
		rule(icmp6("nd-redirect", 137), counter(), drop()),
		rule(ctReply(), accept()),
	}, h.toPorts()...)
}

// fromTunnelToHost accepts packets of other hosts. It also protects this host's agent and tunnel from
// the endpoints of other hosts, since a service at this host's node address may lead to the agent or
// the tunnel.
func fromTunnelToHost(h hostSets) []Rule {
	return append([]Rule{
		rule(saddr.inSet(h.nodes[0]), accept()),
		rule(saddr.inSet(h.nodes[1]), accept()),
		rule(ctReply(), accept()),
	}, h.toPorts()...)
}
