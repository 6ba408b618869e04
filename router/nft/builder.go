package nft

import (
	"reflect"
	"slices"

	"weft/router/policy"
)

// Builder builds a series of programs, and rebuilds only the parts that changed since the previous
// program. The zero value is ready to use. A Builder is not safe for concurrent use.
type Builder struct {
	of       Config  // the Config of the previous program
	guard    Program // guard and NAT in the previous program
	hosts    hostSets
	relays   Program // the part for relays
	policies Program // the part for policies, without the sets that policy.Program defines
	sets     map[*policy.Set][]*Set
	chains   map[chainKey]lowered // cached chains
	used     int                  // number of the cached chains that the previous program used
}

// chainKey identifies a cached chain.
type chainKey struct {
	prefix, chain string
	answers       bool
}

// lowered is a built chain, and the port sets that only its rules use.
type lowered struct {
	*Chain
	ports []*Set
}

// Build returns the program of a host.
func (b *Builder) Build(c Config) Program {
	c.Guard.Own = slices.Clone(c.Guard.Own)
	if b.hosts.tcp == nil || !b.of.Guard.Hosts.equal(c.Guard.Hosts) {
		b.hosts = c.Guard.Hosts.sets()
		c.Guard.Hosts = c.Guard.Hosts.clone()
	} else {
		c.Guard.Hosts = b.of.Guard.Hosts
	}
	if !b.sameGuard(c.Guard) {
		b.guard = c.Guard.build(b.hosts)
		b.policies = Program{}
	}
	if c.Guard.Port == b.of.Guard.Port && c.Relays.equal(b.of.Relays) {
		c.Relays = b.of.Relays
	} else {
		c.Relays = c.Relays.clone()
		b.relays = c.Relays.build(c.Guard.Port)
	}
	p := Program{slices.Concat(b.guard.Sets, b.hosts.list(), b.relays.Sets), slices.Concat(b.guard.Chains, b.relays.Chains)}
	l := &lowering{
		Config: c, last: b, program: p, index: make(map[string]*Set, len(b.sets)*2),
		Builder: Builder{of: c, guard: b.guard, hosts: b.hosts, relays: b.relays, sets: make(map[*policy.Set][]*Set, len(b.sets))},
	}
	if q := c.Policy.Program; q != nil && len(q.Isolated)+len(q.Tried) > 0 {
		l.lower()
	}
	*b = l.Builder
	return l.program
}

// sameGuard reports whether the guard of the last program can be used again. It ignores Hosts, whose
// sets are built separately.
func (b *Builder) sameGuard(g Guard) bool {
	last := b.of.Guard
	last.Hosts, g.Hosts = Hosts{}, Hosts{}
	return len(b.guard.Chains) > 0 && reflect.DeepEqual(last, g)
}

// samePolicies reports whether policy chains and isolated endpoints are the same as in the last
// program. The guard must be the same too.
func (b *Builder) samePolicies(p Policy) bool {
	last := b.of.Policy
	return last.Program != nil && len(b.policies.Chains) > 0 && last.Exempt == p.Exempt &&
		identical(last.Program.Isolated, p.Program.Isolated) && identical(last.Program.Tried, p.Program.Tried) && identical(last.Program.Chains, p.Program.Chains)
}

// identical reports whether two lists are the same memory.
func identical[T any](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// lowering is the state of one call of Build.
type lowering struct {
	Config
	Builder // the Builder's state after this call
	last    *Builder

	anew    bool // whether the cache of chains is a new map
	program Program
	index   map[string]*Set // the policies' sets in the program, by name
}

// add adds a set to the program, unless the program has a set of that name, which is then equal.
func (l *lowering) add(s *Set) {
	if l.index[s.Name] == nil {
		l.index[s.Name] = s
		l.program.Sets = append(l.program.Sets, s)
	}
}

// lower adds the chains and sets of the policies.
func (l *lowering) lower() {
	for _, s := range l.Policy.Program.Sets {
		l.sets[s] = l.last.sets[s]
		if l.sets[s] == nil {
			l.sets[s] = lowerSet(s)
		}
		for _, one := range l.sets[s] {
			l.add(one)
		}
	}
	sets, chains := len(l.program.Sets), len(l.program.Chains)
	if l.last.samePolicies(l.Policy) {
		l.policies, l.chains, l.used = l.last.policies, l.last.chains, l.last.used
		l.program.Sets = append(l.program.Sets, l.policies.Sets...)
		l.program.Chains = append(l.program.Chains, l.policies.Chains...)
		return
	}
	l.chains = l.last.chains
	if l.anew = l.chains == nil || len(l.chains) > 2*l.last.used; l.anew {
		l.chains = map[chainKey]lowered{} // drop the cache: most chains belong to removed policies and endpoints
	}
	l.addPolicies()
	l.policies = Program{slices.Clone(l.program.Sets[sets:]), slices.Clone(l.program.Chains[chains:])}
}
