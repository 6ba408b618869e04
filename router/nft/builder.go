package nft

import (
	"reflect"
	"slices"

	"weft/router/policy"
)

// Builder makes programs one after the other. It makes what did not change since the last
// one only once. The zero value is ready; it is not safe for concurrent use.
type Builder struct {
	of     Config  // of the last program
	guard  Program // of which this was a part
	hosts  hostSets
	judges Program // and this, the sets aside that are shared with the policies' own
	sets   map[*policy.Set][]*Set
	chains map[chainKey]lowered // more than the last program had, which had
	used   int
}

// chainKey is what tells chains apart.
type chainKey struct {
	prefix, chain string
	answers       bool
}

// lowered is a chain, and the sets of ports that only rules know.
type lowered struct {
	*Chain
	ports []*Set
}

// Build makes the program of a host.
func (b *Builder) Build(c Config) Program {
	c.Own = slices.Clone(c.Own)
	if b.hosts.tcp == nil || !b.of.Hosts.equal(c.Hosts) {
		b.hosts = c.Hosts.sets()
		c.Hosts = c.Hosts.clone()
	} else {
		c.Hosts = b.of.Hosts
	}
	if !b.sameGuard(c) {
		b.guard = c.build(b.hosts)
		b.judges = Program{}
	}
	p := Program{slices.Concat(b.guard.Sets, b.hosts.list()), slices.Clip(b.guard.Chains)}
	l := &lowering{
		Config: c, last: b, program: p, index: make(map[string]*Set, len(b.sets)*2),
		Builder: Builder{of: c, guard: b.guard, hosts: b.hosts, sets: make(map[*policy.Set][]*Set, len(b.sets))},
	}
	if c.Policy != nil && len(c.Policy.Isolated)+len(c.Policy.Tried) > 0 {
		l.lower()
	}
	*b = l.Builder
	return l.program
}

// sameGuard reports whether the guard is the one of the last program.
func (b *Builder) sameGuard(c Config) bool {
	return len(b.guard.Chains) > 0 && reflect.DeepEqual(b.of.guard(), c.guard())
}

// guard is what the guard is made from.
func (c Config) guard() Config {
	c.Hosts, c.Policy, c.Exempt = Hosts{}, nil, Exempt{}
	return c
}

// sameJudges reports whether the same chains judge the same endpoints as in the last program,
// which had the same guard.
func (b *Builder) sameJudges(c Config) bool {
	old := b.of
	return old.Policy != nil && len(b.judges.Chains) > 0 && old.Exempt == c.Exempt &&
		identical(old.Policy.Isolated, c.Policy.Isolated) && identical(old.Policy.Tried, c.Policy.Tried) && identical(old.Policy.Chains, c.Policy.Chains)
}

// identical reports whether two lists are one in memory.
func identical[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// lowering is one run of a Builder.
type lowering struct {
	Config
	Builder // what this run makes or takes over
	last    *Builder

	anew    bool // the chains are a new map
	program Program
	index   map[string]*Set // of the policies' sets in the program, by name
}

// add puts a set into the program, unless one of its name, which is the same, is there.
func (l *lowering) add(s *Set) {
	if l.index[s.Name] == nil {
		l.index[s.Name] = s
		l.program.Sets = append(l.program.Sets, s)
	}
}

// lower adds what policies need to the guard.
func (l *lowering) lower() {
	for _, s := range l.Policy.Sets {
		l.sets[s] = l.last.sets[s]
		if l.sets[s] == nil {
			l.sets[s] = lowerSet(s)
		}
		for _, one := range l.sets[s] {
			l.add(one)
		}
	}
	sets, chains := len(l.program.Sets), len(l.program.Chains)
	if l.last.sameJudges(l.Config) {
		l.judges, l.chains, l.used = l.last.judges, l.last.chains, l.last.used
		l.program.Sets = append(l.program.Sets, l.judges.Sets...)
		l.program.Chains = append(l.program.Chains, l.judges.Chains...)
		return
	}
	l.chains = l.last.chains
	if l.anew = l.chains == nil || len(l.chains) > 2*l.last.used; l.anew {
		l.chains = map[chainKey]lowered{} // most are of policies and endpoints that are gone
	}
	l.judge()
	l.judges = Program{slices.Clone(l.program.Sets[sets:]), slices.Clone(l.program.Chains[chains:])}
}
