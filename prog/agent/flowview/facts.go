package flowview

import (
	"cmp"
	"maps"
	"net/netip"

	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/prog/agent/enforce"
	"weft/prog/agent/explain"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/flows"
	"weft/prog/words"
	"weft/router/policy"
)

// known keeps the results for flows that only differ in their client ports, until policies, endpoints
// or hosts change. A result that stays the same stays the same value, so that flows share it.
type known struct {
	snapshot enforce.Snapshot
	view     *view.View
	universe slot.Universe
	hosts    map[slot.Slot]host
	version  uint64 // of the view
	results
	before results
}

type results struct {
	ends  map[netip.Addr]*flows.End
	found map[question]*flows.Facts
}

// host is a host by its node address.
type host struct {
	id       peer.ID
	nickname string
}

// outside is the end of flows that is in no network.
var outside = &flows.End{}

// question identifies flows with the same facts.
type question struct {
	src, from, dst netip.Addr
	protocol       policy.Protocol
	port           uint16
	denial, audit  bool
	direction      policy.Direction
}

// learn takes what this host knows now.
func (k *known) learn(cfg Config) {
	v, version := cfg.View.Read()
	now := cfg.Policies.Snapshot()
	same := k.found != nil && now.Version == k.snapshot.Version && len(k.found) < mostKnown
	if version != k.version {
		hosts := map[slot.Slot]host{}
		for id, r := range v.Records {
			if r.Node != 0 {
				hosts[r.Node] = host{id, r.Nickname}
			}
		}
		same = same && maps.Equal(hosts, k.hosts) && k.universe == v.Ring.Universe
		k.view, k.hosts, k.universe, k.version = v, hosts, v.Ring.Universe, version
	}
	if !same {
		k.snapshot, k.before = now, k.results
		k.results = results{map[netip.Addr]*flows.End{}, map[question]*flows.Facts{}}
	}
}

// facts returns the facts of a flow; nil if it may not evaluate more flows now.
func (k *known) facts(cfg Config, f *flows.Flow, left *int) *flows.Facts {
	p := f.Entry.Packet()
	q := question{src: p.Src, from: p.Src, dst: p.Dst, protocol: p.Protocol, port: p.DstPort}
	if u := k.universe; !f.Denial && !u.V4.Contains(p.Src) && !u.V6.Contains(p.Src) {
		// A process of this host sends into the tunnel with the node address as source.
		if to := f.Entry.ReplyDst.Addr(); u.V4.Contains(to) || u.V6.Contains(to) {
			q.from, p.Src = to, to
		}
	}
	if f.Denial {
		q.denial = true
		q.direction, q.audit = f.Direction()
	}
	if facts := k.found[q]; facts != nil {
		return facts
	}
	if *left--; *left < 0 {
		return nil
	}
	cfg.MarkOwnHost(&p)
	facts := &flows.Facts{From: k.end(q.from), To: k.end(q.dst)}
	v := policy.Evaluate(k.snapshot.Policies, k.snapshot.World, p)
	if q.denial {
		denied(facts, q, v)
	} else {
		passed(facts, v, k.here(cfg.Self, p.Src), k.here(cfg.Self, p.Dst))
	}
	if old := k.before.found[q]; old != nil && *old == *facts {
		facts = old
	}
	k.found[q] = facts
	return facts
}

// here reports whether an address is that of an endpoint on this host.
func (k *known) here(self peer.ID, a netip.Addr) bool {
	e, ok := k.snapshot.World.At(a)
	if !ok {
		return false
	}
	owner, _ := enforce.OwnerOf(e)
	return owner == self
}

// denied gives the reason why the kernel dropped packets.
func denied(f *flows.Facts, q question, v policy.Verdict) {
	d := explain.Describe(v.Ingress)
	if q.direction == policy.Egress {
		d = explain.Describe(v.Egress)
	}
	f.Verdict, f.Direction = flows.Denied, q.direction.String()
	if q.audit {
		f.Verdict = flows.Audit
		if d.Audit != nil {
			d = *d.Audit
		}
	}
	because(f, d)
}

// because takes the first rule that decided, and the sentence of a decision.
func because(f *flows.Facts, d api.Decision) {
	f.Why = words.Printable(d.Why(), 4*mostText)
	switch {
	case d.By != nil:
		f.Policy, f.Rule = d.By.Policy, d.By.Rule
	case len(d.Misses) > 0:
		f.Policy, f.Rule = d.Misses[0].Policy, d.Misses[0].Rule
	}
}

// passed gives the verdict on a connection that passed this host. The kernel here has decided for the
// endpoints here. Policies at another host may still deny it, which the policies tell.
func passed(f *flows.Facts, v policy.Verdict, fromHere, toHere bool) {
	f.Verdict = flows.Allowed
	for _, one := range []struct {
		d    policy.Decision
		here bool
	}{{v.Egress, fromHere}, {v.Ingress, toHere}} {
		d := explain.Describe(one.d)
		switch {
		case !d.Allowed && !one.here:
			f.Verdict, f.Direction = flows.Denied, one.d.Direction.String()
			because(f, d)
			return
		case f.Verdict == flows.Audit:
		case d.Allowed && d.Audit != nil && !d.Audit.Allowed:
			f.Verdict, f.Direction = flows.Audit, one.d.Direction.String()
			because(f, *d.Audit)
		case d.By != nil: // of two rules, that of the destination is shown
			f.Policy, f.Rule = d.By.Policy, d.By.Rule
		}
	}
}

// end names the end of a flow.
func (k *known) end(a netip.Addr) *flows.End {
	if e := k.ends[a]; e != nil {
		return e
	}
	e := outside
	if found, ok := k.snapshot.World.At(a); ok {
		owner, id := enforce.OwnerOf(found)
		e = &flows.End{
			Namespace: words.Printable(found.Namespace, mostText), Name: words.Printable(cmp.Or(found.Name, id[:min(12, len(id))]), mostText),
			Labels: cleanLabels(found.Labels), Peer: k.view.Name(owner),
		}
	} else if s, ok := k.universe.Slot(a); ok {
		if h, ok := k.hosts[s]; ok {
			e = &flows.End{Node: true, Name: h.nickname, Peer: k.view.Name(h.id)}
		}
	}
	if old := k.before.ends[a]; old != nil && same(*old, *e) {
		e = old
	}
	k.ends[a] = e
	return e
}

func same(a, b flows.End) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.Peer == b.Peer && a.Node == b.Node && maps.Equal(a.Labels, b.Labels)
}
