package network

import (
	"cmp"
	"context"
	"slices"

	"weft/prog/api"
	"weft/router/policy"
)

// Bounds of a matrix.
const (
	mostGroups   = 100     // rows, and columns
	mostExamples = 5       // endpoints of a group that are named
	mostPairs    = 200_000 // pairs of classes that are evaluated
)

// Matrix returns which endpoints may connect to which: by namespaces, or by groups of two namespaces.
func (n *Overview) Matrix(_ context.Context, req api.MatrixRequest) (api.Matrix, error) {
	k := n.cfg.Know()
	if (req.From == "") != (req.To == "") {
		return api.Matrix{}, &api.Error{Code: api.CodeBadRequest, Message: "a matrix has two namespaces or none: give both, or neither"}
	}
	m := &matrix{policies: k.Policies, world: k.World, left: mostPairs}
	var rows, columns []group
	if req.From == "" {
		rows = m.groups(func(e policy.Endpoint) string { return e.Namespace })
		columns = rows
	} else {
		each := m.groups(nil)
		of := func(namespace string) (out []group) {
			for _, g := range each {
				if g.classes[0].one.Namespace == namespace {
					out = append(out, g)
				}
			}
			return out
		}
		rows, columns = of(req.From), of(req.To)
	}
	out := api.Matrix{Rows: []api.Group{}, Columns: []api.Group{}, Cells: [][]api.Access{}, More: max(len(rows)-mostGroups, 0) + max(len(columns)-mostGroups, 0)}
	rows, columns = rows[:min(len(rows), mostGroups)], columns[:min(len(columns), mostGroups)]
	for _, c := range columns {
		out.Columns = append(out.Columns, c.Group)
	}
	for _, r := range rows {
		out.Rows = append(out.Rows, r.Group)
		line := []api.Access{}
		for _, c := range columns {
			line = append(line, m.cell(r, c))
		}
		out.Cells = append(out.Cells, line)
	}
	return out, nil
}

// matrix evaluates policies between classes of endpoints.
type matrix struct {
	policies []policy.Policy
	world    policy.World
	left     int // pairs that may still be evaluated
}

// class is endpoints that policies treat alike.
type class struct {
	one      policy.Endpoint
	count    int
	policies []policy.Policy // those that select it
}

// group is a row or column: one or more classes.
type group struct {
	api.Group
	classes []class
}

// groups returns the classes by a key, or each class as a group of its own.
func (m *matrix) groups(key func(policy.Endpoint) string) (out []group) {
	index := map[string]int{}
	for _, list := range policy.Alike(m.policies, m.world) {
		c := class{one: list[0], count: len(list)}
		for _, p := range m.policies {
			if p.Selects(c.one) {
				c.policies = append(c.policies, p)
			}
		}
		name, i, known := list[0].Ref(), len(out), false
		if key != nil {
			name = key(list[0])
			i, known = index[name]
		}
		if !known {
			i = len(out)
			index[name] = i
			out = append(out, group{Group: api.Group{Name: name, Examples: []string{}}})
		}
		g := &out[i]
		g.classes = append(g.classes, c)
		g.Endpoints += c.count
		for _, e := range list[:min(len(list), mostExamples-len(g.Examples))] {
			g.Examples = append(g.Examples, e.Ref())
		}
	}
	slices.SortStableFunc(out, func(a, b group) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// cell returns the access from one group to another.
func (m *matrix) cell(from, to group) api.Access {
	kind, ports := "", ""
	for _, a := range from.classes {
		for _, b := range to.classes {
			if a.one.ID == b.one.ID && a.count == 1 {
				continue // an endpoint can always reach itself
			}
			now := "all"
			if len(a.policies)+len(b.policies) > 0 {
				if m.left--; m.left < 0 {
					return api.Access{Kind: api.AccessSome, Ports: "not evaluated: too many kinds of endpoints"}
				}
				now = m.between(a, b)
			}
			switch {
			case kind == "":
				kind, ports = now, now
			case ports != now:
				return api.Access{Kind: api.AccessSome}
			}
		}
	}
	switch kind {
	case "", "all":
		return api.Access{Kind: api.AccessAll}
	case "none":
		return api.Access{Kind: api.AccessNone}
	}
	return api.Access{Kind: api.AccessSome, Ports: ports}
}

// between returns the ports from one class to another. Two endpoints of one class are told apart by an id.
func (m *matrix) between(a, b class) string {
	if a.one.ID == b.one.ID {
		b.one.ID += " (another)"
	}
	return policy.Between(slices.Concat(a.policies, b.policies), m.world, a.one, b.one).String()
}
