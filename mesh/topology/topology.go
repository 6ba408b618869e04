// Package topology plans the mesh: from who is here, who owns which slots and
// what this peer can reach, to the tunnels that it should have.
//
// Plan is a pure function: the same values in, the same tunnels out, in the same
// order. It never decides by liveness that it has not been told about: a peer
// whose agent is gone keeps its tunnel, because the agent is not in the data path.
package topology

import (
	"cmp"
	"net/netip"
	"slices"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// Tunnel is one WireGuard peer as it should be configured.
type Tunnel struct {
	Peer         peer.ID
	PublicKey    [32]byte
	PresharedKey [32]byte
	Endpoint     netip.AddrPort   // one of Record: the best guess
	Record       []netip.AddrPort // where its signed record says that it listens
	AllowedIPs   []netip.Prefix   // node address and owned slots, both families, sorted
	Reach        Reach
	// Route and Link are what this host's route to the peer carries, and the peer's link with
	// the address of Endpoint; 0: not known. MTU, see SetMTUs, is what follows inside the tunnel.
	Route, Link int
	MTU         int
	device      int // the device's MTU
}

// Reach is what gossip says of a peer. It decides who is called, never who has a tunnel.
type Reach uint8

// What gossip can say of a peer.
const (
	Unsure  Reach = iota // not reached, but not for long: its data path may well be alive
	Reached              // it answers now
	Lost                 // not reached for long
)

// Input is what a plan is made from.
type Input struct {
	Self     peer.ID
	Ring     []byte // id of the ring this peer is in: others' slots mean nothing here
	Universe slot.Universe
	IPv6     bool // whether this host carries IPv6 inside the overlay
	Peers    []peer.Record
	Owned    map[peer.ID][]slot.Range
	// Underlay4 and Underlay6 say which families this host can send on.
	Underlay4, Underlay6 bool
	// Preferred is where gossip reaches a peer right now, if it does: an address
	// that is known to work beats the order of the record.
	Preferred map[peer.ID]netip.Addr
	Reach     map[peer.ID]Reach
	// Route is the largest packet that this host's route to an address carries; 0: not known.
	Route func(netip.Addr) int
	// PresharedKey is the key for the pair of this peer and another.
	PresharedKey func(peer.ID) [32]byte
}

// Plan lists the tunnels of a full mesh, ordered by PeerID.
func Plan(in Input) []Tunnel {
	var out []Tunnel
	for _, r := range in.Peers {
		id := r.ID()
		if id == in.Self || r.State == peer.Left || in.Universe.IsZero() || string(r.Ring) != string(in.Ring) {
			continue
		}
		addr, ok := in.endpoint(r)
		if !ok {
			continue
		}
		out = append(out, Tunnel{
			Peer:         id,
			PublicKey:    r.WireGuard,
			PresharedKey: in.PresharedKey(id),
			Endpoint:     netip.AddrPortFrom(addr, r.Port),
			Record:       listens(r),
			AllowedIPs:   in.allowed(in.Owned[id]),
			Reach:        in.Reach[id],
			Route:        in.Route(addr),
			Link:         r.MTU(addr),
		})
	}
	slices.SortFunc(out, func(a, b Tunnel) int { return slices.Compare(a.Peer[:], b.Peer[:]) })
	return out
}

// listens are the addresses of a record, with the port of its tunnels.
func listens(r peer.Record) (out []netip.AddrPort) {
	for _, a := range r.Underlay {
		out = append(out, netip.AddrPortFrom(a, r.Port))
	}
	return out
}

// endpoint chooses the first address in the record that this host can send to,
// unless gossip shows that another of them works.
func (in Input) endpoint(r peer.Record) (netip.Addr, bool) {
	usable := func(a netip.Addr) bool { return a.Is4() && in.Underlay4 || a.Is6() && in.Underlay6 }
	if a, ok := in.Preferred[r.ID()]; ok && usable(a) && slices.Contains(r.Underlay, a) {
		return a, true
	}
	i := slices.IndexFunc(r.Underlay, usable)
	if i < 0 {
		return netip.Addr{}, false
	}
	return r.Underlay[i], true
}

// allowed is the list for cryptokey routing. The node address lies in a slot that
// the peer owns, so that the owned ranges cover it.
func (in Input) allowed(owned []slot.Range) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range owned {
		for _, p := range in.Universe.Prefixes(r) {
			if p.Addr().Is4() || in.IPv6 {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Addr().BitLen(), b.Addr().BitLen()), a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}
