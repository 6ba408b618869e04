package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/peer"
	"weft/prog/api"
	"weft/router/policy"
)

// Bounds of what a dry run looks at, and tells.
const (
	mostFlows = 200   // of one host
	mostPairs = 200   // told
	mostTried = 20000 // pairs that are looked at
)

// tried is what would be in force after changes.
func (a *Agent) tried(changes []mesh.Change) (before, after known, err error) {
	before = a.know()
	after.list = slices.Clone(before.list)
	after.world = before.world
	if after.world.Namespaces = maps.Clone(before.world.Namespaces); after.world.Namespaces == nil {
		after.world.Namespaces = map[string]map[string]string{}
	}
	for _, c := range changes {
		if c.Kind == kindPolicy {
			after.list = slices.DeleteFunc(after.list, func(p policy.Policy) bool { return p.Ref() == c.Name })
		} else {
			delete(after.world.Namespaces, c.Name)
		}
		if c.Deleted {
			continue
		}
		one := parseDocument(&document.Document{Kind: c.Kind, Name: c.Name, Body: c.Body})
		switch {
		case one.err != nil:
			return before, after, one.err
		case c.Kind == kindPolicy:
			after.list = append(after.list, one.Policy)
		default:
			after.world.Namespaces[one.Namespace] = one.Labels
		}
	}
	return before, after, nil
}

// effects are what changes would do: to connections of now, on all hosts, and to pairs of
// endpoints.
func (a *Agent) effects(ctx context.Context, changes []mesh.Change) (*api.Effects, error) {
	before, after, err := a.tried(changes)
	if err != nil {
		return nil, &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	out := &api.Effects{Flows: []api.FlowChange{}, Pairs: []api.PairChange{}}
	own, err := a.flowChanges(before, after)
	if err != nil {
		return nil, err
	}
	all := []flowChanges{own}
	payload, err := cbor.Marshal(changes)
	if err != nil {
		return nil, err
	}
	a.askAll(ctx, requestTry, payload, func(id peer.ID, answer []byte, err error) {
		var theirs flowChanges
		if err == nil {
			err = cbor.Unmarshal(answer, &theirs)
		}
		if err != nil {
			out.Silent = append(out.Silent, names{a}.PeerName(id))
			return
		}
		all = append(all, theirs)
	})
	seen := map[string]bool{} // two hosts have one flow
	for _, f := range all {
		out.MoreFlows += f.More
		for _, c := range f.Flows {
			if key := fmt.Sprint(c.Protocol, c.Source, c.Destination); !seen[key] {
				seen[key] = true
				out.Flows = append(out.Flows, c)
			}
		}
	}
	slices.Sort(out.Silent)
	pairChanges(before, after, out)
	return out, nil
}

// pairChanges compares what may be reached between endpoints.
func pairChanges(before, after known, out *api.Effects) {
	w := before.world
	affected, everybody := changed(before, after)
	policies := [2][]policy.Policy{before.list, after.list}
	worlds := [2]policy.World{before.world, after.world}
	of := [2]map[string][]policy.Policy{{}, {}} // who is under which, so that each pair looks at few
	for i, list := range policies {
		for _, e := range w.Endpoints {
			for _, p := range list {
				if p.Selects(e) {
					of[i][e.ID] = append(of[i][e.ID], p)
				}
			}
		}
	}
	looked := 0
	for _, src := range w.Endpoints {
		for _, dst := range w.Endpoints {
			if src.ID == dst.ID || !everybody && !affected[src.ID] && !affected[dst.ID] {
				continue
			}
			if looked++; looked > mostTried {
				out.MorePairs++
				continue
			}
			var access [2]string
			for i := range access {
				access[i] = policy.Between(slices.Concat(of[i][src.ID], of[i][dst.ID]), worlds[i], src, dst).String()
			}
			switch {
			case access[0] == access[1]:
			case len(out.Pairs) >= mostPairs:
				out.MorePairs++
			default:
				out.Pairs = append(out.Pairs, api.PairChange{From: src.Ref(), To: dst.Ref(), Before: access[0], After: access[1]})
			}
		}
	}
}

// changed are the endpoints under policies that are not the same before and after; everybody,
// if labels of namespaces changed.
func changed(before, after known) (affected map[string]bool, everybody bool) {
	affected = map[string]bool{}
	differ := func(list, others []policy.Policy) {
		for _, p := range list {
			i := slices.IndexFunc(others, func(o policy.Policy) bool { return o.Ref() == p.Ref() })
			if i >= 0 && reflect.DeepEqual(others[i], p) {
				continue
			}
			for _, e := range selected(p, before.world.Endpoints) {
				affected[e.ID] = true
			}
		}
	}
	differ(before.list, after.list)
	differ(after.list, before.list)
	return affected, !maps.EqualFunc(before.world.Namespaces, after.world.Namespaces, maps.Equal[map[string]string, map[string]string])
}

// flowChanges are the connections of one host that would get another verdict.
type flowChanges struct {
	Flows []api.FlowChange
	More  int
}

func (a *Agent) serveTry(_ context.Context, _ peer.ID, payload []byte) ([]byte, error) {
	var changes []mesh.Change
	if err := cbor.Unmarshal(payload, &changes); err != nil {
		return nil, err
	}
	before, after, err := a.tried(changes)
	if err != nil {
		return nil, err
	}
	out, err := a.flowChanges(before, after)
	if err != nil {
		return nil, err
	}
	return cbor.Marshal(out)
}

// flowChanges looks at the connections that conntrack knows.
func (a *Agent) flowChanges(before, after known) (out flowChanges, err error) {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			return out, fmt.Errorf("connections of this host (conntrack): %w", err)
		}
		for _, f := range flows {
			p := flowPacket(f)
			a.markOwnHost(&p)
			from, to := name(before.world, p.Src), name(before.world, p.Dst)
			if from == "" && to == "" {
				continue
			}
			was, is := policy.Evaluate(before.list, before.world, p), policy.Evaluate(after.list, after.world, p)
			switch {
			case was.Allowed == is.Allowed:
			case len(out.Flows) >= mostFlows:
				out.More++
			default:
				out.Flows = append(out.Flows, api.FlowChange{
					Peer: names{a}.PeerName(a.self()), Protocol: p.Protocol.String(), From: from, To: to, Allowed: is.Allowed, Why: why(is),
					Source: netip.AddrPortFrom(p.Src, p.SrcPort), Destination: netip.AddrPortFrom(p.Dst, p.DstPort),
				})
			}
		}
	}
	slices.SortFunc(out.Flows, func(x, y api.FlowChange) int {
		return cmp.Or(x.Source.Compare(y.Source), x.Destination.Compare(y.Destination))
	})
	return out, nil
}

