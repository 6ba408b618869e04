package wg

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"

	"weft/mesh/topology"
)

var now = time.Unix(1_800_000_000, 0)

func key(n byte) wgtypes.Key { return wgtypes.Key{0: n, 31: 7} }

func prefixes(words string) []netip.Prefix {
	var out []netip.Prefix
	for w := range strings.FieldsSeq(words) {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

func tunnel(n byte, endpoint, allowed string) topology.Tunnel {
	t := topology.Tunnel{PublicKey: key(n), PresharedKey: [32]byte{n}, AllowedIPs: prefixes(allowed)}
	if endpoint != "" {
		t.Endpoint = netip.MustParseAddrPort(endpoint)
		t.Record = []netip.AddrPort{t.Endpoint}
	}
	return t
}

// listening adds what the record says besides.
func listening(t topology.Tunnel, endpoints ...string) topology.Tunnel {
	for _, e := range endpoints {
		t.Record = append(t.Record, netip.MustParseAddrPort(e))
	}
	return t
}

// heard is a peer from which nothing has come for a while.
func heard(l live, silent time.Duration) live {
	l.heard = now.Add(-silent)
	return l
}

func peerOf(n byte, endpoint, allowed string, silent time.Duration) live {
	l := live{psk: wgtypes.Key{n}, allowed: prefixes(allowed), keepalive: keepalive, handshake: now.Add(-silent)}
	if endpoint != "" {
		l.endpoint = netip.MustParseAddrPort(endpoint)
	}
	return l
}

func reach(t topology.Tunnel, r topology.Reach) topology.Tunnel {
	t.Reach = r
	return t
}

func hushed(l live) live {
	l.keepalive = 0
	return l
}

// describe writes changes as wg(8) would be told them.
func describe(changes []wgtypes.PeerConfig) []string {
	var out []string
	for _, c := range changes {
		name := fmt.Sprintf("peer %d", c.PublicKey[0])
		if c.PublicKey == sink {
			name = "sink"
		}
		if c.Remove {
			out = append(out, name+" remove")
			continue
		}
		if c.PresharedKey != nil {
			name += fmt.Sprintf(" psk %d", c.PresharedKey[0])
		}
		if c.Endpoint != nil {
			name += fmt.Sprintf(" endpoint %v", c.Endpoint)
		}
		if c.PersistentKeepaliveInterval != nil {
			name += fmt.Sprintf(" keepalive %v", *c.PersistentKeepaliveInterval)
		}
		for _, n := range c.AllowedIPs {
			name += " +" + n.String()
		}
		out = append(out, name)
	}
	return out
}

func TestDiff(t *testing.T) {
	const e1, e2, roamed = "192.0.2.1:6784", "192.0.2.2:6784", "198.51.100.9:40000"
	const minute, hour = time.Minute, time.Hour
	for _, tt := range []struct {
		name    string
		have    map[wgtypes.Key]live
		want    []topology.Tunnel
		planned string // the endpoint that was planned last for peer 1
		changes []string
	}{
		{
			name:    "a new peer gets everything",
			want:    []topology.Tunnel{tunnel(1, e1, "10.32.0.0/16 fd00::/112")},
			changes: []string{"peer 1 psk 1 endpoint 192.0.2.1:6784 keepalive 25s +10.32.0.0/16 +fd00::/112"},
		},
		{
			name: "what is right is left alone",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "10.32.0.0/16", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "10.32.0.0/16")}, planned: e1,
		},
		{
			name: "a roamed endpoint stays",
			have: map[wgtypes.Key]live{key(1): peerOf(1, roamed, "", hour)},
			want: []topology.Tunnel{tunnel(1, e1, "")}, planned: e1,
		},
		{
			name: "a record that changed beats what was learned, once nothing comes from there",
			have: map[wgtypes.Key]live{key(1): heard(peerOf(1, roamed, "", minute), minute)},
			want: []topology.Tunnel{tunnel(1, e2, "")}, planned: e1,
			changes: []string{"peer 1 endpoint 192.0.2.2:6784"},
		},
		{
			name: "and not before",
			have: map[wgtypes.Key]live{key(1): heard(peerOf(1, roamed, "", minute), 20*time.Second)},
			want: []topology.Tunnel{tunnel(1, e2, "")}, planned: e1,
		},
		{
			name: "a better guess does not replace what works",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "", minute)},
			want: []topology.Tunnel{listening(tunnel(1, e2, ""), e1)}, planned: e1,
		},
		{
			name: "it does once the session is too old",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "", 4*minute)},
			want: []topology.Tunnel{listening(tunnel(1, e2, ""), e1)}, planned: e1,
			changes: []string{"peer 1 endpoint 192.0.2.2:6784"},
		},
		{
			name: "an endpoint that the peer does not name any more is replaced at once",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "", minute)},
			want: []topology.Tunnel{tunnel(1, e2, "")}, planned: e1,
			changes: []string{"peer 1 endpoint 192.0.2.2:6784"},
		},
		{
			name: "after a restart a live session keeps its endpoint",
			have: map[wgtypes.Key]live{key(1): peerOf(1, roamed, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "")},
		},
		{
			name:    "after a restart a dead session takes the record's",
			have:    map[wgtypes.Key]live{key(1): peerOf(1, roamed, "", hour)},
			want:    []topology.Tunnel{tunnel(1, e1, "")},
			changes: []string{"peer 1 endpoint 192.0.2.1:6784"},
		},
		{
			name: "a changed pre-shared key is set, nothing else",
			have: map[wgtypes.Key]live{key(1): peerOf(9, e1, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "")}, planned: e1,
			changes: []string{"peer 1 psk 1"},
		},
		{
			name: "a prefix moves by being added to its new owner",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "10.32.0.0/16", minute), key(2): peerOf(2, e2, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, ""), tunnel(2, e2, "10.32.0.0/16")}, planned: e1,
			changes: []string{"peer 2 +10.32.0.0/16"},
		},
		{
			name: "half is given away: the halves first, then the whole goes down the sink",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "10.32.0.0/16", minute), key(2): peerOf(2, e2, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "10.32.0.0/17"), tunnel(2, e2, "10.32.128.0/17")}, planned: e1,
			changes: []string{"peer 1 +10.32.0.0/17", "peer 2 +10.32.128.0/17", "sink +10.32.0.0/16", "sink remove"},
		},
		{
			name: "what a wider prefix covers stays with its owner, or goes there",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "10.32.0.0/17", minute), key(2): peerOf(2, e2, "10.32.128.0/17", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "10.32.0.0/16"), tunnel(2, e2, "")}, planned: e1,
			changes: []string{"peer 1 +10.32.0.0/16", "peer 1 +10.32.128.0/17"},
		},
		{
			name:    "a peer that left is removed last",
			have:    map[wgtypes.Key]live{key(3): peerOf(3, e2, "10.33.0.0/16", minute)},
			want:    []topology.Tunnel{tunnel(1, e1, "10.33.0.0/16")},
			changes: []string{"peer 1 psk 1 endpoint 192.0.2.1:6784 keepalive 25s +10.33.0.0/16", "peer 3 remove"},
		},
		{
			name:    "a peer that is silent for long is not called any more",
			have:    map[wgtypes.Key]live{key(1): peerOf(1, e1, "", hour)},
			want:    []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)},
			planned: e1,
			changes: []string{"peer 1 keepalive 0s"},
		},
		{
			name: "and that is said once",
			have: map[wgtypes.Key]live{key(1): hushed(peerOf(1, e1, "", hour))},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)}, planned: e1,
		},
		{
			name:    "a lost peer is made without a call",
			want:    []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)},
			changes: []string{"peer 1 psk 1 endpoint 192.0.2.1:6784"},
		},
		{
			name: "a peer whose agent is gone keeps its keepalive while its data path answers",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "", 2*minute)},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)}, planned: e1,
		},
		{
			name: "a peer that gossip lost just now is called on",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "", hour)},
			want: []topology.Tunnel{tunnel(1, e1, "")}, planned: e1,
		},
		{
			name: "a silent peer that gossip reaches again is called at once",
			have: map[wgtypes.Key]live{key(1): hushed(peerOf(1, e1, "", hour))},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Reached)}, planned: e1,
			changes: []string{"peer 1 keepalive 25s"},
		},
		{
			name: "a silent peer that shook hands by itself has its keepalive again",
			have: map[wgtypes.Key]live{key(1): hushed(peerOf(1, e1, "", minute))},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)}, planned: e1,
			changes: []string{"peer 1 keepalive 25s"},
		},
		{
			name: "a peer that gossip reaches and that has no session is called again",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "", hour)},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Reached)}, planned: e1,
			changes: []string{"peer 1 keepalive 0s", "peer 1 keepalive 25s"},
		},
		{
			name: "a peer that gossip reaches and that has a session is left alone",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "", minute)},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Reached)}, planned: e1,
		},
		{
			name: "two that claim one prefix do not take turns",
			have: map[wgtypes.Key]live{key(1): peerOf(1, e1, "10.32.0.0/16", minute), key(2): peerOf(2, e2, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "10.32.0.0/16"), tunnel(2, e2, "10.32.0.0/16")}, planned: e1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			planned := map[wgtypes.Key]plan{}
			if tt.planned != "" {
				e := netip.MustParseAddrPort(tt.planned)
				planned[key(1)] = plan{e, []netip.AddrPort{e}}
			}
			changes, next := diff(tt.have, tt.want, planned, now)
			if d := cmp.Diff(tt.changes, describe(changes)); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
			if len(next) != len(tt.want) {
				t.Errorf("next plan: %v", next)
			}
		})
	}
}

