// Package policy implements NetworkPolicy (networking.k8s.io/v1) as pure functions: which packets
// the policies of a cluster allow.
//
// The package has two implementations, and tests compare them. Evaluate follows the API's specification
// for one packet, and names the rule that decided. Compile builds the program that the kernel runs for
// every packet.
//
// The semantics are those of the API. An endpoint that no policy selects for a direction may do
// everything in that direction. An endpoint that a policy selects is isolated: it may do what at
// least one of its policies allows, and nothing else. A connection needs egress at its source and
// ingress at its destination. Replies of an allowed connection are allowed.
//
// The package reads no clock, network or disk.
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
	Pods            Selector // the endpoints in Namespace that the policy isolates
	// Isolates are the directions in which the policy isolates the pods; rules of other directions
	// are ignored.
	Isolates        Directions
	Ingress, Egress []Rule
	// Audit is set if the policy is in audit mode: packets that it would deny are logged, but pass.
	Audit bool
	// Unread lists the parts that could not be parsed, for messages. All other parts are in force.
	// An unparsed part allows nothing; Peer.Unread and Port.Unread mark it.
	Unread []string
}

// Ref returns the policy's name for messages: NAMESPACE/NAME.
func (p Policy) Ref() string { return p.Namespace + "/" + p.Name }

// Direction is ingress or egress.
type Direction uint8

// Directions is a set of directions.
type Directions uint8

// These are the directions, as seen from the endpoint.
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

// Both is the set of both directions.
const Both Directions = 1<<Ingress | 1<<Egress

// Of returns a set of directions.
func Of(list ...Direction) (out Directions) {
	for _, d := range list {
		out |= 1 << d
	}
	return out
}

// Has reports whether d is in the set.
func (ds Directions) Has(d Direction) bool { return ds&(1<<d) != 0 }

// rules returns the rules of a direction.
func (p Policy) rules(d Direction) []Rule {
	if d == Egress {
		return p.Egress
	}
	return p.Ingress
}

// Rule allows connections with one of its peers on one of its ports.
type Rule struct {
	Peers []Peer // empty: all peers
	Ports []Port // empty: every port of every protocol
}

// Peer is the other side of a connection: endpoints selected by labels, or a block of addresses.
// Exactly one of Block, the selectors and Unread is set.
type Peer struct {
	// Namespaces selects namespaces; nil means the policy's own namespace. Pods selects endpoints
	// in these namespaces; nil means all endpoints.
	Namespaces, Pods *Selector
	Block            *Block
	Unread           bool // the peer could not be parsed and matches nothing
}

// Block is the addresses of CIDR without the addresses of Except.
type Block struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Contains reports whether the block contains an address.
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

// Protocol is an IP protocol number.
type Protocol uint8

// These are the protocols of policies, and two protocols without ports, which only rules without
// ports allow.
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

// Port is a port or a range of ports of one protocol. Without number and name, it means all ports
// of the protocol.
type Port struct {
	Protocol    Protocol
	Number, End uint16 // End is the last port of a range, or 0
	Name        string // name of a port that the destination declares
	Unread      bool   // the port could not be parsed and matches nothing
}

func (p Port) String() string {
	switch {
	case p.Unread:
		return "(unparsed port)"
	case p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP:
		return p.Protocol.String() // this protocol has no ports
	case p.Name != "":
		return p.Name + "/" + p.Protocol.String()
	case p.Number == 0:
		return "any/" + p.Protocol.String()
	case p.End != 0:
		return fmt.Sprintf("%d-%d/%v", p.Number, p.End, p.Protocol)
	}
	return fmt.Sprintf("%d/%v", p.Number, p.Protocol)
}

// World is everything that policies refer to.
type World struct {
	// Namespaces has the labels of the known namespaces. In addition, every namespace has the label
	// kubernetes.io/metadata.name with its name.
	Namespaces map[string]map[string]string
	Endpoints  []Endpoint
	Hosts      []Host

	byAddr map[netip.Addr]int // index of Endpoints; nil means linear search
}

// NameLabel is the label with the name of a namespace (Kubernetes 1.21 and later).
const NameLabel = "kubernetes.io/metadata.name"

// namespace returns the labels of a namespace.
func (w World) namespace(name string) Labels {
	return Labels{w.Namespaces[name], name}
}

// Labels are the labels of an endpoint or a namespace.
type Labels struct {
	set  map[string]string
	name string // the namespace's name, for NameLabel
}

// Get returns the value of a label, and whether it exists.
func (l Labels) Get(key string) (string, bool) {
	if key == NameLabel && l.name != "" {
		return l.name, true
	}
	v, ok := l.set[key]
	return v, ok
}

// Endpoint is a pod or container that policies can select.
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

// Ref returns the endpoint's name for messages: NAMESPACE/NAME, or its id if it has no name.
func (e Endpoint) Ref() string {
	if e.Name == "" {
		return e.ID
	}
	return e.Namespace + "/" + e.Name
}

// At returns the endpoint with an address.
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
