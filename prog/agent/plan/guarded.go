package plan

import (
	"net/netip"

	"weft/mesh/peer"
	"weft/prog/agent/view"
	"weft/router/nft"
	"weft/router/policy"
)

// guarded returns the ports that containers must not reach: gossip and WireGuard of this host and
// of all other hosts, at each of their addresses. Overlay addresses in a peer's record are ignored:
// the only overlay address of a host is its node address, if the host owns that slot according to
// the ring.
//
// status is the TCP port on which this host serves its status to other machines; 0: none. TCP
// connections to WireGuard's port number stay allowed.
func guarded(v *view.View, status uint16) nft.Hosts {
	tcp := func(p peer.Record) []uint16 {
		if p.Port == status {
			return []uint16{p.Gossip}
		}
		return []uint16{p.Gossip, p.Port}
	}
	own, r := v.Own, v.Ring
	h := nft.Hosts{TCP: tcp(own), UDP: []uint16{own.Gossip, own.Port}}
	for _, p := range v.Peers {
		id := p.Record.ID()
		switch {
		case p.Record.Identity == nil, p.Record.State == peer.Left:
			continue
		case len(v.Owners[id]) == 0 && !p.Met && id != own.ID(): // a member can make up as many records as it likes
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
