package plan

import (
	"net/netip"
	"slices"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/router/nft"
)

// relays returns the rules by which tunnels use relays, and by which this host is one. A rule cannot turn IPv4 into
// IPv6. So if a tunnel's endpoint is of another family than its relay, the tunnel gets an endpoint that stands for the
// peer: the relay's address, with the port of this host that stands for it.
func relays(in Inputs, tunnels []topology.Tunnel) (out nft.Relays) {
	byPeer := make(map[peer.ID]*topology.Tunnel, len(tunnels))
	uses := map[netip.AddrPort]int{}
	for i := range tunnels {
		t := &tunnels[i]
		byPeer[t.Peer] = t
		uses[t.Endpoint]++
		uses[t.Left]++
	}
	ways := slices.Clone(in.Ways) // those in use first: they decide about the endpoint
	slices.SortStableFunc(ways, func(a, b path.Way) int {
		if a.Used == b.Used {
			return 0
		}
		if a.Used {
			return -1
		}
		return 1
	})
	for _, w := range ways {
		t := byPeer[w.Peer]
		if t == nil && !w.Peer.IsZero() {
			continue
		}
		if t == nil { // this relay asks another one
			out.Detours = append(out.Detours, nft.Detour{Relay: w.To, Own: w.Own})
			continue
		}
		standIn := netip.AddrPortFrom(w.To.Addr(), w.Own.Port())
		d := nft.Detour{Peer: t.Endpoint, Relay: w.To, Own: w.Own, Used: w.Used}
		switch same := t.Route != 0 && t.Endpoint.Addr().Is4() == w.To.Addr().Is4(); { // without a route no packet leaves
		case w.Used && (!same || uses[t.Endpoint] > 1):
			t.Endpoint, t.Route = standIn, in.Route(w.To.Addr())
			d.Peer = t.Endpoint
		case !same: // WireGuard may follow what comes by the relay, and the relay's own address leads nowhere else
			d.Peer, d.Used = standIn, w.Own.Addr().IsValid()
		}
		t.Proven = t.Proven || w.Used // WireGuard's endpoint must be the one of the rules
		out.Detours = append(out.Detours, d)
		if d.Used && d.Peer != standIn && uses[standIn] == 0 { // WireGuard may have that endpoint until it gets the other one
			d.Peer = standIn
			out.Detours = append(out.Detours, d)
		}
	}
	for _, p := range in.Pairs {
		out.Pairs = append(out.Pairs, nft.Pair{{Host: p.Legs[0].Host, Own: p.Legs[0].Own}, {Host: p.Legs[1].Host, Own: p.Legs[1].Own}})
	}
	// An address that another tunnel uses or has left is that one's.
	for _, t := range tunnels {
		if t.Left.IsValid() && uses[t.Left] == 1 {
			out.Late = append(out.Late, nft.Late{From: t.Left, Peer: t.Endpoint, Own: t.Own})
		}
	}
	return out
}
