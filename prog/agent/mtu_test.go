package agent

import (
	"net/netip"
	"strings"
	"testing"

	"weft/mesh/topology"
)

// A path that carries less than the tunnel needs is named with its fix; one that carries less
// than others, but enough, is no trouble.
func TestANarrowPathIsNamed(t *testing.T) {
	const mine, theirs = "this host's route to 192.0.2.2", "the link with 192.0.2.2 on that host"
	for name, tt := range map[string]struct {
		route, link, given int
		ipv6               bool
		want               []string // none: no warning
	}{
		"all links alike":              {1500, 1500, 0, true, nil},
		"a peer that does not say":     {1500, 0, 0, true, nil},
		"no route":                     {0, 1500, 0, true, nil},
		"less, but enough":             {1400, 1500, 0, true, nil},
		"just enough for IPv6":         {1340, 1500, 0, true, nil},
		"too little for IPv6":          {1339, 1500, 0, true, []string{mine + " is 1339", "IPv6 in the tunnel needs 1340", "raise it (see `ip route get 192.0.2.2`)"}},
		"without IPv6":                 {1280, 1500, 0, false, nil},
		"too little on the other side": {1500, 1280, 0, true, []string{theirs + " is 1280", "IPv6 in the tunnel needs 1340"}},
		"an MTU that was given":        {1500, 1500, 1300, true, nil},
		"one that is too large":        {1400, 1500, 1420, true, []string{mine + " is 1400", "needs 1480", "a smaller --mtu"}},
	} {
		tunnels := []topology.Tunnel{{Endpoint: netip.MustParseAddrPort("192.0.2.2:6784"), Route: tt.route, Link: tt.link}}
		topology.SetMTUs(tunnels, 1500, tt.given)
		got := narrow(tunnels[0], "h2", tt.ipv6, tt.given != 0)
		if (got == "") != (tt.want == nil) {
			t.Errorf("%s: %q", name, got)
		}
		for _, w := range append(tt.want, "h2") {
			if got != "" && !strings.Contains(got, w) {
				t.Errorf("%s: %q does not say %q", name, got, w)
			}
		}
	}
}

// What the operator wants of the device, other hosts are told.
func TestAGivenMTUIsTold(t *testing.T) {
	a := New(Options{MTU: 1300})
	mtus, err := a.linkMTUs([]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
	if err != nil || len(mtus) != 2 || mtus[0] != 1380 || mtus[1] != 1380 {
		t.Errorf("%v, %v", mtus, err)
	}
}
