package paths

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/prog/agent/view"
	"weft/router/problem"
	"weft/router/wg"
)

// lasting is how long a blockage must last to be a problem, unless probes have measured it. It is longer
// than the interval of WireGuard's keepalives, which start a handshake even without other traffic, and
// longer than a restart.
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
	path      path.Path
	// fresh means that the last handshake is recent, and newer than the loss of gossip, if gossip lost the
	// host.
	fresh bool
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

// hidden reports whether the tunnel works where this host can reach no port of gossip: the peer is behind NAT, or a relay
// carries the tunnel.
func (n neighbour) hidden() bool {
	p := n.path
	return p.State == path.Direct && (!p.Via.IsZero() || p.Endpoint.IsValid() && !slices.Contains(n.addrs, p.Endpoint.Addr()))
}

// works reports whether the tunnel works, as far as it is known.
func (n neighbour) works() bool {
	return n.tunnel && (n.path.State == path.Direct || n.path.State == path.Unknown && n.fresh)
}

// blockage is a blocked port between two hosts: firewalls drop packets without any error. The field
// About stays the same as long as the blockage lasts.
type blockage struct {
	problem.Problem
	measured bool // by probes, which take their time themselves
}

// noTunnel is the About of the blockage in which no tunnel works.
const noTunnel = "no tunnel"

// blockages returns the current blockages. A host that is a known peer is not listed again as a
// target.
func blockages(neighbours []neighbour, targets []mesh.Target, gossip int) (out []blockage) {
	add := func(measured bool, p problem.Problem) {
		p.Reason = problem.Port
		out = append(out, blockage{p, measured})
	}
	stuck, works := 0, 0
	var known []netip.Addr
	for _, n := range neighbours {
		known = append(known, n.addrs...)
		if about, what, ports := n.inside.problem(); n.reachable && n.hidden() {
			// Gossip goes through the tunnel, as it should.
		} else if n.reachable && about != "" {
			add(false, problem.Problem{
				About: about + " " + n.name, What: fmt.Sprintf(what, n.name), Effect: "gossip goes through the tunnel meanwhile, and ends if the tunnel fails",
				Fix: fmt.Sprintf("open %s %d between the two hosts, both ways", ports, n.gossip),
			})
		} else if n.reachable && n.mute {
			add(false, problem.Problem{
				About: "udp " + n.name, What: fmt.Sprintf("gossip reaches %s by TCP, but not by UDP", n.name),
				Effect: "gossip continues over TCP, with more traffic, and notices failures later", Fix: fmt.Sprintf("open UDP %d between the two hosts, both ways", n.gossip),
			})
		}
		switch {
		case n.works():
			works++
			if !n.reachable {
				add(false, problem.Problem{
					About: "gossip " + n.name, What: fmt.Sprintf("gossip does not reach %s, though its tunnel works", n.name),
					Effect: "this host does not learn of changes on that host",
					Fix:    fmt.Sprintf("make sure that its agent runs, and open TCP and UDP %d between the two hosts, both ways", n.gossip),
				})
			}
		case n.reachable && n.tunnel:
			stuck++
			add(n.path.State != path.Unknown, n.blocked())
		}
	}
	if stuck > 1 && works == 0 { // with only two hosts, it is unknown which is at fault: both stay ready
		add(false, problem.Problem{
			About: noTunnel, What: fmt.Sprintf("no tunnel works to any other host, though gossip reaches %d", stuck),
			Effect: "containers would reach no other host", Fix: "open WireGuard's UDP port between the hosts (`weft status connections`)",
		})
	}
	for _, t := range targets {
		if addr, err := netip.ParseAddr(t.Host); t.Connected || t.Err == nil || err == nil && slices.Contains(known, addr) {
			continue
		}
		add(false, problem.Problem{
			About: "target " + t.Host, What: fmt.Sprintf("the host %s, which this one is to join, cannot be reached", t.Host),
			Effect: t.Err.Error(), Fix: fmt.Sprintf("make sure that its agent runs, and open TCP and UDP %d between the two hosts, both ways", gossip),
		})
	}
	return out
}

// blocked says why a tunnel does not work, though gossip reaches the host.
func (n neighbour) blocked() problem.Problem {
	p := problem.Problem{
		About: "tunnel " + n.name, What: fmt.Sprintf("UDP %d of %s does not answer, though gossip reaches that host", n.port, n.name),
		Effect: "containers of this host and of that host do not reach each other", Fix: fmt.Sprintf("open UDP %d between the two hosts, both ways", n.port),
	}
	switch {
	case n.path.Refused:
		p.What = fmt.Sprintf("this host's own firewall drops packets to UDP %d of %s", n.port, n.name)
		p.Fix = fmt.Sprintf("accept outgoing packets to UDP %d on this host (see `nft list ruleset` or `iptables-save`)", n.port)
	case n.path.State == path.Unheard:
		p.What = fmt.Sprintf("packets of %s arrive, but packets of this host to its UDP %d do not", n.name, n.port)
		p.Fix = fmt.Sprintf("open UDP %d on that host for packets from this host, and on the way between them", n.port)
	}
	return p
}

// neighbours lists the other hosts that run.
func (p *Paths) neighbours(v *view.View, seen wg.Observed, now time.Time) (out []neighbour) {
	for _, other := range v.Peers {
		r := other.Record
		if r.Identity == nil || r.ID() == v.Self || r.State != peer.Running {
			continue
		}
		tunnel, ok := seen.Peers[r.WireGuard]
		n := neighbour{name: r.Name(), addrs: r.Underlay, port: r.Port, gossip: r.Gossip, reachable: other.Reachable, mute: other.Mute, tunnel: ok}
		n.inside = inside{udp: other.UDPInside, tcp: other.TCPInside}
		n.path, _ = p.cfg.Measured(r.ID())
		n.fresh = now.Sub(tunnel.Handshake) < path.SessionLife
		if !other.Reachable { // a host that was powered off has keys that look fresh for minutes
			lost := other.Since
			if lost.IsZero() {
				lost = p.cfg.Started
			}
			n.fresh = n.fresh && tunnel.Handshake.After(lost)
		}
		out = append(out, n)
	}
	return out
}
