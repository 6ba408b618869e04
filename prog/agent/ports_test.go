package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/mesh"
)

// Ports that a firewall closes are told apart, with what to open; a host without any tunnel
// that works is not ready for containers.
func TestBlockages(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.2")
	down := errors.New("dial tcp 192.0.2.2:6783: i/o timeout")
	n := func(reachable, tunnel, fresh bool) neighbour {
		return neighbour{name: "00(h2)", addrs: []netip.Addr{addr}, port: 6784, gossip: 6783, reachable: reachable, tunnel: tunnel, fresh: fresh}
	}
	works := neighbour{name: "01(h3)", reachable: true, tunnel: true, fresh: true}
	for name, c := range map[string]struct {
		neighbours []neighbour
		targets    []mesh.Target
		want       []string // the keys
	}{
		"alone":                         {nil, nil, nil},
		"all is well":                   {[]neighbour{n(true, true, true), works}, []mesh.Target{{Host: "192.0.2.2", Connected: true}}, nil},
		"the tunnel's port":             {[]neighbour{n(true, true, false), works}, nil, []string{"tunnel 00(h2)"}},
		"the tunnel's port, of two":     {[]neighbour{n(true, true, false)}, nil, []string{"tunnel 00(h2)"}}, // whose fault is it?
		"the tunnel's port, everywhere": {[]neighbour{n(true, true, false), n(true, true, false)}, nil, []string{"tunnel 00(h2)", "tunnel 00(h2)", noTunnel}},
		"gossip's port":                 {[]neighbour{n(false, true, true)}, []mesh.Target{{Host: "192.0.2.2", Err: down}}, []string{"gossip 00(h2)"}},
		"the host is off":               {[]neighbour{n(false, true, false), works}, []mesh.Target{{Host: "192.0.2.2", Err: down}}, nil},
		"it is in another ring":         {[]neighbour{n(true, false, false)}, nil, nil},
		"gossip's port, UDP only":       {[]neighbour{{name: "00(h2)", port: 6784, gossip: 6783, reachable: true, mute: true, tunnel: true, fresh: true}}, nil, []string{"udp 00(h2)"}},
		"a target that never answered":  {[]neighbour{works}, []mesh.Target{{Host: "192.0.2.9", Err: down}}, []string{"target 192.0.2.9"}},
		"a target that is being tried":  {nil, []mesh.Target{{Host: "192.0.2.9"}}, nil},
	} {
		var p ports
		got := blockages(c.neighbours, c.targets, 6783)
		var keys []string
		for _, b := range got {
			keys = append(keys, b.key)
			if !strings.Contains(b.text, "pen ") || b.key != noTunnel && !strings.Contains(b.text, "678") {
				t.Errorf("%s: it does not say what to open: %s", name, b.text)
			}
		}
		if strings.Join(keys, ",") != strings.Join(c.want, ",") {
			t.Errorf("%s: %q, want %q", name, keys, c.want)
		}
		start := time.Now()
		for _, look := range []struct {
			after time.Duration
			seen  []blockage
			said  bool
		}{{0, got, false}, {lasting - time.Second, got, false}, {lasting, got, true}, {lasting + time.Second, nil, false}, {lasting + 2*time.Second, got, false}} {
			p.look(start.Add(look.after), look.seen)
			said := len(p.warnings()) > 0
			if said != (look.said && len(got) > 0) || (p.check() != nil) != (look.said && strings.HasSuffix(strings.Join(keys, ","), noTunnel)) {
				t.Errorf("%s, after %v: said %v, not ready: %v", name, look.after, p.warnings(), p.check())
			}
		}
	}
}
