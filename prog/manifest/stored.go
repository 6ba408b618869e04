package manifest

import (
	"fmt"
	"reflect"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
)

// ParseStored parses a document that another host has accepted, possibly with a version of Weft that
// accepts more. It keeps invalid values whose meaning is clear. Parts that it does not understand allow
// nothing; Policy.Unread lists them.
func ParseStored(data []byte) (d Document, err error) {
	docs, refused := Parse(data)
	if refused == nil && len(docs) == 1 {
		return docs[0], nil
	}
	roots, err := documents(data)
	switch {
	case err != nil:
		return d, err
	case len(roots) != 1:
		return d, fmt.Errorf("the document has %d objects, want one", len(roots))
	}
	return storedDocument(roots[0])
}

func storedDocument(root place) (d Document, err error) {
	data, err := root.json()
	if err != nil {
		return d, err
	}
	switch root.is() {
	case meta.TypeMeta{APIVersion: PolicyVersion, Kind: PolicyKind}:
		var np storedPolicy
		unknown, err := json.UnmarshalStrict(data, &np)
		if err != nil {
			return d, root.mistyped(err, reflect.TypeFor[storedPolicy](), PolicyVersion)
		}
		d.Kind = PolicyKind
		d.Policy, _ = Convert(np.NetworkPolicy)
		if len(unknown) > 0 { // unknown fields may narrow what a rule allows, so drop all rules
			d.Policy.Ingress, d.Policy.Egress = nil, nil
			d.Policy.Unread = append(d.Policy.Unread, told([]*Error{root.mistyped(unknown[0], reflect.TypeFor[storedPolicy](), PolicyVersion)})...)
		}
		return d, nil
	case meta.TypeMeta{APIVersion: NamespaceVersion, Kind: NamespaceKind}:
		var ns core.Namespace
		if _, err := json.UnmarshalStrict(data, &ns); err != nil {
			return d, root.mistyped(err, reflect.TypeFor[core.Namespace](), NamespaceVersion)
		}
		d.Kind, d.Namespace, d.Labels = NamespaceKind, ns.Name, ns.Labels
		return d, nil
	}
	return d, root.foreign()
}
