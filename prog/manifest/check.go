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

// checkPolicy validates a policy's metadata like the API server. It allows more namespace names,
// since containers outside Kubernetes have such namespaces, for example with an underscore.
func checkPolicy(m meta.ObjectMeta) []*Error {
	r := &reading{}
	if m.Namespace != "" {
		r.name("metadata.namespace", m.Namespace)
	}
	if m.Name == "" {
		r.say("metadata.name", "a policy needs a name: generateName is not supported")
		return r.wrong
	}
	m.Namespace = DefaultNamespace
	r.metadata(m, true, objects.NameIsDNSSubdomain)
	return r.wrong
}

// checkNamespace validates a Namespace's metadata like the API server. It also checks Weft's limits of
// labels, and allows more names, since containers outside Kubernetes have namespaces with such names.
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
		r.say(entry("metadata.labels", policy.NameLabel), "%q is not allowed: the value of this label is always the namespace's name", have)
	}
	return r.wrong
}

func (r *reading) name(field, name string) {
	if err := directory.CheckName(name); err != nil {
		r.say(field, "%v", err)
	}
}

// metadata validates an object's metadata like the API server. It checks labels one by one, since the
// API server's errors do not name the label.
func (r *reading) metadata(m meta.ObjectMeta, namespaced bool, name objects.ValidateNameFunc) {
	r.labels("metadata.labels", m.Labels)
	m.Labels, m.Generation = nil, 0 // the API server ignores a client's generation
	for _, e := range objects.ValidateObjectMeta(&m, namespaced, name, field.NewPath("metadata")) {
		r.say(e.Field, "%s", e.ErrorBody())
	}
}

// plainCIDRs normalizes the CIDRs of a policy. Older versions of Weft on other hosts do not
// understand leading zeros or v4-mapped CIDRs, and would not enforce the policy.
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
			continue // the exception is only valid in its v4-mapped form
		}
		peer.IPBlock.CIDR = block.CIDR.String()
		for j, e := range block.Except {
			peer.IPBlock.Except[j] = e.String()
		}
	}
}

// text returns an object as YAML, without the fields that only the API server sets.
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
