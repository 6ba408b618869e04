package policy

import (
	"errors"
	"fmt"
)

// Check reports why a policy cannot be in force, with the field that is wrong (the API
// server's own validation, k8s.io/kubernetes/pkg/apis/networking/validation).
func (p Policy) Check() error {
	if p.Name == "" || p.Namespace == "" {
		return errors.New("a policy has a name and a namespace")
	}
	if p.Isolates == 0 {
		return fmt.Errorf("%s: policyTypes: at least one of Ingress and Egress", p.Ref())
	}
	if err := p.Pods.Check(); err != nil {
		return fmt.Errorf("%s: podSelector: %w", p.Ref(), err)
	}
	for _, d := range []Direction{Ingress, Egress} {
		for i, r := range p.rules(d) {
			if err := r.check(d); err != nil {
				return fmt.Errorf("%s: %v[%d].%w", p.Ref(), d, i, err)
			}
		}
	}
	return nil
}

func (r Rule) check(d Direction) error {
	list := "from"
	if d == Egress {
		list = "to"
	}
	for i, peer := range r.Peers {
		if err := peer.check(); err != nil {
			return fmt.Errorf("%s[%d]%w", list, i, err)
		}
	}
	for i, port := range r.Ports {
		if err := port.check(); err != nil {
			return fmt.Errorf("ports[%d]%w", i, err)
		}
	}
	return nil
}

func (peer Peer) check() error {
	selectors := peer.Namespaces != nil || peer.Pods != nil
	switch {
	case peer.Block == nil && !selectors:
		return errors.New(": one of podSelector, namespaceSelector and ipBlock is needed")
	case peer.Block != nil && selectors:
		return errors.New(".ipBlock: it cannot be combined with podSelector or namespaceSelector")
	case peer.Block != nil:
		return peer.Block.check()
	}
	for name, s := range map[string]*Selector{"namespaceSelector": peer.Namespaces, "podSelector": peer.Pods} {
		if s == nil {
			continue
		}
		if err := s.Check(); err != nil {
			return fmt.Errorf(".%s: %w", name, err)
		}
	}
	return nil
}

func (b Block) check() error {
	if !b.CIDR.IsValid() || b.CIDR.Masked() != b.CIDR {
		return fmt.Errorf(".ipBlock.cidr: %v has bits behind its prefix; did you mean %v?", b.CIDR, b.CIDR.Masked())
	}
	for i, e := range b.Except {
		if !e.IsValid() || e.Bits() <= b.CIDR.Bits() || !b.CIDR.Contains(e.Addr()) {
			return fmt.Errorf(".ipBlock.except[%d]: %v is not a part of %v", i, e, b.CIDR)
		}
	}
	return nil
}

func (p Port) check() error {
	switch {
	case p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP:
		return fmt.Errorf(".protocol: %v is not TCP, UDP or SCTP", p.Protocol)
	case p.Name != "" && (p.Number != 0 || p.End != 0):
		return errors.New(".endPort: it goes with a number, not with a name")
	case p.End != 0 && p.Number == 0:
		return errors.New(".endPort: it needs port")
	case p.End != 0 && p.End < p.Number:
		return fmt.Errorf(".endPort: %d is below port %d", p.End, p.Number)
	}
	return nil
}
