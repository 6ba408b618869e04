package policy

import (
	"cmp"
	"fmt"
)

// FieldError says which field of a policy is wrong, by its path in the API.
type FieldError struct{ Field, Why string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Why }

func wrong(field, format string, args ...any) error {
	return &FieldError{field, fmt.Sprintf(format, args...)}
}

// Check reports why a policy cannot be in force, as a *FieldError (the API server's own
// validation, k8s.io/kubernetes/pkg/apis/networking/validation).
func (p Policy) Check() error {
	switch {
	case p.Name == "" || p.Namespace == "":
		return wrong("metadata.name", "a policy has a name and a namespace")
	case p.Isolates == 0:
		return wrong("spec.policyTypes", "at least one of Ingress and Egress")
	}
	if err := p.Pods.check("spec.podSelector"); err != nil {
		return err
	}
	peers := [...]string{Ingress: "from", Egress: "to"}
	for _, d := range []Direction{Ingress, Egress} {
		for i, r := range p.rules(d) {
			if err := r.check(fmt.Sprintf("spec.%v[%d]", d, i), peers[d]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r Rule) check(field, list string) error {
	for i, peer := range r.Peers {
		if err := peer.check(fmt.Sprintf("%s.%s[%d]", field, list, i)); err != nil {
			return err
		}
	}
	for i, port := range r.Ports {
		if err := port.check(fmt.Sprintf("%s.ports[%d]", field, i)); err != nil {
			return err
		}
	}
	return nil
}

func (peer Peer) check(field string) error {
	selectors := peer.Namespaces != nil || peer.Pods != nil
	switch {
	case peer.Block == nil && !selectors:
		return wrong(field, "one of podSelector, namespaceSelector and ipBlock is needed")
	case peer.Block != nil && selectors:
		return wrong(field+".ipBlock", "it cannot be combined with podSelector or namespaceSelector")
	case peer.Block != nil:
		return peer.Block.check(field + ".ipBlock")
	}
	return cmp.Or(peer.Namespaces.check(field+".namespaceSelector"), peer.Pods.check(field+".podSelector"))
}

func (b Block) check(field string) error {
	if !b.CIDR.IsValid() || b.CIDR.Masked() != b.CIDR {
		return wrong(field+".cidr", "%v has bits behind its prefix; did you mean %v?", b.CIDR, b.CIDR.Masked())
	}
	for i, e := range b.Except {
		if !e.IsValid() || e.Bits() <= b.CIDR.Bits() || !b.CIDR.Contains(e.Addr()) {
			return wrong(fmt.Sprintf("%s.except[%d]", field, i), "%v is not a part of %v", e, b.CIDR)
		}
	}
	return nil
}

func (p Port) check(field string) error {
	switch {
	case p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP:
		return wrong(field+".protocol", "%v is not TCP, UDP or SCTP", p.Protocol)
	case p.Name != "" && (p.Number != 0 || p.End != 0):
		return wrong(field+".endPort", "it goes with a number, not with a name")
	case p.End != 0 && p.Number == 0:
		return wrong(field+".endPort", "it needs port")
	case p.End != 0 && p.End < p.Number:
		return wrong(field+".endPort", "%d is below port %d", p.End, p.Number)
	}
	return nil
}
