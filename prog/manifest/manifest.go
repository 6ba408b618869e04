// Package manifest reads manifests (YAML or JSON) of NetworkPolicies (networking.k8s.io/v1) and
// of Namespaces (v1), whose labels policies select by, into router/policy's model.
//
// Parse is as strict as the API server: a field that the API does not have, a value that it does
// not allow, or a key that is there twice is refused, with its line and its path. Of a file
// with several documents all are read, or none. The nested module apiserver compares it with
// the API server's own code, and has a table of what is different on purpose.
//
// Convert and ParseStored read what somebody else has accepted already. They do not refuse
// it: what they cannot read allows nothing, and they say so.
package manifest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/router/policy"
)

// What a document says that it is.
const (
	PolicyVersion    = "networking.k8s.io/v1"
	PolicyKind       = "NetworkPolicy"
	NamespaceVersion = "v1"
	NamespaceKind    = "Namespace"
	anyList          = "List" // of NamespaceVersion: what kubectl get -o yaml prints
)

// Document is one of a manifest.
type Document struct {
	Kind      string
	Policy    policy.Policy     // of a NetworkPolicy
	Namespace string            // of a Namespace: its name
	Labels    map[string]string // of a Namespace
	YAML      []byte            // the document alone, as it was read but for comments, order and how CIDRs are written; none of ParseStored
}

// Name tells documents of one kind apart: NAMESPACE/NAME of a policy.
func (d Document) Name() string {
	if d.Kind == NamespaceKind {
		return d.Namespace
	}
	return d.Policy.Ref()
}

// AuditAnnotation puts a policy in audit mode, with the value "true": what it would deny is
// told, and passes. "false" is as without it.
const AuditAnnotation = "weft.internal/audit"

// DefaultNamespace is that of a policy that names none.
const DefaultNamespace = "default"

// Error says where a manifest is wrong.
type Error struct {
	Line  int    // from 1; 0: not known
	Field string // as spec.ingress[0].ports[1].endPort; empty: the whole document
	Why   string
}

func (e *Error) Error() string {
	var parts []string
	if e.Line > 0 {
		parts = append(parts, fmt.Sprintf("line %d", e.Line))
	}
	if e.Field != "" {
		parts = append(parts, e.Field)
	}
	return strings.Join(append(parts, e.Why), ": ")
}

// maxSize bounds a manifest: the API server's own bound for a request is 3 MiB.
const maxSize = 3 << 20

// Parse reads all documents of a manifest, those in lists too.
func Parse(data []byte) ([]Document, error) {
	roots, err := documents(data)
	if err != nil {
		return nil, err
	}
	var out []Document
	seen := map[string]int{}
	for _, root := range roots {
		d, err := parseDocument(root)
		if err != nil {
			return nil, err
		}
		key := d.Kind + " " + d.Name()
		if line, twice := seen[key]; twice {
			return nil, &Error{root.node.Line, root.sub("metadata.name"), fmt.Sprintf("%s is in line %d already", d.Name(), line)}
		}
		seen[key] = root.node.Line
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, &Error{Why: "there is no " + PolicyKind + " in it"}
	}
	return out, nil
}

// documents finds the objects of a manifest.
func documents(data []byte) (out []place, err error) {
	if len(data) > maxSize {
		return nil, &Error{Why: fmt.Sprintf("%d bytes, at most %d are allowed", len(data), maxSize)}
	}
	decoder := yamlv3.NewDecoder(bytes.NewReader(data))
	for {
		var doc yamlv3.Node
		switch err := decoder.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, syntax(err)
		}
		root := place{doc.Content[0], ""}
		if root.node.Kind == yamlv3.ScalarNode && root.node.Tag == "!!null" {
			continue // an empty document, as between two separators
		}
		if err := unique(root, scalars{}); err != nil {
			return nil, err
		}
		items, err := itemsOf(root)
		if err != nil {
			return nil, err
		}
		out = append(out, items...)
	}
}

// itemsOf are the objects of a list, or the one object that it is.
func itemsOf(root place) ([]place, error) {
	of, isList := listed(root.is())
	if !isList {
		return []place{root}, nil
	}
	var list struct {
		meta.TypeMeta `json:",inline"`
		meta.ListMeta `json:"metadata"`
		Items         []any `json:"items"`
	}
	data, err := root.json()
	if err != nil {
		return nil, err
	}
	if err := root.strictly(data, &list, root.is().APIVersion); err != nil {
		return nil, err
	}
	items, there := root.child("items")
	if !there || items.node.Kind != yamlv3.SequenceNode {
		return nil, nil
	}
	var out []place
	for i := range items.node.Content {
		item := items.element(i)
		if item.node.Kind == yamlv3.MappingNode && of.Kind != "" {
			item.node = withType(item.node, of)
		}
		out = append(out, item)
	}
	return out, nil
}

