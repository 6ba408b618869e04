package paths

import (
	"net/netip"
	"strings"
	"testing"

	"weft/mesh"
	"weft/mesh/topology"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
)

// A path whose MTU is too small for the tunnel is a problem with a fix. A path with a smaller MTU
// than others, which suffices for the tunnel, is no problem.
func TestATooSmallPathMTUIsReported(t *testing.T) {
	const mine, theirs = "this host's route to 192.0.2.2", "the link with 192.0.2.2 on that host"
	for name, tt := range map[string]struct {
		route, link, given int
		ipv6               bool
		want               []string // words in the text of the problem; none: no problem
	}{
		"all links alike":              {1500, 1500, 0, true, nil},
		"a peer that does not say":     {1500, 0, 0, true, nil},
		"no route":                     {0, 1500, 0, true, nil},
		"less, but enough":             {1400, 1500, 0, true, nil},
		"just enough for IPv6":         {1340, 1500, 0, true, nil},
		"too little for IPv6":          {1339, 1500, 0, true, []string{mine + " is 1339", "IPv6 in the tunnel needs 1340", "aise it (see `ip route get 192.0.2.2`)"}},
		"without IPv6":                 {1280, 1500, 0, false, nil},
		"too little on the other side": {1500, 1280, 0, true, []string{theirs + " is 1280", "IPv6 in the tunnel needs 1340"}},
		"an MTU that was given":        {1500, 1500, 1300, true, nil},
		"an MTU that is too large":     {1400, 1500, 1420, true, []string{mine + " is 1400", "needs 1480", "a smaller --mtu"}},
	} {
		own, other := agenttest.Record(1), agenttest.Record(2)
		tunnels := []topology.Tunnel{{Peer: other.ID(), Endpoint: netip.MustParseAddrPort("192.0.2.2:6784"), Route: tt.route, Link: tt.link}}
		topology.SetMTUs(tunnels, 1500, tt.given)
		p := New(Config{View: &live.Value[*view.View]{}, IPv6: tt.ipv6, Measured: unmeasured, GivenMTU: tt.given != 0, Tunnels: func() []topology.Tunnel { return tunnels }})
		agenttest.Set(p.cfg.View, agenttest.ViewOf(own, []mesh.Peer{{Record: own}, {Record: other}}, own.ID()))
		list := p.Problems(p.cfg.View.Get())
		if (len(list) == 0) != (tt.want == nil) {
			t.Errorf("%s: problems %v, want one only if the row has words", name, list)
		}
		for _, one := range list {
			for _, w := range append(tt.want, "h2") {
				if !strings.Contains(one.String(), w) {
					t.Errorf("%s: problem %q, want %q in it", name, one, w)
				}
			}
		}
	}
}
