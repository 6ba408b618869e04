// Package policy is NetworkPolicy (networking.k8s.io/v1): what the policies of a cluster
// allow, as values.
//
// There are two ways to an answer here, which check each other. Evaluate takes one packet,
// follows the text of the API, and says which rule decided, in words. Compile makes the
// program that the kernel runs for every packet.
//
// The semantics, from the API's text: an endpoint that no policy selects for a direction may
// do everything in that direction. One that some policy selects is isolated: it may do what
// at least one of those policies allows, and nothing else. A connection needs egress at its
// source and ingress at its destination. Answers to an allowed connection are allowed.
//
// Nothing here reads a clock, the network or the disk.
package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Policy is one NetworkPolicy.
type Policy struct {
	Namespace, Name string
	Pods            Selector // of the endpoints in Namespace that it isolates
	// Isolates says in which directions; the rules of a direction that is not isolated mean nothing.
	Isolates        Directions
	Ingress, Egress []Rule
	// Audit says that the policy is only tried: what it would deny is told, and passes.
	Audit bool
	// Unread is what of it is not as the API has it, for people. It counts as far as it can be
	// read; what cannot be allows nothing, and Unread of Peer and Port marks it.
	Unread []string
}

// Ref is how people name a policy: NAMESPACE/NAME.
func (p Policy) Ref() string { return p.Namespace + "/" + p.Name }

// Direction is one of two.
type Direction uint8

// Directions is a set of them.
type Directions uint8

// The directions, as seen from the endpoint.
const (
	Ingress Direction = iota
	Egress
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Both is both directions.
const Both Directions = 1<<Ingress | 1<<Egress

// Of makes a set.
func Of(list ...Direction) (out Directions) {
	for _, d := range list {
		out |= 1 << d
	}
	return out
}

// Has reports whether d is in the set.
func (ds Directions) Has(d Direction) bool { return ds&(1<<d) != 0 }

// rules are those of a direction.
func (p Policy) rules(d Direction) []Rule {
	if d == Egress {
		return p.Egress
	}
	return p.Ingress
}

// Rule allows what one of its peers does on one of its ports.
type Rule struct {
	Peers []Peer // none: everybody
	Ports []Port // none: every port of every protocol
}

// Peer is who is on the other side: endpoints chosen by labels, or a block of addresses.
// Exactly one of Block, the selectors and Unread is given.
type Peer struct {
	// Namespaces chooses namespaces; nil: that of the policy. Pods chooses endpoints in them; nil: all.
	Namespaces, Pods *Selector
	Block            *Block
	Unread           bool // it could not be read: nobody
}

// Block is the addresses of CIDR without those of Except.
type Block struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Contains reports whether an address is in the block.
func (b Block) Contains(a netip.Addr) bool {
	return b.CIDR.Contains(a) && !slices.ContainsFunc(b.Except, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (b Block) String() string {
	if len(b.Except) == 0 {
		return b.CIDR.String()
	}
	words := make([]string, len(b.Except))
	for i, p := range b.Except {
		words[i] = p.String()
	}
	return b.CIDR.String() + " except " + strings.Join(words, ", ")
}

// Protocol is one of IP, by its number.
type Protocol uint8

// The protocols that policies know; and those without ports that people ask about, which
// only a rule without ports allows.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132

	ICMP   Protocol = 1
	ICMPv6 Protocol = 58
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	case ICMP:
		return "ICMP"
	case ICMPv6:
		return "ICMPv6"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Port is a port or a range of ports of one protocol. With neither number nor name it is
// every port.
type Port struct {
	Protocol    Protocol
	Number, End uint16 // End: 0, or the last of a range
	Name        string // of a port that the destination declares
	Unread      bool   // it could not be read: none
}

func (p Port) String() string {
	switch {
	case p.Unread:
		return "one that could not be read"
	case p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP:
		return p.Protocol.String() // it has no ports
	case p.Name != "":
		return p.Name + "/" + p.Protocol.String()
	case p.Number == 0:
		return "any/" + p.Protocol.String()
	case p.End != 0:
		return fmt.Sprintf("%d-%d/%v", p.Number, p.End, p.Protocol)
	}
	return fmt.Sprintf("%d/%v", p.Number, p.Protocol)
}

// World is whom policies are about.
type World struct {
	// Namespaces has the labels of those that are known. Every namespace has the label
	// kubernetes.io/metadata.name besides, which is its name.
	Namespaces map[string]map[string]string
	Endpoints  []Endpoint
	Hosts      []Host

	byAddr map[netip.Addr]int // of Endpoints; nil: each is looked at
}

// NameLabel is on every namespace (Kubernetes 1.21 and later).
const NameLabel = "kubernetes.io/metadata.name"

// namespace is the labels of one.
func (w World) namespace(name string) Labels {
	return Labels{w.Namespaces[name], name}
}

// Labels are those of an endpoint or a namespace.
type Labels struct {
	set  map[string]string
	name string // of a namespace, for NameLabel
}

// Get is the value of a label, and whether it is there.
func (l Labels) Get(key string) (string, bool) {
	if key == NameLabel && l.name != "" {
		return l.name, true
	}
	v, ok := l.set[key]
	return v, ok
}

// Endpoint is one end of connections.
type Endpoint struct {
	ID        string
	Namespace string
	Name      string
	Labels    map[string]string
	Addrs     []netip.Addr
	Ports     []NamedPort
}

// NamedPort is a port that an endpoint declares.
type NamedPort struct {
	Name     string
	Protocol Protocol
	Number   uint16
}

// Ref is how people name an endpoint: NAMESPACE/NAME, or its id where it has no name.
func (e Endpoint) Ref() string {
	if e.Name == "" {
		return e.ID
	}
	return e.Namespace + "/" + e.Name
}

// At is the endpoint that has an address.
func (w World) At(a netip.Addr) (Endpoint, bool) {
	if w.byAddr != nil {
		i, ok := w.byAddr[a]
		if !ok {
			return Endpoint{}, false
		}
		return w.Endpoints[i], true
	}
	i := slices.IndexFunc(w.Endpoints, func(e Endpoint) bool { return slices.Contains(e.Addrs, a) })
	if i < 0 {
		return Endpoint{}, false
	}
	return w.Endpoints[i], true
}
