package hops

import (
	"fmt"

	"weft/prog/api"
	"weft/router/policy"
	"weft/router/trace"
)

// Remote is what the host of the destination saw.
type Remote struct {
	Name string
	Part Part
	Err  string // why it did not report; empty: it did
	Path string // the state of the path to it
}

// Conclude says where a packet ended. far is nil if source and destination are at one host, or if the destination is
// no host of the network.
func Conclude(packet trace.Packet, host string, near Part, far *Remote) (result, ended string) {
	switch {
	case len(near.There) == 0:
		return api.TraceLost, fmt.Sprintf("the packet never reached nftables on %s: the link of the source is down, or a filter on the link (tc, or a table of family netdev) dropped it", host)
	case near.End == EndDropped:
		return api.TraceDropped, host + ": " + near.Why
	case near.End == EndUnroutable:
		return api.TraceUnroutable, host + ": " + near.Why
	case far != nil && far.Part.End == EndDropped: // the answer is that of a rule that rejects
		return api.TraceDropped, far.Name + ": " + far.Part.Why
	case near.BackEnd == EndDelivered:
		return answered(near.Answer)
	case near.BackEnd == EndDropped:
		return api.TraceDropped, "the answer was dropped on " + host + ": " + near.BackWhy
	case near.End == EndOutside:
		return api.TraceLeft, "the packet left the network on " + host + "; no answer came back"
	case near.End == EndDelivered:
		return api.TraceUnanswered, unanswered(packet)
	case near.End == EndTunnel && far != nil:
		return far.conclude(packet, host)
	case near.End == EndTunnel:
		return api.TraceLost, "the packet went into the tunnel, to a host that this one does not know"
	}
	return api.TraceLost, fmt.Sprintf("the packet was last seen on %s in the hop above: what dropped it is no rule of nftables (rules of iptables-legacy, for example, cannot be traced)", host)
}

// answered describes an answer that came back to the source.
func answered(a trace.Answer) (result, ended string) {
	switch {
	case a.Failed:
		return api.TraceUnroutable, "a host on the way could not deliver the packet: " + a.What
	case a.Refused:
		return api.TraceRefused, "the destination refused: " + a.What
	}
	return api.TraceAnswered, "the destination answered: " + a.What
}

func unanswered(p trace.Packet) string {
	text := fmt.Sprintf("the packet arrived at %v, and nothing answered", p.Dst)
	if p.Protocol == policy.UDP {
		return text + ": programs need not answer a datagram that they do not understand"
	}
	return text + ": the container's own firewall may drop it, or the container is frozen"
}

// conclude says where a packet ended that the source's host sent into the tunnel.
func (r *Remote) conclude(packet trace.Packet, host string) (result, ended string) {
	between := fmt.Sprintf("between %s and %s; the path is %s", host, r.Name, r.Path)
	switch p := r.Part; {
	case r.Err != "":
		return api.TraceLost, fmt.Sprintf("%s sent the packet into the tunnel, no answer came back, and %s does not report (%s); the path is %s", host, r.Name, r.Err, r.Path)
	case len(p.There) == 0:
		return api.TraceLost, "the packet was lost " + between
	case p.End == EndUnroutable:
		return api.TraceUnroutable, r.Name + ": " + p.Why
	case p.BackEnd == EndDropped:
		return api.TraceDropped, "the answer was dropped on " + r.Name + ": " + p.BackWhy
	case p.BackEnd == EndTunnel:
		return api.TraceLost, "the answer was lost " + between
	case p.End == EndDelivered && p.BackEnd == "":
		return api.TraceUnanswered, unanswered(packet)
	case p.End == EndOutside:
		return api.TraceLeft, "the packet left the network on " + r.Name + "; no answer came back"
	}
	return api.TraceLost, fmt.Sprintf("the packet was last seen on %s in the hop above: what dropped it is no rule of nftables", r.Name)
}

// Explain adds the sentences of the policies to the hops of policies, and to the end if they decided it.
func Explain(hops []api.TraceHop, v api.Verdict, ended *string) {
	for i := range hops {
		h := &hops[i]
		d := v.Egress
		switch h.Stage {
		case api.StageEgress:
		case api.StageIngress:
			d = v.Ingress
		default:
			continue
		}
		switch {
		case v.Exempt != "":
			h.Detail = "policies do not apply: " + v.Exempt
		case h.Verdict == "drop":
			h.Detail = d.Why()
			if *ended != "" {
				*ended += " (" + h.Stage + " of " + d.Endpoint + ": " + d.Why() + ")"
			}
		case d.By != nil:
			h.Detail = "allowed by " + d.By.String()
		case len(d.Policies) == 0:
			h.Detail = "no policy selects the endpoint"
		default:
			h.Detail = d.Why()
		}
	}
}
