// Package dryrun computes the effects of changed policies without making the change: on current
// connections of all hosts, and on the allowed ports between endpoints. It owns no state, is safe for
// concurrent use, and changes nothing.
package dryrun

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
	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/enforce"
	"weft/prog/agent/explain"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/conntrack"
	"weft/prog/flows"
	"weft/router/policy"
)

// requestTry asks a peer for its connections that would change: []mesh.Change → flowChanges.
const requestTry = "policy/try"

// Limits of a dry run's input and output.
const (
	mostFlows = 200   // of one host
	mostPairs = 200   // in the reply
	mostTried = 20000 // pairs that are looked at
)

// Config configures a DryRun.
type Config struct {
	Self peer.ID
	Mesh ask.Mesh
	View live.Reader[*view.View]
	// Know returns the policies and endpoints that this host knows now.
	Know func() enforce.Snapshot
	// MarkOwnHost marks a packet that is between this host itself and an endpoint on it.
	MarkOwnHost func(*policy.Packet)
}

// DryRun tries changes. It owns nothing, and is safe for concurrent use.
type DryRun struct{ cfg Config }

// New makes a dry run.
func New(cfg Config) *DryRun { return &DryRun{cfg} }

// tried returns the state that this host knows, before and after the changes.
func (d *DryRun) tried(changes []mesh.Change) (before, after enforce.Snapshot, err error) {
	before = d.cfg.Know()
	after.Policies = slices.Clone(before.Policies)
	after.World = before.World
	if after.World.Namespaces = maps.Clone(before.World.Namespaces); after.World.Namespaces == nil {
		after.World.Namespaces = map[string]map[string]string{}
	}
	for _, c := range changes {
		if c.Kind == enforce.KindPolicy {
			after.Policies = slices.DeleteFunc(after.Policies, func(p policy.Policy) bool { return p.Ref() == c.Name })
		} else {
			delete(after.World.Namespaces, c.Name)
		}
		if c.Deleted {
			continue
		}
		one := enforce.Parse(&document.Document{Kind: c.Kind, Name: c.Name, Body: c.Body})
		switch {
		case one.Err != nil:
			return before, after, one.Err
		case c.Kind == enforce.KindPolicy:
			after.Policies = append(after.Policies, one.Policy)
		default:
			after.World.Namespaces[one.Namespace] = one.Labels
		}
	}
	return before, after, nil
}

// Effects returns what changes would do to the current connections of all hosts, and to the ports
// that are allowed between pairs of endpoints.
func (d *DryRun) Effects(ctx context.Context, changes []mesh.Change) (*api.Effects, error) {
	before, after, err := d.tried(changes)
	if err != nil {
		return nil, &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	out := &api.Effects{Flows: []api.FlowChange{}, Pairs: []api.PairChange{}}
	own, err := d.flowChanges(ctx, before, after)
	if err != nil {
		return nil, err
	}
	all := []flowChanges{own}
	payload, err := cbor.Marshal(changes)
	if err != nil {
		return nil, err
	}
	ask.All(ctx, d.cfg.Mesh, requestTry, payload, func(id peer.ID, answer []byte, err error) {
		var theirs flowChanges
		if err == nil {
			err = cbor.Unmarshal(answer, &theirs)
		}
		if err != nil {
			out.Silent = append(out.Silent, d.cfg.View.Get().Name(id))
			return
		}
		all = append(all, theirs)
	})
	seen := map[string]bool{} // both hosts may report the same flow
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

// pairChanges adds the pairs of endpoints between which other ports would be allowed.
func pairChanges(before, after enforce.Snapshot, out *api.Effects) {
	w := before.World
	affected, all := changed(before, after)
	policies := [2][]policy.Policy{before.Policies, after.Policies}
	worlds := [2]policy.World{before.World, after.World}
	of := [2]map[string][]policy.Policy{{}, {}} // the policies that select each endpoint: each pair only evaluates these
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
			if src.ID == dst.ID || !all && !affected[src.ID] && !affected[dst.ID] {
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

// changed returns the endpoints that a changed policy selects, before or after the change. It returns
// all endpoints if labels of namespaces changed.
func changed(before, after enforce.Snapshot) (affected map[string]bool, all bool) {
	affected = map[string]bool{}
	differ := func(list, others []policy.Policy) {
		for _, p := range list {
			i := slices.IndexFunc(others, func(o policy.Policy) bool { return o.Ref() == p.Ref() })
			if i >= 0 && reflect.DeepEqual(others[i], p) {
				continue
			}
			for _, e := range before.World.Endpoints {
				affected[e.ID] = affected[e.ID] || p.Selects(e)
			}
		}
	}
	differ(before.Policies, after.Policies)
	differ(after.Policies, before.Policies)
	return affected, !maps.EqualFunc(before.World.Namespaces, after.World.Namespaces, maps.Equal[map[string]string, map[string]string])
}

// flowChanges are the connections of one host that would get another verdict.
type flowChanges struct {
	Flows []api.FlowChange
	More  int
}

// Handlers answer other peers, by the kind of request.
func (d *DryRun) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){requestTry: d.serve}
}

func (d *DryRun) serve(ctx context.Context, _ peer.ID, payload []byte) ([]byte, error) {
	var changes []mesh.Change
	if err := cbor.Unmarshal(payload, &changes); err != nil {
		return nil, err
	}
	before, after, err := d.tried(changes)
	if err != nil {
		return nil, err
	}
	out, err := d.flowChanges(ctx, before, after)
	if err != nil {
		return nil, err
	}
	return cbor.Marshal(out)
}

// flowChanges evaluates the connections in this host's conntrack table.
func (d *DryRun) flowChanges(ctx context.Context, before, after enforce.Snapshot) (out flowChanges, err error) {
	table, err := conntrack.OpenTable()
	if err != nil {
		return out, err
	}
	defer table.Close()
	endpoint := func(a netip.Addr) bool { return explain.Title(before.World, a) != "" }
	known := func(e flows.Entry) bool { return endpoint(e.Original.Src.Addr()) || endpoint(e.ReplySrc.Addr()) }
	err = table.All(ctx, known, func(e flows.Entry) {
		p := e.Packet()
		d.cfg.MarkOwnHost(&p)
		was, is := policy.Evaluate(before.Policies, before.World, p), policy.Evaluate(after.Policies, after.World, p)
		switch {
		case was.Allowed == is.Allowed:
		case len(out.Flows) >= mostFlows:
			out.More++
		default:
			out.Flows = append(out.Flows, api.FlowChange{
				Peer: d.cfg.View.Get().Name(d.cfg.Self), Protocol: p.Protocol.String(), Allowed: is.Allowed, Why: why(is),
				From: explain.Title(before.World, p.Src), To: explain.Title(before.World, p.Dst), Source: e.Original.Src, Destination: e.ReplySrc,
			})
		}
	})
	if err != nil {
		return out, fmt.Errorf("connections of this host: %w", err)
	}
	slices.SortFunc(out.Flows, func(x, y api.FlowChange) int {
		return cmp.Or(x.Source.Compare(y.Source), x.Destination.Compare(y.Destination))
	})
	return out, nil
}

// why returns the reason for a verdict in its shortest form.
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
