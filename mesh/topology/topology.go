// Package topology plans the tunnels of this peer from the known peers, the owners of slots, and
// the addresses that this host can reach.
//
// Plan is a pure function: the same input gives the same tunnels in the same order. It does not act
// on the liveness of peers. A peer whose agent is down keeps its tunnel, because the agent is not
// in the data path.
package topology

import (
	"cmp"
	"net/netip"
	"slices"

	"weft/ipam/slot"
	"weft/mesh/path"
	"weft/mesh/peer"
)

// Tunnel is the desired configuration of one WireGuard peer.
type Tunnel struct {
	Peer         peer.ID
	PublicKey    [32]byte
	PresharedKey [32]byte
	Endpoint     netip.AddrPort   // the best known address
	Proven       bool             // a probe of the path was answered at Endpoint
	Left         netip.AddrPort   // the address that the path has left (path.Path.Left), for which Endpoint and Own stand now
	Own          netip.Addr       // this host's address towards Endpoint; only with Left
	Record       []netip.AddrPort // the addresses of its signed record
	AllowedIPs   []netip.Prefix   // the node address and the owned slots in both families; sorted
	Reach        Reach
	// Waits means that this host leaves the first handshake to the peer. If both begin one at the same moment,
	// WireGuard completes none, and tries again after 5 s.
	Waits bool
	// Route is the MTU of this host's route to the peer. Link is the MTU of the peer's link with the
	// Endpoint address, by its record; it counts until Measured, the path MTU, is known. 0: unknown.
	// SetMTUs computes MTU, the largest packet inside the tunnel.
	Route, Link, Measured int
	MTU                   int
	device                int // the MTU of the device
}

// Reach is a peer's reachability by gossip. It decides with which peers WireGuard makes handshakes,
// not which peers get tunnels.
type Reach uint8

// Gossip can report these states of a peer.
const (
	Unsure  Reach = iota // unreachable for a short time: the peer's data path may be alive
	Reached              // gossip reaches the peer
	Lost                 // unreachable for a long time
)

// Input is the input of Plan.
type Input struct {
	Self     peer.ID
	Ring     []byte // id of this peer's ring: peers of other rings get no tunnel
	Universe slot.Universe
	IPv6     bool // whether this host has IPv6 in the overlay
	Peers    []peer.Record
	Owned    map[peer.ID][]slot.Range
	// Underlay4 and Underlay6 are set if this host can send packets of that address family.
	Underlay4, Underlay6 bool
	// Preferred is the address at which gossip reaches a peer at present. That address is known to
	// work, so Plan uses it before the first address of the record.
	Preferred map[peer.ID]netip.Addr
	Reach     map[peer.ID]Reach
	// Planned are peers to which this host must not connect. They have no address until a probe has come from them.
	Planned map[peer.ID]bool
	// Paths are measured. The endpoint of a path is proven to work, so Plan uses it before all others.
	Paths map[peer.ID]path.Path
	// Route returns the MTU of this host's route to an address; 0 if unknown.
	Route func(netip.Addr) int
	// PresharedKey returns the pre-shared key of this peer and another peer; zero if they have none yet.
	// Then the peer gets no tunnel.
	PresharedKey func(peer.ID) [32]byte
}

// Plan returns the tunnels of a full mesh, sorted by PeerID.
func Plan(in Input) []Tunnel {
	var out []Tunnel
	for _, r := range in.Peers {
		id := r.ID()
		if id == in.Self || r.State == peer.Left || in.Universe.IsZero() || string(r.Ring) != string(in.Ring) {
			continue
		}
		endpoint, proven, ok := in.endpoint(r)
		psk := in.PresharedKey(id)
		if !ok || psk == [32]byte{} {
			continue
		}
		record, route := listens(r), 0
		if in.Planned[id] {
			record = nil
		}
		if endpoint.IsValid() {
			route = in.Route(endpoint.Addr())
		}
		out = append(out, Tunnel{
			Peer:         id,
			PublicKey:    r.WireGuard,
			PresharedKey: psk,
			Endpoint:     endpoint,
			Proven:       proven,
			Left:         in.Paths[id].Left,
			Own:          in.Paths[id].Own,
			Record:       record,
			AllowedIPs:   in.allowed(in.Owned[id]),
			Reach:        in.Reach[id],
			Waits:        slices.Compare(in.Self[:], id[:]) > 0,
			Route:        route,
			Link:         r.MTU(endpoint.Addr()),
			Measured:     in.Paths[id].MTU,
		})
	}
	slices.SortFunc(out, func(a, b Tunnel) int { return slices.Compare(a.Peer[:], b.Peer[:]) })
	return out
}

// listens returns the addresses of a record, with the port of its tunnels.
func listens(r peer.Record) (out []netip.AddrPort) {
	for _, a := range r.Underlay {
		out = append(out, netip.AddrPortFrom(a, r.Port))
	}
	return out
}

// endpoint returns the endpoint that a probe has proven. If there is none, it returns the address that
// gossip uses, or the first address in the record that this host can send to.
func (in Input) endpoint(r peer.Record) (endpoint netip.AddrPort, proven, ok bool) {
	if p := in.Paths[r.ID()].Endpoint; p.IsValid() {
		return p, true, true
	}
	if in.Planned[r.ID()] {
		return netip.AddrPort{}, false, true
	}
	usable := func(a netip.Addr) bool { return a.Is4() && in.Underlay4 || a.Is6() && in.Underlay6 }
	if a, ok := in.Preferred[r.ID()]; ok && usable(a) && slices.Contains(r.Underlay, a) {
		return netip.AddrPortFrom(a, r.Port), false, true
	}
	i := slices.IndexFunc(r.Underlay, usable)
	if i < 0 {
		return netip.AddrPort{}, false, false
	}
	return netip.AddrPortFrom(r.Underlay[i], r.Port), false, true
}

// allowed returns the allowed IPs of a peer for cryptokey routing. The peer's node address lies in
// a slot that the peer owns, so the owned ranges cover this address.
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
