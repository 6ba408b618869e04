package paths

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/view"
	"weft/router/problem"
	"weft/router/wg"
)

// lasting is how long a blockage must last to be a problem. It is longer than the interval of
// WireGuard's keepalives, which start a handshake even without other traffic, and longer than a
// restart.
const lasting = 45 * time.Second

// neighbour is another host, as gossip and the tunnel see it.
type neighbour struct {
	name      string
	addrs     []netip.Addr
	port      uint16 // WireGuard's UDP port on that host
	gossip    uint16
	reachable bool // gossip reaches the host
	mute      bool // gossip reaches the host over TCP, but not over UDP
	inside    inside
	tunnel    bool // there is a tunnel to the host
	fresh     bool // the tunnel works: its last handshake is recent, and newer than the loss of gossip, if gossip lost the host
}

// inside says which of gossip's ports do not answer, so that gossip uses them through the tunnel.
type inside struct{ udp, tcp bool }

// problem describes the blocked ports; empty if there are none.
func (i inside) problem() (about, what, ports string) {
	switch {
	case i.udp && i.tcp:
		return "inside", "gossip reaches %s only through the tunnel", "TCP and UDP"
	case i.udp:
		return "udp", "gossip reaches %s by TCP, but not by UDP", "UDP"
	case i.tcp:
		return "tcp", "gossip reaches %s by UDP, but not by TCP", "TCP"
	}
	return "", "", ""
}

// blockage is a blocked port between two hosts: firewalls drop packets without any error. The field
// About stays the same as long as the blockage lasts.
type blockage = problem.Problem

// noTunnel is the About of the blockage in which no tunnel works.
const noTunnel = "no tunnel"

// blockages returns the current blockages. A host that is a known peer is not listed again as a
// target.
func blockages(neighbours []neighbour, targets []mesh.Target, gossip int) (out []blockage) {
	add := func(about, what, effect, fix string) {
		out = append(out, blockage{Reason: problem.Port, About: about, What: what, Effect: effect, Fix: fix})
	}
	stuck, works := 0, 0
	var known []netip.Addr
	for _, n := range neighbours {
		known = append(known, n.addrs...)
		if about, what, ports := n.inside.problem(); n.reachable && about != "" {
			add(about+" "+n.name, fmt.Sprintf(what, n.name), "gossip goes through the tunnel meanwhile, and ends if the tunnel fails",
				fmt.Sprintf("open %s %d between the two hosts, both ways", ports, n.gossip))
		} else if n.reachable && n.mute {
			add("udp "+n.name, fmt.Sprintf("gossip reaches %s by TCP, but not by UDP", n.name),
				"gossip continues over TCP, with more traffic, and notices failures later", fmt.Sprintf("open UDP %d between the two hosts, both ways", n.gossip))
		}
		switch {
		case n.reachable && n.tunnel && !n.fresh:
			stuck++
			add("tunnel "+n.name, fmt.Sprintf("no tunnel comes up to %s, though gossip reaches that host", n.name),
				"containers of this host and of that host do not reach each other", fmt.Sprintf("open UDP %d between the two hosts, both ways", n.port))
		case n.reachable && n.tunnel:
			works++
		case n.tunnel && n.fresh:
			add("gossip "+n.name, fmt.Sprintf("gossip does not reach %s, though its tunnel works", n.name),
				"this host does not learn of changes on that host", fmt.Sprintf("make sure that its agent runs, and open TCP and UDP %d between the two hosts, both ways", n.gossip))
		}
	}
	if stuck > 1 && works == 0 { // with only two hosts, it is unknown which is at fault: both stay ready
		add(noTunnel, fmt.Sprintf("no tunnel comes up to any other host, though gossip reaches %d", stuck),
			"containers would reach no other host", "open WireGuard's UDP port between the hosts (`weft status connections`)")
	}
	for _, t := range targets {
		if addr, err := netip.ParseAddr(t.Host); t.Connected || t.Err == nil || err == nil && slices.Contains(known, addr) {
			continue
		}
		add("target "+t.Host, fmt.Sprintf("the host %s, which this one is to join, cannot be reached", t.Host),
			t.Err.Error(), fmt.Sprintf("make sure that its agent runs, and open TCP and UDP %d between the two hosts, both ways", gossip))
	}
	return out
}

// neighbours lists the other hosts that run.
func neighbours(v *view.View, seen wg.Observed, started, now time.Time) (out []neighbour) {
	for _, p := range v.Peers {
		r := p.Record
		if r.Identity == nil || r.ID() == v.Self || r.State != peer.Running {
			continue
		}
		tunnel, ok := seen.Peers[r.WireGuard]
		n := neighbour{name: r.Name(), addrs: r.Underlay, port: r.Port, gossip: r.Gossip, reachable: p.Reachable, mute: p.Mute, tunnel: ok}
		n.inside = inside{udp: p.UDPInside, tcp: p.TCPInside}
		n.fresh = now.Sub(tunnel.Handshake) < staleHandshake
		if !p.Reachable { // a host that was powered off has keys that look fresh for minutes
			lost := p.Since
			if lost.IsZero() {
				lost = started
			}
			n.fresh = n.fresh && tunnel.Handshake.After(lost)
		}
		out = append(out, n)
	}
	return out
}
