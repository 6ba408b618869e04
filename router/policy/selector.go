package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Selector chooses by labels (metav1.LabelSelector): everything in it must hold. The empty
// one chooses all.
type Selector struct {
	Labels      map[string]string
	Expressions []Expression
}

// Expression is one requirement (metav1.LabelSelectorRequirement).
type Expression struct {
	Key    string
	Op     Op
	Values []string // of In and NotIn: at least one; of the others: none
}

// Op is what an expression asks of a label.
type Op string

// The operators. NotIn holds also where the label is missing.
const (
	In           Op = "In"
	NotIn        Op = "NotIn"
	Exists       Op = "Exists"
	DoesNotExist Op = "DoesNotExist"
)

// Matches reports whether the selector chooses what has these labels.
func (s Selector) Matches(l Labels) bool { return s.mismatch(l) == "" }

// mismatch is the first requirement that does not hold, for people; empty if all do.
func (s Selector) mismatch(l Labels) string {
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		if have, ok := l.Get(key); !ok {
			return fmt.Sprintf("it has no label %s, %s=%s is asked for", key, key, s.Labels[key])
		} else if have != s.Labels[key] {
			return fmt.Sprintf("its label is %s=%s, %s is asked for", key, have, s.Labels[key])
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
		return fmt.Sprintf("it has no label %s, and %v", e.Key, e)
	case e.Op == In && !among, e.Op == NotIn && ok && among, e.Op == DoesNotExist && ok:
		return fmt.Sprintf("its label is %s=%s, and %v", e.Key, have, e)
	}
	return ""
}

func (e Expression) String() string {
	switch e.Op {
	case In:
		return fmt.Sprintf("one of %s is asked for", strings.Join(e.Values, ", "))
	case NotIn:
		return fmt.Sprintf("none of %s is asked for", strings.Join(e.Values, ", "))
	case Exists:
		return "one is asked for"
	}
	return "none is asked for"
}

// content tells two selectors apart: quoted, so that no odd label makes them look alike.
func (s Selector) content() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%q", s.Labels) // in the order of its keys
	for _, e := range s.Expressions {
		fmt.Fprintf(&out, " %q %s %q", e.Key, e.Op, e.Values)
	}
	return out.String()
}

// String is a selector in kubectl's form: app=web,tier in (a,b),!old.
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
