package nft

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"weft/router/policy"
)

// Policies are enforced in base chains of their own, after the base chains of the guard. So they
// also see packets that the guard accepts. They see every packet, even of established connections,
// so a changed policy ends connections that it no longer allows. A reply is evaluated as the packet
// that it answers, by chains with addresses and ports swapped.
//
//	policies
//	   ├─ tried, answers-tried: log what the policies in audit mode would drop
//	   ├─ answers: vmap by destination, then source ──▶ answers-egress-…, answers-ingress-…
//	   └─ vmap by source ──▶ egress-…, by destination ──▶ ingress-…
//
// The chain of an endpoint returns for a packet that one of its rules matches. At its end, packets
// to which policies do not apply pass, for example from an endpoint to itself. All others are
// counted, logged and dropped.

// Exempt says to which packets policies do not apply. A host can always reach its own endpoints.
type Exempt struct {
	OwnHost    bool // packets of endpoints to their own host
	Resolver   bool // DNS queries of endpoints to their own host's name server
	ICMPErrors bool // ICMP errors about a known connection (RFC 792, 4443)
}

// Log messages begin with these prefixes. The direction follows, after "answers-" for packets in
// the reply direction.
const (
	LogDrop  = "weft drop "
	LogAudit = "weft audit "
)

// direction describes the chains of one policy direction, for packets in the original or in the
// reply direction of their connection.
type direction struct {
	policy.Direction
	answers    bool
	own, other field
	port       side // the port of the connection's destination
}

var directions = []direction{
	{policy.Egress, false, saddr, daddr, dport},
	{policy.Ingress, false, daddr, saddr, dport},
	{policy.Egress, true, daddr, saddr, sport},
	{policy.Ingress, true, saddr, daddr, sport},
}

// destination returns the field that holds the connection's destination.
func (d direction) destination() field {
	if d.Direction == policy.Egress {
		return d.other
	}
	return d.own
}

// prefix returns the prefix of the names of chains and maps for replies.
func (d direction) prefix() string {
	if d.answers {
		return "answers-"
	}
	return ""
}

// verdicts describes the chains of one list of policies: of the policies in force, or of these and
// the policies in audit mode.
type verdicts struct {
	prefix string // the prefix of all names
	end    string // the prefix of the final chain's name
	list   []policy.Isolated
	own    map[policy.Direction][]isolatedAddr // the addresses and chains of list, by direction
}

// isolatedAddr is an address of an endpoint, and the chain that evaluates its packets.
type isolatedAddr struct {
	addr  netip.Addr
	chain string
}

func compareIsolated(a, b isolatedAddr) int {
	return cmp.Or(a.addr.Compare(b.addr), strings.Compare(a.chain, b.chain))
}

func newVerdicts(prefix, end string, list []policy.Isolated) verdicts {
	v := verdicts{prefix, end, list, map[policy.Direction][]isolatedAddr{}}
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		own := make([]isolatedAddr, 0, len(list))
		for _, i := range list {
			if i.Direction == d {
				own = append(own, isolatedAddr{i.Addr, i.Chain})
			}
		}
		slices.SortFunc(own, compareIsolated)
		// The kernel would refuse a program with two entries for one address.
		v.own[d] = slices.CompactFunc(own, func(a, b isolatedAddr) bool { return a.addr == b.addr })
	}
	return v
}

// of returns the addresses of one family that policies isolate in a direction, with their chains.
func (v verdicts) of(d policy.Direction, is4 bool) []isolatedAddr {
	return ofFamily(v.own[d], is4, func(j isolatedAddr) netip.Addr { return j.addr })
}

