package plan

import (
	"net/netip"
	"testing"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
)

// A tunnel that uses one relay gets an endpoint that stands for the peer. What comes by its other way must look as if it
// came from there too, or WireGuard follows it to an address that does not work.
func TestAllWaysOfATunnelStandForOneEndpoint(t *testing.T) {
	b := peer.ID{2}
	at := netip.MustParseAddrPort
	shared := at("192.0.2.2:6784") // two records name it
	tunnels := []topology.Tunnel{{Peer: b, Endpoint: shared}, {Peer: peer.ID{3}, Endpoint: shared}}
	out := relays(Inputs{Ways: []path.Way{
		{Peer: b, Relays: path.Relays{{8}}, To: at("192.0.2.8:6784"), Own: at("192.0.2.1:20001")},
		{Peer: b, Relays: path.Relays{{9}}, To: at("192.0.2.9:6784"), Own: at("192.0.2.1:20002"), Used: true},
		{Peer: b, Relays: path.Relays{{7}}, To: at("192.0.2.7:6784"), Own: at("192.0.2.1:20003")},
	}}, tunnels)
	for _, d := range out.Detours {
		if d.Peer != tunnels[0].Endpoint {
			t.Errorf("what comes by %v looks as if it came from %v, want %v, WireGuard's endpoint", d.Relay, d.Peer, tunnels[0].Endpoint)
		}
	}
}