// model is a device as far as cryptokey routing goes (wireguard.com/protocol, and
// wg(8)): a prefix belongs to one peer, and adding it elsewhere moves it.
type model struct {
	peers map[wgtypes.Key]bool
	owner map[netip.Prefix]wgtypes.Key
}

func (m model) apply(t *rapid.T, c wgtypes.PeerConfig, each func()) {
	if c.ReplaceAllowedIPs {
		t.Fatal("replaces the allowed IPs")
	}
	if c.Remove {
		delete(m.peers, c.PublicKey)
		for p, k := range m.owner {
			if k == c.PublicKey {
				delete(m.owner, p)
			}
		}
		each()
		return
	}
	m.peers[c.PublicKey] = true
	for _, n := range c.AllowedIPs {
		ones, _ := n.Mask.Size()
		addr, _ := netip.AddrFromSlice(n.IP)
		m.owner[netip.PrefixFrom(addr.Unmap(), ones)] = c.PublicKey
		each()
	}
}

// lookup is who an address is sent to: the longest prefix decides.
func (m model) lookup(a netip.Addr) (best wgtypes.Key) {
	bits := -1
	for p, k := range m.owner {
		if p.Contains(a) && p.Bits() > bits {
			best, bits = k, p.Bits()
		}
	}
	return best
}

