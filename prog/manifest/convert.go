package manifest

import (
	"fmt"
	"maps"
	"net/netip"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"weft/mesh/directory"
	"weft/router/policy"
)

// Convert makes a policy of the API's object, with the API's defaults. Errors are *Error and
// *policy.FieldError.
func Convert(np networking.NetworkPolicy) (p policy.Policy, err error) {
	p = policy.Policy{Namespace: np.Namespace, Name: np.Name, Audit: np.Annotations[AuditAnnotation] == "true"}
	if p.Namespace == "" {
		p.Namespace = DefaultNamespace
	}
	if p.Isolates, err = types(np.Spec); err != nil {
		return p, err
	}
	p.Pods = *selector(&np.Spec.PodSelector)
	for i, r := range np.Spec.Ingress {
		field := fmt.Sprintf("spec.ingress[%d]", i)
		out, err := rule(field, ".from", r.From, r.Ports)
		if err != nil {
			return p, err
		}
		p.Ingress = append(p.Ingress, out)
	}
	for i, r := range np.Spec.Egress {
		field := fmt.Sprintf("spec.egress[%d]", i)
		out, err := rule(field, ".to", r.To, r.Ports)
		if err != nil {
			return p, err
		}
		p.Egress = append(p.Egress, out)
	}
	return p, p.Check()
}

// Closed is what stands for a policy that cannot be converted: who it selects is isolated, and
// nothing is allowed.
func Closed(np networking.NetworkPolicy) policy.Policy {
	p := policy.Policy{Namespace: np.Namespace, Name: np.Name, Pods: *selector(&np.Spec.PodSelector), Isolates: policy.Both}
	if isolates, err := types(np.Spec); err == nil {
		p.Isolates = isolates
	}
	return p
}

// named reports which name of a policy cannot be used outside Kubernetes, which has its own rules.
func named(p policy.Policy) error {
	for field, name := range map[string]string{"metadata.name": p.Name, "metadata.namespace": p.Namespace} {
		if err := directory.CheckName(name); err != nil {
			return &Error{Field: field, Why: err.Error()}
		}
	}
	return nil
}

// types are the directions that are isolated. By default that is ingress, and egress where
// there are rules for it.
func types(spec networking.NetworkPolicySpec) (policy.Directions, error) {
	if len(spec.PolicyTypes) == 0 {
		if len(spec.Egress) > 0 {
			return policy.Both, nil
		}
		return policy.Of(policy.Ingress), nil
	}
	var out policy.Directions
	for i, t := range spec.PolicyTypes {
		switch t {
		case networking.PolicyTypeIngress:
			out |= policy.Of(policy.Ingress)
		case networking.PolicyTypeEgress:
			out |= policy.Of(policy.Egress)
		default:
			return 0, &Error{Field: fmt.Sprintf("spec.policyTypes[%d]", i), Why: fmt.Sprintf("%q is not Ingress or Egress", t)}
		}
	}
	return out, nil
}

func selector(s *meta.LabelSelector) *policy.Selector {
	if s == nil {
		return nil
	}
	out := &policy.Selector{Labels: maps.Clone(s.MatchLabels)}
	for _, e := range s.MatchExpressions {
		out.Expressions = append(out.Expressions, policy.Expression{Key: e.Key, Op: policy.Op(e.Operator), Values: e.Values})
	}
	return out
}

func rule(field, list string, peers []networking.NetworkPolicyPeer, ports []networking.NetworkPolicyPort) (r policy.Rule, err error) {
	for i, p := range peers {
		at := fmt.Sprintf("%s%s[%d]", field, list, i)
		out, err := peer(at, p)
		if err != nil {
			return r, err
		}
		r.Peers = append(r.Peers, out)
	}
	for i, p := range ports {
		out, err := port(fmt.Sprintf("%s.ports[%d]", field, i), p)
		if err != nil {
			return r, err
		}
		r.Ports = append(r.Ports, out)
	}
	return r, nil
}

