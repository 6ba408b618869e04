package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	netutils "k8s.io/utils/net"

	"weft/router/policy"
	"weft/router/problem"
)

// Convert converts a policy of the API, with the API's defaults, and lists its invalid parts. A peer or
// port that Convert does not understand, for example of a newer API, is ignored: it allows nothing. If
// Convert does not understand which pods or directions a policy selects, the policy isolates more pods
// or directions than it should:
//
//   - An invalid requirement of spec.podSelector is omitted. The other requirements select all pods
//     that the whole selector would, and perhaps more. All these pods are isolated, and all rules are
//     dropped, since rules could allow traffic of pods that were not meant.
//   - An unknown policy type isolates both directions. A direction that no known policy type names
//     loses its rules.
func Convert(np networking.NetworkPolicy) (policy.Policy, []*Error) {
	r := &reading{}
	p := policy.Policy{Namespace: cmp.Or(np.Namespace, DefaultNamespace), Name: np.Name, Audit: r.audit(np.Annotations)}
	isolates, guessed := r.types(np.Spec.PolicyTypes, len(np.Spec.Egress) > 0)
	pods, whole := r.selector("spec.podSelector", &np.Spec.PodSelector)
	if !whole {
		guessed = policy.Both
	}
	p.Isolates, p.Pods = isolates, *pods
	for i, one := range np.Spec.Ingress {
		p.Ingress = append(p.Ingress, r.rule(fmt.Sprintf("spec.ingress[%d]", i), ".from", one.From, one.Ports))
	}
	for i, one := range np.Spec.Egress {
		p.Egress = append(p.Egress, r.rule(fmt.Sprintf("spec.egress[%d]", i), ".to", one.To, one.Ports))
	}
	if guessed.Has(policy.Ingress) {
		p.Ingress = nil
	}
	if guessed.Has(policy.Egress) {
		p.Egress = nil
	}
	p.Unread = told(r.wrong)
	return p, r.wrong
}

// These limits bound the list of a policy's errors, whatever the policy contains: the number of errors,
// and the bytes of each.
const (
	mostTold  = 8
	mostBytes = 200
)

// told returns the texts of errors for users, bounded in number and length.
func told(wrong []*Error) (out []string) {
	for i, e := range wrong {
		if i == mostTold {
			return append(out, fmt.Sprintf("and %d more", len(wrong)-i))
		}
		text := strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return unicode.ReplacementChar
		}, e.Error())
		if len(text) > mostBytes {
			text = strings.ToValidUTF8(text[:mostBytes], "") + "…"
		}
		out = append(out, text)
	}
	return out
}

// Problem reports the parts of a policy that were not understood; false if there are none.
func Problem(p policy.Policy) (problem.Problem, bool) {
	if len(p.Unread) == 0 {
		return problem.Problem{}, false
	}
	return problem.Problem{
		Reason: problem.Policy, About: p.Ref(),
		What:   fmt.Sprintf("NetworkPolicy %s is not fully understood (%s)", p.Ref(), strings.Join(p.Unread, "; ")),
		Effect: "a peer, a port or a selector that is not understood allows nothing",
		Fix:    "correct the policy, or update Weft if the policy uses a newer API",
	}, true
}

// reading collects the errors of a conversion.
type reading struct{ wrong []*Error }

// say records an error. It returns false, which its callers return as their result.
func (r *reading) say(field, format string, args ...any) bool {
	r.wrong = append(r.wrong, &Error{Field: field, Why: fmt.Sprintf(format, args...)})
	return false
}

// audit reports whether the policy is in audit mode. It accepts the values of strconv.ParseBool, such
// as "True". Any other value leaves the policy enforced, as without the annotation: an unclear value
// must not disable a policy.
func (r *reading) audit(annotations map[string]string) bool {
	value, there := annotations[AuditAnnotation]
	if !there || value == "true" || value == "false" {
		return value == "true"
	}
	tried, err := strconv.ParseBool(value)
	effect := map[bool]string{true: "the policy is in audit mode", false: "the policy is enforced"}[tried && err == nil]
	r.say(entry("metadata.annotations", AuditAnnotation), "%q is neither \"true\" nor \"false\": %s", value, effect)
	return tried
}

