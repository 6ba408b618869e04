package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Packet is a packet to evaluate. The ports are 0 for protocols without ports.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         Protocol
	SrcPort, DstPort uint16
	// Reply is set if the other side opened the connection. The packet is then evaluated like the
	// packet that it answers.
	Reply bool
	// FromOwnHost is set if the destination's own host sends the packet, for example a kubelet's
	// probe. Policies never forbid that.
	FromOwnHost bool
	// ToOwnHost is set if the packet goes to the source's own host, and policies do not apply to
	// such packets.
	ToOwnHost bool
	// AnyPort asks for any port of any protocol: a rule matches if it allows at least one port.
	AnyPort bool
}

// opened returns the packet as the side that opened the connection would send it.
func (p Packet) opened() Packet {
	if p.Reply {
		p.Src, p.Dst, p.SrcPort, p.DstPort, p.Reply = p.Dst, p.Src, p.DstPort, p.SrcPort, false
	}
	return p
}

// Verdict is the result for a packet, with the reasons.
type Verdict struct {
	Allowed bool
	// Exempt is the reason why policies do not apply; empty if they apply.
	Exempt          string
	Egress, Ingress Decision // the decisions at the source and at the destination
}

// Decision is the result for one direction.
type Decision struct {
	Direction Direction
	// Endpoint is the endpoint whose policies were evaluated; empty if no endpoint has the address.
	Endpoint string
	// Policies are the policies that isolate the endpoint. If there are none, everything is
	// allowed.
	Policies []string
	Allowed  bool
	// By is the rule that allows the packet, if policies isolate the endpoint.
	By *Reason
	// Misses are, for a denied packet, the rules that could have allowed it, each with the first
	// requirement that does not match.
	Misses []Reason
	// Tried is the decision including the policies in audit mode; nil if that decision is the same.
	Tried *Decision
}

// Reason names a rule, and says which part of it matches or does not.
type Reason struct {
	Policy string
	Rule   int // index in the list of its direction; -1 if the policy has no rules
	Text   string
}

// Evaluate returns the verdict on a packet according to the API's specification.
func Evaluate(policies []Policy, w World, p Packet) Verdict {
	p = p.opened()
	src, fromEndpoint := w.At(p.Src)
	dst, toEndpoint := w.At(p.Dst)
	v := Verdict{Egress: Decision{Direction: Egress, Allowed: true}, Ingress: Decision{Allowed: true}}
	switch {
	case fromEndpoint && toEndpoint && src.ID == dst.ID:
		v.Exempt = "an endpoint can always reach itself"
	case p.FromOwnHost:
		v.Exempt = "a host can always reach its own endpoints"
	case p.ToOwnHost:
		v.Exempt = "endpoints can always reach their own host in this configuration"
	default:
		if fromEndpoint {
			v.Egress = decide(policies, w, src, Egress, p)
		}
		if toEndpoint {
			v.Ingress = decide(policies, w, dst, Ingress, p)
		}
	}
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	return v
}

// decide evaluates the policies in force, and also the policies in audit mode, if there are any.
func decide(policies []Policy, w World, e Endpoint, d Direction, p Packet) Decision {
	var enforced, all []Policy
	for _, pol := range policies {
		if pol.selects(e, d) {
			all = append(all, pol)
			if !pol.Audit {
				enforced = append(enforced, pol)
			}
		}
	}
	out := decideBy(enforced, w, e, d, p)
	if len(all) > len(enforced) {
		if tried := decideBy(all, w, e, d, p); tried.Allowed != out.Allowed {
			out.Tried = &tried
		}
	}
	return out
}

// Selects reports whether the policy isolates an endpoint in any direction.
func (p Policy) Selects(e Endpoint) bool { return p.selects(e, Ingress) || p.selects(e, Egress) }

// selects reports whether the policy isolates an endpoint in a direction.
func (p Policy) selects(e Endpoint, d Direction) bool {
	return p.Isolates.Has(d) && p.Namespace == e.Namespace && p.Pods.Matches(Labels{set: e.Labels})
}

