package paths

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/metric"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/wg"
)

// Status describes the tunnels to all other peers, and names the kind of WireGuard here.
func (p *Paths) Status(v *view.View) (kind string, out []api.Connection) {
	seen, _ := p.cfg.Observe() // if the device cannot be read, no tunnels are shown
	targets := p.cfg.Targets()
	out = []api.Connection{}
	for _, other := range v.Peers {
		r := other.Record
		if r.Identity != nil && r.ID() != v.Self && r.State != peer.Left && !v.Removed(other) {
			out = append(out, p.connection(v, other, targets, seen))
		}
	}
	return seen.Kind, out
}

// connection describes the tunnel to a peer. The kernel's state is part of it if the kernel has that
// tunnel.
func (p *Paths) connection(v *view.View, other mesh.Peer, targets []mesh.Target, seen wg.Observed) api.Connection {
	rec := other.Record
	c := api.Connection{
		Peer: rec.ID().String(), Nickname: rec.Nickname, Gossip: other.Reachable, Outbound: isTarget(other, targets),
		State: api.ConnFailed,
	}
	if len(rec.Underlay) > 0 {
		c.Address = netip.AddrPortFrom(cmp.Or(other.Addr, rec.Underlay[0]), rec.Port)
	}
	tunnel, ok := seen.Peers[rec.WireGuard]
	switch {
	case ok:
		measured, _ := p.cfg.Measured(rec.ID())
		c.State = state(measured, tunnel.Handshake, other.Reachable)
		if tunnel.Endpoint.IsValid() {
			c.Address = tunnel.Endpoint
		}
		if !tunnel.Handshake.IsZero() {
			c.Handshake = &tunnel.Handshake
		}
		c.Received, c.Sent, c.MTU, c.PathMTU = tunnel.Received, tunnel.Sent, p.tunnelMTU(rec.ID()), measured.MTU
		c.ReceivedRate, c.SentRate = p.cfg.Rates(rec.ID())
		if measured.Measured {
			c.RoundTrip, c.Loss = new(measured.RTT.Seconds()), new(measured.Loss)
		}
		c.Info = fmt.Sprintf("encrypted   %-9s %s(%s) mtu=%d", seen.Kind, c.Peer, c.Nickname, c.MTU)
		if c.State == api.ConnRelayed {
			for _, id := range measured.Via.List() {
				c.Via = append(c.Via, id.String())
				c.Info += " via " + v.Name(id)
			}
		}
		if measured.State == path.Unheard {
			c.Info += " (it does not hear this host)"
		}
		if !other.Reachable {
			c.Info += fmt.Sprintf(" (gossip: %s)", v.State(other))
		}
	case len(rec.Ring) == 0:
		c.State, c.Info = api.ConnPending, c.Peer+"("+c.Nickname+") waits for the ring"
	case string(rec.Ring) != string(v.Ring.ID[:]):
		c.Info = fmt.Sprintf("%s(%s) is in another ring, %x: run `weft reset` on the side to give up", c.Peer, c.Nickname, rec.Ring)
	case p.cfg.Keyless(rec.ID()):
		c.State, c.Info = api.ConnPending, fmt.Sprintf("%s(%s): the two hosts have not agreed on a key yet: one of them must reach the other's TCP %d", c.Peer, c.Nickname, rec.Gossip)
	default:
		c.Info = fmt.Sprintf("%s(%s): this host has no address of the families of %v", c.Peer, c.Nickname, rec.Underlay)
	}
	return c
}

func isTarget(p mesh.Peer, targets []mesh.Target) bool {
	return slices.ContainsFunc(targets, func(t mesh.Target) bool { return t.Names(p.Record) })
}

// state returns the state of a tunnel. A handshake proves nothing: it may be older than the failure.
func state(measured path.Path, handshake time.Time, gossip bool) string {
	switch {
	case measured.State == path.Unheard:
		return api.ConnOneWay
	case measured.State == path.Deaf && gossip:
		return api.ConnBlocked
	case measured.State == path.Deaf:
		return api.ConnSilent
	case handshake.IsZero(), measured.State == path.Unknown:
		return api.ConnPending
	}
	if !measured.Via.IsZero() {
		return api.ConnRelayed
	}
	return api.ConnDirect
}

// tunnelMTU returns the MTU of the tunnel to a peer, 0 if there is none.
func (p *Paths) tunnelMTU(id peer.ID) int {
	all := p.cfg.Tunnels()
	i, ok := slices.BinarySearchFunc(all, id, func(t topology.Tunnel, id peer.ID) int { return slices.Compare(t.Peer[:], id[:]) })
	if !ok {
		return 0
	}
	return all[i].MTU
}

var (
	metricConnections = metric.Desc("connections", "Tunnels by state.", "state")
	metricReceived    = metric.Desc("tunnel_received_bytes_total", "Bytes that came through the tunnel from a peer.", "peer", "nickname")
	metricSent        = metric.Desc("tunnel_sent_bytes_total", "Bytes that went through the tunnel to a peer.", "peer", "nickname")
	metricRoundTrip   = metric.Desc("tunnel_round_trip_seconds", "The smoothed round trip of probes to a peer.", "peer", "nickname")
	metricLoss        = metric.Desc("tunnel_loss_ratio", "The part of the last 32 probes to a peer without an answer: 0 to 1.", "peer", "nickname")
	metricHandshake   = metric.Desc("tunnel_handshake_age_seconds", "Time since the last handshake with a peer.", "peer", "nickname")
	metricWorks       = metric.Desc("tunnel_up", "1 if packets travel both ways through the tunnel to a peer.", "peer", "nickname")
	metricMTU         = metric.Desc("tunnel_mtu_bytes", "The largest packet of the overlay that goes to a peer.", "peer", "nickname")
)

// Metrics exports the tunnels.
func (p *Paths) Metrics(out metric.Out) {
	v := p.cfg.View.Get()
	if v == nil {
		return
	}
	states := map[string]float64{}
	_, connections := p.Status(v)
	for _, c := range connections {
		states[c.State]++
		out.Counter(metricReceived, float64(c.Received), c.Peer, c.Nickname)
		out.Counter(metricSent, float64(c.Sent), c.Peer, c.Nickname)
		up := 0.0
		if c.State == api.ConnDirect || c.State == api.ConnRelayed {
			up = 1
		}
		out.Gauge(metricWorks, up, c.Peer, c.Nickname)
		if c.RoundTrip != nil {
			out.Gauge(metricRoundTrip, *c.RoundTrip, c.Peer, c.Nickname)
			out.Gauge(metricLoss, *c.Loss, c.Peer, c.Nickname)
		}
		if c.Handshake != nil {
			out.Gauge(metricHandshake, max(time.Since(*c.Handshake), 0).Seconds(), c.Peer, c.Nickname)
		}
		if c.MTU != 0 {
			out.Gauge(metricMTU, float64(c.MTU), c.Peer, c.Nickname)
		}
	}
	out.Each(metricConnections, states)
}
