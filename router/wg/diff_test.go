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

// alsoListening adds addresses to the peer's record.
func alsoListening(t topology.Tunnel, endpoints ...string) topology.Tunnel {
	for _, e := range endpoints {
		t.Record = append(t.Record, netip.MustParseAddrPort(e))
	}
	return t
}

// receivedAgo sets the time since packets last arrived from a peer.
func receivedAgo(l devicePeer, ago time.Duration) devicePeer {
	l.received = now.Add(-ago)
	return l
}

func peerOf(n byte, endpoint, allowed string, ago time.Duration) devicePeer {
	l := devicePeer{psk: wgtypes.Key{n}, allowed: prefixes(allowed), keepalive: keepalive, handshake: now.Add(-ago)}
	if endpoint != "" {
		l.endpoint = netip.MustParseAddrPort(endpoint)
	}
	return l
}

func reach(t topology.Tunnel, r topology.Reach) topology.Tunnel {
	t.Reach = r
	return t
}

func withoutKeepalive(l devicePeer) devicePeer {
	l.keepalive = 0
	return l
}

// describe writes changes in the words of wg(8).
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

func TestDiffChangesOnlyWhatDiffers(t *testing.T) {
	const e1, e2, roamed = "192.0.2.1:6784", "192.0.2.2:6784", "198.51.100.9:40000"
	const minute, hour = time.Minute, time.Hour
	for _, tt := range []struct {
		name    string
		have    map[wgtypes.Key]devicePeer
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
			name: "an equal configuration is not changed",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "10.32.0.0/16", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "10.32.0.0/16")}, planned: e1,
		},
		{
			name: "an endpoint learned by roaming stays",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, roamed, "", hour)},
			want: []topology.Tunnel{tunnel(1, e1, "")}, planned: e1,
		},
		{
			name: "a changed record replaces an endpoint learned by roaming, after the receive timeout",
			have: map[wgtypes.Key]devicePeer{key(1): receivedAgo(peerOf(1, roamed, "", minute), minute)},
			want: []topology.Tunnel{tunnel(1, e2, "")}, planned: e1,
			changes: []string{"peer 1 endpoint 192.0.2.2:6784"},
		},
		{
			name: "a changed record does not replace an endpoint learned by roaming before the receive timeout",
			have: map[wgtypes.Key]devicePeer{key(1): receivedAgo(peerOf(1, roamed, "", minute), 20*time.Second)},
			want: []topology.Tunnel{tunnel(1, e2, "")}, planned: e1,
		},
		{
			name: "another endpoint from the record does not replace one that works",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "", minute)},
			want: []topology.Tunnel{alsoListening(tunnel(1, e2, ""), e1)}, planned: e1,
		},
		{
			name: "another endpoint from the record replaces one whose session is too old",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "", 4*minute)},
			want: []topology.Tunnel{alsoListening(tunnel(1, e2, ""), e1)}, planned: e1,
			changes: []string{"peer 1 endpoint 192.0.2.2:6784"},
		},
		{
			name: "an endpoint that the peer removed from its record is replaced at once",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "", minute)},
			want: []topology.Tunnel{tunnel(1, e2, "")}, planned: e1,
			changes: []string{"peer 1 endpoint 192.0.2.2:6784"},
		},
		{
			name: "after a restart, a peer with a session keeps its endpoint",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, roamed, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "")},
		},
		{
			name:    "after a restart, a peer without a session gets the endpoint of its record",
			have:    map[wgtypes.Key]devicePeer{key(1): peerOf(1, roamed, "", hour)},
			want:    []topology.Tunnel{tunnel(1, e1, "")},
			changes: []string{"peer 1 endpoint 192.0.2.1:6784"},
		},
		{
			name: "only a changed pre-shared key is set",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(9, e1, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "")}, planned: e1,
			changes: []string{"peer 1 psk 1"},
		},
		{
			name: "a prefix moves by being added to its new owner",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "10.32.0.0/16", minute), key(2): peerOf(2, e2, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, ""), tunnel(2, e2, "10.32.0.0/16")}, planned: e1,
			changes: []string{"peer 2 +10.32.0.0/16"},
		},
		{
			name: "half of a prefix moves: both halves are added, then the whole is removed through the sink",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "10.32.0.0/16", minute), key(2): peerOf(2, e2, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "10.32.0.0/17"), tunnel(2, e2, "10.32.128.0/17")}, planned: e1,
			changes: []string{"peer 1 +10.32.0.0/17", "peer 2 +10.32.128.0/17", "sink +10.32.0.0/16", "sink remove"},
		},
		{
			name: "a prefix inside a wider one stays with or moves to the wider one's owner",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "10.32.0.0/17", minute), key(2): peerOf(2, e2, "10.32.128.0/17", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "10.32.0.0/16"), tunnel(2, e2, "")}, planned: e1,
			changes: []string{"peer 1 +10.32.0.0/16", "peer 1 +10.32.128.0/17"},
		},
		{
			name:    "a peer that left is removed last",
			have:    map[wgtypes.Key]devicePeer{key(3): peerOf(3, e2, "10.33.0.0/16", minute)},
			want:    []topology.Tunnel{tunnel(1, e1, "10.33.0.0/16")},
			changes: []string{"peer 1 psk 1 endpoint 192.0.2.1:6784 keepalive 25s +10.33.0.0/16", "peer 3 remove"},
		},
		{
			name:    "the keepalive of a peer that is lost for long is turned off",
			have:    map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "", hour)},
			want:    []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)},
			planned: e1,
			changes: []string{"peer 1 keepalive 0s"},
		},
		{
			name: "a keepalive that is off already is not changed",
			have: map[wgtypes.Key]devicePeer{key(1): withoutKeepalive(peerOf(1, e1, "", hour))},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)}, planned: e1,
		},
		{
			name:    "a lost peer is added without a keepalive",
			want:    []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)},
			changes: []string{"peer 1 psk 1 endpoint 192.0.2.1:6784"},
		},
		{
			name: "a lost peer keeps its keepalive while its data path answers",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "", 2*minute)},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)}, planned: e1,
		},
		{
			name: "a peer that gossip has not lost keeps its keepalive",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "", hour)},
			want: []topology.Tunnel{tunnel(1, e1, "")}, planned: e1,
		},
		{
			name: "the keepalive of a peer that gossip reaches again is turned on",
			have: map[wgtypes.Key]devicePeer{key(1): withoutKeepalive(peerOf(1, e1, "", hour))},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Reached)}, planned: e1,
			changes: []string{"peer 1 keepalive 25s"},
		},
		{
			name: "the keepalive of a lost peer is turned on after a handshake by that peer",
			have: map[wgtypes.Key]devicePeer{key(1): withoutKeepalive(peerOf(1, e1, "", minute))},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Lost)}, planned: e1,
			changes: []string{"peer 1 keepalive 25s"},
		},
		{
			name: "a peer that gossip reaches and that has no session gets a new handshake",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "", hour)},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Reached)}, planned: e1,
			changes: []string{"peer 1 keepalive 0s", "peer 1 keepalive 25s"},
		},
		{
			name: "a peer that gossip reaches and that has a session is not changed",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "", minute)},
			want: []topology.Tunnel{reach(tunnel(1, e1, ""), topology.Reached)}, planned: e1,
		},
		{
			name: "of two peers that claim one prefix, the first keeps it",
			have: map[wgtypes.Key]devicePeer{key(1): peerOf(1, e1, "10.32.0.0/16", minute), key(2): peerOf(2, e2, "", minute)},
			want: []topology.Tunnel{tunnel(1, e1, "10.32.0.0/16"), tunnel(2, e2, "10.32.0.0/16")}, planned: e1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			planned := map[wgtypes.Key]plan{}
			if tt.planned != "" {
				e := netip.MustParseAddrPort(tt.planned)
				planned[key(1)] = plan{endpoint: e, record: []netip.AddrPort{e}}
			}
			changes, next := diff(tt.have, tt.want, planned, now)
			if d := cmp.Diff(tt.changes, describe(changes)); d != "" {
				t.Errorf("the changes of the device differ (-want +got):\n%s", d)
			}
			if len(next) != len(tt.want) {
				t.Errorf("the next plan is %v; want one entry for each tunnel", next)
			}
		})
	}
}