func decideBy(policies []Policy, w World, e Endpoint, d Direction, p Packet) Decision {
	out := Decision{Direction: d, Endpoint: e.Ref(), Allowed: len(policies) == 0}
	for _, pol := range policies {
		out.Policies = append(out.Policies, pol.Ref())
		rules := pol.rules(d)
		if len(rules) == 0 {
			out.Misses = append(out.Misses, Reason{pol.Ref(), -1, fmt.Sprintf("the policy allows no %v at all", d)})
		}
		for i, r := range rules {
			text, ok := r.allows(pol, w, d, p)
			reason := Reason{pol.Ref(), i, text}
			if !ok {
				out.Misses = append(out.Misses, reason)
			} else if out.By == nil {
				out.Allowed, out.By = true, &reason
			}
		}
	}
	if out.Allowed {
		out.Misses = nil
	}
	slices.Sort(out.Policies)
	return out
}

// allows reports whether a rule allows a packet, and which part of it matches or does not.
func (r Rule) allows(pol Policy, w World, d Direction, p Packet) (text string, ok bool) {
	port, ok := r.port(w, p)
	if !ok {
		return port, false
	}
	other := p.Src
	if d == Egress {
		other = p.Dst
	}
	if len(r.Peers) == 0 {
		return "any peer" + port, true
	}
	var why []string
	for _, peer := range r.Peers {
		text, ok := peer.fits(pol, w, other)
		if ok {
			return text + port, true
		}
		if !slices.Contains(why, text) {
			why = append(why, text)
		}
	}
	return strings.Join(why, "; "), false
}

// port reports whether a rule's ports contain the packet's destination port.
func (r Rule) port(w World, p Packet) (text string, ok bool) {
	if len(r.Ports) == 0 {
		return "", true
	}
	if p.AnyPort {
		var words []string
		for _, want := range r.Ports {
			if !want.Unread {
				words = append(words, want.String())
			}
		}
		if len(words) == 0 {
			return "none of the rule's ports could be parsed", false
		}
		return " on " + strings.Join(words, ", "), true
	}
	names := ""
	for _, want := range r.Ports {
		if want.fits(w, p) {
			return " on " + want.String(), true
		}
		if names != "" {
			names += ", "
		}
		names += want.String()
		if want.Name != "" {
			names += w.declared(p.Dst, want)
		}
	}
	return fmt.Sprintf("%s is none of the ports %s", Port{Protocol: p.Protocol, Number: p.DstPort}, names), false
}

// fits reports whether a packet goes to a port. A named port is declared by the destination, so its
// number can differ per destination.
func (want Port) fits(w World, p Packet) bool {
	switch {
	case want.Unread, want.Protocol != p.Protocol:
		return false
	case want.Name != "":
		dst, _ := w.At(p.Dst)
		return slices.Contains(dst.Ports, NamedPort{want.Name, want.Protocol, p.DstPort})
	case want.Number == 0:
		return true
	}
	return p.DstPort >= want.Number && p.DstPort <= max(want.Number, want.End)
}

// declared describes which number a named port has at a destination.
func (w World) declared(dst netip.Addr, want Port) string {
	e, _ := w.At(dst)
	for _, have := range e.Ports {
		if have.Name == want.Name && have.Protocol == want.Protocol {
			return fmt.Sprintf(" (%d there)", have.Number)
		}
	}
	return " (not declared there)"
}

// fits reports whether the other side matches a peer of a rule, and which part of the peer matches
// or does not.
func (peer Peer) fits(pol Policy, w World, other netip.Addr) (text string, ok bool) {
	if peer.Unread {
		return "a peer of this rule could not be parsed, so it allows nothing", false
	}
	if peer.Block != nil {
		called := w.called(other)
		if w.inBlock(*peer.Block, other) {
			return fmt.Sprintf("%s is in %v", called, peer.Block), true
		}
		return fmt.Sprintf("%s is not in %v", called, peer.Block), false
	}
	e, known := w.At(other)
	switch {
	case !known:
		return fmt.Sprintf("%v is not a known endpoint, but the rule selects endpoints", other), false
	case peer.Namespaces == nil && e.Namespace != pol.Namespace:
		return fmt.Sprintf("%s is in namespace %s, want %s", e.Ref(), e.Namespace, pol.Namespace), false
	case peer.Namespaces != nil:
		if why := peer.Namespaces.mismatch(w.namespace(e.Namespace)); why != "" {
			return fmt.Sprintf("namespace %s of %s: %s", e.Namespace, e.Ref(), why), false
		}
	}
	if peer.Pods != nil {
		if why := peer.Pods.mismatch(Labels{set: e.Labels}); why != "" {
			return fmt.Sprintf("%s: %s", e.Ref(), why), false
		}
	}
	return fmt.Sprintf("%s is selected", e.Ref()), true
}
