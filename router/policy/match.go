package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
)

// SetName returns a name derived from a content, so that equal contents share a name.
func SetName(kind, content string) string {
	sum := sha256.Sum256([]byte(content))
	return kind + "-" + hex.EncodeToString(sum[:8])
}

// String returns the match for messages. It is also its unique key.
func (m Match) String() string {
	return fmt.Sprintf("%s %d %v %s", m.Peers, m.Protocol, m.Ports, m.Named)
}

// matches returns the matches of one rule: for each peer, one match per protocol and per named
// port.
func (c *Compiler) matches(p Policy, d Direction, r Rule) (out []Match) {
	peers := []string{""}
	if len(r.Peers) > 0 {
		peers = nil
		for _, peer := range r.Peers {
			if !peer.Unread {
				peers = append(peers, c.peers(p, peer))
			}
		}
	}
	for _, peer := range peers {
		for _, port := range c.ports(d, r.Ports) {
			port.Peers = peer
			out = append(out, port)
		}
	}
	return out
}

// ports returns the matches of a rule's ports: one match per protocol, and one per named port.
func (c *Compiler) ports(d Direction, ports []Port) (out []Match) {
	if len(ports) == 0 {
		return []Match{{}}
	}
	numbers := map[Protocol][]Range{}
	whole := map[Protocol]bool{}
	for _, p := range ports {
		switch {
		case p.Unread:
		case p.Name != "":
			out = append(out, Match{Protocol: p.Protocol, Named: c.services(d, p)})
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

// joined returns the same ports as sorted ranges that do not touch.
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

// services returns the name of the set of endpoints that declare a named port. For ingress, the set
// only has local endpoints.
func (c *Compiler) services(d Direction, p Port) string {
	s := Set{Name: SetName("port-"+d.String(), p.String()), Kind: Services}
	if c.groups[s.Name] == nil {
		c.groups[s.Name] = &group{Set: s, port: p, near: d == Ingress}
	}
	return s.Name
}

// peers returns the name of the set of a rule's peer.
func (c *Compiler) peers(p Policy, peer Peer) string {
	if peer.Block != nil {
		return c.block(*peer.Block)
	}
	s := Set{Name: SetName("pods", peer.content(p.Namespace))}
	if c.groups[s.Name] == nil {
		c.groups[s.Name] = &group{Set: s, peer: &peer, own: p.Namespace}
	}
	return s.Name
}

// block returns the name of the set of a block's addresses.
func (c *Compiler) block(b Block) string {
	content := b.String()
	if called, ok := c.blockNames[content]; ok {
		return called
	}
	s := Set{Kind: Blocks, Blocks: b.intervalsWith(c.aliases), Name: SetName("block", content)}
	if other := !b.CIDR.Addr().Is4(); slices.ContainsFunc(s.Blocks, func(i Interval) bool { return i.First.Is4() == other }) {
		s.Name = SetName("block", content+" and hosts of the other family") // the chain needs an extra rule for the other family
	}
	c.blocks[s.Name], c.blockNames[content] = &s, s.Name
	return s.Name
}

// content returns a unique key of the selectors of a peer in a policy of the namespace own.
func (peer Peer) content(own string) string {
	content := fmt.Sprintf("in %q", own)
	if peer.Namespaces != nil {
		content = peer.Namespaces.content()
	}
	if peer.Pods != nil {
		content += "\n" + peer.Pods.content()
	}
	return content
}

// choosesNamespace reports whether a peer's selectors select endpoints of a namespace.
func (peer Peer) choosesNamespace(own string, w World, namespace string) bool {
	if peer.Namespaces == nil {
		return namespace == own
	}
	return peer.Namespaces.Matches(w.namespace(namespace))
}

// intervals returns the addresses of a block without the addresses of Except.
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
			continue // an earlier block contains this one
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

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
