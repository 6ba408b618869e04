package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Selector selects by labels (metav1.LabelSelector): all its requirements must hold. The empty
// selector selects everything.
type Selector struct {
	Labels      map[string]string
	Expressions []Expression
}

// Expression is one requirement (metav1.LabelSelectorRequirement).
type Expression struct {
	Key    string
	Op     Op
	Values []string // at least one for In and NotIn, none for the others
}

// Op is the operator of an expression.
type Op string

// These are the operators. NotIn also holds if the label is missing.
const (
	In           Op = "In"
	NotIn        Op = "NotIn"
	Exists       Op = "Exists"
	DoesNotExist Op = "DoesNotExist"
)

// Matches reports whether the selector selects something with these labels.
func (s Selector) Matches(l Labels) bool { return s.mismatch(l) == "" }

// mismatch describes the first requirement that does not hold; empty if all requirements hold.
func (s Selector) mismatch(l Labels) string {
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		if have, ok := l.Get(key); !ok {
			return fmt.Sprintf("the label %s is missing, want %s=%s", key, key, s.Labels[key])
		} else if have != s.Labels[key] {
			return fmt.Sprintf("the label is %s=%s, want %s", key, have, s.Labels[key])
		}
	}
	for _, e := range s.Expressions {
		if why := e.mismatch(l); why != "" {
			return why
		}
	}
	return ""
}

func (e Expression) mismatch(l Labels) string {
	have, ok := l.Get(e.Key)
	among := slices.Contains(e.Values, have)
	switch {
	case e.Op == In && !ok, e.Op == Exists && !ok:
		return fmt.Sprintf("the label %s is missing, %v", e.Key, e)
	case e.Op == In && !among, e.Op == NotIn && ok && among, e.Op == DoesNotExist && ok:
		return fmt.Sprintf("the label is %s=%s, %v", e.Key, have, e)
	}
	return ""
}

func (e Expression) String() string {
	switch e.Op {
	case In:
		return fmt.Sprintf("want one of %s", strings.Join(e.Values, ", "))
	case NotIn:
		return fmt.Sprintf("want none of %s", strings.Join(e.Values, ", "))
	case Exists:
		return "want the label with any value"
	}
	return "want no such label"
}

// content returns a unique key of the selector. Quoting makes sure that two different selectors
// have different keys, whatever their labels.
func (s Selector) content() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%q", s.Labels) // prints maps in the order of their keys
	for _, e := range s.Expressions {
		fmt.Fprintf(&out, " %q %s %q", e.Key, e.Op, e.Values)
	}
	return out.String()
}

// String returns the selector in kubectl's syntax: app=web,tier in (a,b),!old.
func (s Selector) String() string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		parts = append(parts, key+"="+s.Labels[key])
	}
	for _, e := range s.Expressions {
		switch e.Op {
		case In:
			parts = append(parts, fmt.Sprintf("%s in (%s)", e.Key, strings.Join(e.Values, ",")))
		case NotIn:
			parts = append(parts, fmt.Sprintf("%s notin (%s)", e.Key, strings.Join(e.Values, ",")))
		case Exists:
			parts = append(parts, e.Key)
		case DoesNotExist:
			parts = append(parts, "!"+e.Key)
		}
	}
	if len(parts) == 0 {
		return "all"
	}
	return strings.Join(parts, ",")
}
