package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Compile returns the program of a host. local reports which endpoints are on that host.
func Compile(policies []Policy, w World, local func(Endpoint) bool) Program {
	c := NewCompiler()
	c.SetHosts(w.Hosts)
	c.SetPolicies(policies, w.Namespaces)
	for _, e := range w.Endpoints {
		c.Put(e, local(e))
	}
	return c.Program()
}

// Compiler builds programs while policies and endpoints change. If one endpoint changes, a Compiler
// updates only the sets that contain it. A Compiler is not safe for concurrent use.
type Compiler struct {
	namespaces map[string]map[string]string
	policies   []compiled
	hosts      []Host
	aliases    []alias                       // the aliases of hosts
	blockNames map[string]string             // the name of the set for each ipBlock; key: the ipBlock's text in the policy
	endpoints  map[string]*member            // key: the endpoint's id
	spaces     map[string]map[string]*member // keys: namespace, endpoint's id
	locals     map[string]*member            // the endpoints on this host; key: the endpoint's id
	claims     map[netip.Addr]int            // number of endpoints with an address; for a short time, two endpoints can have the same address
	groups     map[string]*group             // key: the name of the set
	live       []*group                      // the groups of the last program; Program builds only these
	blocks     map[string]*Set
	chains     map[string]*Chain // every chain built for these policies; key: the chain's name
	last       *Program          // the last program; nil after policies or local endpoints changed. Otherwise only sets can differ
}

// compiled is a policy with the matches of its rules, by direction.
type compiled struct {
	Policy
	matches [2][]Match
}

// member is an endpoint, and its chains by direction if it is local.
type member struct {
	Endpoint
	local         bool
	current       bool // whether the chains belong to the current policies
	chains, tried [2]*Chain
}

// group is a set whose elements depend on the known endpoints. It is only kept up to date while a
// chain uses it.
type group struct {
	Set
	peer  *Peer // for a set of endpoints: the selectors, and the policy's own namespace
	own   string
	port  Port // the port, if this is a set of named ports
	near  bool // whether only local endpoints count, since ingress goes to local endpoints
	built *Set
}

// NewCompiler returns a compiler without policies and endpoints.
func NewCompiler() *Compiler {
	return &Compiler{
		endpoints: map[string]*member{}, spaces: map[string]map[string]*member{}, locals: map[string]*member{},
		claims: map[netip.Addr]int{},
		groups: map[string]*group{}, blocks: map[string]*Set{}, chains: map[string]*Chain{},
	}
}

// SetPolicies replaces all policies and the labels of all namespaces.
func (c *Compiler) SetPolicies(policies []Policy, namespaces map[string]map[string]string) {
	old := c.groups
	if !maps.EqualFunc(namespaces, c.namespaces, maps.Equal[map[string]string, map[string]string]) {
		old = nil
	}
	c.namespaces, c.policies = namespaces, nil
	c.groups, c.blocks, c.blockNames, c.chains = map[string]*group{}, map[string]*Set{}, map[string]string{}, map[string]*Chain{}
	for _, p := range policies {
		out := compiled{Policy: p}
		for _, d := range []Direction{Ingress, Egress} {
			for _, r := range p.rules(d) {
				out.matches[d] = append(out.matches[d], c.matches(p, d, r)...)
			}
		}
		c.policies = append(c.policies, out)
	}
	c.live, c.last = nil, nil
	for name, g := range c.groups { // sets with the same name have the same content
		if before := old[name]; before != nil && before.built != nil {
			g.built = before.built
			c.live = append(c.live, g)
		}
	}
	for _, m := range c.locals {
		m.current = false
	}
}

// Put adds an endpoint, or changes its labels, addresses or ports. local is set if the endpoint is
// on this host, which then enforces its policies. Put reports whether anything changed.
func (c *Compiler) Put(e Endpoint, local bool) (changed bool) {
	if old := c.endpoints[e.ID]; old != nil {
		if same(old.Endpoint, e) && old.local == local {
			return false
		}
		c.Remove(e.ID)
	}
	m := &member{Endpoint: e, local: local}
	c.endpoints[e.ID] = m
	space := c.spaces[e.Namespace]
	if space == nil {
		space = map[string]*member{}
		c.spaces[e.Namespace] = space
	}
	space[e.ID] = m
	if local {
		c.locals[e.ID], c.last = m, nil
	}
	for _, a := range e.Addrs {
		c.claims[a]++
	}
	for _, g := range c.live {
		if g.built != nil {
			g.add(c.elements(g, m))
		}
	}
	return true
}

func same(a, b Endpoint) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && maps.Equal(a.Labels, b.Labels) &&
		slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Ports, b.Ports)
}