// flowPacket is what opened a connection, as it is behind the translation of its destination.
func flowPacket(f *netlink.ConntrackFlow) policy.Packet {
	src, _ := netip.AddrFromSlice(f.Forward.SrcIP)
	dst, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	return policy.Packet{
		Src: src.Unmap(), Dst: dst.Unmap(), Protocol: policy.Protocol(f.Forward.Protocol), SrcPort: f.Forward.SrcPort, DstPort: f.Reverse.SrcPort,
	}
}

// markOwnHost says of a packet whether it is between this host itself and an endpoint on it.
func (a *Agent) markOwnHost(p *policy.Packet) {
	v := a.view.Load()
	if v == nil {
		return
	}
	node := v.records[a.self()].Node
	own := func(addr netip.Addr) bool {
		s, ok := v.ring.Universe.Slot(addr)
		return ok && node != 0 && s == node
	}
	p.FromOwnHost = own(p.Src) && a.isLocal(p.Dst)
	p.ToOwnHost = own(p.Dst) && a.isLocal(p.Src) && a.exempts(*p)
}

// why is the shortest reason for a verdict.
func why(v policy.Verdict) string {
	for _, d := range []policy.Decision{v.Egress, v.Ingress} {
		switch {
		case !d.Allowed && len(d.Misses) == 1:
			return fmt.Sprintf("%v: %s: %s", d.Direction, d.Misses[0].Policy, d.Misses[0].Text)
		case !d.Allowed:
			return fmt.Sprintf("%v: none of the rules of %s fits", d.Direction, strings.Join(d.Policies, ", "))
		}
	}
	for _, d := range []policy.Decision{v.Egress, v.Ingress} {
		if d.By != nil {
			return fmt.Sprintf("%v: %s: %s", d.Direction, d.By.Policy, d.By.Text)
		}
	}
	return "no policy selects its ends"
}
