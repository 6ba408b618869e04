package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sync/errgroup"

	"weft/mesh/peer"
	"weft/prog/api"
	"weft/router/policy"
)

// Requests about policies.
const (
	requestInForce = "policy/in-force" // → inForce
	requestJudge   = "policy/judge"    // judgeRequest → api.Decision
	requestTry     = "policy/try"      // []mesh.Change → flowChanges
)

// policyAsk bounds how long a peer may take, and how many are asked at once.
const (
	policyAsk    = 5 * time.Second
	policyAtOnce = 16
)

// inForce is what a peer says of its kernel.
type inForce struct {
	Generation string
	Isolated   int
	Dropped    map[string]uint64 // packets, by direction
	Policies   map[string]int    // endpoints there that each selects
	// Unread is what of a policy is not understood there, where there is something.
	Unread map[string][]string `cbor:",omitempty"`
}

// policyHandlers answer other peers.
func (a *Agent) policyHandlers() {
	a.mesh.Handle(requestInForce, func(context.Context, peer.ID, []byte) ([]byte, error) { return cbor.Marshal(a.inForce()) })
	a.mesh.Handle(requestJudge, a.serveJudge)
	a.mesh.Handle(requestTry, a.serveTry)
}

// inForce is what this host enforces.
func (a *Agent) inForce() inForce {
	p := &a.policies
	p.mu.Lock()
	out := inForce{Generation: p.enforced, Policies: map[string]int{}, Dropped: map[string]uint64{}}
	isolated := map[string]bool{}
	for _, e := range p.compiler.Local() {
		for _, one := range p.list {
			if one.Selects(e) {
				out.Policies[one.Ref()]++
				isolated[e.ID] = isolated[e.ID] || !one.Audit
			}
		}
	}
	for _, one := range p.list { // those too that select nobody here
		out.Policies[one.Ref()] += 0
		if len(one.Unread) > 0 {
			if out.Unread == nil {
				out.Unread = map[string][]string{}
			}
			out.Unread[one.Ref()] = one.Unread
		}
	}
	p.mu.Unlock()
	for _, yes := range isolated {
		if yes {
			out.Isolated++
		}
	}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		n, err := a.router.Dropped(d)
		if err != nil {
			a.log.Debug("packets that were dropped are not counted", "err", err)
		}
		out.Dropped[d.String()] = n
	}
	return out
}

// reportPolicy is this host's part of the status.
func (a *Agent) reportPolicy() api.PolicyReport {
	f := a.inForce()
	a.policies.mu.Lock()
	defer a.policies.mu.Unlock()
	r := api.PolicyReport{
		Source: a.source(), Current: f.Generation == a.generation(), Policies: len(a.policies.list), Isolated: f.Isolated, Dropped: f.Dropped,
	}
	for _, p := range a.policies.list {
		switch {
		case p.Audit:
			r.Audit++
		case len(p.Unread) > 0:
			r.Partial++
		}
	}
	return r
}

// askAll sends a request to all other peers that can be reached, and calls f with each answer.
func (a *Agent) askAll(ctx context.Context, kind string, payload []byte, f func(id peer.ID, answer []byte, err error)) {
	var mu sync.Mutex // f is called one at a time
	group := errgroup.Group{}
	group.SetLimit(policyAtOnce)
	for _, id := range a.mesh.Others() {
		group.Go(func() error {
			var answer []byte
			err := fmt.Errorf("it cannot be reached now")
			if a.mesh.Reachable(id) {
				ctx, cancel := context.WithTimeout(ctx, policyAsk)
				defer cancel()
				answer, err = a.mesh.Request(ctx, id, kind, payload)
			}
			mu.Lock()
			defer mu.Unlock()
			f(id, answer, err)
			return nil
		})
	}
	_ = group.Wait() // its functions return nil
}

// PolicyStatus asks all peers which policies they enforce.
func (a *Agent) PolicyStatus(ctx context.Context) (api.PolicyStatus, error) {
	own := a.inForce()
	status := policyAnswers{PolicyStatus: api.PolicyStatus{
		Source: a.source(), Generation: a.generation(), Policies: []api.PolicyInForce{}, Peers: []api.PeerPolicies{}, Exempt: a.exemptions(),
	}}
	a.policies.mu.Lock()
	status.policies(a.policies.list)
	a.policies.mu.Unlock()
	var records map[peer.ID]peer.Record
	if v := a.view.Load(); v != nil {
		records = v.records
	}
	status.add(a.self(), a.mesh.Own().Nickname, own)
	a.askAll(ctx, requestInForce, nil, func(id peer.ID, answer []byte, err error) {
		nickname := records[id].Nickname
		var f inForce
		if err == nil {
			err = cbor.Unmarshal(answer, &f)
		}
		if err != nil {
			status.Peers = append(status.Peers, api.PeerPolicies{
				Peer: id.String(), Nickname: nickname, Unreachable: !a.mesh.Reachable(id), Error: err.Error(),
			})
			return
		}
		status.add(id, nickname, f)
	})
	return status.PolicyStatus, nil
}

// policyAnswers are what the peers have said so far.
type policyAnswers struct {
	api.PolicyStatus
	index map[string]int // of Policies
}

// policies are those that are in force somewhere, it is to be seen where.
func (g *policyAnswers) policies(list []policy.Policy) {
	g.index = map[string]int{}
	for _, p := range list {
		g.index[p.Ref()] = len(g.Policies)
		g.Policies = append(g.Policies, api.PolicyInForce{Policy: p.Ref(), Audit: p.Audit})
	}
}

// add is what one peer says.
func (g *policyAnswers) add(id peer.ID, nickname string, f inForce) {
	current := f.Generation == g.Generation
	g.Peers = append(g.Peers, api.PeerPolicies{
		Peer: id.String(), Nickname: nickname, Generation: f.Generation, Current: current, Isolated: f.Isolated,
		Dropped: f.Dropped[policy.Ingress.String()] + f.Dropped[policy.Egress.String()],
	})
	for ref, n := range f.Policies {
		i, known := g.index[ref]
		if !known || !current {
			continue
		}
		one := &g.Policies[i]
		one.Peers++
		one.Endpoints += n
		for _, what := range f.Unread[ref] { // mostly the same everywhere; a peer of another version may read more
			if !slices.Contains(one.Unread, what) {
				one.Unread = append(one.Unread, what)
			}
		}
	}
}

// exemptions says what policies do not apply to on this host.
func (a *Agent) exemptions() []string {
	out := []string{"what this host sends to its own endpoints"}
	e := a.opts.Exempt
	switch {
	case e.OwnHost:
		out = append(out, "what endpoints send to their own host")
	case e.Resolver:
		out = append(out, "endpoints' questions to the name server of their host")
	}
	if e.ICMPErrors {
		out = append(out, "ICMP errors about connections that are known")
	}
	return out
}
