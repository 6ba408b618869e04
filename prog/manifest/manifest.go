// Package manifest reads manifests (YAML or JSON) of NetworkPolicies (networking.k8s.io/v1) and
// of Namespaces (v1), whose labels policies select by, into router/policy's model.
//
// It is strict: a field that the API does not have, a value that it does not allow, or a key
// that is there twice is refused, with its line and its path. Of a file with several
// documents all are read, or none.
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
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"weft/router/policy"
)

// What a document says that it is.
const (
	PolicyVersion    = "networking.k8s.io/v1"
	PolicyKind       = "NetworkPolicy"
	NamespaceVersion = "v1"
	NamespaceKind    = "Namespace"
)

// Document is one of a manifest.
type Document struct {
	Kind      string
	Policy    policy.Policy     // of a NetworkPolicy
	Namespace string            // of a Namespace: its name
	Labels    map[string]string // of a Namespace
	YAML      []byte            // the document alone, as it was read but for comments and order
}

// Name tells documents of one kind apart: NAMESPACE/NAME of a policy.
func (d Document) Name() string {
	if d.Kind == NamespaceKind {
		return d.Namespace
	}
	return d.Policy.Ref()
}

// AuditAnnotation puts a policy in audit mode, with the value "true": what it would deny is
// told, and passes.
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