func peer(field string, p networking.NetworkPolicyPeer) (out policy.Peer, err error) {
	out.Pods, out.Namespaces = selector(p.PodSelector), selector(p.NamespaceSelector)
	if p.IPBlock != nil {
		out.Block = &policy.Block{}
		*out.Block, err = block(field+".ipBlock", *p.IPBlock)
	}
	return out, err
}

func block(field string, b networking.IPBlock) (out policy.Block, err error) {
	if out.CIDR, err = cidr(field+".cidr", b.CIDR); err != nil {
		return out, err
	}
	for i, e := range b.Except {
		p, err := cidr(fmt.Sprintf("%s.except[%d]", field, i), e)
		if err != nil {
			return out, err
		}
		out.Except = append(out.Except, p)
	}
	return out, nil
}

// cidr reads a prefix. The API server takes one with bits behind it, and so do we.
func cidr(field, s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return p, &Error{Field: field, Why: fmt.Sprintf("%q is no CIDR, such as 192.0.2.0/24 or 2001:db8::/32", s)}
	}
	return p.Masked(), nil
}

// Protocol is one of the API's, TCP by default; 0: none that policies know.
func Protocol(p core.Protocol) policy.Protocol {
	switch p {
	case core.ProtocolTCP, "":
		return policy.TCP
	case core.ProtocolUDP:
		return policy.UDP
	case core.ProtocolSCTP:
		return policy.SCTP
	}
	return 0
}

func port(field string, p networking.NetworkPolicyPort) (out policy.Port, err error) {
	out.Protocol = policy.TCP
	if p.Protocol != nil {
		if out.Protocol = Protocol(*p.Protocol); out.Protocol == 0 {
			return out, &Error{Field: field + ".protocol", Why: fmt.Sprintf("%q is not TCP, UDP or SCTP", *p.Protocol)}
		}
	}
	if p.EndPort != nil {
		if *p.EndPort < 1 || *p.EndPort > 65535 {
			return out, &Error{Field: field + ".endPort", Why: fmt.Sprintf("%d is not between 1 and 65535", *p.EndPort)}
		}
		out.End = uint16(*p.EndPort)
	}
	switch {
	case p.Port == nil:
	case p.Port.Type == intstr.String:
		out.Name = p.Port.StrVal
		check := directory.Port{Name: out.Name, Protocol: "tcp", Number: 1}
		if err := check.Check(); err != nil {
			return out, &Error{Field: field + ".port", Why: err.Error()}
		}
	case p.Port.IntVal < 1 || p.Port.IntVal > 65535:
		return out, &Error{Field: field + ".port", Why: fmt.Sprintf("%d is not between 1 and 65535", p.Port.IntVal)}
	default:
		out.Number = uint16(p.Port.IntVal)
	}
	return out, nil
}

// text is an object as YAML, without what the server alone fills in.
func text(object any) ([]byte, error) {
	data, err := yaml.Marshal(object)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := yaml.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	delete(fields, "status")
	if fields["kind"] == NamespaceKind {
		delete(fields, "spec")
	}
	delete(fields["metadata"].(map[string]any), "creationTimestamp")
	return yaml.Marshal(fields)
}

// namespace reads the name and the labels.
func namespace(ns core.Namespace) (name string, labels map[string]string, err error) {
	if err := directory.CheckName(ns.Name); err != nil {
		return "", nil, &Error{Field: "metadata.name", Why: err.Error()}
	}
	for k, v := range ns.Labels {
		if err := directory.CheckLabel(k, v); err != nil {
			return "", nil, &Error{Field: "metadata.labels", Why: err.Error()}
		}
	}
	if have, ok := ns.Labels[policy.NameLabel]; ok && have != ns.Name {
		return "", nil, &Error{Field: "metadata.labels", Why: fmt.Sprintf("%s is %q: it is always the name", policy.NameLabel, have)}
	}
	return ns.Name, ns.Labels, nil
}
