// Package nft turns the guard, NAT and policies into nftables. The guard is the set of rules that
// keep unencrypted overlay traffic off the underlay. A Program is a value that prints in nft's
// syntax, so that tests read like rulesets. A Kernel loads a Program without an interruption.
//
// The guard stays in force without the agent. If the kernel has the table flags owner and persist
// (6.9 and later), no other program can change the table while an agent owns it. The table outlives
// its owner, and can then be changed by any program. The package never touches other tables.
package nft

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/router/endpoint"
	"weft/router/link"
	"weft/router/policy"
)

// TableName is the name of our only table, of family inet.
const TableName = "weft"

// Program is the whole content of the table.
type Program struct {
	Sets   []*Set
	Chains []*Chain
}

// Chain is a chain. If it has no hook, other chains jump to it.
type Chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	HookName string
	Priority nftables.ChainPriority
	Rules    []Rule
}

// String returns the chain in nft's syntax.
func (c *Chain) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
	if c.Hook != nil {
		fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Type, c.HookName, c.Priority)
	}
	for _, r := range c.Rules {
		fmt.Fprintf(&b, "\t\t%v\n", r)
	}
	b.WriteString("\t}\n")
	return b.String()
}

// String returns the program in nft's syntax, as input for nft -f.
func (p Program) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", TableName)
	for _, s := range p.Sets {
		b.WriteString(s.String())
	}
	for _, c := range p.Chains {
		b.WriteString(c.String())
	}
	b.WriteString("}\n")
	return b.String()
}

// Config is the desired content of the table, in sections. Each section has one owner; one
// transaction loads all sections.
type Config struct {
	Guard  Guard
	Policy Policy
	Relays Relays
}

// Guard configures the section of the data path: the guard's filters and NAT.
type Guard struct {
	Universe     slot.Universe
	Node4, Node6 netip.Addr   // invalid if the host has no node address yet
	Own          []slot.Range // the slots that this peer owns
	Exposed      bool
	Port         uint16 // WireGuard's port, at which probes arrive; 0: they are not received
	// Resolver is set if a DNS server listens on the node addresses.
	Resolver bool
	Hosts    Hosts
}

// Policy configures the section that enforces NetworkPolicies.
type Policy struct {
	Program *policy.Program // nil if there are no policies
	Exempt  Exempt
}

// These are the names of interfaces in rules.
const (
	tunnel    = link.Device
	endpoints = link.EndpointPrefix + "*"
	loopback  = "lo"
)

// Build returns the guard and NAT of a host, without policies.
func Build(g Guard) Program {
	var b Builder
	return b.Build(Config{Guard: g})
}

// build returns the guard and NAT. The sets of Hosts, which the rules use, are built separately.
// Both families are always guarded, even if the host uses only one.
func (g Guard) build(h hostSets) Program {
	own4 := &Set{Name: "own4", Key: Key{addr4}, Interval: true, Elements: intervals(g.Own, g.Universe.Addr4)}
	own6 := &Set{Name: "own6", Key: Key{addr6}, Interval: true, Elements: intervals(g.Own, g.Universe.Addr6)}
	p := Program{Sets: []*Set{own4, own6}}
	add := func(chains ...*Chain) { p.Chains = append(p.Chains, chains...) }
	add(arriving(own4, own6)...)
	add(
		&Chain{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, "prerouting", -300, g.origins()},
		&Chain{Name: "uninvited", Rules: g.uninvited()},
		&Chain{Name: "from-endpoint-to-host", Rules: fromEndpointToHost(h)},
		&Chain{Name: "from-tunnel-to-host", Rules: fromTunnelToHost(h)},
		&Chain{Name: "to-hosts", Rules: toHosts(h)},
		&Chain{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, "input", 0, g.received()},
		&Chain{"segments", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, "postrouting", -150, segments()},
		&Chain{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, "forward", 0, g.forwarded()},
		&Chain{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, "postrouting", 100, g.nat()},
		&Chain{"underlay", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, "postrouting", 300, g.translated()},
	)
	probes := g.probes(h)
	p.Sets = append(p.Sets, probes.Sets...)
	add(probes.Chains...)
	if g.Resolver {
		p.Chains = append(p.Chains, &Chain{"resolver", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, "prerouting", -100, g.resolver()})
	}
	return p
}

