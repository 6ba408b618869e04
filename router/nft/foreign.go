package nft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Way is a packet on its way through a hook that should pass there.
type Way struct {
	Hook   *nftables.ChainHook
	Packet Packet
}

// Block is a way that the rules of another program close. What looks at more than is known
// of a packet, such as a mark or a list of addresses, is not taken for closed.
type Block struct {
	Way      int // its index
	Table    *nftables.Table
	Chain    string   // the base chain
	Chains   []string // of the table: whose rules they are shows there
	Passed   []string // chains that the packet came through
	Firewall Firewall
}

// Firewall is a program that people know to tell what may pass.
type Firewall string

// The firewalls. IPTables is whatever uses iptables, over nftables; Plain whatever else there is.
const (
	Firewalld Firewall = "firewalld"
	UFW       Firewall = "ufw"
	Docker    Firewall = "Docker"
	IPTables  Firewall = "iptables"
	Plain     Firewall = "nftables"
)

// Blocks finds the ways that are closed for certain, by running the base chains of all tables
// but ours on the packets: an accept of ours cannot override what another chain drops. What
// iptables-legacy set up is not visible here.
func Blocks(ways []Way) ([]Block, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nftables: list chains: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("nftables: list tables: %w", err)
	}
	var out []Block
	read := map[string]*kernelTables{}
	for _, c := range chains {
		if !filters(c) || asleep(tables, c.Table) {
			continue
		}
		key := fmt.Sprint(c.Table.Family, " ", c.Table.Name)
		if read[key] == nil {
			sets, err := conn.GetSets(c.Table)
			if err != nil {
				continue // it is gone by now
			}
			read[key] = &kernelTables{conn: conn, table: c.Table, sets: sets}
		}
		for i, w := range ways {
			if *c.Hooknum != *w.Hook || !carries(c.Table.Family, w.Packet) {
				continue
			}
			m := machine{tables: read[key], packet: w.Packet}
			made, err := m.run(c.Name, 0)
			if err != nil { // what cannot be read is not known
				continue
			}
			if made&falls != 0 {
				made = made&^falls | byPolicy(c)
			}
			if made == drops {
				names := chainsOf(chains, c.Table)
				out = append(out, Block{Way: i, Table: c.Table, Chain: c.Name, Chains: names, Passed: m.passed, Firewall: whose(c, names)})
			}
		}
	}
	return out, nil
}

// filters reports whether a chain is a base chain of another table that may drop what is routed.
func filters(c *nftables.Chain) bool {
	ours := c.Table.Name == TableName && c.Table.Family == nftables.TableFamilyINet
	return c.Hooknum != nil && !ours && c.Type != nftables.ChainTypeNAT
}

// asleep reports whether a table is dormant: the kernel keeps its chains from the hooks.
func asleep(tables []*nftables.Table, t *nftables.Table) bool {
	const dormant = 1<<24 | 1 // NFT_TABLE_F_DORMANT: the library reads its big-endian flags in this host's order
	return slices.ContainsFunc(tables, func(o *nftables.Table) bool {
		return o.Name == t.Name && o.Family == t.Family && o.Flags&dormant != 0
	})
}

func carries(f nftables.TableFamily, p Packet) bool {
	switch f {
	case nftables.TableFamilyINet:
		return true
	case nftables.TableFamilyIPv4:
		return p.Src.Is4()
	case nftables.TableFamilyIPv6:
		return p.Src.Is6()
	}
	return false
}

func byPolicy(c *nftables.Chain) outcomes {
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		return drops
	}
	return accepts
}

func chainsOf(chains []*nftables.Chain, t *nftables.Table) (names []string) {
	for _, c := range chains {
		if c.Table.Name == t.Name && c.Table.Family == t.Family {
			names = append(names, c.Name)
		}
	}
	return names
}

// whose tells a firewall by the names that it gives. Where ufw or firewalld and Docker share a
// chain, what Docker lets through the other would still drop.
func whose(c *nftables.Chain, chains []string) Firewall {
	switch has := func(prefix string) bool {
		return slices.ContainsFunc(chains, func(name string) bool { return strings.HasPrefix(name, prefix) })
	}; {
	case strings.HasPrefix(c.Table.Name, "firewalld"):
		return Firewalld
	case c.Table.Family == nftables.TableFamilyINet || !slices.Contains(iptablesTables, c.Table.Name) || c.Name != strings.ToUpper(c.Name):
		return Plain
	case has("INPUT_ZONES"): // firewalld with FirewallBackend=iptables
		return Firewalld
	case has("ufw-") || has("ufw6-"):
		return UFW
	case has("DOCKER") && *c.Hooknum == *nftables.ChainHookForward:
		return Docker
	}
	return IPTables
}

// iptablesTables are those of iptables and ip6tables that may drop.
var iptablesTables = []string{"filter", "mangle", "raw", "security"}
