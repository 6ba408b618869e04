package plan

import (
	"net/netip"
	"slices"
	"testing"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/router/nft"
)

// The rules of a way replace the address to which WireGuard sends. If a rule cannot do that, WireGuard gets an address
// that stands for the peer. No two elements of a map have the same key, or the kernel would refuse all rules.
func TestWaysOverRelays(t *testing.T) {
	at := netip.MustParseAddrPort
	const four, six, stands = "192.0.2.2:6784", "[2001:db8::2]:6784", "192.0.2.9:20001"
	way := path.Way{Peer: peer.ID{2}, To: at("192.0.2.9:6784"), Own: at("192.0.2.1:20001"), Used: true}
	unused := way
	unused.Used = false
	early := unused
	early.Own = netip.AddrPortFrom(netip.Addr{}, 20001)
	for name, c := range map[string]struct {
		endpoint      string
		route         int
		way           path.Way
		other         string // the endpoint of another tunnel
		want, planned string // Detour.Peer, and the tunnel's endpoint afterwards
		used          bool
	}{
		"used":                            {four, 1500, way, "", four, four, true},
		"not used":                        {four, 1500, unused, "", four, four, false},
		"of the other family":             {six, 1500, way, "", stands, stands, true},
		"of the other family, not used":   {six, 1500, unused, "", stands, six, true},
		"not registered yet":              {six, 1500, early, "", stands, six, false},
		"without a route":                 {four, 0, way, "", stands, stands, true},
		"without an address":              {"", 0, way, "", stands, stands, true},
		"the address of another one also": {four, 1500, way, four, stands, stands, true},
	} {
		tunnel := func(id byte, endpoint string) topology.Tunnel {
			out := topology.Tunnel{Peer: peer.ID{id}, Route: c.route}
			if endpoint != "" {
				out.Endpoint = at(endpoint)
			}
			return out
		}
		tunnels := []topology.Tunnel{tunnel(2, c.endpoint)}
		if c.other != "" {
			tunnels = append(tunnels, tunnel(3, c.other))
		}
		got := relays(Inputs{Ways: []path.Way{c.way}, Route: func(netip.Addr) int { return 1500 }}, tunnels)
		wanted := []string{c.want}
		if c.used && c.want != stands { // WireGuard may still have that endpoint
			wanted = append(wanted, stands)
		}
		var peers []string
		for _, d := range got.Detours {
			peers = append(peers, d.Peer.String())
		}
		if !slices.Equal(peers, wanted) {
			t.Errorf("%s: the rules are for %v, want %v", name, peers, wanted)
		}
		if got.Detours[0].Used != c.used || tunnels[0].Endpoint.String() != c.planned || tunnels[0].Proven != c.way.Used {
			t.Errorf("%s: the rules are %+v, and the tunnel is %+v; want used: %v, and the endpoint %s", name, got.Detours, tunnels[0], c.used, c.planned)
		}
	}
	got := relays(Inputs{Ways: []path.Way{{To: at("192.0.2.9:6784"), Own: early.Own}, {Peer: peer.ID{7}, To: way.To, Own: way.Own}}}, nil)
	if len(got.Detours) != 1 || got.Detours[0].Peer.IsValid() {
		t.Errorf("the rules are %+v, want those of this relay only, which asks another one", got.Detours)
	}
}

// Late packets get the new address only if no other tunnel has the old one.
func TestLatePackets(t *testing.T) {
	at, own := netip.MustParseAddrPort, netip.MustParseAddr("192.0.2.1")
	tunnels := []topology.Tunnel{
		{Peer: peer.ID{2}, Endpoint: at("192.0.2.2:6784"), Left: at("198.51.100.2:6784"), Own: own, Route: 1500},
		{Peer: peer.ID{3}, Endpoint: at("192.0.2.3:6784"), Left: at("198.51.100.4:6784"), Own: own, Route: 1500},
		{Peer: peer.ID{4}, Endpoint: at("198.51.100.4:6784"), Route: 1500},
	}
	want := nft.Late{From: tunnels[0].Left, Peer: tunnels[0].Endpoint, Own: own}
	if got := relays(Inputs{}, tunnels).Late; len(got) != 1 || got[0] != want {
		t.Errorf("the rules for late packets are %+v, want %+v", got, want)
	}
}

// A tunnel that uses one relay gets an endpoint that stands for the peer. What comes by its other way must look as if it
// came from there too, or WireGuard follows it to an address that does not work.
func TestAllWaysOfATunnelStandForOneEndpoint(t *testing.T) {
	b := peer.ID{2}
	at := netip.MustParseAddrPort
	shared := at("192.0.2.2:6784") // two records name it
	tunnels := []topology.Tunnel{{Peer: b, Endpoint: shared}, {Peer: peer.ID{3}, Endpoint: shared}}
	out := relays(Inputs{Route: func(netip.Addr) int { return 1500 }, Ways: []path.Way{
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

// Another tunnel's endpoint is, by chance, the one that would stand for a peer behind a relay. Its packets are left alone.
func TestWhatStandsForAPeerTakesNoOtherEndpoint(t *testing.T) {
	at := netip.MustParseAddrPort
	relay, own := at("192.0.2.9:6784"), at("192.0.2.1:20001")
	other := netip.AddrPortFrom(relay.Addr(), own.Port())
	tunnels := []topology.Tunnel{{Peer: peer.ID{2}, Endpoint: at("192.0.2.2:6784"), Route: 1500}, {Peer: peer.ID{3}, Endpoint: other, Route: 1500}}
	way := path.Way{Peer: peer.ID{2}, Relays: path.Relays{{9}}, To: relay, Own: own, Used: true}
	for _, d := range relays(Inputs{Ways: []path.Way{way}, Route: func(netip.Addr) int { return 1500 }}, tunnels).Detours {
		if d.Used && d.Peer == other {
			t.Errorf("what goes to the endpoint %v of another tunnel is sent to the relay: %+v", other, d)
		}
	}
}