// listed is what the elements of a list are, if it is one; empty if they say so themselves.
func listed(is meta.TypeMeta) (of meta.TypeMeta, isList bool) {
	switch is {
	case meta.TypeMeta{APIVersion: NamespaceVersion, Kind: anyList}:
		return of, true
	case meta.TypeMeta{APIVersion: PolicyVersion, Kind: PolicyKind + anyList}:
		return meta.TypeMeta{APIVersion: PolicyVersion, Kind: PolicyKind}, true
	case meta.TypeMeta{APIVersion: NamespaceVersion, Kind: NamespaceKind + anyList}:
		return meta.TypeMeta{APIVersion: NamespaceVersion, Kind: NamespaceKind}, true
	}
	return of, false
}

// withType is an object that says what it is; of one that does already, that counts.
func withType(node *yamlv3.Node, is meta.TypeMeta) *yamlv3.Node {
	out := *node
	for key, value := range map[string]string{"apiVersion": is.APIVersion, "kind": is.Kind} {
		if _, there := (place{node, ""}).child(key); !there {
			out.Content = append(slices.Clone(out.Content),
				&yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!str", Value: key, Line: node.Line},
				&yamlv3.Node{Kind: yamlv3.ScalarNode, Tag: "!!str", Value: value, Line: node.Line})
		}
	}
	return &out
}

var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

// syntax makes an error of what is no YAML.
func syntax(err error) error {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		e := &Error{Why: m[2]}
		_, _ = fmt.Sscan(m[1], &e.Line)
		return e
	}
	return &Error{Why: err.Error()}
}

// parseDocument reads an object as strictly as the API server.
func parseDocument(root place) (d Document, err error) {
	data, err := root.json()
	if err != nil {
		return d, err
	}
	switch is := root.is(); is {
	case meta.TypeMeta{APIVersion: PolicyVersion, Kind: PolicyKind}:
		var np storedPolicy
		if err := root.strictly(data, &np, PolicyVersion); err != nil {
			return d, err
		}
		var wrong []*Error
		d.Policy, wrong = Convert(np.NetworkPolicy)
		if err := root.first(append(wrong, checkPolicy(np.ObjectMeta)...)); err != nil {
			return d, err
		}
		np.ObjectMeta, np.Namespace = ours(np.ObjectMeta), d.Policy.Namespace
		plainCIDRs(&np.Spec, d.Policy)
		return d.finish(PolicyKind, np.NetworkPolicy)
	case meta.TypeMeta{APIVersion: NamespaceVersion, Kind: NamespaceKind}:
		var ns core.Namespace
		if err := root.strictly(data, &ns, NamespaceVersion); err != nil {
			return d, err
		}
		if err := root.first(checkNamespace(ns.ObjectMeta)); err != nil {
			return d, err
		}
		d.Namespace, d.Labels = ns.Name, ns.Labels
		ns.ObjectMeta, ns.Spec, ns.Status = ours(ns.ObjectMeta), core.NamespaceSpec{}, core.NamespaceStatus{}
		return d.finish(NamespaceKind, ns)
	}
	return d, root.foreign()
}

// storedPolicy has the status that API servers before 1.28 fill in, and kubectl get prints.
type storedPolicy struct {
	networking.NetworkPolicy `json:",inline"`

	Status struct {
		Conditions []meta.Condition `json:"conditions"`
	} `json:"status"`
}

// ours is the metadata that means something outside Kubernetes.
func ours(m meta.ObjectMeta) meta.ObjectMeta {
	return meta.ObjectMeta{Name: m.Name, Namespace: m.Namespace, Labels: m.Labels, Annotations: m.Annotations}
}

// finish adds the text.
func (d Document) finish(kind string, object any) (_ Document, err error) {
	d.Kind = kind
	d.YAML, err = text(object)
	return d, err
}

// is what an object says that it is.
func (p place) is() (out meta.TypeMeta) {
	for key, into := range map[string]*string{"apiVersion": &out.APIVersion, "kind": &out.Kind} {
		if value, there := p.child(key); there {
			*into = value.node.Value
		}
	}
	return out
}

// foreign says that an object is none of those that are read.
func (p place) foreign() error {
	is := p.is()
	return p.at("kind", fmt.Sprintf("%s %s is not what is read here: want %s %s, or %s %s, or a list of them",
		orNothing(is.APIVersion), orNothing(is.Kind), PolicyVersion, PolicyKind, NamespaceVersion, NamespaceKind))
}

func orNothing(s string) string { return cmp.Or(s, "(nothing)") }
