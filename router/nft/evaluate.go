package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft/router/policy"
)

// Evaluation is the kernel's verdict on a packet in one direction.
type Evaluation struct {
	Allowed bool
	Chain   string // the endpoint's chain; empty if it is not isolated
	Dropped uint64 // number of packets of the endpoint dropped in this direction
}

// Evaluate reads the rules and sets from the kernel, and evaluates them for a packet of the side that
// opens the connection. own is the address of the endpoint whose policies apply.
func (k *Kernel) Evaluate(d policy.Direction, own netip.Addr, p Packet) (j Evaluation, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return Evaluation{Allowed: true}, nil // return early: opening would create a table
	}
	if err := k.open(); err != nil {
		return j, err
	}
	sets, err := k.conn.GetSets(table)
	if err != nil {
		return j, fmt.Errorf("nftables: listing sets: %w", err)
	}
	m := machine{tables: &kernelTables{conn: k.conn, table: table, sets: sets}, packet: p}
	jumps := d.String() + family(own.Is4())
	if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == jumps }) {
		return Evaluation{Allowed: true}, nil // there are no policies
	}
	v, found, err := m.find(jumps, own.AsSlice())
	if err != nil || !found {
		return Evaluation{Allowed: true}, err
	}
	j.Chain = v.Chain
	out, err := m.run(j.Chain, 0)
	if err != nil {
		return j, err
	}
	j.Allowed = out&drops == 0
	counts, err := k.dropped(d)
	j.Dropped = counts[own]
	return j, err
}

// dropped returns the number of packets that policies dropped in a direction, by endpoint address.
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
			return nil, fmt.Errorf("nftables: reading set %s: %w", k.loaded.Sets[i].Name, err)
		}
		for _, e := range elements {
			if a, ok := netip.AddrFromSlice(e.Key); ok && e.Counter != nil {
				out[a] = e.Counter.Packets
			}
		}
	}
	return out, nil
}

// DroppedAll returns the number of packets that policies dropped in a direction since the table was
// loaded, including packets of removed endpoints.
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
		if one.Direction != d || !k.has(name) {
			continue
		}
		rules, err := k.counters(name)
		if err != nil {
			return 0, err
		}
		for _, c := range rules {
			n += c.Packets
		}
	}
	return n, nil
}

// guardChains are the chains of the guard that drop packets.
var guardChains = []string{
	"from-endpoint", "from-tunnel", "prerouting", "uninvited", "from-endpoint-to-host", "from-tunnel-to-host", "to-hosts", "forward", "underlay",
}

// GuardDropped returns the number of packets that each chain of the guard dropped since the table was loaded.
func (k *Kernel) GuardDropped() (map[string]uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded == nil {
		return nil, nil
	}
	if err := k.open(); err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for _, name := range guardChains {
		if !k.has(name) {
			continue
		}
		rules, err := k.counters(name)
		if err != nil {
			return nil, err
		}
		for _, c := range rules { // only rules that drop have counters
			out[name] += c.Packets
		}
	}
	return out, nil
}

// has reports whether the loaded table has a chain. The caller holds the lock.
func (k *Kernel) has(name string) bool {
	return slices.ContainsFunc(k.loaded.Chains, func(c *Chain) bool { return c.Name == name })
}

// kernelTables reads the chains and sets of one table from the kernel as needed, each only once.
type kernelTables struct {
	conn   *nftables.Conn
	table  *nftables.Table
	sets   []*nftables.Set
	chains map[string][][]expr.Any
	read   map[string][]element
}

// element is an element of a set in the kernel: a value or an interval.
type element struct {
	first, last string
	verdict     *expr.Verdict
	several     bool // a concatenation of intervals, which is not supported
}

