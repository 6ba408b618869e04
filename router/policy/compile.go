package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Program is what a host's kernel runs for every packet: by its source's and its
// destination's address to a chain, which has to have a match.
//
// What chains there are follows from policies and labels alone. Which endpoint is where is in
// the sets and in Isolated, so that one that comes or goes changes elements, and no chain.
type Program struct {
	Isolated []Isolated // by direction and address
	Chains   []Chain    // by name
	Sets     []Set      // by name
}

// Isolated says which chain judges an address of an endpoint on this host.
type Isolated struct {
	Direction Direction
	Addr      netip.Addr
	Chain     string
	Self      []netip.Addr // of the same endpoint, this one included: it always reaches itself
}

// Chain allows what one of its matches fits, and nothing else. Its name is made of its content.
type Chain struct {
	Name      string
	Direction Direction
	Matches   []Match
}

// Match fits a packet if everything in it does.
type Match struct {
	Peers    string   // the set that has the address of the other side; empty: everybody
	Protocol Protocol // 0: any
	Ports    []Range  // of the destination; none: all, if Named is empty too
	Named    string   // the set that has destination, protocol and port
}

// Range is the ports First to Last, both included.
type Range struct{ First, Last uint16 }

// Set is a named set, shared by all matches that mean the same.
type Set struct {
	Name     string
	Blocks   []Interval // of addresses, sorted and apart; where it is one of blocks or of endpoints
	Services []Service  // where it is one of named ports
}

// Interval is the addresses First to Last, both included.
type Interval struct{ First, Last netip.Addr }

// Service is a named port of an endpoint.
type Service struct {
	Addr     netip.Addr
	Protocol Protocol
	Port     uint16
}

// Compile makes the program of a host. Policies that are only tried are left out.
func Compile(policies []Policy, w World, local func(Endpoint) bool) Program {
	c := &compiler{world: w, sets: map[string]Set{}, chains: map[string]Chain{}}
	var enforced []Policy
	for _, p := range policies {
		if !p.Audit {
			enforced = append(enforced, p)
		}
	}
	for _, e := range w.Endpoints {
		if !local(e) {
			continue
		}
		for _, d := range []Direction{Ingress, Egress} {
			c.isolate(e, d, enforced)
		}
	}
	slices.SortFunc(c.isolated, func(a, b Isolated) int {
		return cmp.Or(cmp.Compare(a.Direction, b.Direction), a.Addr.Compare(b.Addr))
	})
	return Program{
		Isolated: c.isolated,
		Chains:   slices.SortedFunc(maps.Values(c.chains), func(a, b Chain) int { return strings.Compare(a.Name, b.Name) }),
		Sets:     slices.SortedFunc(maps.Values(c.sets), func(a, b Set) int { return strings.Compare(a.Name, b.Name) }),
	}
}

type compiler struct {
	world    World
	sets     map[string]Set
	chains   map[string]Chain
	isolated []Isolated
}

// isolate adds what judges an endpoint in a direction, if any policy does.
func (c *compiler) isolate(e Endpoint, d Direction, policies []Policy) {
	var matches []Match
	selected := false
	for _, p := range policies {
		if !p.selects(e, d) {
			continue
		}
		selected = true
		for _, r := range p.rules(d) {
			matches = append(matches, c.matches(p, r)...)
		}
	}
	if !selected {
		return
	}
	slices.SortFunc(matches, func(a, b Match) int { return strings.Compare(a.String(), b.String()) })
	matches = slices.CompactFunc(matches, func(a, b Match) bool { return a.String() == b.String() })
	words := make([]string, len(matches))
	for i, m := range matches {
		words[i] = m.String()
	}
	chain := Chain{name(d.String(), strings.Join(words, "\n")), d, matches}
	c.chains[chain.Name] = chain
	for _, a := range e.Addrs {
		c.isolated = append(c.isolated, Isolated{d, a, chain.Name, e.Addrs})
	}
}

// name is a name that follows from a content.
func name(kind, content string) string {
	sum := sha256.Sum256([]byte(content))
	return kind + "-" + hex.EncodeToString(sum[:8])
}

// String is a match for people, and tells two apart.
func (m Match) String() string {
	return fmt.Sprintf("%s %d %v %s", m.Peers, m.Protocol, m.Ports, m.Named)
}

