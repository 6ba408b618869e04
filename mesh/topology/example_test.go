package topology_test

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"

	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/topology"
)

// A tunnel leads to each other peer. Its allowed IPs are what that peer owns.
func ExamplePlan() {
	record := func(seed byte, addr string) peer.Record {
		key := ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), seed))
		return peer.Record{
			Identity: key.Public().(ed25519.PublicKey), Nickname: fmt.Sprint("h", seed), WireGuard: [32]byte{seed},
			Underlay: []netip.Addr{netip.MustParseAddr(addr)}, Port: 6784,
		}
	}
	h1, h2 := record(1, "192.0.2.1"), record(2, "192.0.2.2")
	tunnels := topology.Plan(topology.Input{
		Self: h1.ID(), Peers: []peer.Record{h1, h2}, IPv6: true, Underlay4: true,
		Universe:     slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd00::/96")},
		Owned:        map[peer.ID][]slot.Range{h1.ID(): {{Start: 0, End: 256}}, h2.ID(): {{Start: 256, End: 512}}},
		Route:        func(netip.Addr) int { return 1500 },
		PresharedKey: func(peer.ID) [32]byte { return [32]byte{1} },
	})
	device := topology.SetMTUs(tunnels, 1500, 0)
	for _, t := range tunnels {
		fmt.Println(t.Peer == h2.ID(), t.Endpoint, t.AllowedIPs)
	}
	fmt.Println("MTU of the device:", device)
	// Output:
	// true 192.0.2.2:6784 [10.32.1.0/24 fd00::100/120]
	// MTU of the device: 1420
}
