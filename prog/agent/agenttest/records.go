package agenttest

import (
	"crypto/ed25519"
	"net/netip"
	"slices"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/view"
)

// Record returns the record of the nth host, whose address is 192.0.2.n. The same n always gives the
// same identity.
func Record(n byte) peer.Record {
	key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{n}, ed25519.SeedSize))
	return peer.Record{
		Identity: key.Public().(ed25519.PublicKey), WireGuard: [32]byte{n}, Nickname: "h" + string('0'+rune(n)), Gossip: 6783, Port: 6784,
		Underlay: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, n})},
	}
}

// ViewOf returns the view of a peer that has a ring with all owners.
func ViewOf(own peer.Record, peers []mesh.Peer, owners ...peer.ID) *view.View {
	r := ring.Found(ring.ID{1}, [16]byte{1}, Universe(), owners...)
	v := &view.View{
		Snapshot: ipam.Snapshot{Ring: r, Allocations: map[string]slot.Slot{}, Lost: map[string]slot.Slot{}},
		Self:     own.ID(), Own: own, Owners: r.Owned(), Confirmed: true, Peers: peers,
		Records: map[peer.ID]peer.Record{}, Present: map[peer.ID]bool{}, Reach: map[peer.ID]topology.Reach{},
	}
	for _, p := range peers {
		if p.Record.Identity != nil {
			v.Records[p.Record.ID()], v.Present[p.Record.ID()] = p.Record, p.Reachable
		}
	}
	return v
}