// Remove deletes an endpoint; an unknown one is no error.
func (c *Compiler) Remove(id string) {
	m := c.endpoints[id]
	if m == nil {
		return
	}
	delete(c.endpoints, id)
	if m.local {
		delete(c.locals, id)
		c.last = nil
	}
	delete(c.spaces[m.Namespace], id)
	if len(c.spaces[m.Namespace]) == 0 {
		delete(c.spaces, m.Namespace)
	}
	alone := true
	for _, a := range m.Addrs {
		if c.claims[a]--; c.claims[a] == 0 {
			delete(c.claims, a)
		} else {
			alone = false
		}
	}
	for _, g := range c.live {
		if g.built == nil {
			continue
		}
		if addrs, services := c.elements(g, m); len(addrs)+len(services) == 0 {
			continue
		}
		if alone {
			g.remove(m.Addrs)
		} else {
			g.built = nil // an address is shared with another endpoint: build the set anew when needed
		}
	}
}

// add adds elements to a set that is in use. It copies the set, since earlier programs still refer
// to the old set.
func (g *group) add(addrs []netip.Addr, services []Service) {
	if len(addrs)+len(services) == 0 {
		return
	}
	next := *g.built
	next.Addrs = inserted(next.Addrs, addrs, netip.Addr.Compare)
	next.Services = inserted(next.Services, services, Service.Compare)
	g.built = &next
}

