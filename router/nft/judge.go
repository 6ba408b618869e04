package nft

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft/router/policy"
)

// Judgement is what the kernel makes of a packet in one direction.
type Judgement struct {
	Allowed bool
	Chain   string // that judges the endpoint; empty: none
	Dropped uint64 // packets of the endpoint in that direction, since it came
}

// Judge reads the kernel's own rules and sets, and runs them on a packet of the side that
// begins a connection. own is the endpoint whose policies are asked.
func (k *Kernel) Judge(d policy.Direction, own netip.Addr, p Packet) (j Judgement, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return Judgement{Allowed: true}, nil // and to ask would make a table
	}
	if err := k.open(); err != nil {
		return j, err
	}
	sets, err := k.conn.GetSets(table)
	if err != nil {
		return j, fmt.Errorf("nftables: list sets: %w", err)
	}
	m := machine{tables: &kernelTables{conn: k.conn, sets: sets, read: map[string]*Set{}}, packet: p}
	jumps := d.String() + family(own.Is4())
	if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == jumps }) {
		return Judgement{Allowed: true}, nil // no policies at all
	}
	if j.Chain, _, err = m.find(jumps, own.AsSlice()); err != nil {
		return j, err
	}
	if j.Chain == "" {
		return Judgement{Allowed: true}, nil
	}
	kind, err := m.run(j.Chain, 0)
	if err != nil {
		return j, err
	}
	j.Allowed = kind != expr.VerdictDrop
	counts, err := k.dropped(d)
	j.Dropped = counts[own]
	return j, err
}

// dropped counts the packets that policies dropped in a direction, by endpoint.
func (k *Kernel) dropped(d policy.Direction) (map[netip.Addr]uint64, error) {
	out := map[netip.Addr]uint64{}
	if k.loaded == nil {
		return out, nil
	}
	for _, is4 := range []bool{true, false} {
		i := slices.IndexFunc(k.loaded.Sets, func(s *Set) bool { return s.Name == droppedName(d, is4) })
		if i < 0 {
			continue
		}
		elements, err := k.conn.GetSetElements(k.loaded.Sets[i].library(0))
		if err != nil {
			return nil, fmt.Errorf("nftables: read set %s: %w", k.loaded.Sets[i].Name, err)
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok && e.Counter != nil {
				out[a] = e.Counter.Packets
			}
		}
	}
	return out, nil
}

// DroppedAll counts the packets that policies dropped in a direction since the table was
// loaded, those of endpoints that are gone by now too.
func (k *Kernel) DroppedAll(d policy.Direction) (n uint64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return 0, nil
	}
	if err := k.open(); err != nil {
		return 0, err
	}
	for _, one := range directions {
		name := "drop-" + one.prefix() + one.String()
		if one.Direction != d || !slices.ContainsFunc(k.loaded.Chains, func(c *Chain) bool { return c.Name == name }) {
			continue
		}
		rules, err := k.conn.GetRules(table, &nftables.Chain{Name: name, Table: table})
		if err != nil {
			return 0, fmt.Errorf("nftables: read chain %s: %w", name, err)
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					n += c.Packets
				}
			}
		}
	}
	return n, nil
}

// kernelTables reads what a packet meets, and each set once.
type kernelTables struct {
	conn *nftables.Conn
	sets []*nftables.Set
	read map[string]*Set
}

func (t *kernelTables) rules(chain string) (out [][]expr.Any, err error) {
	rules, err := t.conn.GetRules(table, &nftables.Chain{Name: chain, Table: table})
	if err != nil {
		return nil, fmt.Errorf("nftables: read chain %s: %w", chain, err)
	}
	for _, r := range rules {
		out = append(out, r.Exprs)
	}
	return out, nil
}

func (t *kernelTables) find(name string, key []byte) (chain string, found bool, err error) {
	if t.read[name] == nil {
		i := slices.IndexFunc(t.sets, func(s *nftables.Set) bool { return s.Name == name })
		if i < 0 {
			return "", false, fmt.Errorf("nftables: there is no set %s", name)
		}
		elements, err := t.conn.GetSetElements(t.sets[i])
		if err != nil {
			return "", false, fmt.Errorf("nftables: read set %s: %w", name, err)
		}
		t.read[name] = fromLibrary(t.sets[i], elements)
	}
	chain, found = t.read[name].find(key)
	return chain, found, nil
}

// fromLibrary is a set as it was read. Of intervals, the kernel lists every first value and
// every one behind a last, in no certain order.
func fromLibrary(s *nftables.Set, elements []nftables.SetElement) *Set {
	out := &Set{Name: s.Name, Interval: s.Interval}
	var list []Element
	slices.SortStableFunc(elements, func(a, b nftables.SetElement) int {
		return slices.Compare(a.Key, b.Key)
	})
	for i, e := range elements {
		switch {
		case s.Interval && e.IntervalEnd:
			continue
		case s.Interval:
			last := slices.Repeat([]byte{0xff}, len(e.Key))
			if i+1 < len(elements) {
				last = before(elements[i+1].Key)
			}
			list = append(list, Element{First: string(e.Key), Last: string(last)})
		case s.IsMap:
			list = append(list, Element{First: string(e.Key), Chain: chainOf(e.Val)})
		default:
			list = append(list, Element{First: string(e.Key)})
		}
	}
	out.Elements = encoded(list)
	return out
}

// chainOf is the chain in a verdict, which the library leaves as it came.
func chainOf(verdict []byte) (chain string) {
	attrs, err := netlink.NewAttributeDecoder(verdict)
	if err != nil {
		return ""
	}
	for attrs.Next() {
		if attrs.Type() == unix.NFTA_VERDICT_CHAIN {
			chain = attrs.String()
		}
	}
	return chain
}

// before is the value in front of one.
func before(value []byte) []byte {
	b := slices.Clone(value)
	for i := range slices.Backward(b) {
		if b[i]--; b[i] != 0xff {
			break
		}
	}
	return b
}
