// Package nft turns what the guard, NAT and policy should be into nftables: a
// Program is a value that prints in nft's own syntax, so that tests read like
// rulesets; a Kernel loads it in one transaction.
//
// The guard is in force without the agent. Where the kernel has the table flags
// owner and persist (6.9 and later), no other program can flush the table while an
// agent owns it; it outlives its owner, and is anybody's then.
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

// TableName is our one table, of family inet.
const TableName = "weft"

// Program is the whole content of the table.
type Program struct {
	Sets   []*Set
	Chains []*Chain
}

// Chain is a chain; one without a hook is jumped to by others.
type Chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	HookName string
	Priority nftables.ChainPriority
	Rules    []Rule
}

// String is the chain in nft's syntax.
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

// String is the program in nft's syntax, as nft -f takes it.
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

// Config is what the program is made from.
type Config struct {
	Universe     slot.Universe
	Node4, Node6 netip.Addr   // invalid: none yet
	Own          []slot.Range // the slots that this peer owns
	Exposed      bool
	// Resolver says that a name server listens on the node addresses.
	Resolver bool
	Hosts    Hosts
	Policy   *policy.Program // nil: none
	Exempt   Exempt
}

// Names of links, as rules match them.
const (
	tunnel    = link.Device
	endpoints = link.EndpointPrefix + "*"
	loopback  = "lo"
)

// Build makes the guard and NAT of a host.
func Build(c Config) Program {
	c.Policy = nil
	var b Builder
	return b.Build(c)
}

// build makes the guard and NAT, but for the sets of Hosts, to which its rules refer. Both
// families are always guarded, also where the host carries only one.
func (c Config) build(h hostSets) Program {
	own4 := &Set{Name: "own4", Key: Key{addr4}, Interval: true, Elements: intervals(c.Own, c.Universe.Addr4)}
	own6 := &Set{Name: "own6", Key: Key{addr6}, Interval: true, Elements: intervals(c.Own, c.Universe.Addr6)}
	p := Program{Sets: []*Set{own4, own6}}
	add := func(chains ...*Chain) { p.Chains = append(p.Chains, chains...) }
	add(arriving(own4, own6)...)
	add(
		&Chain{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, "prerouting", -300, c.origins()},
		&Chain{Name: "uninvited", Rules: c.uninvited()},
		&Chain{Name: "from-endpoint-to-host", Rules: fromEndpointToHost(h)},
		&Chain{Name: "from-tunnel-to-host", Rules: fromTunnelToHost(h)},
		&Chain{Name: "to-hosts", Rules: toHosts(h)},
		&Chain{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, "input", 0, c.received()},
		&Chain{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, "forward", 0, c.forwarded()},
		&Chain{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, "postrouting", 100, c.nat()},
		&Chain{"underlay", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, "postrouting", 300, c.translated()},
	)
	if c.Resolver {
		p.Chains = append(p.Chains, &Chain{"resolver", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, "prerouting", -100, c.resolver()})
	}
	return p
}

// intervals are the addresses of ranges of slots.
func intervals(own []slot.Range, addr func(slot.Slot) netip.Addr) Elements {
	out := make([]Element, 0, len(own))
	for _, r := range own {
		out = append(out, Element{First: string(addr(r.Start).AsSlice()), Last: string(addr(slot.Slot(r.End - 1)).AsSlice())})
	}
	return encoded(out)
}

// families calls f with the universe of either family.
func (c Config) families(f func(u netip.Prefix) []Rule) []Rule {
	var out []Rule
	for _, u := range []netip.Prefix{c.Universe.V4, c.Universe.V6} {
		out = append(out, f(u)...)
	}
	return out
}

// Names are compared first where that decides most packets, and addresses where those do:
// every packet passes all base chains of its hooks, the encrypted ones of the tunnel too.

// arriving are the chains that check who may claim which source, by where a packet is from.
func arriving(own4, own6 *Set) []*Chain {
	return []*Chain{
		// An endpoint has its own addresses only: the route to each points to its link.
		{Name: "from-endpoint", Rules: append(loopbackOnly(), rule(notReverse(), counter(), drop()))},
		// What comes out of the tunnel is from another peer's slots.
		{Name: "from-tunnel", Rules: append(loopbackOnly(),
			rule(saddr.inSet(own4), counter(), drop()),
			rule(saddr.inSet(own6), counter(), drop()),
		)},
	}
}

// loopbackOnly keeps 127.0.0.0/8 (RFC 1122, section 3.2.1.3) to lo: with route_localnet, which
// kube-proxy sets for NodePorts at localhost, the kernel takes it from any link. What somebody
// translates to there on purpose is not meant: it is translated later. Of ::1 the kernel sees to
// that in any case, before the first hook (RFC 4291, section 2.5.3).
func loopbackOnly() []Rule {
	local := netip.MustParsePrefix("127.0.0.0/8")
	return []Rule{
		rule(daddr.in(expr.CmpOpEq, local), counter(), drop()),
		rule(saddr.in(expr.CmpOpEq, local), counter(), drop()),
	}
}

