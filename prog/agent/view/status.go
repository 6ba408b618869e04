package view

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/prog/agent/metric"
	"weft/prog/api"
	"weft/prog/words"
	"weft/router/problem"
)

// NodeAddrs returns the node addresses that belong to a slot, in the families that this host has.
func (v *View) NodeAddrs(node slot.Slot, ipv6 bool) []netip.Addr {
	if v.Ring.IsZero() || node == 0 {
		return nil
	}
	out := []netip.Addr{v.Ring.Universe.Addr4(node)}
	if ipv6 {
		out = append(out, v.Ring.Universe.Addr6(node))
	}
	return out
}

// Removed reports whether an unreachable peer was removed as dead: all its addresses, including its
// node address, belong to other peers.
func (v *View) Removed(p mesh.Peer) bool {
	if p.Reachable || p.Record.Node == 0 || v.Ring.IsZero() || string(p.Record.Ring) != string(v.Ring.ID[:]) {
		return false
	}
	owner, _ := v.Ring.Owner(p.Record.Node)
	return owner != p.Record.ID()
}

// State returns the state of a peer in one word.
func (v *View) State(p mesh.Peer) string {
	switch {
	case p.Record.State != peer.Running || p.Reachable:
		return p.Record.State.String()
	case v.Removed(p):
		return "removed"
	}
	return "unreachable" // no packet came, and no message that its agent stops
}

// StatusPeers describes all peers whose records are known.
func (v *View) StatusPeers(ipv6 bool) []api.Peer {
	out := []api.Peer{}
	for _, p := range v.Peers {
		if p.Record.Identity == nil {
			continue
		}
		id := p.Record.ID()
		one := api.Peer{
			ID: id.String(), Nickname: p.Record.Nickname, Self: id == v.Self,
			State: v.State(p), Underlay: p.Record.Underlay, Node: v.NodeAddrs(p.Record.Node, ipv6),
			Ring: fmt.Sprintf("%x", p.Record.Ring),
		}
		if !one.Self {
			one.Liveness, one.Reasons = path.Judge(v.Taken, v.Evidence[id]).String(), path.Reasons(v.Taken, v.Evidence[id])
		}
		out = append(out, one)
	}
	return out
}

