package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/api"
	"weft/prog/words"
	"weft/router/link"
	"weft/router/wg"
)

// staleHandshake is when a tunnel's keys are too old to be used (WireGuard's
// REJECT_AFTER_TIME).
const staleHandshake = 180 * time.Second

// Report is everything, from one look at each part.
func (a *Agent) Report(ctx context.Context) (api.Report, error) {
	r, _, err := a.gather(ctx)
	return r, err
}

// gather makes a report, and tells the reasons of its warnings.
func (a *Agent) gather(ctx context.Context) (api.Report, []warning, error) {
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return api.Report{}, nil, err
	}
	r := api.Report{Version: a.opts.Version, Endpoints: []api.Endpoint{}, Settings: a.opts.Settings, Unattached: a.ended.list()}
	a.mu.Lock()
	r.NotReady = a.notReady
	r.Ready = r.NotReady == ""
	exposed := a.settings.Exposed
	for _, e := range a.endpoints {
		r.Endpoints = append(r.Endpoints, a.describe(e, snap))
	}
	a.mu.Unlock()
	slices.SortFunc(r.Endpoints, func(x, y api.Endpoint) int { return x.Addresses[0].Compare(y.Addresses[0]) })
	seen, unseen := a.router.Observe()
	peers := a.mesh.Peers()
	r.Router = a.reportRouter(snap, peers, seen.Observed)
	r.Router.Exposed = exposed
	r.IPAM = a.reportIPAM(snap, peers)
	r.DNS = a.reportDNS(snap)
	r.Policy = a.reportPolicy()
	var cni []string
	r.CNI, cni = a.reportCNI()
	warnings := a.gathered(snap, seen, unseen, r.Ready)
	for _, text := range cni {
		warnings = append(warnings, warning{reason: reasonHost, text: text})
	}
	for _, w := range warnings {
		r.Warnings = append(r.Warnings, w.text)
	}
	for _, x := range a.mesh.Rejections() { // which have lines of their own in the status
		r.Rejections = append(r.Rejections, api.Rejection(x))
		warnings = append(warnings, warning{reason: reasonTurnedAway, about: x.Reason, text: fmt.Sprintf("%s was turned away: %s", x.Addr, x.Reason)})
	}
	return r, warnings, nil
}

func (a *Agent) reportRouter(snap ipam.Snapshot, peers []mesh.Peer, seen wg.Observed) api.Router {
	own := a.mesh.Own()
	r := api.Router{
		Protocol: mesh.Version, ID: a.self().String(), Nickname: own.Nickname,
		Datapath: seen.Kind, Device: link.Device, PublicKey: a.public.String(),
		Port: a.opts.Port, GossipPort: a.opts.GossipPort, MTU: int(a.mtu.Load()), IPv6: a.ipv6, PID: os.Getpid(),
		Underlay: own.Underlay, Node: a.nodeAddrs(snap, own.Node),
		Targets: []api.Target{}, Connections: []api.Connection{}, Peers: []api.Peer{},
	}
	if !snap.Ring.IsZero() {
		r.Cluster = fmt.Sprintf("%x", snap.Ring.Cluster)
	}
	targets := a.mesh.Targets()
	for _, t := range targets {
		target := api.Target{Host: t.Host, State: "retrying"}
		if t.Connected {
			target.State = "connected"
		} else if t.Err != nil {
			target.Error = t.Err.Error()
		}
		r.Targets = append(r.Targets, target)
	}
	for _, p := range peers {
		if p.Record.Identity == nil {
			continue
		}
		r.Peers = append(r.Peers, a.reportPeer(snap, p))
		if p.Record.ID() != a.self() && p.Record.State != peer.Left && !removed(snap, p) {
			r.Connections = append(r.Connections, a.reportConnection(snap, p, targets, seen))
		}
	}
	return r
}

// nodeAddrs are a peer's node addresses, in the families that this host carries.
func (a *Agent) nodeAddrs(snap ipam.Snapshot, node slot.Slot) []netip.Addr {
	if snap.Ring.IsZero() || node == 0 {
		return nil
	}
	out := []netip.Addr{snap.Ring.Universe.Addr4(node)}
	if a.ipv6 {
		out = append(out, snap.Ring.Universe.Addr6(node))
	}
	return out
}

// removed reports whether a peer that fell silent was given up for dead: what it had, its
// node address at least, is another's.
func removed(snap ipam.Snapshot, p mesh.Peer) bool {
	if p.Reachable || p.Record.Node == 0 || snap.Ring.IsZero() || string(p.Record.Ring) != string(snap.Ring.ID[:]) {
		return false
	}
	owner, _ := snap.Ring.Owner(p.Record.Node)
	return owner != p.Record.ID()
}