// types returns the isolated directions, and those that are only isolated because of an unknown type.
// The default is ingress, and egress if there are egress rules.
func (r *reading) types(list []networking.PolicyType, egress bool) (isolates, guessed policy.Directions) {
	switch {
	case len(list) == 0 && egress:
		return policy.Both, 0
	case len(list) == 0:
		return policy.Of(policy.Ingress), 0
	case len(list) > 2:
		r.say("spec.policyTypes", "there are %d types, but at most two are allowed", len(list))
	}
	known := true
	for i, t := range list {
		switch t {
		case networking.PolicyTypeIngress:
			isolates |= policy.Of(policy.Ingress)
		case networking.PolicyTypeEgress:
			isolates |= policy.Of(policy.Egress)
		default:
			known = r.say(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is not Ingress or Egress", t)
		}
	}
	if known {
		return isolates, 0
	}
	return policy.Both, policy.Both &^ isolates
}

// selector converts a selector, and reports whether it understood all of it. Labels that the API does
// not allow are errors, but keep their meaning: they select pods with such labels, which Kubernetes
// does not have.
func (r *reading) selector(field string, s *meta.LabelSelector) (out *policy.Selector, whole bool) {
	if s == nil {
		return nil, true
	}
	out, whole = &policy.Selector{Labels: maps.Clone(s.MatchLabels)}, true
	r.labels(field+".matchLabels", s.MatchLabels)
	for i, e := range s.MatchExpressions {
		if !r.requirement(fmt.Sprintf("%s.matchExpressions[%d]", field, i), e) {
			whole = false
			continue
		}
		out.Expressions = append(out.Expressions, policy.Expression{Key: e.Key, Op: policy.Op(e.Operator), Values: e.Values})
	}
	return out, whole
}

func (r *reading) requirement(field string, e meta.LabelSelectorRequirement) bool {
	for _, why := range content.IsLabelKey(e.Key) {
		r.say(field+".key", "%q is no valid label key: %s", e.Key, why)
	}
	for i, value := range e.Values {
		for _, why := range content.IsLabelValue(value) {
			r.say(fmt.Sprintf("%s.values[%d]", field, i), "%q is no valid label value: %s", value, why)
		}
	}
	switch e.Operator {
	case meta.LabelSelectorOpIn, meta.LabelSelectorOpNotIn:
		return len(e.Values) > 0 || r.say(field+".values", "operator %s of key %s needs values", e.Operator, e.Key)
	case meta.LabelSelectorOpExists, meta.LabelSelectorOpDoesNotExist:
		return len(e.Values) == 0 || r.say(field+".values", "operator %s of key %s takes no values", e.Operator, e.Key)
	}
	return r.say(field+".operator", "%q is not In, NotIn, Exists or DoesNotExist", e.Operator)
}

// labels records an error for each label that the API does not allow.
func (r *reading) labels(field string, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		for _, why := range content.IsLabelKey(key) {
			r.say(entry(field, key), "%q is no valid label key: %s", key, why)
		}
		for _, why := range content.IsLabelValue(labels[key]) {
			r.say(entry(field, key), "%q is no valid label value: %s", labels[key], why)
		}
	}
}

func (r *reading) rule(field, list string, peers []networking.NetworkPolicyPeer, ports []networking.NetworkPolicyPort) (out policy.Rule) {
	for i, p := range peers {
		out.Peers = append(out.Peers, r.peer(fmt.Sprintf("%s%s[%d]", field, list, i), p))
	}
	for i, p := range ports {
		one, ok := r.port(fmt.Sprintf("%s.ports[%d]", field, i), p)
		if !ok {
			one = policy.Port{Unread: true}
		}
		out.Ports = append(out.Ports, one)
	}
	return out
}

