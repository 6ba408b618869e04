package manifest

import (
	stdjson "encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// place is a value in a document with its path.
type place struct {
	node  *yamlv3.Node
	field string
}

// entry returns the path of a map's value. It looks like the path of a field if the key is a plain
// word.
func entry(field, key string) string {
	switch odd := func(r rune) bool { return !strings.ContainsRune("-_", r) && !letterOrDigit(r) }; {
	case key == "" || strings.ContainsFunc(key, odd):
		return field + "[" + key + "]"
	case field == "":
		return key
	}
	return field + "." + key
}

func letterOrDigit(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// sub returns the path of a field inside p.
func (p place) sub(field string) string {
	if p.field == "" || field == "" {
		return p.field + field
	}
	return p.field + "." + field
}

// value returns the value of the key at an index.
func (p place) value(i int) place {
	return place{p.node.Content[i+1], entry(p.field, scalars{}.key(p.node.Content[i]))}
}

// element returns an element of a list.
func (p place) element(i int) place {
	return place{p.node.Content[i], fmt.Sprintf("%s[%d]", p.field, i)}
}

// child returns the value of a key.
func (p place) child(key string) (place, bool) {
	for i := 0; p.node.Kind == yamlv3.MappingNode && i+1 < len(p.node.Content); i += 2 {
		if p.node.Content[i].Value == key {
			return p.value(i), true
		}
	}
	return place{}, false
}

// json returns the value as the API server's YAML 1.1 parser reads it.
func (p place) json() ([]byte, error) {
	text, err := yamlv3.Marshal(p.node)
	if err != nil {
		return nil, syntax(err)
	}
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, &Error{p.node.Line, p.field, strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	return data, nil
}

// word matches plain scalars that every YAML parser reads as a string, unless they are in noWords.
var word = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_./-]*$`)

var noWords = []string{"y", "n", "yes", "no", "on", "off", "true", "false", "null"}

// scalars caches how keys without quotes are read.
type scalars map[string]string

// key returns a key as the API server's parser reads it. For example, yes is true.
func (s scalars) key(n *yamlv3.Node) string {
	const quoted = yamlv3.DoubleQuotedStyle | yamlv3.SingleQuotedStyle | yamlv3.LiteralStyle | yamlv3.FoldedStyle
	if n.Kind != yamlv3.ScalarNode || n.Style&quoted != 0 && n.Style&yamlv3.TaggedStyle == 0 {
		return n.Value
	}
	if n.Tag == "!!str" && word.MatchString(n.Value) && !slices.Contains(noWords, strings.ToLower(n.Value)) {
		return n.Value // the usual case
	}
	called := n.Tag + " " + n.Value
	if known, there := s[called]; there {
		return known
	}
	s[called] = n.Value
	alone := place{&yamlv3.Node{Kind: yamlv3.MappingNode, Content: []*yamlv3.Node{n, {Kind: yamlv3.ScalarNode, Value: "0"}}}, ""}
	var read map[string]any
	if data, err := alone.json(); err == nil && json.UnmarshalCaseSensitivePreserveInts(data, &read) == nil {
		for key := range read { // the map has one key
			s[called] = key
		}
	}
	return s[called]
}

// unique refuses duplicate keys, of which a parser would use one, and aliases, with which a small
// file can expand without limit.
func unique(p place, read scalars) error {
	switch p.node.Kind {
	case yamlv3.AliasNode:
		return &Error{p.node.Line, p.field, "aliases are not supported: write the value out"}
	case yamlv3.SequenceNode:
		for i := range p.node.Content {
			if err := unique(p.element(i), read); err != nil {
				return err
			}
		}
	case yamlv3.MappingNode:
		seen := map[string]*yamlv3.Node{}
		for i := 0; i+1 < len(p.node.Content); i += 2 {
			node := p.node.Content[i]
			key := read.key(node)
			at := place{p.node.Content[i+1], entry(p.field, key)}
			if first := seen[key]; first != nil {
				return &Error{node.Line, at.field, twice(key, first, node)}
			}
			seen[key] = node
			if err := unique(at, read); err != nil {
				return err
			}
		}
	}
	return nil
}

// twice is the error for a duplicate key.
func twice(key string, first, again *yamlv3.Node) string {
	why := fmt.Sprintf("the key is in line %d already", first.Line)
	for _, n := range []*yamlv3.Node{first, again} {
		if n.Value != key {
			return fmt.Sprintf("%s: %s without quotes is %s", why, n.Value, key)
		}
	}
	return why
}

// strictly decodes an object, and refuses unknown fields.
func (p place) strictly(data []byte, into any, version string) error {
	strict, err := json.UnmarshalStrict(data, into)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err == nil {
		return nil
	}
	return p.mistyped(err, reflect.TypeOf(into).Elem(), version)
}

// mistyped converts a decoder's error, which has no line, to one about the first value of a wrong
// type.
func (p place) mistyped(err error, want reflect.Type, version string) *Error {
	if e := misfit(p, want, version); e != nil {
		return e
	}
	return &Error{p.node.Line, p.field, strings.TrimPrefix(err.Error(), "json: ")}
}

// misfit returns an error about the first value in the text that does not fit a type; nil if there is
// none.
func misfit(p place, want reflect.Type, version string) *Error {
	for want.Kind() == reflect.Pointer {
		want = want.Elem()
	}
	kind, err := kindOf(p)
	switch {
	case err != nil || kind == "null":
		return nil
	case want.Kind() == reflect.Interface:
		return nil
	case reflect.PointerTo(want).Implements(reflect.TypeFor[stdjson.Unmarshaler]()):
		return p.unfit(want, kind)
	case want.Kind() == reflect.Struct && kind == "object":
		return misfitInStruct(p, want, version)
	case want.Kind() == reflect.Slice && kind == "array":
		for i := range p.node.Content {
			if e := misfit(p.element(i), want.Elem(), version); e != nil {
				return e
			}
		}
		return nil
	case want.Kind() == reflect.Map && kind == "object":
		for i := 0; i+1 < len(p.node.Content); i += 2 {
			if e := misfit(p.value(i), want.Elem(), version); e != nil {
				return e
			}
		}
		return nil
	}
	return p.unfit(want, kind)
}

func misfitInStruct(p place, want reflect.Type, version string) *Error {
	fields := fieldsOf(want)
	for i := 0; i+1 < len(p.node.Content); i += 2 {
		value := p.value(i)
		of := fields[p.node.Content[i].Value]
		if of == nil {
			return &Error{p.node.Content[i].Line, value.field, "there is no such field in " + version}
		}
		if e := misfit(value, of, version); e != nil {
			return e
		}
	}
	return nil
}

// fieldsOf returns the types of a struct's fields by their JSON names.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" {
			out[name] = f.Type
			continue
		}
		maps.Copy(out, fieldsOf(f.Type)) // an inlined struct
	}
	return out
}

// unfit returns an error that says which type is wanted instead of the value; nil if it fits.
func (p place) unfit(want reflect.Type, kind string) *Error {
	data, err := p.json()
	if err != nil || json.UnmarshalCaseSensitivePreserveInts(data, reflect.New(want).Interface()) == nil {
		return nil
	}
	why := fmt.Sprintf("%s is wanted, not %s", wanted(want), called[kind])
	switch {
	case want.Kind() == reflect.Slice:
		why += ": is a dash missing?"
	case want.Kind() == reflect.String && p.node.Kind == yamlv3.ScalarNode:
		why += fmt.Sprintf(": put %s in quotes", p.node.Value)
	}
	return &Error{p.node.Line, p.field, why}
}

// called has the words for the kinds of JSON values.
var called = map[string]string{"object": "a map", "array": "a list", "string": "a string", "number": "a number", "bool": "true or false"}

// wanted describes a type.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[intstr.IntOrString]():
		return "a whole number, or a name,"
	case reflect.TypeFor[meta.Time]():
		return "a time such as 2026-01-31T12:00:00Z"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "a map"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	}
	return "a whole number"
}

// kindOf returns the JSON kind of a value as the API server's parser reads it.
func kindOf(p place) (string, error) {
	switch p.node.Kind {
	case yamlv3.MappingNode:
		return "object", nil
	case yamlv3.SequenceNode:
		return "array", nil
	}
	data, err := p.json()
	if err != nil {
		return "", err
	}
	switch data[0] {
	case '"':
		return "string", nil
	case 't', 'f':
		return "bool", nil
	case 'n':
		return "null", nil
	}
	return "number", nil
}

// first returns the error that comes first in the text; nil if there is none.
func (p place) first(wrong []*Error) error {
	if len(wrong) == 0 {
		return nil
	}
	for _, e := range wrong {
		*e = *p.at(e.Field, e.Why)
	}
	return slices.MinFunc(wrong, func(a, b *Error) int { return a.Line - b.Line })
}

// at returns an error with the line of a field's value, or of its nearest existing parent.
func (p place) at(field, why string) *Error {
	e := &Error{p.node.Line, p.sub(field), why}
	for rest := field; rest != ""; {
		inner, left, ok := p.step(rest)
		if !ok {
			return e
		}
		e.Line = inner.line
		p, rest = inner.place, left
	}
	return e
}

// found is a place with the line to report. For a map or list that begins below its key, this is the
// key's line.
type found struct {
	place
	line int
}

// step follows a path by one element.
func (p place) step(path string) (out found, rest string, ok bool) {
	switch p.node.Kind {
	case yamlv3.SequenceNode:
		var i int
		if _, err := fmt.Sscanf(path, "[%d]", &i); err != nil || i >= len(p.node.Content) {
			return out, "", false
		}
		_, rest, _ = strings.Cut(path, "]")
		out = found{p.element(i), p.node.Content[i].Line}
	case yamlv3.MappingNode:
		best := -1
		for i := 0; i+1 < len(p.node.Content); i += 2 {
			after, is := strings.CutPrefix(path, entry("", scalars{}.key(p.node.Content[i])))
			if is && (after == "" || after[0] == '.' || after[0] == '[') && (best < 0 || len(after) < len(rest)) {
				best, rest = i, after
			}
		}
		if best < 0 {
			return out, "", false
		}
		value := p.value(best)
		out = found{value, value.node.Line}
		if value.node.Kind != yamlv3.ScalarNode && value.node.Style&yamlv3.FlowStyle == 0 {
			out.line = p.node.Content[best].Line
		}
	default:
		return out, "", false
	}
	return out, strings.TrimPrefix(rest, "."), true
}