func (a *Agent) reportPeer(snap ipam.Snapshot, p mesh.Peer) api.Peer {
	out := api.Peer{
		ID: p.Record.ID().String(), Nickname: p.Record.Nickname, Self: p.Record.ID() == a.self(),
		State: p.Record.State.String(), Underlay: p.Record.Underlay, Node: a.nodeAddrs(snap, p.Record.Node),
		Ring: fmt.Sprintf("%x", p.Record.Ring),
	}
	if p.Record.State == peer.Running && !p.Reachable {
		out.State = "unreachable" // it fell silent: nobody said goodbye
		if removed(snap, p) {
			out.State = "removed"
		}
	}
	return out
}

// reportConnection describes the tunnel to a peer, by the kernel's word where it has one.
func (a *Agent) reportConnection(snap ipam.Snapshot, p mesh.Peer, targets []mesh.Target, seen wg.Observed) api.Connection {
	rec := p.Record
	c := api.Connection{
		Peer: rec.ID().String(), Nickname: rec.Nickname, Gossip: p.Reachable, Outbound: isTarget(p, targets),
		State: api.ConnFailed,
	}
	if len(rec.Underlay) > 0 {
		c.Address = netip.AddrPortFrom(cmp.Or(p.Addr, rec.Underlay[0]), rec.Port)
	}
	tunnel, ok := seen.Peers[rec.WireGuard]
	switch {
	case ok:
		c.State = connectionState(tunnel.Handshake, time.Now())
		if tunnel.Endpoint.IsValid() {
			c.Address = tunnel.Endpoint
		}
		if !tunnel.Handshake.IsZero() {
			c.Handshake = &tunnel.Handshake
		}
		c.Received, c.Sent, c.MTU = tunnel.Received, tunnel.Sent, a.tunnelMTU(rec.ID())
		c.Info = fmt.Sprintf("encrypted   %-9s %s(%s) mtu=%d", seen.Kind, c.Peer, c.Nickname, c.MTU)
		if !p.Reachable {
			c.Info += fmt.Sprintf(" (gossip: %s)", a.reportPeer(snap, p).State)
		}
	case len(rec.Ring) == 0:
		c.State, c.Info = api.ConnPending, c.Peer+"("+c.Nickname+") waits for the ring"
	case string(rec.Ring) != string(snap.Ring.ID[:]):
		c.Info = fmt.Sprintf("%s(%s) is in another ring, %x: run `weft reset` on the side to give up", c.Peer, c.Nickname, rec.Ring)
	default:
		c.Info = fmt.Sprintf("%s(%s): this host has no address of the families of %v", c.Peer, c.Nickname, rec.Underlay)
	}
	return c
}

func isTarget(p mesh.Peer, targets []mesh.Target) bool {
	return slices.ContainsFunc(targets, func(t mesh.Target) bool {
		host, err := netip.ParseAddr(t.Host)
		if err != nil {
			return t.Host == p.Record.Nickname
		}
		return slices.Contains(p.Record.Underlay, host)
	})
}

func connectionState(handshake, now time.Time) string {
	switch {
	case handshake.IsZero():
		return api.ConnPending
	case now.Sub(handshake) > staleHandshake:
		return api.ConnRetrying
	}
	return api.ConnEstablished
}

func (a *Agent) reportIPAM(snap ipam.Snapshot, peers []mesh.Peer) api.IPAM {
	r := api.IPAM{Owners: []api.Owner{}, Active: len(snap.Allocations), Free: snap.Free, Resting: snap.Resting}
	a.mu.Lock()
	r.Excluded = a.settings.Exclude
	a.mu.Unlock()
	r.Rings = rings(peers)
	_, other := errors.AsType[*ring.OtherRingError](snap.Conflict) // the records say more, and when it is over
	switch {
	case len(r.Rings) > 0:
		r.Conflict = apart(r.Rings, a.cluster != nil)
	case snap.Conflict != nil && !other:
		r.Conflict = snap.Conflict.Error()
	}
	if snap.Ring.IsZero() {
		r.Status, r.Vote = a.voting(snap.Vote)
		return r
	}
	r.Generation = snap.Ring.Generation()
	r.Lost = a.lostAddresses(snap)
	u := snap.Ring.Universe
	r.Ring, r.Range, r.Range6, r.Size = snap.Ring.ID.String(), u.V4.String(), u.V6.String(), u.Range().Len()
	known := map[peer.ID]mesh.Peer{}
	for _, p := range peers {
		if p.Record.Identity != nil {
			known[p.Record.ID()] = p
		}
	}
	for id, ranges := range snap.Ring.Owned() {
		o := api.Owner{Peer: id.String(), Self: id == a.self(), Nickname: known[id].Record.Nickname, Reachable: known[id].Reachable}
		for _, g := range ranges {
			o.Slots += g.Len()
			for _, p := range u.Prefixes(g) {
				if p.Addr().Is4() {
					o.Ranges = append(o.Ranges, p.String())
				}
			}
		}
		o.Percent = 100 * float64(o.Slots) / float64(r.Size)
		r.Owners = append(r.Owners, o)
	}
	r.Status = ipamStatus(snap, r.Owners)
	slices.SortFunc(r.Owners, func(x, y api.Owner) int {
		return cmp.Or(cmp.Compare(y.Slots, x.Slots), strings.Compare(x.Peer, y.Peer))
	})
	return r
}

