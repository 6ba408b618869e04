package explain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/enforce"
	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

// question asks a host for the part of its policies in a verdict.
type question struct {
	Direction                       uint8
	Src, Dst                        netip.Addr
	Protocol                        uint8
	SrcPort, Port                   uint16
	AnyPort, FromOwnHost, ToOwnHost bool
}

// reply is the answer to a question.
type reply struct {
	Decision api.Decision
	Exempt   string
}

// ask asks the host of an endpoint. If that host does not answer, this host evaluates the policies
// that it knows itself.
func (x *Explainer) ask(ctx context.Context, k enforce.Snapshot, owner peer.ID, q question) (r reply) {
	if owner == x.cfg.Self {
		return x.evaluate(k, q)
	}
	ctx, cancel := context.WithTimeout(ctx, ask.Timeout)
	defer cancel()
	data, err := cbor.Marshal(q)
	if err == nil {
		data, err = x.cfg.Mesh.Request(ctx, owner, requestEvaluate, data)
	}
	if err == nil {
		err = cbor.Unmarshal(data, &r)
	}
	if err != nil {
		r = x.evaluate(k, q)
		r.Decision.Kernel, r.Decision.Unasked = nil, fmt.Sprintf("%s did not answer, so this is computed from what this host knows: %v", x.cfg.View.Get().Name(owner), err)
	}
	return r
}

// Handlers answer other peers, by the kind of request.
func (x *Explainer) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){requestEvaluate: x.serve}
}

func (x *Explainer) serve(_ context.Context, _ peer.ID, payload []byte) ([]byte, error) {
	var q question
	if err := cbor.Unmarshal(payload, &q); err != nil {
		return nil, err
	}
	if !q.Src.IsValid() || !q.Dst.IsValid() || q.Src.Is4() != q.Dst.Is4() || q.Direction > uint8(policy.Egress) {
		return nil, errors.New("invalid request: need two addresses of one family, and a direction")
	}
	return cbor.Marshal(x.evaluate(x.cfg.Policies.Snapshot(), q))
}

// evaluate returns the verdict of the policies and of this host's kernel for one direction of a
// connection.
func (x *Explainer) evaluate(k enforce.Snapshot, q question) reply {
	p := policy.Packet{
		Src: q.Src, Dst: q.Dst, Protocol: policy.Protocol(q.Protocol), SrcPort: q.SrcPort, DstPort: q.Port,
		AnyPort: q.AnyPort, FromOwnHost: q.FromOwnHost,
	}
	p.ToOwnHost = q.ToOwnHost && x.exempts(p)
	v := policy.Evaluate(k.Policies, k.World, p)
	d, own, decision := policy.Direction(q.Direction), q.Src, v.Egress
	if d == policy.Ingress {
		own, decision = q.Dst, v.Ingress
	}
	out := reply{Decision: Describe(decision), Exempt: v.Exempt}
	switch {
	case v.Exempt != "":
		out.Decision.Unasked = "policies do not apply"
	case q.AnyPort:
		out.Decision.Unasked = "the kernel is only asked about single ports"
	case !x.cfg.Policies.IsLocal(own):
		out.Decision.Unasked = "the endpoint is not on this host"
	default:
		seen, err := x.cfg.Kernel.Evaluate(d, own, nft.Packet{Src: p.Src, Dst: p.Dst, Protocol: q.Protocol, SrcPort: p.SrcPort, DstPort: p.DstPort})
		if err != nil {
			out.Decision.Unasked = err.Error()
			break
		}
		out.Decision.Kernel = &api.Kernel{Allowed: seen.Allowed, Chain: seen.Chain, Dropped: seen.Dropped, Differs: seen.Allowed != decision.Allowed}
	}
	return out
}

// exempts reports whether policies do not apply to a packet from an endpoint here to this host.
func (x *Explainer) exempts(p policy.Packet) bool {
	e := x.cfg.Exempt
	return e.OwnHost || e.Resolver && x.cfg.Resolver && p.DstPort == 53 && (p.Protocol == policy.UDP || p.Protocol == policy.TCP)
}

// MarkOwnHost marks a packet that is between this host itself and an endpoint on it.
func (x *Explainer) MarkOwnHost(p *policy.Packet) {
	v := x.cfg.View.Get()
	if v == nil {
		return
	}
	node := v.Records[x.cfg.Self].Node
	own := func(addr netip.Addr) bool {
		s, ok := v.Ring.Universe.Slot(addr)
		return ok && node != 0 && s == node
	}
	p.FromOwnHost = own(p.Src) && x.cfg.Policies.IsLocal(p.Dst)
	p.ToOwnHost = own(p.Dst) && x.cfg.Policies.IsLocal(p.Src) && x.exempts(*p)
}

// Describe returns a decision as output has it.
func Describe(d policy.Decision) api.Decision {
	out := api.Decision{Endpoint: d.Endpoint, Policies: d.Policies, Allowed: d.Allowed}
	reason := func(r policy.Reason) api.Reason {
		out := api.Reason{Policy: r.Policy, Text: r.Text}
		if r.Rule >= 0 {
			out.Rule = fmt.Sprintf("spec.%v[%d]", d.Direction, r.Rule)
		}
		return out
	}
	if d.By != nil {
		out.By = new(reason(*d.By))
	}
	for _, m := range d.Misses {
		out.Misses = append(out.Misses, reason(m))
	}
	if d.Tried != nil {
		out.Audit = new(Describe(*d.Tried))
	}
	return out
}
