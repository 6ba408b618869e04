package topology

import (
	"crypto/ed25519"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"weft/ipam/slot"
	"weft/mesh/path"
	"weft/mesh/peer"
)

func record(n byte, change func(*peer.Record)) peer.Record {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	r := peer.Record{
		Identity: ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey), WireGuard: [32]byte{n}, Port: 6784, Ring: []byte{1},
		Underlay: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, n}), netip.MustParseAddr("2001:db8::1")},
	}
	if change != nil {
		change(&r)
	}
	return r
}

func input(peers ...peer.Record) Input {
	in := Input{
		Self: record(1, nil).ID(), Ring: []byte{1}, IPv6: true, Underlay4: true, Peers: peers,
		Universe:     slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd00::/96")},
		Owned:        map[peer.ID][]slot.Range{record(2, nil).ID(): {{Start: 256, End: 768}}},
		PresharedKey: func(id peer.ID) [32]byte { return [32]byte{id[0]} },
		Route:        func(netip.Addr) int { return 1500 },
	}
	return in
}

func TestAllowedIPsAreOwnedRanges(t *testing.T) {
	plan := Plan(input(record(1, nil), record(2, nil)))
	if len(plan) != 1 || plan[0].PublicKey != ([32]byte{2}) || plan[0].Endpoint != netip.MustParseAddrPort("192.0.2.2:6784") {
		t.Fatalf("the plan is %+v; want one tunnel to peer 2", plan)
	}
	var got []string
	for _, p := range plan[0].AllowedIPs {
		got = append(got, p.String())
	}
	want := []string{"10.32.1.0/24", "10.32.2.0/24", "fd00::100/120", "fd00::200/120"}
	if !slices.Equal(got, want) {
		t.Errorf("the allowed IPs are %v; want %v", got, want)
	}
}

func TestPeersOfThisRingGetTunnelsUntilTheyLeave(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*peer.Record)
		input  func(*Input)
		want   string // the endpoint; empty: there is no tunnel
	}{
		"running":          {want: "192.0.2.2:6784"},
		"stopped agent":    {change: func(r *peer.Record) { r.State = peer.Stopped }, want: "192.0.2.2:6784"},
		"left for good":    {change: func(r *peer.Record) { r.State = peer.Left }},
		"another ring":     {change: func(r *peer.Record) { r.Ring = []byte{2} }},
		"no ring yet":      {change: func(r *peer.Record) { r.Ring = nil }},
		"IPv6 underlay":    {input: func(in *Input) { in.Underlay4, in.Underlay6 = false, true }, want: "[2001:db8::1]:6784"},
		"no common family": {change: func(r *peer.Record) { r.Underlay = r.Underlay[1:] }},
		"gossip uses another address of the record": {
			change: func(r *peer.Record) { r.Underlay = append(r.Underlay, netip.MustParseAddr("192.0.2.99")) },
			input: func(in *Input) {
				in.Preferred = map[peer.ID]netip.Addr{record(2, nil).ID(): netip.MustParseAddr("192.0.2.99")}
			},
			want: "192.0.2.99:6784",
		},
		"gossip's address is not in the record": {
			input: func(in *Input) {
				in.Preferred = map[peer.ID]netip.Addr{record(2, nil).ID(): netip.MustParseAddr("192.0.2.66")}
			},
			want: "192.0.2.2:6784",
		},
	} {
		in := input(record(2, tt.change))
		if tt.input != nil {
			tt.input(&in)
		}
		plan := Plan(in)
		switch {
		case tt.want == "" && len(plan) > 0:
			t.Errorf("%s: the plan is %+v; want no tunnel", name, plan)
		case tt.want != "" && (len(plan) != 1 || plan[0].Endpoint.String() != tt.want):
			t.Errorf("%s: the plan is %+v; want one tunnel to %s", name, plan, tt.want)
		}
	}
}

func TestOneHostOfEachPairWaitsForTheHandshakeOfTheOther(t *testing.T) {
	waits := func(self, other byte) bool {
		in := input(record(other, nil))
		in.Self = record(self, nil).ID()
		return Plan(in)[0].Waits
	}
	for other := byte(2); other < 9; other++ {
		if waits(1, other) == waits(other, 1) {
			t.Errorf("hosts 1 and %d: both wait, or none does; want one", other)
		}
	}
}

// A peer to which this host must not connect has a tunnel without an address, until its probe has come from one.
func TestPlannedPeersHaveNoAddress(t *testing.T) {
	in := input(record(2, nil))
	id := record(2, nil).ID()
	in.Planned = map[peer.ID]bool{id: true}
	in.Route = func(a netip.Addr) int {
		if !a.IsValid() {
			t.Error("the route to no address is asked for")
		}
		return 1500
	}
	if got := Plan(in); len(got) != 1 || got[0].Endpoint.IsValid() || got[0].Proven || len(got[0].Record) != 0 || len(got[0].AllowedIPs) == 0 {
		t.Errorf("the tunnels are %+v, want one without an address", got)
	}
	at := netip.MustParseAddrPort("198.51.100.7:40000")
	in.Paths = map[peer.ID]path.Path{id: {Endpoint: at}}
	if got := Plan(in); len(got) != 1 || got[0].Endpoint != at || !got[0].Proven || got[0].Route != 1500 {
		t.Errorf("after a probe the tunnels are %+v, want the address from which it came", got)
	}
}

func TestTunnelPlanDoesNotDependOnPeerOrder(t *testing.T) {
	peers := []peer.Record{record(2, nil), record(3, nil), record(4, nil)}
	want := Plan(input(peers...))
	slices.Reverse(peers)
	if got := Plan(input(peers...)); !reflect.DeepEqual(got, want) {
		t.Errorf("for the peers in another order the plan is %+v; want %+v", got, want)
	}
}

func TestIPv4OnlyHostGetsNoIPv6AllowedIPs(t *testing.T) {
	in := input(record(2, nil))
	in.IPv6 = false
	for _, p := range Plan(in)[0].AllowedIPs {
		if p.Addr().Is6() {
			t.Errorf("on a host without IPv6 the allowed IPs contain %v; want only IPv4", p)
		}
	}
}

func TestTunnelHasReachabilityOfItsPeer(t *testing.T) {
	for _, reach := range []Reach{Unsure, Reached, Lost} {
		in := input(record(2, nil))
		in.Reach = map[peer.ID]Reach{record(2, nil).ID(): reach}
		if plan := Plan(in); len(plan) != 1 || plan[0].Reach != reach {
			t.Errorf("the plan is %+[2]v; want one tunnel with reach %[1]d", reach, plan)
		}
	}
}