// live is the device as Apply reads it.
func (m model) live() map[wgtypes.Key]live {
	out := map[wgtypes.Key]live{}
	for k := range m.peers {
		l := live{psk: wgtypes.Key{k[0]}, keepalive: keepalive, handshake: now}
		for p, o := range m.owner {
			if o == k {
				l.allowed = append(l.allowed, p)
			}
		}
		out[k] = l
	}
	return out
}

// drawPlan shares out 16 blocks, named by prefixes of any length, among four peers.
func drawPlan(t *rapid.T, label string) []topology.Tunnel {
	var out []topology.Tunnel
	taken := map[int]bool{}
	for n := byte(1); n <= 4; n++ {
		if !rapid.Bool().Draw(t, fmt.Sprintf("%s: peer %d is there", label, n)) {
			continue
		}
		tun := tunnel(n, "", "")
		for range rapid.IntRange(0, 3).Draw(t, "prefixes") {
			size := 1 << rapid.IntRange(0, 3).Draw(t, "log of the size")
			start := rapid.IntRange(0, 16/size-1).Draw(t, "place") * size
			blocks := make([]int, size)
			for i := range blocks {
				blocks[i] = start + i
			}
			if slices.ContainsFunc(blocks, func(b int) bool { return taken[b] }) {
				continue
			}
			for _, b := range blocks {
				taken[b] = true
			}
			bits := 16
			for s := size; s > 1; s /= 2 {
				bits--
			}
			tun.AllowedIPs = append(tun.AllowedIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32 + byte(start), 0, 0}), bits))
		}
		out = append(out, tun)
	}
	return out
}