// intervals returns the addresses of ranges of slots.
func intervals(own []slot.Range, addr func(slot.Slot) netip.Addr) Elements {
	out := make([]Element, 0, len(own))
	for _, r := range own {
		out = append(out, Element{First: string(addr(r.Start).AsSlice()), Last: string(addr(slot.Slot(r.End - 1)).AsSlice())})
	}
	return encoded(out)
}

// families calls f with the universe's prefix of each family.
func (g Guard) families(f func(u netip.Prefix) []Rule) []Rule {
	var out []Rule
	for _, u := range []netip.Prefix{g.Universe.V4, g.Universe.V6} {
		out = append(out, f(u)...)
	}
	return out
}

// The order of comparisons matters, since every packet passes all base chains of its hooks, even
// the encrypted packets of the tunnel. A rule compares interface names first if they decide most
// packets, and addresses first if these decide most.

// arriving returns the chains that check source addresses by input interface.
func arriving(own4, own6 *Set) []*Chain {
	return []*Chain{
		// The routes of an endpoint's own addresses lead to its interface, so packets with other
		// source addresses fail the reverse path check.
		{Name: "from-endpoint", Rules: append(loopbackOnly(), rule(notReverse(), counter(), drop()))},
		// Packets from the tunnel must not have a source in this peer's own slots.
		{Name: "from-tunnel", Rules: append(loopbackOnly(),
			rule(saddr.inSet(own4), counter(), drop()),
			rule(saddr.inSet(own6), counter(), drop()),
		)},
	}
}

// loopbackOnly drops packets with 127.0.0.0/8 (RFC 1122, section 3.2.1.3) on other interfaces than
// lo. With route_localnet, which kube-proxy sets for NodePorts at localhost, the kernel would
// accept them. DNAT to 127.0.0.0/8 is not affected, since it happens later. For ::1 the kernel
// itself does this before the first hook (RFC 4291, section 2.5.3).
func loopbackOnly() []Rule {
	local := netip.MustParsePrefix("127.0.0.0/8")
	return []Rule{
		rule(daddr.in(expr.CmpOpEq, local), counter(), drop()),
		rule(saddr.in(expr.CmpOpEq, local), counter(), drop()),
	}
}

// origins checks the source of every packet, before conntrack and NAT. Packets from the underlay must
// not have an overlay source.
func (g Guard) origins() []Rule {
	rules := []Rule{
		rule(iif(endpoints), goTo("from-endpoint")), rule(iif(tunnel), goTo("from-tunnel")), rule(iif(loopback), accept()),
	}
	rules = append(rules, g.families(func(u netip.Prefix) []Rule {
		return []Rule{rule(saddr.in(expr.CmpOpEq, u), counter(), drop())}
	})...)
	return append(rules, loopbackOnly()...)
}

// received filters packets to this host. Endpoints must not send router advertisements or
// redirects, and packets from the underlay must not reach the node address.
func (g Guard) received() []Rule {
	rules := []Rule{
		rule(iif(endpoints), goTo("from-endpoint-to-host")), rule(iif(tunnel), goTo("from-tunnel-to-host")), rule(iif(loopback), accept()),
	}
	return append(rules, g.families(func(u netip.Prefix) []Rule {
		return []Rule{rule(daddr.in(expr.CmpOpEq, u), goTo("uninvited"))}
	})...)
}

// uninvited drops packets from the underlay to overlay addresses of this host, except replies and
// packets with DNAT.
func (g Guard) uninvited() (rules []Rule) {
	if !g.Exposed {
		return unlessInvited(nil)
	}
	for _, question := range questions() { // the DNS server is only for the overlay
		rules = append(rules, rule(question, counter(), drop()))
	}
	return rules
}

// questions matches DNS queries.
func questions() []part {
	return []part{dport.is(unix.IPPROTO_UDP, dnsPort), dport.is(unix.IPPROTO_TCP, dnsPort)}
}

