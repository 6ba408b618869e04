package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Packet is what Evaluate judges. The ports are 0 where the protocol has none.
type Packet struct {
	Src, Dst         netip.Addr
	Protocol         Protocol
	SrcPort, DstPort uint16
	// Reply says that the packet belongs to a connection that the other side began: then it is
	// judged as a packet of that direction.
	Reply bool
	// FromOwnHost says that it comes from the host that the destination is on, itself: a
	// kubelet's probe, for example. No policy forbids that.
	FromOwnHost bool
	// ToOwnHost says that it goes to the host that the source is on, where policies do not apply
	// to that.
	ToOwnHost bool
	// AnyPort asks for any port of any protocol: a rule fits if it allows one.
	AnyPort bool
}

// opened is the packet as the side that began the connection would have sent it.
func (p Packet) opened() Packet {
	if p.Reply {
		p.Src, p.Dst, p.SrcPort, p.DstPort, p.Reply = p.Dst, p.Src, p.DstPort, p.SrcPort, false
	}
	return p
}

// Verdict is what comes of a packet, and why.
type Verdict struct {
	Allowed bool
	// Exempt says why policies have no say; empty if they have.
	Exempt          string
	Egress, Ingress Decision // at the source and at the destination
}

// Decision is one direction's part of a verdict.
type Decision struct {
	Direction Direction
	// Endpoint is whose policies were asked; empty where no endpoint has the address.
	Endpoint string
	// Policies are those that isolate it, by reference. If there are none, everything is allowed.
	Policies []string
	Allowed  bool
	// By is the rule that allows, where policies isolate the endpoint.
	By *Reason
	// Misses are, of a packet that is denied, the rules that could have allowed it, and the
	// first thing of each that does not fit.
	Misses []Reason
	// Tried is what would become of it with those policies that are only tried; nil if the same.
	Tried *Decision
}

// Reason names a rule, and says what of it fits or does not.
type Reason struct {
	Policy string
	Rule   int // from 0, in the list of its direction; -1: the policy has none
	Text   string
}

// Evaluate judges a packet by the text of the API.
func Evaluate(policies []Policy, w World, p Packet) Verdict {
	p = p.opened()
	src, fromEndpoint := w.At(p.Src)
	dst, toEndpoint := w.At(p.Dst)
	v := Verdict{Egress: Decision{Direction: Egress, Allowed: true}, Ingress: Decision{Allowed: true}}
	switch {
	case fromEndpoint && toEndpoint && src.ID == dst.ID:
		v.Exempt = "an endpoint always reaches itself"
	case p.FromOwnHost:
		v.Exempt = "a host always reaches its own endpoints"
	case p.ToOwnHost:
		v.Exempt = "endpoints reach their own host here"
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

// decide asks the policies that are in force, and then, if there are any, also those that
// are only tried.
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

// Selects reports whether the policy is about an endpoint, in whatever direction.
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
			out.Misses = append(out.Misses, Reason{pol.Ref(), -1, fmt.Sprintf("it allows no %v at all", d)})
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

// allows reports whether a rule allows a packet, and what of it fits or does not.
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
		return "everybody" + port, true
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

// port reports whether a rule's ports have the packet's destination port.
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
			return "none of its ports could be read", false
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

// fits reports whether a packet goes to a port. A name is one that the destination
// declares, so that it may be another number for each.
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

// declared says, for people, which number a name has at a destination.
func (w World) declared(dst netip.Addr, want Port) string {
	e, _ := w.At(dst)
	for _, have := range e.Ports {
		if have.Name == want.Name && have.Protocol == want.Protocol {
			return fmt.Sprintf(" (%d there)", have.Number)
		}
	}
	return " (not declared there)"
}

// fits reports whether the other side is who a rule speaks of, and what of it is, or is not.
func (peer Peer) fits(pol Policy, w World, other netip.Addr) (text string, ok bool) {
	if peer.Unread {
		return "a peer that could not be read allows nobody", false
	}
	if peer.Block != nil {
		who := w.called(other)
		if w.inBlock(*peer.Block, other) {
			return fmt.Sprintf("%s is in %v", who, peer.Block), true
		}
		return fmt.Sprintf("%s is not in %v", who, peer.Block), false
	}
	e, known := w.At(other)
	switch {
	case !known:
		return fmt.Sprintf("%v is no endpoint that is known, and endpoints are asked for", other), false
	case peer.Namespaces == nil && e.Namespace != pol.Namespace:
		return fmt.Sprintf("%s is in namespace %s, %s is asked for", e.Ref(), e.Namespace, pol.Namespace), false
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
	return fmt.Sprintf("%s is chosen", e.Ref()), true
}
