package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/router/wg"
)

// ports watches whether the ports that hosts need of each other are open: what a firewall drops,
// nobody reports. It is safe for concurrent use.
type ports struct {
	mu      sync.Mutex
	since   map[string]time.Time // when a blockage was first seen, by its key
	lasting []blockage           // those that have lasted
}

// lasting is how long a problem goes on before it is said: longer than the interval of
// WireGuard's keepalives, which begin a handshake where nobody has anything to send, and than a
// restart takes.
const lasting = 45 * time.Second

// portsEvery is how often they are looked at.
const portsEvery = 5 * time.Second

// neighbour is another host, as gossip and the tunnel see it.
type neighbour struct {
	name      string
	addrs     []netip.Addr
	port      uint16 // WireGuard's
	gossip    uint16
	reachable bool // by gossip
	mute      bool // that, but not by UDP
	tunnel    bool // there is one, and
	fresh     bool // it works: its keys are in use, and, where gossip was lost, newer than that
}

// blockage is one problem with a host: its key stays the same while it lasts.
type blockage struct{ key, text string }

// noTunnel is the key of the blockage that no tunnel works at all.
const noTunnel = "no tunnel"

// blockages are what is wrong at a moment. A host that is known is not named again as a target.
func blockages(neighbours []neighbour, targets []mesh.Target, gossip int) (out []blockage) {
	stuck, works := 0, 0
	var known []netip.Addr
	for _, n := range neighbours {
		known = append(known, n.addrs...)
		if n.reachable && n.mute {
			out = append(out, blockage{"udp " + n.name, fmt.Sprintf("gossip reaches %s by TCP, but not by UDP: it goes on, with more traffic, and finds failures later. Open UDP %d between the two hosts, both ways", n.name, n.gossip)})
		}
		switch {
		case n.reachable && n.tunnel && !n.fresh:
			stuck++
			out = append(out, blockage{"tunnel " + n.name, fmt.Sprintf("no tunnel comes up to %s, though gossip reaches it: containers here and there do not reach each other. Open UDP %d between the two hosts, both ways", n.name, n.port)})
		case n.reachable && n.tunnel:
			works++
		case n.tunnel && n.fresh:
			out = append(out, blockage{"gossip " + n.name, fmt.Sprintf("gossip does not reach %s, though its tunnel works: what changes there is not known here. See that its agent runs, and open TCP and UDP %d between the two hosts, both ways", n.name, n.gossip)})
		}
	}
	if stuck > 1 && works == 0 { // of two hosts, nobody knows which is at fault: both go on
		out = append(out, blockage{noTunnel, fmt.Sprintf("no tunnel comes up to any other host, though gossip reaches %d: containers would reach no other host. Open WireGuard's UDP port between the hosts (`weft status connections`)", stuck)})
	}
	for _, t := range targets {
		if addr, err := netip.ParseAddr(t.Host); t.Connected || t.Err == nil || err == nil && slices.Contains(known, addr) {
			continue
		}
		out = append(out, blockage{"target " + t.Host, fmt.Sprintf("the host %s, which this one is to join, cannot be reached: %v. See that its agent runs, and open TCP and UDP %d between the two hosts, both ways", t.Host, t.Err, gossip)})
	}
	return out
}

// look takes in what is wrong now.
func (p *ports) look(now time.Time, seen []blockage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := map[string]time.Time{}
	p.lasting = nil
	for _, b := range seen {
		first, ok := p.since[b.key]
		if !ok {
			first = now
		}
		since[b.key] = first
		if now.Sub(first) >= lasting {
			p.lasting = append(p.lasting, b)
		}
	}
	p.since = since
}

func (p *ports) warnings() (out []warning) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.lasting {
		if b.key != noTunnel { // for which this host is not ready
			out = append(out, warning{reason: reasonPort, about: b.key, text: b.text})
		}
	}
	return out
}

// check reports why containers would reach nobody.
func (p *ports) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.IndexFunc(p.lasting, func(b blockage) bool { return b.key == noTunnel }); i >= 0 {
		return errors.New(p.lasting[i].text)
	}
	return nil
}

// watchPorts looks at the ports for as long as the agent runs.
func (a *Agent) watchPorts(ctx context.Context) error {
	for ctx.Err() == nil {
		if seen, err := wg.Observe(); err == nil { // else there are no tunnels yet, and status says so
			now := time.Now()
			a.hearing.look(now, seen)
			a.ports.look(now, blockages(a.neighbours(seen, now), a.expected(), a.opts.GossipPort))
		}
		sleep(ctx, portsEvery)
	}
	return nil
}

// neighbours are the other hosts that run.
func (a *Agent) neighbours(seen wg.Observed, now time.Time) (out []neighbour) {
	for _, p := range a.mesh.Peers() {
		r := p.Record
		if r.Identity == nil || r.ID() == a.self() || r.State != peer.Running {
			continue
		}
		tunnel, ok := seen.Peers[r.WireGuard]
		n := neighbour{name: r.Name(), addrs: r.Underlay, port: r.Port, gossip: r.Gossip, reachable: p.Reachable, mute: p.Mute, tunnel: ok}
		n.fresh = now.Sub(tunnel.Handshake) < staleHandshake
		if !p.Reachable { // a host that was powered off has keys that look fresh for minutes
			lost := p.Since
			if lost.IsZero() {
				lost = a.started
			}
			n.fresh = n.fresh && tunnel.Handshake.After(lost)
		}
		out = append(out, n)
	}
	return out
}

// expected are the targets that should answer: of a cluster's Nodes, those that are ready.
func (a *Agent) expected() []mesh.Target {
	targets := a.mesh.Targets()
	state := a.kubeState()
	if state == nil {
		return targets
	}
	ready := map[string]bool{}
	for _, n := range state.Nodes {
		for _, addr := range n.Addrs {
			ready[addr.String()] = n.Ready
		}
	}
	return slices.DeleteFunc(targets, func(t mesh.Target) bool { return !ready[t.Host] })
}
