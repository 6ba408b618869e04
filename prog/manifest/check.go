package manifest

import (
	"net/netip"
	"slices"

	networking "k8s.io/api/networking/v1"
	objects "k8s.io/apimachinery/pkg/api/validation"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"weft/mesh/directory"
	"weft/router/policy"
)

// checkPolicy finds what the API server refuses of a policy's metadata. Only the namespace may
// be one that it does not allow: containers outside Kubernetes have such, with an underscore.
func checkPolicy(m meta.ObjectMeta) []*Error {
	r := &reading{}
	if m.Namespace != "" {
		r.name("metadata.namespace", m.Namespace)
	}
	if m.Name == "" {
		r.say("metadata.name", "a policy needs one: nobody makes one of generateName here")
		return r.wrong
	}
	m.Namespace = DefaultNamespace
	r.metadata(m, true, objects.NameIsDNSSubdomain)
	return r.wrong
}

// checkNamespace finds what a namespace cannot have, here or at the API server. Its name may
// be one that this does not allow.
func checkNamespace(m meta.ObjectMeta) []*Error {
	r := &reading{}
	r.name("metadata.name", m.Name)
	r.metadata(m, false, func(string, bool) []string { return nil })
	for key, value := range m.Labels {
		if err := directory.CheckLabel(key, value); err != nil {
			r.say(entry("metadata.labels", key), "%v", err)
		}
	}
	if have, ok := m.Labels[policy.NameLabel]; ok && have != m.Name {
		r.say(entry("metadata.labels", policy.NameLabel), "%q: it is always the name", have)
	}
	return r.wrong
}

func (r *reading) name(field, name string) {
	if err := directory.CheckName(name); err != nil {
		r.say(field, "%v", err)
	}
}

// metadata finds what the API server refuses. The labels are looked at one by one: its errors
// do not say which it is.
func (r *reading) metadata(m meta.ObjectMeta, namespaced bool, name objects.ValidateNameFunc) {
	r.labels("metadata.labels", m.Labels)
	m.Labels, m.Generation = nil, 0 // the API server sets the other one anew
	for _, e := range objects.ValidateObjectMeta(&m, namespaced, name, field.NewPath("metadata")) {
		r.say(e.Field, "%s", e.ErrorBody())
	}
}

// plainCIDRs writes those of a policy that was read as everybody reads them: a Weft of before, on
// another host, knows neither leading zeros nor v4-mapped ones, and would not enforce the policy.
func plainCIDRs(spec *networking.NetworkPolicySpec, p policy.Policy) {
	for i, r := range spec.Ingress {
		plainBlocks(r.From, p.Ingress[i].Peers)
	}
	for i, r := range spec.Egress {
		plainBlocks(r.To, p.Egress[i].Peers)
	}
}

func plainBlocks(peers []networking.NetworkPolicyPeer, read []policy.Peer) {
	for i, peer := range peers {
		block := read[i].Block
		if block == nil || slices.ContainsFunc(block.Except, func(e netip.Prefix) bool { return e.Bits() <= block.CIDR.Bits() }) {
			continue // that is an exception only as long as it is written v4-mapped
		}
		peer.IPBlock.CIDR = block.CIDR.String()
		for j, e := range block.Except {
			peer.IPBlock.Except[j] = e.String()
		}
	}
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
