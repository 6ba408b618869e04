// Package apiserver compares prog/manifest with the API server's own code for decoding, defaults,
// conversion and validation. weft policy apply must accept the same manifests with the same meaning.
// One table lists the deliberate differences with their reasons.
//
// It is its own module, since Kubernetes' code must not be in the product's go.mod. It only has tests.
package apiserver

import (
	"cmp"
	"fmt"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	netutils "k8s.io/utils/net"

	"weft/prog/manifest"
	"weft/router/policy"
)

// decoder decodes a manifest like the API server decodes kubectl's requests (fieldValidation=Strict),
// with defaults and conversion.
var decoder = serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict).UniversalDecoder()

// create does what the API server does with a new object before storing it. Like API servers before
// 1.36, it accepts sloppy CIDRs, for example with leading zeros.
func create(t testing.TB, text []byte) (*networking.NetworkPolicy, error) {
	obj, _, err := decoder.Decode(text, nil, nil)
	if err != nil {
		return nil, err
	}
	np, ok := obj.(*networking.NetworkPolicy)
	if !ok {
		return nil, fmt.Errorf("it is a %T", obj)
	}
	rest.FillObjectMetaSystemFields(np)
	if np.GenerateName != "" && np.Name == "" {
		np.Name = networkpolicy.Strategy.GenerateName(np.GenerateName)
	}
	np.Namespace = cmp.Or(np.Namespace, manifest.DefaultNamespace)
	ctx := request.WithNamespace(t.Context(), np.Namespace)
	return np, rest.BeforeCreate(networkpolicy.Strategy, ctx, np)
}

// apply parses like weft policy apply.
func apply(text []byte) (p policy.Policy, err error) {
	docs, err := manifest.Parse(text)
	switch {
	case err != nil:
		return p, err
	case len(docs) != 1 || docs[0].Kind != manifest.PolicyKind:
		return p, fmt.Errorf("got %d documents, or a document of another kind; want one policy", len(docs))
	}
	return docs[0].Policy, nil
}

// compare describes how Weft and the API server differ on a text; empty if they agree.
func compare(t testing.TB, text []byte) string {
	theirs, refused := create(t, text)
	ours, err := apply(text)
	switch {
	case (err == nil) != (refused == nil):
		if is := excused(err, refused); is >= 0 {
			excuses[is]++
			return ""
		}
		return fmt.Sprintf("weft says %v\nthe API server says %v", err, refused)
	case err != nil:
		return ""
	}
	return differ(ours, theirs)
}

// differ compares the meaning of a policy: the directions it isolates, and the addresses of its
// blocks.
func differ(ours policy.Policy, theirs *networking.NetworkPolicy) string {
	var isolates policy.Directions
	for _, t := range theirs.Spec.PolicyTypes {
		isolates |= map[networking.PolicyType]policy.Directions{
			networking.PolicyTypeIngress: policy.Of(policy.Ingress), networking.PolicyTypeEgress: policy.Of(policy.Egress),
		}[t]
	}
	if isolates != ours.Isolates || len(ours.Unread) > 0 {
		return fmt.Sprintf("weft isolates %v, the API server %v; weft did not understand %q", ours.Isolates, theirs.Spec.PolicyTypes, ours.Unread)
	}
	var have [][]policy.Rule
	var want [][]networking.NetworkPolicyPeer
	have = append(have, ours.Ingress, ours.Egress)
	for _, r := range theirs.Spec.Ingress {
		want = append(want, r.From)
	}
	for _, r := range theirs.Spec.Egress {
		want = append(want, r.To)
	}
	rule := 0
	for _, rules := range have {
		for _, r := range rules {
			if len(r.Peers) != len(want[rule]) {
				return fmt.Sprintf("rule %d has %d peers in weft, and %d in the API server", rule, len(r.Peers), len(want[rule]))
			}
			for i, peer := range r.Peers {
				if why := blocksDiffer(peer.Block, want[rule][i].IPBlock); why != "" {
					return why
				}
			}
			rule++
		}
	}
	return ""
}

// blocksDiffer compares which addresses two blocks contain. It tries the first and the last address of
// each prefix in ours, and their neighbours.
func blocksDiffer(ours *policy.Block, theirs *networking.IPBlock) string {
	if (ours == nil) != (theirs == nil) {
		return fmt.Sprintf("weft reads the block %v, the API server %v", ours, theirs)
	}
	if ours == nil {
		return ""
	}
	ask := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("10.0.0.1")}
	for _, p := range append([]netip.Prefix{ours.CIDR}, ours.Except...) {
		first := p.Masked().Addr()
		last := first.AsSlice()
		for i := p.Bits(); i < len(last)*8; i++ {
			last[i/8] |= 0x80 >> (i % 8)
		}
		end, _ := netip.AddrFromSlice(last)
		for _, a := range []netip.Addr{first, first.Prev(), end, end.Next()} {
			if a.IsValid() && !a.Is4In6() { // no packet has a v4-mapped address
				ask = append(ask, a)
			}
		}
	}
	for _, a := range ask {
		_, whole, err := netutils.ParseCIDRSloppy(theirs.CIDR)
		is := err == nil && whole.Contains(a.AsSlice())
		for _, e := range theirs.Except {
			_, part, err := netutils.ParseCIDRSloppy(e)
			is = is && !(err == nil && part.Contains(a.AsSlice()))
		}
		if is != ours.Contains(a) {
			return fmt.Sprintf("weft's block %v contains %v: %v; the API server's block %+v: %v", ours, a, ours.Contains(a), theirs, is)
		}
	}
	return ""
}