// Parse reads all documents of a manifest.
func Parse(data []byte) ([]Document, error) {
	if len(data) > maxSize {
		return nil, &Error{Why: fmt.Sprintf("%d bytes, at most %d are allowed", len(data), maxSize)}
	}
	var out []Document
	seen := map[string]int{}
	decoder := yamlv3.NewDecoder(bytes.NewReader(data))
	for {
		var doc yamlv3.Node
		switch err := decoder.Decode(&doc); {
		case errors.Is(err, io.EOF):
			if len(out) == 0 {
				return nil, &Error{Why: "there is no " + PolicyKind + " in it"}
			}
			return out, nil
		case err != nil:
			return nil, syntax(err)
		}
		root := doc.Content[0]
		if root.Kind == yamlv3.ScalarNode && root.Tag == "!!null" {
			continue // an empty document, as between two separators
		}
		d, err := parseDocument(root)
		if err != nil {
			return nil, err
		}
		key := d.Kind + " " + d.Name()
		if line, twice := seen[key]; twice {
			return nil, &Error{root.Line, "metadata.name", fmt.Sprintf("%s is in line %d already", d.Name(), line)}
		}
		seen[key] = root.Line
		out = append(out, d)
	}
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

func parseDocument(root *yamlv3.Node) (d Document, err error) {
	if err := ambiguous(place{root, ""}); err != nil {
		return d, err
	}
	text, err := yamlv3.Marshal(root)
	if err != nil {
		return d, syntax(err)
	}
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return d, &Error{root.Line, "", strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	var is meta.TypeMeta
	if err := json.UnmarshalCaseSensitivePreserveInts(data, &is); err != nil {
		return d, mistyped(root, err)
	}
	switch is {
	case meta.TypeMeta{APIVersion: PolicyVersion, Kind: PolicyKind}:
		var np networking.NetworkPolicy
		if err := strictly(root, data, &np, PolicyVersion); err != nil {
			return d, err
		}
		if d.Policy, err = Convert(np); err == nil {
			err = named(d.Policy)
		}
		np.ObjectMeta, np.Namespace = ours(np.ObjectMeta), d.Policy.Namespace
		return d.finish(root, PolicyKind, np, err)
	case meta.TypeMeta{APIVersion: NamespaceVersion, Kind: NamespaceKind}:
		var ns core.Namespace
		if err := strictly(root, data, &ns, NamespaceVersion); err != nil {
			return d, err
		}
		d.Namespace, d.Labels, err = namespace(ns)
		ns.ObjectMeta, ns.Spec, ns.Status = ours(ns.ObjectMeta), core.NamespaceSpec{}, core.NamespaceStatus{}
		return d.finish(root, NamespaceKind, ns, err)
	}
	return d, at(root, "kind", fmt.Sprintf("%s %s is not what is read here: want %s %s, or %s %s",
		orNothing(is.APIVersion), orNothing(is.Kind), PolicyVersion, PolicyKind, NamespaceVersion, NamespaceKind))
}

// strictly reads an object, and nothing that it has no field for.
func strictly(root *yamlv3.Node, data []byte, into any, version string) error {
	strict, err := json.UnmarshalStrict(data, into)
	if err != nil {
		return mistyped(root, err)
	}
	if len(strict) > 0 {
		field := quoted.FindString(strict[0].Error())
		return at(root, strings.Trim(field, `"`), "there is no such field in "+version)
	}
	return nil
}

// ours is the metadata that means something outside Kubernetes.
func ours(m meta.ObjectMeta) meta.ObjectMeta {
	return meta.ObjectMeta{Name: m.Name, Namespace: m.Namespace, Labels: m.Labels, Annotations: m.Annotations}
}

// finish adds the text, or finds the line of what is wrong.
func (d Document) finish(root *yamlv3.Node, kind string, object any, err error) (Document, error) {
	if e, ok := errors.AsType[*Error](err); ok {
		return d, at(root, e.Field, e.Why)
	}
	if e, ok := errors.AsType[*policy.FieldError](err); ok {
		return d, at(root, e.Field, e.Why)
	}
	if err != nil {
		return d, err
	}
	d.Kind = kind
	d.YAML, err = text(object)
	return d, err
}

var quoted = regexp.MustCompile(`"[^"]+"`)

func orNothing(s string) string { return cmp.Or(s, "(nothing)") }

var typeError = regexp.MustCompile(`cannot unmarshal (\w+)(?: \S+)? into Go (?:struct field \w+\.(\S+)|value) of type (\S+)`)

// mistyped makes an error of a value of the wrong type. encoding/json's paths have no indices:
// of all values that its path may mean, the first one of the type that was found counts.
func mistyped(root *yamlv3.Node, err error) error {
	m := typeError.FindStringSubmatch(err.Error())
	if m == nil {
		return &Error{Line: root.Line, Why: err.Error()}
	}
	e := &Error{Line: root.Line, Field: m[2], Why: fmt.Sprintf("a value of type %s is wanted, not %s", m[3][strings.LastIndex(m[3], ".")+1:], m[1])}
	if m[2] == "" {
		return e
	}
	places := []place{{root, ""}}
	for name := range strings.SplitSeq(m[2], ".") {
		places = below(places, name)
	}
	for _, p := range places {
		if kindOf(p.node) == m[1] {
			e.Line, e.Field = p.node.Line, p.field
			return e
		}
	}
	if m[1] == "bool" { // a word that is true or false to the API server's reader only (YAML 1.1)
		for _, p := range scalars(places) {
			if p.node.Style == 0 && slices.Contains(booleans, strings.ToLower(p.node.Value)) {
				e.Line, e.Field = p.node.Line, p.field
				e.Why += fmt.Sprintf(": put %s in quotes", p.node.Value)
				break
			}
		}
	}
	return e
}

// scalars are the values among the places, and right below them.
func scalars(places []place) (out []place) {
	for _, p := range places {
		for i := 0; p.node.Kind == yamlv3.MappingNode && i+1 < len(p.node.Content); i += 2 {
			out = append(out, p.child(i))
		}
		if p.node.Kind == yamlv3.ScalarNode {
			out = append(out, p)
		}
	}
	return out
}

var booleans = []string{"y", "n", "yes", "no", "on", "off"}

// place is a value in a document, and its path.
type place struct {
	node  *yamlv3.Node
	field string
}

// child is the value behind a key.
func (p place) child(i int) place {
	return place{p.node.Content[i+1], strings.TrimPrefix(p.field+"."+p.node.Content[i].Value, ".")}
}

// element is one of a list.
func (p place) element(i int) place {
	return place{p.node.Content[i], fmt.Sprintf("%s[%d]", p.field, i)}
}

// ambiguous finds a key that is there twice, of which a reader takes one; and aliases, with
// which a small file can stand for one without end.
func ambiguous(p place) error {
	switch p.node.Kind {
	case yamlv3.AliasNode:
		return &Error{p.node.Line, p.field, "aliases are not read: write it out"}
	case yamlv3.SequenceNode:
		for i := range p.node.Content {
			if err := ambiguous(p.element(i)); err != nil {
				return err
			}
		}
	case yamlv3.MappingNode:
		seen := map[string]bool{}
		for i := 0; i+1 < len(p.node.Content); i += 2 {
			key := p.node.Content[i]
			if seen[key.Value] {
				return &Error{key.Line, p.child(i).field, "it is there already"}
			}
			seen[key.Value] = true
			if err := ambiguous(p.child(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// below are the values of a key in the places, and in all elements of lists.
func below(places []place, name string) (out []place) {
	for _, p := range places {
		switch p.node.Kind {
		case yamlv3.SequenceNode:
			for i := range p.node.Content {
				out = append(out, below([]place{p.element(i)}, name)...)
			}
		case yamlv3.MappingNode:
			for i := 0; i+1 < len(p.node.Content); i += 2 {
				if p.node.Content[i].Value == name {
					out = append(out, p.child(i))
				}
			}
		}
	}
	return out
}

// kindOf is what encoding/json calls a value.
func kindOf(n *yamlv3.Node) string {
	switch {
	case n.Kind == yamlv3.MappingNode:
		return "object"
	case n.Kind == yamlv3.SequenceNode:
		return "array"
	}
	return map[string]string{"!!str": "string", "!!int": "number", "!!float": "number", "!!bool": "bool"}[n.Tag]
}

// at makes an error with the line of the field, or of the nearest one around it that is there.
func at(root *yamlv3.Node, field, why string) error {
	e := &Error{root.Line, field, why}
	node := root
	for step := range strings.SplitSeq(field, ".") {
		name, index, indexed := strings.Cut(step, "[")
		key := slices.IndexFunc(node.Content, func(n *yamlv3.Node) bool { return n.Value == name })
		if node.Kind != yamlv3.MappingNode || key < 0 || key+1 >= len(node.Content) {
			return e
		}
		e.Line, node = node.Content[key].Line, node.Content[key+1]
		i := 0
		if indexed {
			_, _ = fmt.Sscan(strings.TrimSuffix(index, "]"), &i)
		}
		if node.Kind == yamlv3.SequenceNode {
			if i >= len(node.Content) {
				return e
			}
			if node = node.Content[i]; indexed {
				e.Line = node.Line
			}
		}
	}
	return e
}