// matches are those of one rule: of each peer with each protocol and each named port.
func (c *compiler) matches(p Policy, r Rule) (out []Match) {
	peers := []string{""}
	if len(r.Peers) > 0 {
		peers = nil
		for _, peer := range r.Peers {
			peers = append(peers, c.peers(p, peer))
		}
	}
	for _, peer := range peers {
		for _, port := range c.ports(r.Ports) {
			port.Peers = peer
			out = append(out, port)
		}
	}
	return out
}

// ports are the matches of a rule's ports: one for each protocol, and one for each name.
func (c *compiler) ports(ports []Port) (out []Match) {
	if len(ports) == 0 {
		return []Match{{}}
	}
	numbers := map[Protocol][]Range{}
	whole := map[Protocol]bool{}
	for _, p := range ports {
		switch {
		case p.Name != "":
			out = append(out, Match{Protocol: p.Protocol, Named: c.services(p)})
		case p.Number == 0:
			whole[p.Protocol] = true
		default:
			numbers[p.Protocol] = append(numbers[p.Protocol], Range{p.Number, max(p.Number, p.End)})
		}
	}
	for _, proto := range []Protocol{TCP, UDP, SCTP} {
		switch {
		case whole[proto]:
			out = append(out, Match{Protocol: proto})
		case len(numbers[proto]) > 0:
			out = append(out, Match{Protocol: proto, Ports: joined(numbers[proto])})
		}
	}
	return out
}

// joined are the same ports, in ranges that are sorted and apart.
func joined(list []Range) []Range {
	slices.SortFunc(list, func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	out := list[:1]
	for _, r := range list[1:] {
		last := &out[len(out)-1]
		if uint32(r.First) <= uint32(last.Last)+1 {
			last.Last = max(last.Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// services is the set of all endpoints that declare a named port.
func (c *compiler) services(p Port) string {
	s := Set{Name: name("port", p.String())}
	if _, ok := c.sets[s.Name]; ok {
		return s.Name
	}
	for _, e := range c.world.Endpoints {
		for _, have := range e.Ports {
			if have.Name == p.Name && have.Protocol == p.Protocol {
				for _, a := range e.Addrs {
					s.Services = append(s.Services, Service{a, have.Protocol, have.Number})
				}
			}
		}
	}
	slices.SortFunc(s.Services, func(a, b Service) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
	})
	s.Services = slices.Compact(s.Services)
	c.sets[s.Name] = s
	return s.Name
}

// peers is the set of who a rule speaks of.
func (c *compiler) peers(p Policy, peer Peer) string {
	if peer.Block != nil {
		s := Set{Name: name("block", peer.Block.String()), Blocks: peer.Block.intervals()}
		c.sets[s.Name] = s
		return s.Name
	}
	content := fmt.Sprintf("in %q", p.Namespace)
	if peer.Namespaces != nil {
		content = peer.Namespaces.content()
	}
	if peer.Pods != nil {
		content += "\n" + peer.Pods.content()
	}
	s := Set{Name: name("pods", content)}
	if _, ok := c.sets[s.Name]; ok {
		return s.Name
	}
	for _, e := range c.world.Endpoints {
		if peer.chooses(p.Namespace, c.world, e) {
			for _, a := range e.Addrs {
				s.Blocks = append(s.Blocks, Interval{a, a})
			}
		}
	}
	slices.SortFunc(s.Blocks, func(a, b Interval) int { return a.First.Compare(b.First) })
	s.Blocks = slices.Compact(s.Blocks)
	c.sets[s.Name] = s
	return s.Name
}

// chooses reports whether selectors choose an endpoint.
func (peer Peer) chooses(own string, w World, e Endpoint) bool {
	switch {
	case peer.Namespaces == nil && e.Namespace != own:
		return false
	case peer.Namespaces != nil && !peer.Namespaces.Matches(w.namespace(e.Namespace)):
		return false
	}
	return peer.Pods == nil || peer.Pods.Matches(Labels{set: e.Labels})
}

// intervals are the addresses of a block: what is between those of Except.
func (b Block) intervals() []Interval {
	except := slices.Clone(b.Except)
	slices.SortFunc(except, func(x, y netip.Prefix) int {
		return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
	})
	var out []Interval
	next, last := b.CIDR.Masked().Addr(), lastOf(b.CIDR)
	for _, e := range except {
		first := e.Masked().Addr()
		if !next.IsValid() || lastOf(e).Less(next) {
			continue // inside of one that came before
		}
		if next.Less(first) {
			out = append(out, Interval{next, first.Prev()})
		}
		next = lastOf(e).Next()
	}
	if next.IsValid() && !last.Less(next) {
		out = append(out, Interval{next, last})
	}
	return out
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
