// Package manifest converts manifests (YAML or JSON) to router/policy's model: NetworkPolicies
// (networking.k8s.io/v1), and Namespaces (v1), which policies select by labels. It is pure: it holds no
// state, does no I/O, and is safe for concurrent use.
//
// Parse is as strict as the API server: it refuses unknown fields, invalid values and duplicate
// keys, with line and path. It accepts all documents of a file or none. The nested module apiserver
// compares Parse with the API server's own code, and lists the deliberate differences.
//
// Convert and ParseStored read policies that the API server or another host has accepted. They
// never refuse a part of a policy. Parts that they do not understand allow nothing and are reported.
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

// The versions and kinds of documents.
const (
	PolicyVersion    = "networking.k8s.io/v1"
	PolicyKind       = "NetworkPolicy"
	NamespaceVersion = "v1"
	NamespaceKind    = "Namespace"
	anyList          = "List" // kubectl get -o yaml prints a List, of the version NamespaceVersion
)

// Document is one document of a manifest.
type Document struct {
	Kind      string
	Policy    policy.Policy     // the policy, if Kind is NetworkPolicy
	Namespace string            // the name of a Namespace
	Labels    map[string]string // the labels of a Namespace
	YAML      []byte            // the document without comments, reordered, with normalized CIDRs; empty from ParseStored
}

// Name identifies a document among those of its kind: NAMESPACE/NAME for a policy.
func (d Document) Name() string {
	if d.Kind == NamespaceKind {
		return d.Namespace
	}
	return d.Policy.Ref()
}

// AuditAnnotation puts a policy in audit mode if its value is "true": packets that it would deny are
// reported, but pass. "false" is the default.
const AuditAnnotation = "weft.internal/audit"

// DefaultNamespace is the namespace of policies that name none.
const DefaultNamespace = "default"

// Error is a fault in a manifest, with its position.
type Error struct {
	Line  int    // the line, from 1; 0: unknown
	Field string // the path of the field, such as spec.ingress[0].ports[1].endPort; empty: the whole document
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

// maxSize limits a manifest, as the API server limits requests to 3 MiB.
const maxSize = 3 << 20

// Parse parses all documents of a manifest, including those in lists.
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
		return nil, &Error{Why: "there is no " + PolicyKind + " in the manifest"}
	}
	return out, nil
}

// documents returns the objects of a manifest.
func documents(data []byte) (out []place, err error) {
	if len(data) > maxSize {
		return nil, &Error{Why: fmt.Sprintf("the manifest has %d bytes, at most %d are allowed", len(data), maxSize)}
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
			continue // an empty document, for example between two separators
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

// itemsOf returns the objects of a list, or the object itself if it is no list.
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

// listed reports whether an object is a list, and the type of its elements. That type is empty if each
// element names its own type.
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

// withType returns the object with a version and kind, unless it has its own.
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

// syntax converts a YAML parser's error.
func syntax(err error) error {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		e := &Error{Why: m[2]}
		_, _ = fmt.Sscan(m[1], &e.Line)
		return e
	}
	return &Error{Why: err.Error()}
}

// parseDocument parses an object as strictly as the API server.
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

// storedPolicy also has the status that API servers before 1.28 set, and kubectl get prints.
type storedPolicy struct {
	networking.NetworkPolicy `json:",inline"`

	Status struct {
		Conditions []meta.Condition `json:"conditions"`
	} `json:"status"`
}

// ours returns the metadata that is meaningful outside Kubernetes.
func ours(m meta.ObjectMeta) meta.ObjectMeta {
	return meta.ObjectMeta{Name: m.Name, Namespace: m.Namespace, Labels: m.Labels, Annotations: m.Annotations}
}

// finish sets Kind and YAML.
func (d Document) finish(kind string, object any) (_ Document, err error) {
	d.Kind = kind
	d.YAML, err = text(object)
	return d, err
}

// is returns the version and kind of an object.
func (p place) is() (out meta.TypeMeta) {
	for key, into := range map[string]*string{"apiVersion": &out.APIVersion, "kind": &out.Kind} {
		if value, there := p.child(key); there {
			*into = value.node.Value
		}
	}
	return out
}

// foreign is the error for an object of an unsupported kind.
func (p place) foreign() error {
	is := p.is()
	return p.at("kind", fmt.Sprintf("%s %s is not supported: want %s %s, or %s %s, or a list of them",
		orNothing(is.APIVersion), orNothing(is.Kind), PolicyVersion, PolicyKind, NamespaceVersion, NamespaceKind))
}

func orNothing(s string) string { return cmp.Or(s, "(nothing)") }