// Status describes the ring.
func (w *Watcher) Status(v *View) api.IPAM {
	r := api.IPAM{
		Active: len(v.Allocations), Free: v.Free, Resting: v.Resting,
		Rings: rings(v.Peers), Owners: []api.Owner{},
	}
	_, other := errors.AsType[*ring.OtherRingError](v.Conflict) // rings reports this better, from records: all rings, and when the conflict ends
	switch {
	case len(r.Rings) > 0:
		r.Conflict = apart(r.Rings, w.cfg.Rejoin).String()
	case v.Conflict != nil && !other:
		r.Conflict = v.Conflict.Error()
	}
	if v.Ring.IsZero() {
		r.Status, r.Vote = w.voting(v.Vote)
		return r
	}
	u := v.Ring.Universe
	r.Generation, r.Lost = v.Ring.Generation(), v.lost(w.cfg.Mesh.Name)
	r.Ring, r.Range, r.Range6, r.Size = v.Ring.ID.String(), u.V4.String(), u.V6.String(), u.Range().Len()
	reached := map[peer.ID]bool{}
	for _, p := range v.Peers {
		if p.Record.Identity != nil {
			reached[p.Record.ID()] = p.Reachable
		}
	}
	for id, ranges := range v.Owners {
		o := api.Owner{Peer: id.String(), Self: id == v.Self, Nickname: v.Records[id].Nickname, Reachable: reached[id]}
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
	r.Status = waitsFor(v.Snapshot, r.Owners)
	slices.SortFunc(r.Owners, func(x, y api.Owner) int {
		return cmp.Or(cmp.Compare(y.Slots, x.Slots), strings.Compare(x.Peer, y.Peer))
	})
	return r
}

// lost returns the addresses in use here that another peer owns now.
func (v *View) lost(name func(peer.ID) string) (out []api.Lost) {
	for key, s := range v.Lost {
		owner, _ := v.Ring.Owner(s)
		out = append(out, api.Lost{Endpoint: key, Address: v.Ring.Universe.Addr4(s), Owner: name(owner)})
	}
	slices.SortFunc(out, func(x, y api.Lost) int { return strings.Compare(x.Endpoint, y.Endpoint) })
	return out
}

// rings lists the rings and their peers, the smallest ring last, if the reachable peers are in more
// than one ring.
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

// apart describes the problem of several rings, and its fix.
func apart(rings []api.Ring, rejoin string) problem.Problem {
	var parts []string
	for _, r := range rings {
		parts = append(parts, fmt.Sprintf("ring %s of %s", r.ID, strings.Join(r.Peers, ", ")))
	}
	return problem.Problem{
		What: "several networks were founded, which run on apart", Effect: strings.Join(parts, "; "),
		Fix: fmt.Sprintf("to merge the networks, %s on %s", rejoin, strings.Join(rings[len(rings)-1].Peers, ", ")),
	}
}

// voting describes the progress of a vote.
func (w *Watcher) voting(v *ipam.Vote) (string, *api.Voting) {
	if v == nil {
		return "idle: waiting for a ring from the targets", nil
	}
	out := &api.Voting{Expected: v.Expected, Quorum: v.Quorum}
	for _, id := range v.Known {
		out.Known = append(out.Known, w.cfg.Mesh.Name(id))
	}
	status := fmt.Sprintf("awaiting consensus (quorum: %d of %d, known: %d)", v.Quorum, v.Expected, len(v.Known))
	if len(v.Known) > v.Expected {
		status += fmt.Sprintf(": more hosts vote than are expected; launch the hosts with --ipalloc-init consensus=%d", len(v.Known))
	}
	return status, out
}

// waitsFor describes what requests for addresses wait for; empty if no request waits.
func waitsFor(snap ipam.Snapshot, owners []api.Owner) string {
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

// Problems names addresses in use here that another peer has taken over, and copied disks.
func (w *Watcher) Problems(v *View) (list []problem.Problem) {
	for _, p := range v.Peers {
		if p.Record.Copy.IsValid() && p.Record.ID() != v.Self { // a copied host, which reports it about itself
			list = append(list, problem.Problem{
				Reason: problem.CopiedDisk, Elsewhere: true, What: fmt.Sprintf("a host at %v has the identity of %s", p.Record.Copy, p.Record.Name()),
				Effect: "a disk was copied. The copy stops by itself", Fix: "run `weft reset --force` on the copy, and launch it again",
			})
		}
	}
	for _, l := range v.lost(w.cfg.Mesh.Name) {
		list = append(list, problem.Problem{
			Reason: problem.Address, What: fmt.Sprintf("%s had %v, which %s owns now", l.Endpoint, l.Address, l.Owner),
			Effect: "this host was removed as dead meanwhile, and the container is cut off", Fix: "start the container anew (or `weft detach` it and attach it again)",
		})
	}
	return list
}

var (
	metricPeers       = metric.Desc("peers", "Peers by state.", "state")
	metricLosses      = metric.Desc("peer_losses", "How often gossip lost a peer within the last ten minutes.", "peer", "nickname")
	metricSlots       = metric.Desc("ipam_slots", "Addresses that a peer owns.", "peer", "nickname")
	metricUniverse    = metric.Desc("ipam_universe_slots", "Addresses of the universe.")
	metricActive      = metric.Desc("ipam_active_slots", "Addresses in use on this host.")
	metricFree        = metric.Desc("ipam_free_slots", "Addresses that this host can allocate without asking other peers.")
	metricResting     = metric.Desc("ipam_resting_slots", "Addresses of this host that were freed a moment ago.")
	metricUnreachable = metric.Desc("ipam_unreachable_slots", "Addresses whose owner is unreachable.")
	metricLost        = metric.Desc("ipam_lost_slots", "Addresses in use here that were taken over by another peer.")
	metricGeneration  = metric.Desc("ipam_generation", "The highest generation of any address: 1, plus 1 for each take-over from a dead peer.")
	metricRings       = metric.Desc("ipam_rings", "Address rings among the peers; more than one is a mistake.")
)

// Metrics exports numbers about the ring and the peers.
func (w *Watcher) Metrics(out metric.Out) {
	v := w.Get()
	if v == nil {
		return
	}
	states := map[string]float64{}
	for _, p := range v.Peers {
		if p.Record.Identity == nil {
			continue
		}
		states[v.State(p)]++
		if p.Losses > 0 {
			out.Gauge(metricLosses, float64(p.Losses), p.Record.ID().String(), p.Record.Nickname)
		}
	}
	out.Each(metricPeers, states)
	r, unreachable := w.Status(v), uint64(0)
	for _, o := range r.Owners {
		out.Gauge(metricSlots, float64(o.Slots), o.Peer, o.Nickname)
		if !o.Self && !o.Reachable {
			unreachable += o.Slots
		}
	}
	out.Gauge(metricUniverse, float64(r.Size))
	out.Gauge(metricActive, float64(r.Active))
	out.Gauge(metricFree, float64(r.Free))
	out.Gauge(metricResting, float64(r.Resting))
	out.Gauge(metricUnreachable, float64(unreachable))
	out.Gauge(metricLost, float64(len(r.Lost)))
	out.Gauge(metricGeneration, float64(r.Generation))
	out.Gauge(metricRings, float64(max(1, len(r.Rings))))
}