func (t *kernelTables) rules(chain string) ([][]expr.Any, error) {
	if out, ok := t.chains[chain]; ok {
		return out, nil
	}
	rules, err := t.conn.GetRules(t.table, &nftables.Chain{Name: chain, Table: t.table})
	if err != nil {
		return nil, fmt.Errorf("nftables: reading chain %s: %w", chain, err)
	}
	var out [][]expr.Any
	for _, r := range rules {
		out = append(out, r.Exprs)
	}
	if t.chains == nil {
		t.chains = map[string][][]expr.Any{}
	}
	t.chains[chain] = out
	return out, nil
}

func (t *kernelTables) elements(name string) ([]element, error) {
	if list, ok := t.read[name]; ok {
		return list, nil
	}
	i := slices.IndexFunc(t.sets, func(s *nftables.Set) bool { return s.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("nftables: set %s does not exist", name)
	}
	elements, err := t.conn.GetSetElements(t.sets[i])
	if err != nil {
		return nil, fmt.Errorf("nftables: reading set %s: %w", name, err)
	}
	if t.read == nil {
		t.read = map[string][]element{}
	}
	t.read[name] = fromLibrary(t.sets[i], elements)
	return t.read[name], nil
}

func (t *kernelTables) keySize(set string) (int, error) {
	list, err := t.elements(set)
	switch {
	case err != nil:
		return 0, err
	case len(list) == 0:
		return 0, nil
	case slices.ContainsFunc(list, func(e element) bool { return e.several }):
		return -1, nil
	}
	return len(list[len(list)-1].first), nil // the first element may be the catch-all, which has no key
}

func (t *kernelTables) find(set string, key []byte) (*expr.Verdict, bool, error) {
	list, err := t.elements(set)
	var rest *element // the catch-all element, which has no key and matches everything else
	for i, e := range list {
		if e.first == "" {
			rest = &list[i]
			continue
		}
		if k := string(key[:min(len(e.first), len(key))]); e.first <= k && k <= e.last {
			return e.verdict, true, nil
		}
	}
	if rest != nil {
		return rest.verdict, true, nil
	}
	return nil, false, err
}

// fromLibrary converts a set as the library returns it. For intervals, the kernel lists the first
// value of each interval and the value after its last value, in no certain order. Intervals can be
// adjacent.
func fromLibrary(s *nftables.Set, elements []nftables.SetElement) (out []element) {
	slices.SortStableFunc(elements, func(a, b nftables.SetElement) int {
		if c := slices.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		}
		if a.IntervalEnd {
			return -1
		}
		return 1
	})
	for i, e := range elements {
		if s.Interval && e.IntervalEnd {
			continue
		}
		one := element{first: string(e.Key), last: string(e.Key), several: len(e.KeyEnd) > 0}
		if s.Interval {
			last := slices.Repeat([]byte{0xff}, len(e.Key))
			if i+1 < len(elements) {
				last = before(elements[i+1].Key)
			}
			one.last = string(last)
		}
		if s.IsMap {
			one.verdict = verdictOf(e.Val)
		}
		out = append(out, one)
	}
	return out
}

// verdictOf decodes the verdict of a map element, which the library returns undecoded; nil if the
// map holds something else.
func verdictOf(value []byte) *expr.Verdict {
	attrs, err := netlink.NewAttributeDecoder(value)
	if err != nil {
		return nil
	}
	attrs.ByteOrder = binary.BigEndian
	var v *expr.Verdict
	for attrs.Next() {
		switch attrs.Type() {
		case unix.NFTA_VERDICT_CODE:
			v = &expr.Verdict{Kind: expr.VerdictKind(int32(attrs.Uint32()))}
		case unix.NFTA_VERDICT_CHAIN:
			if v != nil {
				v.Chain = attrs.String()
			}
		}
	}
	if attrs.Err() != nil {
		return nil
	}
	return v
}

// before returns the value that is smaller by one.
func before(value []byte) []byte {
	b := slices.Clone(value)
	for i := range slices.Backward(b) {
		if b[i]--; b[i] != 0xff {
			break
		}
	}
	return b
}
