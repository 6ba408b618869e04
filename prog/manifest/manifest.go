// Package manifest reads NetworkPolicy manifests (networking.k8s.io/v1, YAML or JSON) into
// router/policy's model, and writes them.
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
	networking "k8s.io/api/networking/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"weft/router/policy"
)

// What a document says that it is.
const (
	APIVersion = "networking.k8s.io/v1"
	Kind       = "NetworkPolicy"
)

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

// Parse reads all policies of a manifest.
func Parse(data []byte) ([]policy.Policy, error) {
	if len(data) > maxSize {
		return nil, &Error{Why: fmt.Sprintf("%d bytes, at most %d are allowed", len(data), maxSize)}
	}
	var out []policy.Policy
	seen := map[string]int{}
	decoder := yamlv3.NewDecoder(bytes.NewReader(data))
	for {
		var doc yamlv3.Node
		switch err := decoder.Decode(&doc); {
		case errors.Is(err, io.EOF):
			if len(out) == 0 {
				return nil, &Error{Why: "there is no " + Kind + " in it"}
			}
			return out, nil
		case err != nil:
			return nil, syntax(err)
		}
		root := doc.Content[0]
		if root.Kind == yamlv3.ScalarNode && root.Tag == "!!null" {
			continue // an empty document, as between two separators
		}
		p, err := parseDocument(root)
		if err != nil {
			return nil, err
		}
		if line, twice := seen[p.Ref()]; twice {
			return nil, &Error{root.Line, "metadata.name", fmt.Sprintf("%s is in line %d already", p.Ref(), line)}
		}
		seen[p.Ref()] = root.Line
		out = append(out, p)
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

func parseDocument(root *yamlv3.Node) (p policy.Policy, err error) {
	if err := ambiguous(place{root, ""}); err != nil {
		return p, err
	}
	text, err := yamlv3.Marshal(root)
	if err != nil {
		return p, syntax(err)
	}
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return p, &Error{root.Line, "", strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	var np networking.NetworkPolicy
	strict, err := json.UnmarshalStrict(data, &np)
	if err != nil {
		return p, mistyped(root, err)
	}
	if np.APIVersion != APIVersion || np.Kind != Kind {
		return p, at(root, "kind", fmt.Sprintf("%s %s is not what is read here: want %s %s", orNothing(np.APIVersion), orNothing(np.Kind), APIVersion, Kind))
	}
	if len(strict) > 0 {
		field := quoted.FindString(strict[0].Error())
		return p, at(root, strings.Trim(field, `"`), "there is no such field in "+APIVersion)
	}
	p, err = convert(np)
	if e, ok := errors.AsType[*Error](err); ok {
		return p, at(root, e.Field, e.Why)
	}
	if e, ok := errors.AsType[*policy.FieldError](err); ok {
		return p, at(root, e.Field, e.Why)
	}
	return p, err
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
			break
		}
	}
	return e
}

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