// A guess that was held back while another endpoint worked is made once that is silent; and not again when the peer has
// roamed since.
func TestGuessIsMadeWhenNothingElseWorks(t *testing.T) {
	const e1, e2, roamed = "192.0.2.1:6784", "192.0.2.2:6784", "198.51.100.9:40000"
	planned := map[wgtypes.Key]plan{}
	for i, step := range []struct {
		have live
		want topology.Tunnel
		now  string
	}{
		{heard(peerOf(1, e1, "", time.Minute), time.Second), listening(tunnel(1, e1, ""), e2), ""},
		{heard(peerOf(1, e1, "", time.Minute), time.Second), listening(tunnel(1, e2, ""), e1), ""},
		{heard(peerOf(1, e1, "", time.Minute), 30*time.Second), listening(tunnel(1, e2, ""), e1), ""},
		{heard(peerOf(1, e1, "", 2*time.Minute), time.Minute), listening(tunnel(1, e2, ""), e1), " endpoint " + e2},
		{heard(peerOf(1, e2, "", time.Second), time.Second), listening(tunnel(1, e2, ""), e1), ""},
		{heard(peerOf(1, roamed, "", time.Second), time.Second), listening(tunnel(1, e2, ""), e1), ""},
		{heard(peerOf(1, roamed, "", time.Hour), time.Hour), listening(tunnel(1, e2, ""), e1), ""},
	} {
		var changes []wgtypes.PeerConfig
		changes, planned = diff(map[wgtypes.Key]live{key(1): step.have}, []topology.Tunnel{step.want}, planned, now)
		if got := strings.Join(describe(changes), "; "); got != strings.TrimSpace(step.now) && got != "peer 1"+step.now {
			t.Errorf("step %d: %q, want %q", i+1, got, step.now)
		}
	}
}

// Applying the changes gives what is planned; and on the way, an address that had an
// owner and is to have one is never sent to anybody but these two.
func TestDiffReachesThePlanWithoutAGap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := model{map[wgtypes.Key]bool{}, map[netip.Prefix]wgtypes.Key{}}
		planned := map[wgtypes.Key]plan{}
		for round := range 3 {
			want := drawPlan(t, fmt.Sprintf("round %d", round))
			after := model{map[wgtypes.Key]bool{}, map[netip.Prefix]wgtypes.Key{}}
			for _, tun := range want {
				after.peers[tun.PublicKey] = true
				for _, p := range tun.AllowedIPs {
					after.owner[p] = tun.PublicKey
				}
			}
			var before [16]wgtypes.Key
			address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 32 + byte(i), 3, 4}) }
			for i := range before {
				before[i] = m.lookup(address(i))
			}
			var changes []wgtypes.PeerConfig
			changes, planned = diff(m.live(), want, planned, now)
			for _, c := range changes {
				m.apply(t, c, func() {
					for i, old := range before {
						is, next := m.lookup(address(i)), after.lookup(address(i))
						if old != (wgtypes.Key{}) && next != (wgtypes.Key{}) && is != old && is != next {
							t.Fatalf("address %v goes to %v, not to %v or %v", address(i), is, old, next)
						}
					}
				})
			}
			for p, k := range after.owner {
				if m.owner[p] != k {
					t.Fatalf("prefix %v is with %v, not with %v", p, m.owner[p], k)
				}
			}
			// What is left over is redundant: in no place does it decide otherwise.
			for i := range before {
				if is, next := m.lookup(address(i)), after.lookup(address(i)); is != next {
					t.Fatalf("address %v goes to %v, not to %v", address(i), is, next)
				}
			}
			if d := cmp.Diff(after.peers, m.peers); d != "" {
				t.Fatalf("peers (-want +got):\n%s", d)
			}
			if again, _ := diff(m.live(), want, planned, now); len(again) > 0 {
				t.Fatalf("a second time it changes %v", describe(again))
			}
		}
	})
}

func TestConfigHidesItsKeys(t *testing.T) {
	c := Config{PrivateKey: [32]byte{1, 2, 3, 250}, Port: 6784, Tunnels: []topology.Tunnel{tunnel(251, "", "")}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, c); strings.Contains(s, "250") || strings.Contains(s, "251") || strings.Contains(s, "fa") {
			t.Errorf("%s shows a key: %s", verb, s)
		}
	}
}
