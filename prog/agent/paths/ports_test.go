package paths

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/view"
	"weft/router/wg"
)

// Each port that a firewall closes is reported with the port to open. A host without any working
// tunnel is not ready for containers.
func TestClosedPortsAreReportedByName(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.2")
	down := errors.New("dial tcp 192.0.2.2:6783: i/o timeout")
	n := func(reachable, tunnel, fresh bool) neighbour {
		return neighbour{name: "00(h2)", addrs: []netip.Addr{addr}, port: 6784, gossip: 6783, reachable: reachable, tunnel: tunnel, fresh: fresh}
	}
	through := func(udp, tcp bool) []neighbour {
		in := n(true, true, true)
		in.inside, in.mute = inside{udp, tcp}, udp
		return []neighbour{in}
	}
	hidden := func(p path.Path) []neighbour {
		in := through(true, true)
		in[0].path = p
		return in
	}
	works := neighbour{name: "01(h3)", reachable: true, tunnel: true, fresh: true}
	for name, c := range map[string]struct {
		neighbours []neighbour
		targets    []mesh.Target
		want       []string // About of the problems
	}{
		"alone":                         {nil, nil, nil},
		"all is well":                   {[]neighbour{n(true, true, true), works}, []mesh.Target{{Host: "192.0.2.2", Connected: true}}, nil},
		"the tunnel's port":             {[]neighbour{n(true, true, false), works}, nil, []string{"tunnel 00(h2)"}},
		"the tunnel's port, of two":     {[]neighbour{n(true, true, false)}, nil, []string{"tunnel 00(h2)"}}, // with a single tunnel, either host may be at fault
		"the tunnel's port, everywhere": {[]neighbour{n(true, true, false), n(true, true, false)}, nil, []string{"tunnel 00(h2)", "tunnel 00(h2)", noTunnel}},
		"gossip's port":                 {[]neighbour{n(false, true, true)}, []mesh.Target{{Host: "192.0.2.2", Err: down}}, []string{"gossip 00(h2)"}},
		"the host is off":               {[]neighbour{n(false, true, false), works}, []mesh.Target{{Host: "192.0.2.2", Err: down}}, nil},
		"the peer is in another ring":   {[]neighbour{n(true, false, false)}, nil, nil},
		"gossip's port, UDP only":       {[]neighbour{{name: "00(h2)", port: 6784, gossip: 6783, reachable: true, mute: true, tunnel: true, fresh: true}}, nil, []string{"udp 00(h2)"}},
		"gossip through the tunnel":     {through(true, true), nil, []string{"inside 00(h2)"}},
		"gossip to a host behind NAT":   {hidden(path.Path{State: path.Direct, Endpoint: netip.MustParseAddrPort("203.0.113.1:40000")}), nil, nil},
		"gossip over a relay":           {hidden(path.Path{State: path.Direct, Via: path.Relays{{1}}}), nil, nil},
		"packets through the tunnel":    {through(true, false), nil, []string{"udp 00(h2)"}},
		"streams through the tunnel":    {through(false, true), nil, []string{"tcp 00(h2)"}},
		"a target that never answered":  {[]neighbour{works}, []mesh.Target{{Host: "192.0.2.9", Err: down}}, []string{"target 192.0.2.9"}},
		"a target that is being tried":  {nil, []mesh.Target{{Host: "192.0.2.9"}}, nil},
	} {
		got := blockages(c.neighbours, c.targets, 6783)
		var about []string
		for _, b := range got {
			about = append(about, b.About)
			if strings.Contains(name, "through the tunnel") != strings.Contains(b.Effect, "goes through the tunnel meanwhile") {
				t.Errorf("%s: the effect of %s is %q, want the tunnel in it only if gossip goes there", name, b.About, b.Effect)
			}
			if !strings.Contains(b.Fix, "open ") || b.About != noTunnel && !strings.Contains(b.Fix, "678") {
				t.Errorf("%s: the fix of %s says no port, want the port to open", name, b)
			}
		}
		if strings.Join(about, ",") != strings.Join(c.want, ",") {
			t.Errorf("%s: %q, want %q", name, about, c.want)
		}
		p := New(Config{Measured: unmeasured, Tunnels: func() []topology.Tunnel { return nil }})
		start := time.Now()
		for _, look := range []struct {
			after time.Duration
			seen  []blockage
			said  bool
		}{{0, got, false}, {lasting - time.Second, got, false}, {lasting, got, true}, {lasting + time.Second, nil, false}, {lasting + 2*time.Second, got, false}} {
			p.look(start.Add(look.after), look.seen)
			said := len(p.Problems(&view.View{})) > 0
			if said != (look.said && len(got) > 0) || (p.Check() != nil) != (look.said && strings.HasSuffix(strings.Join(about, ","), noTunnel)) {
				t.Errorf("%s, after %v: problems %v, Check returned %v; want both only once a blockage has lasted", name, look.after, p.Problems(&view.View{}), p.Check())
			}
		}
	}
}

