package policy

import (
	"cmp"
	"net/netip"
)

// Program is what a host's kernel runs for every packet: by its source's and its
// destination's address to a chain, which has to have a match.
//
// What chains there are follows from policies and labels alone. Which endpoint is where is in
// the sets and in Isolated, so that one that comes or goes changes elements, and no chain.
//
// Programs of one Compiler share the sets and chains that are the same: who loads one after
// the other need not look into those.
type Program struct {
	Isolated []Isolated // by direction and address
	Tried    []Isolated // the same with the policies that are only tried, where they select the endpoint
	Chains   []*Chain   // by name
	Sets     []*Set     // by name
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

// Set is a named set, shared by all matches that mean the same. It holds one of three things.
type Set struct {
	Name     string
	Kind     SetKind
	Addrs    []netip.Addr // of endpoints that selectors choose, sorted
	Blocks   []Interval   // sorted and apart
	Services []Service    // named ports, sorted
}

// SetKind is what a set holds.
type SetKind uint8

// The kinds of sets.
const (
	Addrs SetKind = iota
	Blocks
	Services
)

// Interval is the addresses First to Last, both included.
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