// addPolicies adds the policies' chains, and the maps that lead packets to them.
func (l *lowering) addPolicies() {
	enforced := newVerdicts("", "drop-", l.Policy.Program.Isolated)
	tried := newVerdicts("tried-", "audit-", l.Policy.Program.Tried)
	l.self()
	var forward []Rule
	if len(tried.list) > 0 {
		forward = append(forward, rule(ctReply(), jumpTo("answers-tried")), rule(ctOriginal(), jumpTo("tried")))
		l.dispatch(tried, &Chain{Name: "tried"}, &Chain{Name: "answers-tried"})
	}
	forward = append(forward, rule(ctReply(), goTo("answers")))
	base := &Chain{"policies", nftables.ChainTypeFilter, nftables.ChainHookForward, "forward", policyPriority, forward}
	l.dispatch(enforced, base, &Chain{Name: "answers"})
	if !l.Policy.Exempt.OwnHost {
		l.ownHost()
	}
}

// policyPriority is after the guard's chains.
const policyPriority = 10

// self adds the sets of pairs of addresses of the same endpoint, which can reach itself, for
// example through a service.
func (l *lowering) self() {
	for _, is4 := range []bool{true, false} {
		k := addrKind(is4)
		s := &Set{Name: selfName(is4), Key: Key{k, k}}
		list := make([]pair, 0, (len(l.Policy.Program.Isolated)+len(l.Policy.Program.Tried))/2) // each family has half of the entries
		for _, isolated := range [][]policy.Isolated{l.Policy.Program.Isolated, l.Policy.Program.Tried} {
			for _, i := range isolated {
				for _, other := range i.Self {
					if i.Addr.Is4() == is4 && other.Is4() == is4 {
						list = append(list, pair{i.Addr, other})
					}
				}
			}
		}
		slices.SortFunc(list, comparePairs)
		s.Elements = values[pair]{slices.Compact(list), comparePairs, func(p pair) Element {
			return Element{First: s.Key.encode(p.src.AsSlice(), p.dst.AsSlice())}
		}}
		l.add(s)
	}
}

// pair is a source and a destination.
type pair struct{ src, dst netip.Addr }

func comparePairs(a, b pair) int { return cmp.Or(a.src.Compare(b.src), a.dst.Compare(b.dst)) }

func selfName(is4 bool) string { return "self" + family(is4) }

// exempt returns rules that end with a verdict for packets to which policies do not apply. These rules
// come last, since few packets get there, and no other packet needs to be compared with them.
func (l *lowering) exempt(end part) (rules []Rule) {
	for _, is4 := range []bool{true, false} {
		rules = append(rules, rule(pairIn(l.index[selfName(is4)]), end))
	}
	if l.Policy.Exempt.ICMPErrors {
		for _, number := range []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
			rules = append(rules, rule(l4proto(number), ctRelated(), end))
		}
	}
	return rules
}

func family(is4 bool) string {
	if is4 {
		return "4"
	}
	return "6"
}

// dispatch completes the two chains that lead every packet to the chains of its endpoints: one for
// the original direction, one for replies.
func (l *lowering) dispatch(v verdicts, opened, answers *Chain) {
	l.program.Chains = append(l.program.Chains, opened, answers)
	used := map[string]bool{}
	for _, i := range v.list {
		used[i.Chain] = true
	}
	for _, d := range directions {
		chain := opened
		if d.answers {
			chain = answers
		}
		for _, is4 := range []bool{true, false} {
			m := &Set{Name: v.prefix + d.prefix() + d.String() + family(is4), Key: Key{addrKind(is4)}, Jumps: true}
			m.Elements = values[isolatedAddr]{v.of(d.Direction, is4), compareIsolated, func(j isolatedAddr) Element {
				return Element{First: string(j.addr.AsSlice()), Chain: v.chainName(d, j.chain)}
			}}
			l.add(m)
			chain.Rules = append(chain.Rules, rule(d.own.vmap(m)))
		}
		l.end(v, d)
		for _, c := range l.Policy.Program.Chains {
			if c.Direction == d.Direction && used[c.Name] {
				l.chain(v, d, c)
			}
		}
	}
}