// A tunnel that probes have found not to work is reported at once, with the side that is at fault as far
// as it is known.
func TestMeasuredBlockagesAreReportedAtOnceWithTheirCause(t *testing.T) {
	for name, tt := range map[string]struct {
		path      path.Path
		reachable bool
		want      string // a part of the text; empty: no problem
	}{
		"works":                       {path.Path{State: path.Direct}, true, ""},
		"nothing is heard":            {path.Path{State: path.Deaf}, true, "UDP 6784 of 00(h2) does not answer, though gossip reaches that host"},
		"the own firewall":            {path.Path{State: path.Deaf, Refused: true}, true, "this host's own firewall drops packets to UDP 6784"},
		"one direction only":          {path.Path{State: path.Unheard}, true, "packets of this host to its UDP 6784 do not"},
		"the host is off":             {path.Path{State: path.Deaf}, false, ""},
		"gossip fails, tunnel works":  {path.Path{State: path.Direct}, false, ""}, // it has to last
		"handshakes, but no answer":   {path.Path{State: path.Deaf}, true, "does not answer"},
		"not measured, no handshakes": {path.Path{}, true, ""}, // it has to last
	} {
		n := neighbour{name: "00(h2)", port: 6784, gossip: 6783, reachable: tt.reachable, tunnel: true, fresh: name == "handshakes, but no answer", path: tt.path}
		p := New(Config{Measured: unmeasured, Tunnels: func() []topology.Tunnel { return nil }})
		p.look(time.Now(), blockages([]neighbour{n}, nil, 6783))
		got := p.Problems(&view.View{})
		if len(got) != min(len(tt.want), 1) || len(got) > 0 && (!strings.Contains(got[0].String(), tt.want) || got[0].Fix == "") {
			t.Errorf("%s: problems %v; want %q", name, got, tt.want)
		}
	}
}

func TestOnlyAHandshakeAfterTheLossProvesThatAPeerLives(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	started := now.Add(-time.Hour)
	for name, tt := range map[string]struct {
		change    func(*mesh.Peer)
		handshake time.Duration // the age of the last handshake; 0: there is no tunnel
		want      int           // the number of neighbours
		fresh     bool
	}{
		"reached, keys in use":          {func(p *mesh.Peer) { p.Reachable, p.UDPInside = true, true }, time.Minute, 1, true},
		"reached, keys too old":         {func(p *mesh.Peer) { p.Reachable = true }, time.Hour, 1, false},
		"no tunnel":                     {func(p *mesh.Peer) { p.Reachable = true }, 0, 1, false},
		"lost, keys from before":        {func(p *mesh.Peer) { p.Since = now.Add(-30 * time.Second) }, time.Minute, 1, false},
		"lost, keys from after":         {func(p *mesh.Peer) { p.Since = now.Add(-2 * time.Minute) }, time.Minute, 1, true},
		"never reached since the start": {func(*mesh.Peer) {}, time.Minute, 1, true},
		"its agent was stopped":         {func(p *mesh.Peer) { p.Record.State = peer.Stopped }, time.Minute, 0, false},
		"only the peer's name is known": {func(p *mesh.Peer) { p.Record = peer.Record{} }, time.Minute, 0, false},
		"it is this host":               {func(p *mesh.Peer) { p.Record = agenttest.Record(1) }, time.Minute, 0, false},
	} {
		own, p, seen := agenttest.Record(1), mesh.Peer{Record: agenttest.Record(2)}, wg.Observed{Peers: map[[32]byte]wg.Peer{}}
		tt.change(&p)
		if tt.handshake != 0 {
			seen.Peers[[32]byte{2}] = wg.Peer{Handshake: now.Add(-tt.handshake)}
		}
		of := New(Config{Started: started, Measured: unmeasured})
		got := of.neighbours(agenttest.ViewOf(own, []mesh.Peer{p}, own.ID()), seen, now)
		if len(got) != tt.want || len(got) == 1 && (got[0].fresh != tt.fresh || got[0].tunnel != (tt.handshake != 0) || got[0].inside.udp != p.UDPInside || got[0].inside.tcp) {
			t.Errorf("%s: neighbours %+v, want the row's", name, got)
		}
	}
}
