package node

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A cut is a pair of port names in an nftables set of the bridge's forward hook. The hook sees every
// frame between two ports, including flooded ones. The rule in it is stateless, so it cuts established
// connections too.
//
//	table bridge weft-lab {
//	    set cut { type ifname . ifname }
//	    chain forward {
//	        type filter hook forward priority 0; policy accept;
//	        iifname . oifname @cut drop
//	    }
//	}
const cutTable = "weft-lab"

// cutting serializes changes of cuts. It also protects the nftables library's counter of sets, which
// has no lock.
var cutting sync.Mutex

func setCut(cut Cut, down bool) error {
	cutting.Lock()
	defer cutting.Unlock()
	if cut.A == cut.B {
		return fmt.Errorf("want two different hosts: %s and %s are the same", cut.A, cut.B)
	}
	have, err := listCuts()
	if err != nil {
		return err
	}
	cut = cut.sorted()
	if slices.Contains(have, cut) == down {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	set := addCutTable(conn)
	pair := []nftables.SetElement{{Key: cutKey(cut.A, cut.B)}, {Key: cutKey(cut.B, cut.A)}}
	if down {
		err = conn.SetAddElements(set, pair)
	} else {
		err = conn.SetDeleteElements(set, pair)
	}
	if err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cut %s from %s: %w: the kernel needs nf_tables with the bridge family (CONFIG_NF_TABLES_BRIDGE)",
			cut.A, cut.B, err)
	}
	return nil
}

// addCutTable writes the whole table each time. Everything in it is idempotent except the rule, so
// the same transaction first flushes the chain.
func addCutTable(conn *nftables.Conn) *nftables.Set {
	table := conn.AddTable(&nftables.Table{Name: cutTable, Family: nftables.TableFamilyBridge})
	set := &nftables.Set{
		Table: table, Name: "cut", Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName),
	}
	_ = conn.AddSet(set, nil) // the error is ignored: it is only possible with anonymous or malformed sets
	chain := conn.AddChain(&nftables.Chain{
		Table: table, Name: "forward", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	conn.FlushChain(chain)
	const first, second = unix.NFT_REG32_00, unix.NFT_REG32_00 + unix.IFNAMSIZ/4
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: first},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: second},
		&expr.Lookup{SourceRegister: first, SetName: set.Name, SetID: set.ID},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	return set
}

func cutKey(in, out string) []byte {
	key := make([]byte, 2*unix.IFNAMSIZ)
	copy(key, in)
	copy(key[unix.IFNAMSIZ:], out)
	return key
}

func (c Cut) sorted() Cut {
	if c.A > c.B {
		return Cut{c.B, c.A}
	}
	return c
}

func listCuts() ([]Cut, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyBridge)
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == cutTable })
	if err != nil || i < 0 { // after an error there are no cuts: the kernel has no nf_tables
		return nil, nil
	}
	elements, err := conn.GetSetElements(&nftables.Set{Table: tables[i], Name: "cut"})
	if err != nil {
		return nil, fmt.Errorf("list the cut links: %w", err)
	}
	var cuts []Cut
	for _, e := range elements {
		in, out := unix.ByteSliceToString(e.Key), unix.ByteSliceToString(e.Key[unix.IFNAMSIZ:])
		if c := (Cut{in, out}); c == c.sorted() {
			cuts = append(cuts, c)
		}
	}
	slices.SortFunc(cuts, func(a, b Cut) int { return cmp.Or(cmp.Compare(a.A, b.A), cmp.Compare(a.B, b.B)) })
	return cuts, nil
}