// model is a device's cryptokey routing (wireguard.com/protocol, and wg(8)): a prefix belongs to
// one peer, and a prefix that is added to another peer moves there.
type model struct {
	peers map[wgtypes.Key]bool
	owner map[netip.Prefix]wgtypes.Key
}

func (m model) apply(t *rapid.T, c wgtypes.PeerConfig, each func()) {
	if c.ReplaceAllowedIPs {
		t.Fatal("the change replaces the list of allowed IPs; want additions only")
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

// lookup returns the peer to which packets for an address are sent: the peer with the longest
// prefix that contains the address.
func (m model) lookup(a netip.Addr) (best wgtypes.Key) {
	bits := -1
	for p, k := range m.owner {
		if p.Contains(a) && p.Bits() > bits {
			best, bits = k, p.Bits()
		}
	}
	return best
}

// devicePeers returns the peers as Apply reads them from the device.
func (m model) devicePeers() map[wgtypes.Key]devicePeer {
	out := map[wgtypes.Key]devicePeer{}
	for k := range m.peers {
		l := devicePeer{psk: wgtypes.Key{k[0]}, keepalive: keepalive, handshake: now}
		for p, o := range m.owner {
			if o == k {
				l.allowed = append(l.allowed, p)
			}
		}
		out[k] = l
	}
	return out
}

// drawPlan distributes 16 blocks, as prefixes of any length, among four peers.
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

// If both hosts began a handshake at the same moment, WireGuard would complete none.
func TestOneHostLeavesTheFirstHandshakeToTheOther(t *testing.T) {
	waits := tunnel(1, "192.0.2.1:6784", "10.32.0.0/16")
	waits.Waits, waits.Reach = true, topology.Reached
	added, next := diff(nil, []topology.Tunnel{waits}, nil, now)
	if len(added) != 1 || added[0].PersistentKeepaliveInterval != nil {
		t.Errorf("a new peer is added by %v, want no keepalive, which would start a handshake", added)
	}
	have := peerOf(1, "192.0.2.1:6784", "10.32.0.0/16", time.Hour)
	have.keepalive = 0
	young := have
	young.handshake = time.Time{}
	for after, want := range map[time.Duration]int{0: 0, firstTurn - time.Second: 0, firstTurn: 1} {
		if later, _ := diff(map[wgtypes.Key]devicePeer{key(1): young}, []topology.Tunnel{waits}, next, now.Add(after)); len(later) != want {
			t.Errorf("%v after a peer without a handshake was added, the changes are %v; want the keepalive only after %v", after, later, firstTurn)
		}
	}
	if later, _ := diff(map[wgtypes.Key]devicePeer{key(1): have}, []topology.Tunnel{waits}, next, now); len(later) != 1 || later[0].PersistentKeepaliveInterval == nil || *later[0].PersistentKeepaliveInterval != keepalive {
		t.Errorf("after the first handshake the change is %v, want the keepalive", later)
	}
	have.keepalive = keepalive
	if later, _ := diff(map[wgtypes.Key]devicePeer{key(1): have}, []topology.Tunnel{waits}, next, now); len(later) != 0 {
		t.Errorf("without a session the changes are %v, want none: the other host starts the handshake", later)
	}
}

// While the present endpoint of a peer works, a new planned endpoint is not written to the device.
// It is written when the present endpoint stops working, and not again after the peer has roamed.
func TestAnotherEndpointIsUsedWhenThePresentOneStopsWorking(t *testing.T) {
	const e1, e2, roamed = "192.0.2.1:6784", "192.0.2.2:6784", "198.51.100.9:40000"
	planned := map[wgtypes.Key]plan{}
	for i, step := range []struct {
		have devicePeer
		want topology.Tunnel
		now  string
	}{
		{receivedAgo(peerOf(1, e1, "", time.Minute), time.Second), alsoListening(tunnel(1, e1, ""), e2), ""},
		{receivedAgo(peerOf(1, e1, "", time.Minute), time.Second), alsoListening(tunnel(1, e2, ""), e1), ""},
		{receivedAgo(peerOf(1, e1, "", time.Minute), 30*time.Second), alsoListening(tunnel(1, e2, ""), e1), ""},
		{receivedAgo(peerOf(1, e1, "", 2*time.Minute), time.Minute), alsoListening(tunnel(1, e2, ""), e1), " endpoint " + e2},
		{receivedAgo(peerOf(1, e2, "", time.Second), time.Second), alsoListening(tunnel(1, e2, ""), e1), ""},
		{receivedAgo(peerOf(1, roamed, "", time.Second), time.Second), alsoListening(tunnel(1, e2, ""), e1), ""},
		{receivedAgo(peerOf(1, roamed, "", time.Hour), time.Hour), alsoListening(tunnel(1, e2, ""), e1), ""},
	} {
		var changes []wgtypes.PeerConfig
		changes, planned = diff(map[wgtypes.Key]devicePeer{key(1): step.have}, []topology.Tunnel{step.want}, planned, now)
		if got := strings.Join(describe(changes), "; "); got != strings.TrimSpace(step.now) && got != "peer 1"+step.now {
			t.Errorf("step %d: the changes are %q; want %q", i+1, got, step.now)
		}
	}
}

// Applying the changes results in the plan. After each step, packets to an address that has an old
// and a new owner are sent to one of these two.
func TestDiffMovesPrefixesWithoutLosingPackets(t *testing.T) {
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
			changes, planned = diff(m.devicePeers(), want, planned, now)
			for _, c := range changes {
				m.apply(t, c, func() {
					for i, old := range before {
						is, next := m.lookup(address(i)), after.lookup(address(i))
						if old != (wgtypes.Key{}) && next != (wgtypes.Key{}) && is != old && is != next {
							t.Fatalf("during the changes, packets for %v go to %v; want %v or %v", address(i), is, old, next)
						}
					}
				})
			}
			for p, k := range after.owner {
				if m.owner[p] != k {
					t.Fatalf("the prefix %v belongs to %v; want %v", p, m.owner[p], k)
				}
			}
			// The device may have further prefixes, but they change the destination of no address.
			for i := range before {
				if is, next := m.lookup(address(i)), after.lookup(address(i)); is != next {
					t.Fatalf("after the changes, packets for %v go to %v; want %v", address(i), is, next)
				}
			}
			if d := cmp.Diff(after.peers, m.peers); d != "" {
				t.Fatalf("after the changes, the device's peers differ (-want +got):\n%s", d)
			}
			if again, _ := diff(m.devicePeers(), want, planned, now); len(again) > 0 {
				t.Fatalf("diff after its changes were applied returns %v; want no changes", describe(again))
			}
		}
	})
}

func TestFormattingAConfigShowsNoKeys(t *testing.T) {
	c := Config{PrivateKey: [32]byte{1, 2, 3, 250}, Port: 6784, Tunnels: []topology.Tunnel{tunnel(251, "", "")}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, c); strings.Contains(s, "250") || strings.Contains(s, "251") || strings.Contains(s, "fa") {
			t.Errorf("formatting with %s shows a key: %s; want it hidden", verb, s)
		}
	}
}