const dnsPort = 53

// resolver redirects DNS queries of endpoints from their gateway address to the node address. So
// one socket per family serves all interfaces.
func (g Guard) resolver() (rules []Rule) {
	for _, to := range []struct{ gateway, node netip.Addr }{{endpoint.Gateway4, g.Node4}, {endpoint.Gateway6, g.Node6}} {
		if !to.node.IsValid() {
			continue
		}
		for _, question := range questions() {
			rules = append(rules, rule(iif(endpoints), daddr.is(to.gateway), question, dnat(to.node)))
		}
	}
	return rules
}

// unlessInvited drops matching packets, except replies and packets with DNAT.
func unlessInvited(match []part) []Rule {
	var rules []Rule
	for _, allowed := range []part{ctReply(), ctRelated(), ctDNAT()} {
		rules = append(rules, rule(append(slices.Clone(match), allowed, accept())...))
	}
	return append(rules, rule(append(slices.Clone(match), counter(), drop())...))
}

// translated filters packets that leave by the underlay, after NAT. A packet unknown to conntrack is
// not masqueraded, and would show an overlay address on the underlay. Only replies of exposed endpoints
// may show one.
//
// translated is also the only filter for packets of this host itself. In the output hook, a packet to a
// service still has the output interface of the service's address, even after kube-proxy's DNAT to a
// pod. The packet has its final output interface only in the postrouting hook.
func (g Guard) translated() []Rule {
	rules := []Rule{rule(oif(endpoints), accept()), rule(oif(tunnel), accept()), rule(oif(loopback), accept())}
	return append(rules, g.families(func(u netip.Prefix) []Rule {
		var rules []Rule
		if g.Exposed {
			rules = append(rules, rule(saddr.in(expr.CmpOpEq, u), daddr.in(expr.CmpOpNeq, u), ctReply(), accept()))
		}
		return append(rules,
			rule(saddr.in(expr.CmpOpEq, u), counter(), drop()),
			rule(daddr.in(expr.CmpOpEq, u), counter(), drop()))
	})...)
}

// forwarded filters packets that this host forwards.
func (g Guard) forwarded() []Rule {
	rules := []Rule{
		// Packets between endpoints pass, on this host and through the tunnel.
		rule(iif(endpoints), oif(endpoints), accept()),
		rule(iif(endpoints), jumpTo("to-hosts")),
		rule(iif(endpoints), oif(tunnel), accept()),
		rule(iif(tunnel), oif(endpoints), accept()),
	}
	rules = append(rules, g.families(func(u netip.Prefix) []Rule {
		return []Rule{rule(daddr.in(expr.CmpOpEq, u), notOif(tunnel), notOif(endpoints), notOif(loopback), counter(), drop())}
	})...)
	rules = append(rules,
		// From the tunnel to other interfaces, only replies to connections that this host accepted
		// pass.
		rule(iif(tunnel), notOif(tunnel), ctReply(), ctSNAT(), accept()),
		rule(iif(tunnel), counter(), drop()),
	)
	if g.Exposed {
		return rules
	}
	for _, into := range []string{endpoints, tunnel} {
		rules = append(rules, unlessInvited([]part{notIif(endpoints), oif(into)})...)
	}
	return rules
}

// nat gives packets that enter the tunnel an overlay source, and packets that leave the overlay
// this host's address. Between endpoints nothing is translated.
func (g Guard) nat() []Rule {
	return g.families(func(u netip.Prefix) []Rule {
		var rules []Rule
		node := g.Node6
		if u.Addr().Is4() {
			node = g.Node4
		}
		if node.IsValid() {
			rules = append(rules, rule(oif(tunnel), saddr.in(expr.CmpOpNeq, u), snat(node)))
		}
		return append(rules, rule(notOif(tunnel), notOif(endpoints), notOif(loopback),
			saddr.in(expr.CmpOpEq, u), daddr.in(expr.CmpOpNeq, u), masquerade()))
	})
}

// LogGroup is the netlink log group of dropped packets (nfnetlink_log).
const LogGroup = 6783