// lostAddresses are those in use here that are another peer's by now.
func (a *Agent) lostAddresses(snap ipam.Snapshot) (out []api.Lost) {
	for key, s := range snap.Lost {
		owner, _ := snap.Ring.Owner(s)
		out = append(out, api.Lost{Endpoint: key, Address: snap.Ring.Universe.Addr4(s), Owner: a.mesh.Name(owner)})
	}
	slices.SortFunc(out, func(x, y api.Lost) int { return strings.Compare(x.Endpoint, y.Endpoint) })
	return out
}

// rings says who is in which ring, if there is more than one among those that can be
// reached; the smaller one last.
func rings(peers []mesh.Peer) []api.Ring {
	members := map[string][]string{}
	for _, p := range peers {
		if p.Record.Identity != nil && p.Reachable && len(p.Record.Ring) > 0 {
			id := fmt.Sprintf("%x", p.Record.Ring)
			members[id] = append(members[id], p.Record.Name())
		}
	}
	if len(members) < 2 {
		return nil
	}
	var out []api.Ring
	for id, names := range members {
		out = append(out, api.Ring{ID: id, Peers: names})
	}
	slices.SortFunc(out, func(x, y api.Ring) int {
		return cmp.Or(cmp.Compare(len(y.Peers), len(x.Peers)), strings.Compare(x.ID, y.ID))
	})
	return out
}

// apart says what several rings mean, and what ends it.
func apart(rings []api.Ring, kubernetes bool) string {
	var parts []string
	for _, r := range rings {
		parts = append(parts, fmt.Sprintf("ring %s of %s", r.ID, strings.Join(r.Peers, ", ")))
	}
	fix := "run `weft reset`, and then `weft launch --token - HOST` with HOST of the first ring,"
	if kubernetes {
		fix = "empty /var/lib/weft and delete the agent's pod, which then joins the network that the Secret names,"
	}
	return fmt.Sprintf("several networks were founded, which run on apart: %s. To make them one, %s on %s",
		strings.Join(parts, "; "), fix, strings.Join(rings[len(rings)-1].Peers, ", "))
}

// voting says how far a vote is.
func (a *Agent) voting(v *ipam.Vote) (string, *api.Voting) {
	if v == nil {
		return "idle: waiting for a ring from the targets", nil
	}
	out := &api.Voting{Expected: v.Expected, Quorum: v.Quorum}
	for _, id := range v.Known {
		out.Known = append(out.Known, a.mesh.Name(id))
	}
	status := fmt.Sprintf("awaiting consensus (quorum: %d of %d, known: %d)", v.Quorum, v.Expected, len(v.Known))
	if len(v.Known) > v.Expected {
		status += fmt.Sprintf(": more hosts vote than are expected; launch them with --ipalloc-init consensus=%d", len(v.Known))
	}
	return status, out
}

// ipamStatus says what requests for addresses wait for, if any do.
func ipamStatus(snap ipam.Snapshot, owners []api.Owner) string {
	switch {
	case snap.Behind:
		return "priming: hearing from the other peers what became of the ring"
	case snap.Waiting == 0:
		return "ready"
	}
	for _, o := range owners {
		if o.Reachable && !o.Self {
			return fmt.Sprintf("waiting for IPs from other peers (%s)", words.Count(snap.Waiting, "request"))
		}
	}
	return fmt.Sprintf("all other IP ranges are owned by unreachable peers (waiting: %s)", words.Count(snap.Waiting, "request"))
}