// end adds the final chain, for packets that no rule matches.
func (l *lowering) end(v verdicts, d direction) {
	c := &Chain{Name: v.end + d.prefix() + d.String()}
	if v.prefix == "" {
		c.Rules = l.exempt(accept())
		for _, is4 := range []bool{true, false} {
			c.Rules = append(c.Rules, rule(d.own.inSet(l.dropped(d.Direction, is4, v.of(d.Direction, is4)))))
		}
		c.Rules = append(c.Rules, rule(logged(LogDrop+d.prefix()+d.String())), rule(counter(), drop()))
	} else {
		c.Rules = append(l.exempt(returns()), rule(logged(LogAudit+d.prefix()+d.String())))
	}
	l.program.Chains = append(l.program.Chains, c)
}

// droppedName returns the name of the set that counts dropped packets by endpoint.
func droppedName(d policy.Direction, is4 bool) string { return "dropped-" + d.String() + family(is4) }

// dropped returns the set that counts dropped packets by endpoint. The final chains of both
// directions of a connection use it. An endpoint's count continues while its chain changes.
func (l *lowering) dropped(d policy.Direction, is4 bool, own []isolatedAddr) *Set {
	name := droppedName(d, is4)
	if s := l.index[name]; s != nil {
		return s
	}
	addrs := make([]netip.Addr, len(own))
	for i, j := range own {
		addrs[i] = j.addr
	}
	s := &Set{Name: name, Key: Key{addrKind(is4)}, Counter: true, Elements: addresses(addrs)}
	l.add(s)
	return s
}

// chainName returns the kernel's name of a policy chain.
func (v verdicts) chainName(d direction, chain string) string { return v.prefix + d.prefix() + chain }

// chain adds the chain of a group of endpoints with equal policies, and builds it unless the cache
// has it.
func (l *lowering) chain(v verdicts, d direction, c *policy.Chain) {
	key := chainKey{v.prefix, c.Name, d.answers}
	l.used++
	made, ok := l.last.chains[key]
	if !ok {
		made.Chain = &Chain{Name: v.chainName(d, c.Name), Rules: l.rules(d, c, &made.ports)}
		made.Rules = append(made.Rules, rule(goTo(v.end+d.prefix()+d.String())))
	}
	for _, s := range made.ports {
		l.add(s)
	}
	if !ok || l.anew {
		l.chains[key] = made
	}
	l.program.Chains = append(l.program.Chains, made.Chain)
}

// rules returns the rules of a chain: one per match, or one per family for matches with addresses.
// One chain serves both families: two chains would double the rules to load, and hardly save time
// per packet. used gets the port sets that the rules need.
func (l *lowering) rules(d direction, c *policy.Chain, used *[]*Set) (rules []Rule) {
	for _, m := range c.Matches {
		if m.Peers == "" && m.Named == "" {
			rules = append(rules, rule(append(ports(d, m, used), returns())...))
			continue
		}
		for _, is4 := range []bool{true, false} {
			if parts, ok := l.match(d, m, is4, used); ok {
				rules = append(rules, rule(append(parts, returns())...))
			}
		}
	}
	return rules
}

// match returns the parts of a match in one family, and false if its set has no address of that
// family. Protocol and port come first, since comparing them is cheaper than an address lookup.
func (l *lowering) match(d direction, m policy.Match, is4 bool, used *[]*Set) (parts []part, ok bool) {
	parts = ports(d, m, used)
	if m.Peers != "" {
		peers := l.index[m.Peers+"-"+family(is4)]
		if peers == nil {
			return nil, false
		}
		parts = append(parts, d.other.inSet(peers))
	}
	if m.Named != "" {
		parts = append(parts, d.destination().serviceIn(d.port, byte(m.Protocol), l.index[m.Named+"-"+family(is4)]))
	}
	return parts, true
}

