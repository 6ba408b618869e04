package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Access is the set of ports on which one endpoint may connect to another.
type Access struct {
	All   bool // every port of every protocol, and protocols without ports
	Ports map[Protocol][]Range
}

// Between returns the access from one endpoint to another, in the family of their first addresses.
func Between(policies []Policy, w World, src, dst Endpoint) Access {
	if src.ID == dst.ID {
		return Access{All: true}
	}
	out := w.access(policies, src, dst, dst, Egress)
	return out.and(w.access(policies, dst, src, dst, Ingress))
}

// access returns the access that the policies of one endpoint, e, allow in a direction.
func (w World) access(policies []Policy, e, other, dst Endpoint, d Direction) Access {
	out, isolated := Access{Ports: map[Protocol][]Range{}}, false
	for _, p := range policies {
		if p.Audit || !p.selects(e, d) {
			continue
		}
		isolated = true
		for _, r := range p.rules(d) {
			if !w.chosen(p, r, other) {
				continue
			}
			if len(r.Ports) == 0 {
				return Access{All: true}
			}
			for _, port := range r.Ports {
				out.Ports[port.Protocol] = append(out.Ports[port.Protocol], port.ranges(dst)...)
			}
		}
	}
	if !isolated {
		return Access{All: true}
	}
	for proto, list := range out.Ports {
		if len(list) > 0 {
			out.Ports[proto] = joined(list)
		}
	}
	return out
}

// chosen reports whether a rule applies to the endpoint on the other side of a connection.
func (w World) chosen(p Policy, r Rule, other Endpoint) bool {
	return len(r.Peers) == 0 || slices.ContainsFunc(r.Peers, func(peer Peer) bool {
		switch {
		case peer.Unread:
			return false
		case peer.Block != nil:
			return len(other.Addrs) > 0 && w.inBlock(*peer.Block, other.Addrs[0])
		}
		return peer.choosesNamespace(p.Namespace, w, other.Namespace) && (peer.Pods == nil || peer.Pods.Matches(Labels{set: other.Labels}))
	})
}

// ranges returns the port numbers that a port of a rule has at a destination.
func (want Port) ranges(dst Endpoint) (out []Range) {
	switch {
	case want.Unread:
		return nil
	case want.Name != "":
		for _, have := range dst.Ports {
			if have.Name == want.Name && have.Protocol == want.Protocol {
				out = append(out, Range{have.Number, have.Number})
			}
		}
		return out
	case want.Number == 0:
		return []Range{{0, 65535}}
	}
	return []Range{{want.Number, max(want.Number, want.End)}}
}

// and returns the access that both a and b allow.
func (a Access) and(b Access) Access {
	switch {
	case a.All:
		return b
	case b.All:
		return a
	}
	out := Access{Ports: map[Protocol][]Range{}}
	for proto, list := range a.Ports {
		for _, x := range list {
			for _, y := range b.Ports[proto] {
				if first, last := max(x.First, y.First), min(x.Last, y.Last); first <= last {
					out.Ports[proto] = append(out.Ports[proto], Range{first, last})
				}
			}
		}
	}
	return out
}

// String returns the ports for people: "all", "none", "80/TCP, 8000-9000/UDP".
func (a Access) String() string {
	if a.All {
		return "all"
	}
	var words []string
	for _, proto := range []Protocol{TCP, UDP, SCTP} {
		for _, r := range a.Ports[proto] {
			switch {
			case r == Range{0, 65535}:
				words = append(words, "any/"+proto.String())
			case r.First == r.Last:
				words = append(words, fmt.Sprintf("%d/%v", r.First, proto))
			default:
				words = append(words, fmt.Sprintf("%d-%d/%v", r.First, r.Last, proto))
			}
		}
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
