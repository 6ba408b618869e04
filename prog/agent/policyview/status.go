package policyview

import (
	"context"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/enforce"
	"weft/prog/agent/metric"
	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

// requestInForce asks a peer for its enforced policies: → enforce.InForce.
const requestInForce = "policy/in-force"

// Handlers answer other peers, by the kind of request.
func (p *View) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		requestInForce: func(context.Context, peer.ID, []byte) ([]byte, error) { return cbor.Marshal(p.inForce()) },
	}
}

// inForce returns what this host enforces.
func (p *View) inForce() enforce.InForce {
	out := p.cfg.Policies.InForce()
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		n, err := p.cfg.Counters.Dropped(d)
		if err != nil {
			p.cfg.Log.Debug("packets that were dropped are not counted", "err", err)
		}
		out.Dropped[d.String()] = n
	}
	return out
}

// Status is this host's part of the report.
func (p *View) Status() api.PolicyReport {
	f, list := p.inForce(), p.cfg.Policies.Policies()
	r := api.PolicyReport{
		Source: p.cfg.Origin.Title(), Current: f.Generation == p.cfg.Origin.Generation(), Policies: len(list), Isolated: f.Isolated, Dropped: f.Dropped,
	}
	for _, one := range list {
		switch {
		case one.Audit:
			r.Audit++
		case len(one.Unread) > 0:
			r.Partial++
		}
	}
	return r
}

// PolicyStatus asks all peers which policies they enforce.
func (p *View) PolicyStatus(ctx context.Context) (api.PolicyStatus, error) {
	own := p.inForce()
	status := policyAnswers{PolicyStatus: api.PolicyStatus{
		Source: p.cfg.Origin.Title(), Generation: p.cfg.Origin.Generation(), Policies: []api.PolicyInForce{}, Peers: []api.PeerPolicies{}, Exempt: exemptions(p.cfg.Exempt),
	}}
	status.policies(p.cfg.Policies.Policies())
	var records map[peer.ID]peer.Record
	if v := p.cfg.View.Get(); v != nil {
		records = v.Records
	}
	status.add(p.cfg.Self, records[p.cfg.Self].Nickname, own)
	ask.All(ctx, p.cfg.Mesh, requestInForce, nil, func(id peer.ID, answer []byte, err error) {
		nickname := records[id].Nickname
		var f enforce.InForce
		if err == nil {
			err = cbor.Unmarshal(answer, &f)
		}
		if err != nil {
			status.Peers = append(status.Peers, api.PeerPolicies{
				Peer: id.String(), Nickname: nickname, Unreachable: !p.cfg.Mesh.Reachable(id), Error: err.Error(),
			})
			return
		}
		status.add(id, nickname, f)
	})
	return status.PolicyStatus, nil
}

// policyAnswers collects the answers of peers.
type policyAnswers struct {
	api.PolicyStatus
	index map[string]int // the index in Policies of each policy
}

// policies adds policies that may be in force on some host.
func (g *policyAnswers) policies(list []policy.Policy) {
	g.index = map[string]int{}
	for _, p := range list {
		g.index[p.Ref()] = len(g.Policies)
		g.Policies = append(g.Policies, api.PolicyInForce{Policy: p.Ref(), Audit: p.Audit})
	}
}

// add records a peer's answer.
func (g *policyAnswers) add(id peer.ID, nickname string, f enforce.InForce) {
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
		for _, what := range f.Unread[ref] { // peers mostly report the same parts; a newer version may understand more
			if !slices.Contains(one.Unread, what) {
				one.Unread = append(one.Unread, what)
			}
		}
	}
}

// exemptions lists the traffic on this host that policies do not apply to.
func exemptions(e nft.Exempt) []string {
	out := []string{"what this host sends to its own endpoints"}
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

var (
	metricPolicies = metric.Desc("policies", "NetworkPolicies, by mode: enforced, partial (not fully understood), or audit.", "mode")
	metricEnforced = metric.Desc("policy_current", "Whether the kernel enforces all policies that are known on this host.")
	metricIsolated = metric.Desc("policy_isolated_endpoints", "Endpoints on this host that some policy isolates.")
	metricDropped  = metric.Desc("policy_dropped_packets_total", "Packets that policies of endpoints on this host dropped, since the agent started.", "direction")
)

// Metrics exports the policies that this host enforces.
func (p *View) Metrics(out metric.Out) {
	r := p.Status()
	out.Each(metricPolicies, map[string]float64{
		"enforced": float64(r.Policies - r.Audit - r.Partial), "partial": float64(r.Partial), "audit": float64(r.Audit),
	})
	out.Bool(metricEnforced, r.Current)
	out.Gauge(metricIsolated, float64(r.Isolated))
	for direction, n := range r.Dropped {
		out.Counter(metricDropped, float64(n), direction)
	}
}