// ports returns the match on the destination port, or only on the protocol if the port is named.
func ports(d direction, m policy.Match, used *[]*Set) []part {
	number := byte(m.Protocol)
	switch {
	case m.Protocol == 0:
		return nil
	case m.Named != "":
		return []part{implied(l4proto(number))}
	case len(m.Ports) == 0:
		return []part{l4proto(number)}
	case len(m.Ports) == 1 && m.Ports[0].First == m.Ports[0].Last:
		return []part{d.port.is(number, m.Ports[0].First)}
	}
	set := portSet(m.Ports)
	*used = append(*used, set)
	return []part{d.port.inSet(number, set)}
}

// portSet returns the set of some port ranges. Rules with equal ranges share it.
func portSet(ranges []policy.Range) *Set {
	s := &Set{Key: Key{port}, Interval: true}
	var words []string
	var list []Element
	for _, r := range ranges {
		e := Element{First: bigEndian(r.First), Last: bigEndian(r.Last)}
		list, words = append(list, e), append(words, s.print(e))
	}
	s.Elements = encoded(list)
	s.Name = policy.SetName("ports", strings.Join(words, ","))
	return s
}

func bigEndian(n uint16) string { return string([]byte{byte(n >> 8), byte(n)}) }

// lowerSet returns the sets of both families; for blocks, only of the families that have elements.
func lowerSet(s *policy.Set) (out []*Set) {
	for _, is4 := range []bool{true, false} {
		set := &Set{Name: s.Name + "-" + family(is4), Key: Key{addrKind(is4)}}
		switch s.Kind {
		case policy.Blocks:
			set.Interval = true
			list := ofFamily(s.Blocks, is4, func(i policy.Interval) netip.Addr { return i.First })
			if len(list) == 0 {
				continue
			}
			set.Elements = values[policy.Interval]{list, func(a, b policy.Interval) int { return a.First.Compare(b.First) }, func(i policy.Interval) Element {
				return Element{First: string(i.First.AsSlice()), Last: string(i.Last.AsSlice())}
			}}
		case policy.Services:
			set.Key = append(set.Key, proto, port)
			list := ofFamily(s.Services, is4, func(v policy.Service) netip.Addr { return v.Addr })
			set.Elements = services(set.Key, list)
		case policy.Addrs:
			list := ofFamily(s.Addrs, is4, func(a netip.Addr) netip.Addr { return a })
			set.Elements = addresses(list)
		}
		out = append(out, set)
	}
	return out
}

// ownHost adds the policies for packets from endpoints to their own host, and replies. Neighbour
// discovery with the gateway passes (RFC 4861).
func (l *lowering) ownHost() {
	in := []Rule{
		rule(icmp6("nd-neighbor-solicit", 135), accept()), rule(icmp6("nd-neighbor-advert", 136), accept()),
		rule(icmp6("nd-router-solicit", 133), accept()), rule(ctReply(), accept()),
	}
	var out []Rule
	if l.Policy.Exempt.Resolver && l.Guard.Resolver {
		for _, node := range []netip.Addr{l.Guard.Node4, l.Guard.Node6} {
			if !node.IsValid() {
				continue
			}
			for _, number := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
				in = append(in, rule(daddr.is(node), dport.is(number, dnsPort), accept()))
				out = append(out, rule(saddr.is(node), sport.is(number, dnsPort), accept()))
			}
		}
	}
	for _, is4 := range []bool{true, false} {
		if len(l.Policy.Program.Tried) > 0 {
			in = append(in, rule(saddr.vmap(l.index["tried-egress"+family(is4)])))
		}
		in = append(in, rule(saddr.vmap(l.index["egress"+family(is4)])))
		out = append(out, rule(ctReply(), daddr.vmap(l.index["answers-egress"+family(is4)])))
	}
	l.program.Chains = append(l.program.Chains,
		&Chain{"policies-input", nftables.ChainTypeFilter, nftables.ChainHookInput, "input", policyPriority, in},
		&Chain{"policies-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, "output", policyPriority, out})
}