// origins sends packets there, before anything else sees them. Nobody on the underlay has an
// overlay address.
func (c Config) origins() []Rule {
	rules := []Rule{
		rule(iif(endpoints), goTo("from-endpoint")), rule(iif(tunnel), goTo("from-tunnel")), rule(iif(loopback), accept()),
	}
	rules = append(rules, c.families(func(u netip.Prefix) []Rule {
		return []Rule{rule(saddr.in(expr.CmpOpEq, u), counter(), drop())}
	})...)
	return append(rules, loopbackOnly()...)
}

// received decides what reaches this host itself: no endpoint speaks for its
// routers, and the underlay does not reach the node address.
func (c Config) received() []Rule {
	rules := []Rule{
		rule(iif(endpoints), goTo("from-endpoint-to-host")), rule(iif(tunnel), goTo("from-tunnel-to-host")), rule(iif(loopback), accept()),
	}
	return append(rules, c.families(func(u netip.Prefix) []Rule {
		return []Rule{rule(daddr.in(expr.CmpOpEq, u), goTo("uninvited"))}
	})...)
}

// uninvited is what the underlay sends to overlay addresses of this host.
func (c Config) uninvited() (rules []Rule) {
	if !c.Exposed {
		return unlessInvited(nil)
	}
	for _, question := range questions() { // the name server is for the overlay only
		rules = append(rules, rule(question, counter(), drop()))
	}
	return rules
}

// questions match what asks a name server.
func questions() []part {
	return []part{dport.is(unix.IPPROTO_UDP, dnsPort), dport.is(unix.IPPROTO_TCP, dnsPort)}
}

const dnsPort = 53

// resolver brings what endpoints ask of their gateway to the name server, which listens on
// the node addresses: one socket for all links, in both families.
func (c Config) resolver() (rules []Rule) {
	for _, to := range []struct{ gateway, node netip.Addr }{{endpoint.Gateway4, c.Node4}, {endpoint.Gateway6, c.Node6}} {
		if !to.node.IsValid() {
			continue
		}
		for _, question := range questions() {
			rules = append(rules, rule(iif(endpoints), daddr.is(to.gateway), question, dnat(to.node)))
		}
	}
	return rules
}

// unlessInvited drops what matches, but for answers and what was translated on purpose.
func unlessInvited(match []part) []Rule {
	var rules []Rule
	for _, allowed := range []part{ctReply(), ctRelated(), ctDNAT()} {
		rules = append(rules, rule(append(slices.Clone(match), allowed, accept())...))
	}
	return append(rules, rule(append(slices.Clone(match), counter(), drop())...))
}

// translated has the last look at what leaves by the underlay, after NAT: what
// conntrack does not know is not translated, and would show overlay addresses there.
// The answers of exposed endpoints do so on purpose.
//
// It is also the only look at what this host itself sends. In the output hook a packet to a
// service still has the output interface of the service's address, although kube-proxy has
// translated it to a pod's; only here it has the one that it leaves by.
func (c Config) translated() []Rule {
	rules := []Rule{rule(oif(endpoints), accept()), rule(oif(tunnel), accept()), rule(oif(loopback), accept())}
	return append(rules, c.families(func(u netip.Prefix) []Rule {
		var rules []Rule
		if c.Exposed {
			rules = append(rules, rule(saddr.in(expr.CmpOpEq, u), daddr.in(expr.CmpOpNeq, u), ctReply(), accept()))
		}
		return append(rules,
			rule(saddr.in(expr.CmpOpEq, u), counter(), drop()),
			rule(daddr.in(expr.CmpOpEq, u), counter(), drop()))
	})...)
}

// forwarded decides what passes through this host.
func (c Config) forwarded() []Rule {
	rules := []Rule{
		// Between endpoints, here or by the tunnel.
		rule(iif(endpoints), oif(endpoints), accept()),
		rule(iif(endpoints), jumpTo("to-hosts")),
		rule(iif(endpoints), oif(tunnel), accept()),
		rule(iif(tunnel), oif(endpoints), accept()),
	}
	rules = append(rules, c.families(func(u netip.Prefix) []Rule {
		return []Rule{rule(daddr.in(expr.CmpOpEq, u), notOif(tunnel), notOif(endpoints), notOif(loopback), counter(), drop())}
	})...)
	rules = append(rules,
		// Out of the tunnel besides: answers to whom this host let in.
		rule(iif(tunnel), notOif(tunnel), ctReply(), ctSNAT(), accept()),
		rule(iif(tunnel), counter(), drop()),
	)
	if c.Exposed {
		return rules
	}
	for _, into := range []string{endpoints, tunnel} {
		rules = append(rules, unlessInvited([]part{notIif(endpoints), oif(into)})...)
	}
	return rules
}

// nat gives what enters the tunnel an overlay source, and what leaves the overlay
// this host's. Between endpoints nothing is translated.
func (c Config) nat() []Rule {
	return c.families(func(u netip.Prefix) []Rule {
		var rules []Rule
		node := c.Node6
		if u.Addr().Is4() {
			node = c.Node4
		}
		if node.IsValid() {
			rules = append(rules, rule(oif(tunnel), saddr.in(expr.CmpOpNeq, u), snat(node)))
		}
		return append(rules, rule(notOif(tunnel), notOif(endpoints), notOif(loopback),
			saddr.in(expr.CmpOpEq, u), daddr.in(expr.CmpOpNeq, u), masquerade()))
	})
}

// LogGroup is the netlink log group that hears of what policies drop (nfnetlink_log).
const LogGroup = 6783