func (r *reading) peer(field string, p networking.NetworkPolicyPeer) (out policy.Peer) {
	var ok, also bool
	out.Pods, ok = r.selector(field+".podSelector", p.PodSelector)
	out.Namespaces, also = r.selector(field+".namespaceSelector", p.NamespaceSelector)
	ok = ok && also
	selectors := p.PodSelector != nil || p.NamespaceSelector != nil
	switch {
	case p.IPBlock == nil && !selectors:
		ok = r.say(field, "one of podSelector, namespaceSelector and ipBlock is needed")
	case p.IPBlock != nil && selectors:
		ok = r.say(field+".ipBlock", "ipBlock cannot be combined with podSelector or namespaceSelector")
	case p.IPBlock != nil:
		out.Block, ok = r.block(field+".ipBlock", *p.IPBlock)
	}
	if !ok {
		return policy.Peer{Unread: true}
	}
	return out
}

// block converts an IP block. If it does not understand an exception, it refuses the whole block,
// which would otherwise allow too much.
func (r *reading) block(field string, b networking.IPBlock) (out *policy.Block, ok bool) {
	whole, ok := r.cidr(field+".cidr", b.CIDR)
	if !ok {
		return nil, false
	}
	out = &policy.Block{CIDR: prefix(whole)}
	size, _ := whole.Mask.Size()
	for i, e := range b.Except {
		field := fmt.Sprintf("%s.except[%d]", field, i)
		part, is := r.cidr(field, e)
		if !is {
			ok = false
			continue
		}
		// The API server compares prefix lengths as written, so a v4-mapped CIDR always counts as longer
		// than an IPv4 CIDR.
		if n, _ := part.Mask.Size(); !whole.Contains(part.IP) || n <= size {
			ok = r.say(field, "%s is not a part of %s", e, b.CIDR)
			continue
		}
		out.Except = append(out.Except, prefix(part))
	}
	return out, ok
}

// cidr parses a CIDR like API servers before 1.36, since newer API servers keep the policies that older
// ones have stored. It accepts leading zeros as decimal, bits after the prefix, and v4-mapped addresses
// (::ffff:10.0.0.0/104).
func (r *reading) cidr(field, s string) (*net.IPNet, bool) {
	_, n, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		return nil, r.say(field, "%q is no CIDR, such as 192.0.2.0/24 or 2001:db8::/32", s)
	}
	return n, true
}

// prefix converts a CIDR. Like net.IPNet, which the API server uses, it treats a v4-mapped CIDR of 96
// bits or more as IPv4.
func prefix(n *net.IPNet) netip.Prefix { return netip.MustParsePrefix(n.String()) }

// Protocol converts a protocol of the API, with TCP as default. It returns 0 for an unknown protocol.
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

func (r *reading) port(field string, p networking.NetworkPolicyPort) (out policy.Port, ok bool) {
	out.Protocol, ok = policy.TCP, true
	if p.Protocol != nil {
		if out.Protocol = Protocol(*p.Protocol); out.Protocol == 0 || *p.Protocol == "" {
			ok = r.say(field+".protocol", "%q is not TCP, UDP or SCTP", *p.Protocol)
		}
	}
	switch {
	case p.Port == nil:
		return out, ok && (p.EndPort == nil || r.say(field+".endPort", "endPort needs port"))
	case p.Port.Type == intstr.String:
		out.Name = p.Port.StrVal
		for _, why := range validation.IsValidPortName(out.Name) {
			ok = r.say(field+".port", "port name %q: a port name %s", out.Name, why)
		}
		return out, ok && (p.EndPort == nil || r.say(field+".endPort", "endPort needs a port number, not a port name"))
	}
	var is bool
	if out.Number, is = r.number(field+".port", p.Port.IntVal); !is {
		return out, false
	}
	if p.EndPort == nil {
		return out, ok
	}
	if out.End, is = r.number(field+".endPort", *p.EndPort); !is {
		return out, false
	}
	return out, ok && (out.End >= out.Number || r.say(field+".endPort", "%d is below port %d", out.End, out.Number))
}

func (r *reading) number(field string, n int32) (uint16, bool) {
	if n < 1 || n > 65535 {
		return 0, r.say(field, "%d is not between 1 and 65535", n)
	}
	return uint16(n), true
}
