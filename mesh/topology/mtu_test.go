package topology

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestTunnelMTUFollowsPathMTU(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.2:6784"), netip.MustParseAddrPort("[2001:db8::2]:6784")
	for name, tt := range map[string]struct {
		link, given              int
		peer                     netip.AddrPort
		route, theirs            int
		device, inside4, inside6 int
	}{
		"equal links":                            {1500, 0, v4, 1500, 1500, 1420, 1420, 1420},
		"equal links, over IPv6":                 {1500, 0, v6, 1500, 1500, 1420, 1420, 1420},
		"peer with unknown MTU":                  {9000, 0, v4, 9000, 0, 8920, 8920, 8920},
		"jumbo frames on both hosts":             {9000, 0, v4, 9000, 9000, 8920, 8920, 8920},
		"jumbo frames on this host":              {9000, 0, v4, 9000, 1500, 8920, 1420, 1420},
		"jumbo frames on this host, over IPv6":   {9000, 0, v6, 9000, 1500, 8920, 1408, 1408},
		"jumbo frames on the peer":               {1500, 0, v4, 1500, 9000, 1420, 1420, 1420},
		"jumbo frames on another link":           {1500, 0, v4, 9000, 9000, 8920, 8920, 8920},
		"route with a smaller MTU":               {1500, 0, v4, 1400, 1500, 1420, 1320, 1320},
		"below the IPv6 minimum":                 {1500, 0, v4, 1280, 1500, 1420, 1200, 1280},
		"no route":                               {1500, 0, v4, 0, 1500, 1420, 1420, 1420},
		"all MTUs unknown":                       {0, 0, v4, 0, 0, 1420, 1420, 1420},
		"link with the IPv6 minimum":             {1280, 0, v4, 1280, 1280, 1280, 1200, 1280},
		"impossible MTU of the peer":             {1500, 0, v4, 1500, 1, 1420, 576, 1280},
		"configured MTU":                         {1500, 1300, v4, 1500, 1500, 1300, 1300, 1300},
		"configured MTU above that of the links": {1500, 8920, v4, 1500, 9000, 8920, 8920, 8920},
		"configured MTU of the peer":             {1500, 0, v4, 1500, 1380, 1420, 1300, 1300},
	} {
		tunnels := []Tunnel{{Endpoint: tt.peer, Route: tt.route, Link: tt.theirs}}
		device := SetMTUs(tunnels, tt.link, tt.given)
		if got := tunnels[0]; device != tt.device || got.MTUFor(false) != tt.inside4 || got.MTUFor(true) != tt.inside6 {
			t.Errorf("%s: the MTUs of the device, IPv4 and IPv6 are %d, %d, %d; want %d, %d, %d", name, device, got.MTUFor(false), got.MTUFor(true), tt.device, tt.inside4, tt.inside6)
		}
	}
	if device := SetMTUs(nil, 1500, 0); device != 1420 {
		t.Errorf("without a peer the device's MTU is %d, want 1420", device)
	}
}

// Packets of a tunnel's MTU fit into its path MTU, unless IP itself requires larger packets. No
// tunnel MTU exceeds the MTU of the device.
func TestTunnelPacketsFitPathMTU(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mtu := rapid.OneOf(rapid.Just(0), rapid.IntRange(68, 65535))
		tunnel := rapid.Custom(func(t *rapid.T) Tunnel {
			addr := rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}).Draw(t, "addr")
			return Tunnel{Endpoint: netip.AddrPortFrom(addr, 6784), Route: mtu.Draw(t, "route"), Link: mtu.Draw(t, "link")}
		})
		tunnels := rapid.SliceOfN(tunnel, 1, 4).Draw(t, "tunnels")
		device := SetMTUs(tunnels, mtu.Draw(t, "own"), 0)
		for _, x := range tunnels {
			size := rapid.IntRange(1, x.MTU).Draw(t, "size")
			if fits := x.Sealed(size) <= x.Path(); !fits && x.Path() != 0 && x.MTU > leastMTU && device > MinMTU {
				t.Errorf("an inner packet of %d bytes has %d bytes on the underlay; want at most the path MTU %d: %+v", size, x.Sealed(size), x.Path(), x)
			}
			if x.MTU > device || x.MTUFor(true) < MinMTU || x.MTUFor(true) > device {
				t.Errorf("a tunnel MTU exceeds the device MTU %d, or is below the IPv6 minimum; want neither: %+v", device, x)
			}
		}
	})
}

// Nothing larger is measured than what this host's route and the peer's link carry.
func TestEndsLimitTheMTU(t *testing.T) {
	for _, c := range [][3]int{{1500, 9000, 1500}, {9000, 1500, 1500}, {1500, 0, 1500}, {0, 1500, 0}} {
		if got := (Tunnel{Route: c[0], Link: c[1], Measured: 1280}).Ends(); got != c[2] {
			t.Errorf("with a route of %d and a link of %d, the ends allow %d, want %d", c[0], c[1], got, c[2])
		}
	}
}
