package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// change turns the table from one program into another, in two transactions. The first adds new
// chains and sets that nothing refers to yet; the second makes rules and elements refer to them.
// With a single transaction, a packet could start in the old generation and jump to a chain that
// has no rules in that generation. The packet would then pass. Within a transaction the kernel
// demands an order. Rules need the sets and chains that they name, and elements their chains. A
// chain or set that is still named cannot be deleted.
//
//	new sets → new chains │ delete elements and rules → add rules → add elements → delete chains → delete sets
func (k *Kernel) change(before, after Program) (changes bool, err error) {
	b := &batch{Kernel: k}
	before.Sets, after.Sets = differing(before.Sets, after.Sets)
	before.Chains, after.Chains = differing(before.Chains, after.Chains)
	b.oldSets, b.oldChains = byName(before.Sets, setName), byName(before.Chains, chainName)
	newSets := byName(after.Sets, setName)
	for name, s := range b.oldSets {
		if next := newSets[name]; next != nil && !next.alike(s) {
			return false, fmt.Errorf("set %s has another type than before, which the kernel cannot change", name)
		}
	}
	b.prepare(after)
	if b.err == nil && b.changes && k.loaded != nil { // otherwise the old content is deleted in the same transaction
		b.err = k.conn.Flush()
	}
	if b.err == nil {
		b.goOver(before, after, newSets)
	}
	return b.changes, b.err
}

// prepare adds the new sets and chains, to which nothing refers yet.
func (b *batch) prepare(after Program) {
	for _, s := range after.Sets {
		if b.oldSets[s.Name] == nil {
			b.addSet(s)
		}
	}
	var chains []*Chain
	for _, c := range after.Chains {
		if b.oldChains[c.Name] == nil && c.Hook == nil {
			b.addChain(c)
			chains = append(chains, c)
		}
	}
	for _, c := range chains {
		b.setRules(nil, c)
	}
	for _, s := range after.Sets {
		if b.oldSets[s.Name] == nil {
			b.grow(nil, s)
		}
	}
}

// goOver makes rules and elements refer to the prepared sets and chains, and deletes sets and
// chains that are no longer used.
func (b *batch) goOver(before, after Program, newSets map[string]*Set) {
	for _, c := range after.Chains {
		if b.oldChains[c.Name] == nil && c.Hook != nil {
			b.addChain(c)
		}
	}
	for _, s := range before.Sets {
		b.shrink(s, newSets[s.Name])
	}
	for _, c := range after.Chains {
		if b.oldChains[c.Name] != nil || c.Hook != nil {
			b.setRules(b.oldChains[c.Name], c)
		}
	}
	for _, s := range after.Sets {
		if b.oldSets[s.Name] != nil {
			b.grow(b.oldSets[s.Name], s)
		}
	}
	newChains := byName(after.Chains, chainName)
	var gone []*nftables.Chain
	for _, c := range before.Chains {
		if newChains[c.Name] == nil {
			gone = append(gone, &nftables.Chain{Name: c.Name, Table: table})
		}
	}
	for _, c := range gone { // flush all chains first: rules of one chain may jump to another
		b.changes = true
		b.conn.FlushChain(c)
	}
	for _, c := range gone {
		b.conn.DelChain(c)
	}
	for _, s := range before.Sets {
		if newSets[s.Name] == nil {
			b.changes = true
			b.conn.DelSet(s.library(0))
		}
	}
}

// differing returns the values that only one of two lists contains. Consecutive programs share most
// values.
func differing[T any](a, b []*T) (onlyA, onlyB []*T) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	in := make(map[*T]bool, len(a))
	for _, v := range a {
		in[v] = true
	}
	for _, v := range b {
		if in[v] {
			delete(in, v)
		} else {
			onlyB = append(onlyB, v)
		}
	}
	for _, v := range a {
		if in[v] {
			onlyA = append(onlyA, v)
		}
	}
	return onlyA, onlyB
}

func setName(s *Set) string     { return s.Name }
func chainName(c *Chain) string { return c.Name }

func byName[T any](list []*T, name func(*T) string) map[string]*T {
	out := make(map[string]*T, len(list))
	for _, v := range list {
		out[name(v)] = v
	}
	return out
}

// batch is a transaction under construction.
type batch struct {
	*Kernel
	oldSets   map[string]*Set
	oldChains map[string]*Chain
	sets      uint32 // number of sets added so far, which is the id of the newest
	changes   bool
	err       error
}

func (b *batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *batch) addSet(s *Set) {
	b.changes = true
	b.sets++
	if err := b.conn.AddSet(s.library(b.sets), nil); err != nil {
		b.fail(err)
	}
}

func (b *batch) addChain(c *Chain) {
	b.changes = true
	chain := &nftables.Chain{Name: c.Name, Table: table}
	if c.Hook != nil {
		policy := nftables.ChainPolicyAccept
		chain.Type, chain.Hooknum, chain.Priority, chain.Policy = c.Type, c.Hook, &c.Priority, &policy
	}
	b.conn.AddChain(chain)
}

// setRules replaces the rules of the chain old by the rules of c.
func (b *batch) setRules(old, c *Chain) {
	if old == c || old != nil && slices.EqualFunc(old.Rules, c.Rules, sameRule) {
		return
	}
	b.changes = true
	chain := &nftables.Chain{Name: c.Name, Table: table}
	if old != nil {
		b.conn.FlushChain(chain)
	}
	for _, r := range c.Rules {
		b.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.exprs})
	}
}

func sameRule(a, b Rule) bool { return slices.Equal(a.text, b.text) }

// shrink deletes the elements of s that next, the same set in the new program, lacks. It deletes all
// elements of a map that will be deleted, since they refer to chains. It also deletes all elements
// of a changed set of intervals, since the intervals may be divided differently.
func (b *batch) shrink(s, next *Set) {
	switch {
	case next == s, next == nil && !s.Jumps, s.Elements.Len() == 0:
		return
	case next == nil:
		b.conn.FlushSet(s.library(0))
	case s.Interval:
		if len(s.missing(next))+len(next.missing(s)) > 0 {
			b.changes = true
			b.conn.FlushSet(s.library(0))
		}
	default:
		b.elements(s, s.missing(next), b.conn.SetDeleteElements)
	}
}

// grow adds the elements that the old set lacks; old is nil for a new set.
func (b *batch) grow(old, s *Set) {
	if old == s {
		return
	}
	if old == nil {
		b.elements(s, s.Elements.All(), b.conn.SetAddElements)
		return
	}
	list := s.missing(old)
	if s.Interval && len(list)+len(old.missing(s)) > 0 {
		list = s.Elements.All()
	}
	b.elements(s, list, b.conn.SetAddElements)
}

// elements sends elements in portions that fit into a message.
func (b *batch) elements(s *Set, list []Element, send func(*nftables.Set, []nftables.SetElement) error) {
	for piece := range slices.Chunk(s.forLibrary(list), maxElements) {
		b.changes = true
		if err := send(s.library(0), piece); err != nil {
			b.fail(err)
		}
	}
}
