package agent

import (
	"net"
	"net/netip"
	"strconv"

	"weft/ipam/ring"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/router/nft"
	"weft/router/policy"
)

// guarded is what containers are kept from: gossip and WireGuard of this host and of all others,
// at the ports that each names, at each of its addresses. A record speaks for its own host only:
// the ring says which node address that has, and no other overlay address is a host's.
//
// The status may be served at WireGuard's port, over TCP. If this host's is for other machines,
// that port stays open for TCP here and, since others do not say what they serve, there.
func guarded(own peer.Record, peers []mesh.Peer, r ring.Ring, status string) nft.Hosts {
	tcp := func(p peer.Record) []uint16 {
		if public(status, p.Port) {
			return []uint16{p.Gossip}
		}
		return []uint16{p.Gossip, p.Port}
	}
	h := nft.Hosts{TCP: tcp(own), UDP: []uint16{own.Gossip, own.Port}}
	owned := r.Owned()
	for _, p := range peers {
		id := p.Record.ID()
		switch {
		case p.Record.Identity == nil, p.Record.State == peer.Left:
			continue
		case len(owned[id]) == 0 && !p.Met && id != own.ID(): // a member can make up as many as it likes
			continue
		}
		var addrs []netip.Addr
		for _, a := range append([]netip.Addr{p.Addr}, p.Record.Underlay...) {
			if _, overlay := r.Universe.Slot(a.Unmap()); a.IsValid() && !overlay {
				addrs = append(addrs, a)
			}
		}
		if owner, ok := r.Owner(p.Record.Node); ok && owner == id && p.Record.Node != 0 {
			nodes := []netip.Addr{r.Universe.Addr4(p.Record.Node), r.Universe.Addr6(p.Record.Node)}
			h.Nodes = append(h.Nodes, nodes...)
			addrs = append(addrs, nodes...)
		}
		for _, a := range addrs {
			for _, port := range tcp(p.Record) {
				h.Peers = append(h.Peers, policy.Service{Addr: a, Protocol: policy.TCP, Port: port})
			}
			for _, port := range []uint16{p.Record.Gossip, p.Record.Port} {
				h.Peers = append(h.Peers, policy.Service{Addr: a, Protocol: policy.UDP, Port: port})
			}
		}
	}
	return h
}

// public reports whether the status is served to other machines, at a port.
func public(status string, port uint16) bool {
	host, number, err := net.SplitHostPort(status)
	if err != nil || number != strconv.Itoa(int(port)) {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host != "localhost" && (err != nil || !addr.Unmap().IsLoopback())
}
