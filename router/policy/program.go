package policy

import (
	"cmp"
	"net/netip"
)

// Program is the compiled form of policies, which a host's kernel runs for every packet. The
// addresses of source and destination lead to chains; a packet passes if a match of the chain fits.
//
// The chains depend only on policies and labels. Endpoints occur only in the sets and in Isolated,
// so that an added or removed endpoint changes elements, but no chain.
//
// Programs of one Compiler share unchanged sets and chains in memory, so a loader can skip them by
// comparing pointers.
type Program struct {
	Isolated []Isolated // sorted by direction and address
	Tried    []Isolated // the endpoints that policies in audit mode select, with the chains that would enforce those policies too
	Chains   []*Chain   // sorted by name
	Sets     []*Set     // sorted by name
}

// Isolated assigns a chain to an address of an endpoint on this host.
type Isolated struct {
	Direction Direction
	Addr      netip.Addr
	Chain     string
	Self      []netip.Addr // all addresses of the endpoint, which can always reach itself
}

// Chain allows packets that one of its matches fits, and no other packets. Its name is derived from
// its content.
type Chain struct {
	Name      string
	Direction Direction
	Matches   []Match
}

// Match fits a packet if all fields of the Match fit.
type Match struct {
	Peers    string   // name of the set with the address of the other side; empty: any
	Protocol Protocol // 0: any protocol
	Ports    []Range  // ports of the destination; empty: all ports, unless Named is set
	Named    string   // name of the set with destination, protocol and port
}

// Range is the ports First to Last, inclusive.
type Range struct{ First, Last uint16 }

// Set is a named set, shared by all matches with the same content. It has one kind of elements.
type Set struct {
	Name     string
	Kind     SetKind
	Addrs    []netip.Addr // addresses of the selected endpoints; sorted
	Blocks   []Interval   // sorted, disjoint
	Services []Service    // named ports; sorted
}

// SetKind is the kind of a set's elements.
type SetKind uint8

// These are the kinds of sets.
const (
	Addrs SetKind = iota
	Blocks
	Services
)

// Interval is the addresses First to Last, inclusive.
type Interval struct{ First, Last netip.Addr }

// Service is a named port of an endpoint.
type Service struct {
	Addr     netip.Addr
	Protocol Protocol
	Port     uint16
}

// Compare orders services by address, protocol and port.
func (s Service) Compare(o Service) int {
	return cmp.Or(s.Addr.Compare(o.Addr), cmp.Compare(s.Protocol, o.Protocol), cmp.Compare(s.Port, o.Port))
}
