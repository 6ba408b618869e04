package nft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Way is a packet, and a hook at which all firewalls should accept the packet.
type Way struct {
	Hook   *nftables.ChainHook
	Packet Packet
}

// Block is a Way that rules of another program certainly drop. Rules that examine anything unknown,
// for example a mark or a list of addresses, do not count as dropping.
type Block struct {
	Way      int // index in the list of Ways
	Table    *nftables.Table
	Chain    string   // the base chain
	Chains   []string // all chains of the table, which show which program made them
	Passed   []string // the chains that the packet traversed
	Firewall Firewall
}

// Firewall is a known program that filters packets.
type Firewall string

// These are the known firewalls. IPTables is any program that uses iptables over nftables; Plain is
// any other program.
const (
	Firewalld Firewall = "firewalld"
	UFW       Firewall = "ufw"
	Docker    Firewall = "Docker"
	IPTables  Firewall = "iptables"
	Plain     Firewall = "nftables"
)

// Blocks returns a Block for each packet in ways that another program's rules certainly drop. It runs
// the base chains of all other tables on the packets, since our accept cannot override another chain's
// drop. Rules of iptables-legacy are not visible here.
func Blocks(ways []Way) ([]Block, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("nftables: opening netlink: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nftables: listing chains: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("nftables: listing tables: %w", err)
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
				continue // the table was deleted meanwhile
			}
			read[key] = &kernelTables{conn: conn, table: c.Table, sets: sets}
		}
		for i, w := range ways {
			if *c.Hooknum != *w.Hook || !carries(c.Table.Family, w.Packet) {
				continue
			}
			m := machine{tables: read[key], packet: w.Packet}
			made, err := m.run(c.Name, 0)
			if err != nil { // a chain that cannot be read does not count
				continue
			}
			if made&falls != 0 {
				made = made&^falls | byPolicy(c)
			}
			if made == drops {
				names := chainsOf(chains, c.Table)
				out = append(out, Block{Way: i, Table: c.Table, Chain: c.Name, Chains: names, Passed: m.passed, Firewall: firewallOf(c, names)})
			}
		}
	}
	return out, nil
}

// filters reports whether a chain is a base chain of another table that may drop packets.
func filters(c *nftables.Chain) bool {
	ours := c.Table.Name == TableName && c.Table.Family == nftables.TableFamilyINet
	return c.Hooknum != nil && !ours && c.Type != nftables.ChainTypeNAT
}

// asleep reports whether a table is dormant: the kernel does not run its chains.
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

// firewallOf recognizes a firewall by the names of its tables and chains. If Docker shares a chain
// with ufw or firewalld, the result is ufw or firewalld, since that would still drop packets that
// Docker accepts.
func firewallOf(c *nftables.Chain, chains []string) Firewall {
	switch has := func(prefix string) bool {
		return slices.ContainsFunc(chains, func(name string) bool { return strings.HasPrefix(name, prefix) })
	}; {
	case strings.HasPrefix(c.Table.Name, "firewalld"):
		return Firewalld
	case c.Table.Family == nftables.TableFamilyINet || !slices.Contains(iptablesTables, c.Table.Name) || c.Name != strings.ToUpper(c.Name):
		return Plain
	case has("INPUT_ZONES"): // firewalld with FirewallBackend=iptables has such chains
		return Firewalld
	case has("ufw-") || has("ufw6-"):
		return UFW
	case has("DOCKER") && *c.Hooknum == *nftables.ChainHookForward:
		return Docker
	}
	return IPTables
}

// iptablesTables are the tables of iptables and ip6tables that may drop.
var iptablesTables = []string{"filter", "mangle", "raw", "security"}