// remove removes the elements with one of the addresses from a set.
func (g *group) remove(addrs []netip.Addr) {
	next := *g.built
	next.Addrs = slices.DeleteFunc(slices.Clone(next.Addrs), func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	next.Services = slices.DeleteFunc(slices.Clone(next.Services), func(s Service) bool { return slices.Contains(addrs, s.Addr) })
	g.built = &next
}

// World returns all namespaces, endpoints and hosts of the compiler, for Evaluate.
func (c *Compiler) World() World {
	w := World{Namespaces: c.namespaces, Hosts: c.hosts, Endpoints: make([]Endpoint, 0, len(c.endpoints))}
	for _, m := range c.endpoints {
		w.Endpoints = append(w.Endpoints, m.Endpoint)
	}
	slices.SortFunc(w.Endpoints, func(a, b Endpoint) int { return strings.Compare(a.ID, b.ID) })
	w.byAddr = make(map[netip.Addr]int, len(c.claims))
	for i, e := range slices.Backward(w.Endpoints) { // of several endpoints with the same address, the first one counts
		for _, a := range e.Addrs {
			w.byAddr[a] = i
		}
	}
	return w
}

// IsLocal reports whether an endpoint on this host has an address.
func (c *Compiler) IsLocal(a netip.Addr) bool {
	for _, m := range c.locals {
		if slices.Contains(m.Addrs, a) {
			return true
		}
	}
	return false
}

// Local returns the endpoints on this host, sorted by id.
func (c *Compiler) Local() (out []Endpoint) {
	for _, m := range c.locals {
		out = append(out, m.Endpoint)
	}
	slices.SortFunc(out, func(a, b Endpoint) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Program returns the current program.
func (c *Compiler) Program() Program {
	if c.last != nil {
		p := *c.last
		p.Sets = make([]*Set, len(p.Sets))
		for i, s := range c.last.Sets {
			p.Sets[i] = c.set(s.Name)
		}
		return p
	}
	p := Program{Isolated: make([]Isolated, 0, 4*len(c.locals))} // each endpoint has two directions and two families
	chains := map[string]*Chain{}
	use := func(e Endpoint, d Direction, chain *Chain, list *[]Isolated) {
		if chain == nil {
			return
		}
		chains[chain.Name] = chain
		for _, a := range e.Addrs {
			*list = append(*list, Isolated{d, a, chain.Name, e.Addrs})
		}
	}
	for _, m := range c.locals {
		c.updateChains(m)
		for _, d := range []Direction{Ingress, Egress} {
			use(m.Endpoint, d, m.chains[d], &p.Isolated)
			use(m.Endpoint, d, m.tried[d], &p.Tried)
		}
	}
	byAddr := func(a, b Isolated) int { return cmp.Or(cmp.Compare(a.Direction, b.Direction), a.Addr.Compare(b.Addr)) }
	slices.SortFunc(p.Isolated, byAddr)
	slices.SortFunc(p.Tried, byAddr)
	p.Chains = slices.SortedFunc(maps.Values(chains), func(a, b *Chain) int { return strings.Compare(a.Name, b.Name) })
	p.Sets = c.used(p.Chains)
	c.last = &p
	return p
}

// used returns the sets that chains refer to, and stops updating all other sets.
func (c *Compiler) used(chains []*Chain) (sets []*Set) {
	used := map[string]bool{}
	for _, chain := range chains {
		for _, m := range chain.Matches {
			used[m.Peers], used[m.Named] = true, true
		}
	}
	delete(used, "")
	for _, g := range c.live {
		if !used[g.Name] {
			g.built = nil
		}
	}
	c.live = c.live[:0]
	for _, name := range slices.Sorted(maps.Keys(used)) {
		sets = append(sets, c.set(name))
		if g := c.groups[name]; g != nil {
			c.live = append(c.live, g)
		}
	}
	return sets
}

// updateChains sets the chains of a local endpoint: the chains of the policies in force. If
// policies in audit mode select the endpoint, it also sets the chains of both kinds of policies
// together.
func (c *Compiler) updateChains(m *member) {
	if m.current {
		return
	}
	for _, d := range []Direction{Ingress, Egress} {
		var enforced, all []Match
		isolated, tried := false, false
		for _, p := range c.policies {
			switch {
			case !p.selects(m.Endpoint, d):
				continue
			case p.Audit:
				tried = true
			default:
				isolated = true
				enforced = append(enforced, p.matches[d]...)
			}
			all = append(all, p.matches[d]...)
		}
		m.chains[d], m.tried[d] = nil, nil
		if isolated {
			m.chains[d] = c.chain(d, enforced)
		}
		if tried {
			m.tried[d] = c.chain(d, all)
		}
	}
	m.current = true
}

// chain returns the chain with these matches.
func (c *Compiler) chain(d Direction, matches []Match) *Chain {
	matches = slices.Clone(matches)
	slices.SortFunc(matches, func(a, b Match) int { return strings.Compare(a.String(), b.String()) })
	matches = slices.CompactFunc(matches, func(a, b Match) bool { return a.String() == b.String() })
	words := make([]string, len(matches))
	for i, m := range matches {
		words[i] = m.String()
	}
	called := SetName(d.String(), strings.Join(words, "\n"))
	if c.chains[called] == nil {
		c.chains[called] = &Chain{called, d, matches}
	}
	return c.chains[called]
}

// set returns the set with a name.
func (c *Compiler) set(name string) *Set {
	g := c.groups[name]
	if g == nil {
		return c.blocks[name]
	}
	if g.built == nil {
		g.built = c.build(g)
	}
	return g.built
}

// build collects the elements of a set from all endpoints.
func (c *Compiler) build(g *group) *Set {
	s := g.Set
	for namespace, space := range c.spaces {
		if g.peer != nil && !g.peer.choosesNamespace(g.own, World{Namespaces: c.namespaces}, namespace) {
			continue
		}
		for _, m := range space {
			addrs, services := g.chosen(m)
			s.Addrs, s.Services = append(s.Addrs, addrs...), append(s.Services, services...)
		}
	}
	slices.SortFunc(s.Addrs, netip.Addr.Compare)
	slices.SortFunc(s.Services, Service.Compare)
	s.Addrs, s.Services = slices.Compact(s.Addrs), slices.Compact(s.Services)
	return &s
}

// elements returns the elements that an endpoint contributes to a set.
func (c *Compiler) elements(g *group, m *member) ([]netip.Addr, []Service) {
	if g.peer != nil && !g.peer.choosesNamespace(g.own, World{Namespaces: c.namespaces}, m.Namespace) {
		return nil, nil
	}
	return g.chosen(m)
}

// chosen returns the same as elements, for an endpoint whose namespace is known to match.
func (g *group) chosen(m *member) (addrs []netip.Addr, services []Service) {
	if g.peer != nil {
		if g.peer.Pods == nil || g.peer.Pods.Matches(Labels{set: m.Labels}) {
			addrs = m.Addrs
		}
		return addrs, nil
	}
	if g.near && !m.local {
		return nil, nil
	}
	for _, have := range m.Ports {
		if have.Name == g.port.Name && have.Protocol == g.port.Protocol {
			for _, a := range m.Addrs {
				services = append(services, Service{a, have.Protocol, have.Number})
			}
		}
	}
	return nil, services
}

// inserted returns a sorted list with further elements, without changing the original.
func inserted[T any](list, more []T, compare func(a, b T) int) []T {
	if len(more) == 0 {
		return list
	}
	out := slices.Grow(slices.Clone(list), len(more))
	for _, v := range more {
		if i, there := slices.BinarySearchFunc(out, v, compare); !there {
			out = slices.Insert(out, i, v)
		}
	}
	return out
}
