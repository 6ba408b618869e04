// Package explain evaluates a connection with the policies, and with the kernels of the hosts at both
// ends. It also lists the packets that policies recently dropped.
//
// An Explainer owns no state. Drops own the recently dropped packets, which their goroutine receives
// from the kernel. Both are safe for concurrent use.
package explain

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"

	"weft/mesh/peer"
	"weft/prog/agent/enforce"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/nft"
	"weft/router/policy"
)

// requestEvaluate asks a peer for its part of a verdict: question → reply.
const requestEvaluate = "policy/judge"

// Policies returns what this host knows and enforces.
type Policies interface {
	Snapshot() enforce.Snapshot
	IsLocal(netip.Addr) bool
}

// Kernel evaluates packets by the rules that are in force.
type Kernel interface {
	Evaluate(d policy.Direction, own netip.Addr, p nft.Packet) (nft.Evaluation, error)
}

// Mesh asks other peers.
type Mesh interface {
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
}

// Config configures an Explainer.
type Config struct {
	Self     peer.ID
	Policies Policies
	Kernel   Kernel
	Mesh     Mesh
	View     live.Reader[*view.View]
	Drops    *Drops
	Exempt   nft.Exempt
	Resolver bool // the name server listens on this host
	// Short returns a name without the DNS domain.
	Short func(string) string
}

// Explainer explains connections.
type Explainer struct{ cfg Config }

// New makes an explainer.
func New(cfg Config) *Explainer { return &Explainer{cfg} }

// Explain evaluates a connection.
func (x *Explainer) Explain(ctx context.Context, req api.ExplainRequest) (out api.Explanation, err error) {
	proto := enforce.Protocol(cmp.Or(req.Protocol, "TCP"))
	icmp := strings.EqualFold(req.Protocol, policy.ICMP.String())
	switch {
	case icmp && req.Port != 0:
		return out, &api.Error{Code: api.CodeBadRequest, Message: "ICMP has no ports: name icmp without a port"}
	case icmp:
		proto = policy.ICMP
	case proto == 0:
		return out, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("protocol %q is not TCP, UDP, SCTP or ICMP", req.Protocol)}
	}
	k := x.cfg.Policies.Snapshot()
	src, dst, err := x.sides(k, req.Source, req.Destination)
	if err != nil {
		return out, err
	}
	out = api.Explanation{Source: src.Party, Destination: dst.Party, Port: "any", Verdicts: []api.Verdict{}}
	q := question{
		Port: req.Port, AnyPort: req.Port == 0 && !icmp,
		FromOwnHost: src.Node && dst.endpoint.ID != "" && src.owner == dst.owner,
		ToOwnHost:   dst.Node && src.endpoint.ID != "" && src.owner == dst.owner,
	}
	if !q.AnyPort {
		out.Port = policy.Port{Protocol: proto, Number: req.Port}.String()
	} else if src.endpoint.ID != "" || dst.endpoint.ID != "" {
		out.Open = policy.Between(k.Policies, k.World, src.asEndpoint(), dst.asEndpoint()).String()
	}
	for _, q.Src = range src.Addresses {
		for _, q.Dst = range dst.Addresses {
			if q.Src.Is4() == q.Dst.Is4() {
				q.Protocol = uint8(inFamily(proto, q.Src))
				out.Verdicts = append(out.Verdicts, x.verdict(ctx, k, src, dst, q))
			}
		}
	}
	if len(out.Verdicts) == 0 {
		return out, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%s and %s have no address of one family", req.Source, req.Destination)}
	}
	return out, nil
}

// inFamily returns ICMPv6 instead of ICMP if an address is IPv6; other protocols stay the same.
func inFamily(p policy.Protocol, a netip.Addr) policy.Protocol {
	if p == policy.ICMP && a.Is6() {
		return policy.ICMPv6
	}
	return p
}

// verdict asks the hosts of both ends.
func (x *Explainer) verdict(ctx context.Context, k enforce.Snapshot, src, dst side, q question) api.Verdict {
	v := api.Verdict{
		Source: q.Src, Destination: q.Dst,
		Egress: api.Decision{Allowed: true}, Ingress: api.Decision{Allowed: true},
	}
	for d, end := range map[policy.Direction]side{policy.Egress: src, policy.Ingress: dst} {
		if end.endpoint.ID == "" {
			continue
		}
		q.Direction = uint8(d)
		answer := x.ask(ctx, k, end.owner, q)
		answer.Decision.Peer = x.cfg.View.Get().Name(end.owner)
		if d == policy.Egress {
			v.Egress = answer.Decision
		} else {
			v.Ingress = answer.Decision
		}
		v.Exempt = cmp.Or(v.Exempt, answer.Exempt)
	}
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	return v
}
