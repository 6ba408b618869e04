package policy

import (
	"net/netip"
	"slices"
	"testing"
)

// If a block contains a host's known address, Evaluate and the compiled sets also apply it to the
// host's overlay addresses.
func TestBlocksApplyToHostsOverlayAddresses(t *testing.T) {
	addr := netip.MustParseAddr
	hosts := []Host{
		{Addrs: []netip.Addr{addr("10.200.0.11"), addr("fd00:10:200::11")}, Overlay: []netip.Addr{addr("10.32.0.1"), addr("fd00:32::1")}},
		{Addrs: []netip.Addr{addr("10.200.0.12")}, Overlay: []netip.Addr{addr("10.40.0.1"), addr("fd00:32::8:1")}}, // other hosts know this host's IPv4 address only
		{Addrs: []netip.Addr{addr("10.200.0.13"), addr("10.201.0.13")}, Overlay: []netip.Addr{addr("10.44.0.1")}},  // other hosts know both addresses of this host
		{Overlay: []netip.Addr{addr("10.47.0.1")}},
	}
	for _, c := range []struct {
		cidr    string
		except  []string
		in, out []string
	}{
		{"10.200.0.0/24", nil, []string{"10.32.0.1", "10.40.0.1", "10.44.0.1", "fd00:32::8:1", "10.200.0.11"}, []string{"fd00:32::1", "10.47.0.1", "10.32.0.2", "10.31.255.255"}},
		{"fd00:10:200::/64", nil, []string{"fd00:32::1"}, []string{"10.32.0.1", "fd00:32::8:1"}},
		{"10.200.0.0/24", []string{"10.200.0.12/32"}, []string{"10.32.0.1"}, []string{"10.40.0.1", "fd00:32::8:1"}},
		{"0.0.0.0/0", []string{"10.200.0.0/16"}, []string{"10.47.0.1", "10.32.0.2", "8.8.8.8"}, []string{"10.32.0.1", "10.40.0.1", "10.200.0.11"}}, // the block is everything except the nodes
		{"0.0.0.0/0", []string{"10.32.0.0/12"}, []string{"10.32.0.1", "10.40.0.1", "8.8.8.8"}, []string{"10.47.0.1", "10.32.0.2"}},                 // the block is everything except pods
		{"10.0.0.0/8", []string{"10.200.0.13/32"}, []string{"10.44.0.1"}, nil},                                                                     // the block includes the host's other address
		{"10.32.0.0/12", nil, []string{"10.32.0.1", "10.47.0.1"}, []string{"10.200.0.11"}},
		{"10.32.0.1/32", nil, []string{"10.32.0.1"}, []string{"10.40.0.1"}},
		{"192.0.2.0/24", nil, nil, []string{"10.32.0.1", "fd00:32::8:1"}},
		{"0.0.0.0/0", []string{"10.200.0.11/32"}, []string{"10.32.0.0", "10.32.0.2", "10.40.0.1"}, []string{"10.32.0.1"}},
	} {
		b := Block{CIDR: netip.MustParsePrefix(c.cidr)}
		for _, e := range c.except {
			b.Except = append(b.Except, netip.MustParsePrefix(e))
		}
		intervals := b.intervalsWith(aliases(hosts))
		if !slices.IsSortedFunc(intervals, func(x, y Interval) int { return x.First.Compare(y.First) }) {
			t.Errorf("the intervals of %v are %v; want them sorted", b, intervals)
		}
		for want, list := range map[bool][]string{true: c.in, false: c.out} {
			for _, a := range list {
				inSet := slices.ContainsFunc(intervals, func(i Interval) bool {
					return addr(a).BitLen() == i.First.BitLen() && !addr(a).Less(i.First) && !i.Last.Less(addr(a))
				})
				if inText := (World{Hosts: hosts}).inBlock(b, addr(a)); inText != want || inSet != want {
					t.Errorf("block %v contains the address %s: %v in Evaluate, %v in the set %v; want %v", b, a, inText, inSet, intervals, want)
				}
			}
		}
	}
}

// Added and removed hosts change the sets of blocks. They change nothing if no policy has a block.
func TestAddedHostsChangeTheSetsOfIPBlocks(t *testing.T) {
	c := NewCompiler()
	host := Host{Addrs: []netip.Addr{netip.MustParseAddr("10.200.0.11")}, Overlay: []netip.Addr{netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00:32::1")}}
	open := Policy{Namespace: "a", Isolates: Of(Ingress), Ingress: []Rule{{}}}
	c.SetPolicies([]Policy{open}, nil)
	if c.SetHosts([]Host{host}) {
		t.Error("no policy has an ipBlock, but SetHosts reports a change; want none")
	}
	c.SetHosts(nil)
	open.Ingress[0].Peers = []Peer{{Block: &Block{CIDR: netip.MustParsePrefix("10.200.0.0/24")}}}
	c.SetPolicies([]Policy{open}, nil)
	c.Put(Endpoint{ID: "e", Namespace: "a", Addrs: []netip.Addr{netip.MustParseAddr("10.32.0.9")}}, true)
	blocks := func() []Interval { return c.Program().Sets[0].Blocks }
	if got := blocks(); len(got) != 1 {
		t.Errorf("without hosts the block has intervals %v, want one", got)
	}
	if !c.SetHosts([]Host{host}) || c.SetHosts([]Host{host}) {
		t.Error("SetHosts reports no change for a new host, or one for the same host; want a change only for the new host")
	}
	if got := blocks(); len(got) != 3 {
		t.Errorf("with the host the block has the intervals %v; want 3", got)
	}
	if !c.SetHosts(nil) || len(blocks()) != 1 {
		t.Errorf("after removing the host the block has intervals %v, want one", blocks())
	}
}
