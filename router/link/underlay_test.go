package link

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"weft/mesh/peer"
	"weft/router/routertest"
)

func TestMaxUnderlayEqualsThatOfPackagePeer(t *testing.T) {
	if maxUnderlay != peer.MaxUnderlay {
		t.Errorf("maxUnderlay is %d; want peer.MaxUnderlay, which is %d", maxUnderlay, peer.MaxUnderlay)
	}
}

// card makes a network card: a veth whose other end has the name far.
func card(name, far string) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return &netlink.Veth{LinkAttrs: attrs, PeerName: far}
}

// Underlay returns this host's own addresses in the order of their ranks, without the addresses
// that serve containers and services.
func TestUnderlayOmitsAddressesOfContainersAndServices(t *testing.T) {
	routertest.New(t).Do(func() {
		docker := bridge(t, "docker0", 1500, "172.17.0.1/16", "fd17::1/64")
		up(t, card("veth0", "veth1"))
		port, err := netlink.LinkByName("veth0")
		if err == nil {
			err = netlink.LinkSetMaster(port, docker)
		}
		if err != nil {
			t.Fatal(err)
		}
		up(t, card("eth1", "far1"), "198.51.100.4/24", "2001:db8:9::4/64", "169.254.7.7/16", "10.32.9.9/32")
		vpn := up(t, &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "vpn"}, Mode: netlink.TUNTAP_MODE_TUN}, "10.8.0.4/24")
		eth0 := up(t, card("eth0", "far0"), "2001:db8::4/64", "192.0.2.4/24", "192.0.2.100/32")
		lan := bridge(t, "br0", 1500, "203.0.113.4/24")
		out := up(t, &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "out"}, VxlanId: 7, Port: 4789})
		if err := netlink.LinkSetMaster(out, lan); err != nil {
			t.Fatal(err)
		}
		bridge(t, "weft-0123456789", 1300, "203.0.113.9/24")
		for metric, l := range map[int]netlink.Link{100: eth0, 200: vpn} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Priority: metric, Scope: netlink.SCOPE_LINK}); err != nil {
				t.Fatal(err)
			}
		}
		found, err := Underlay(universe)
		if err != nil {
			t.Fatal(err)
		}
		first, got := Order(nil, found)
		if d := cmp.Diff("[192.0.2.4 2001:db8::4 198.51.100.4 203.0.113.4 2001:db8:9::4 10.8.0.4 192.0.2.100]", fmt.Sprint(got)); d != "" {
			t.Errorf("the underlay addresses differ (-want +got):\n%s", d)
		}
		// The VPN takes the default route.
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: vpn.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Priority: 50, Scope: netlink.SCOPE_LINK}); err != nil {
			t.Fatal(err)
		}
		if found, err = Underlay(universe); err != nil {
			t.Fatal(err)
		}
		if _, after := Order(first, found); fmt.Sprint(after) != fmt.Sprint(got) {
			t.Errorf("with another default route the addresses are %v; want the same as before, %v", after, got)
		}
		if _, fresh := Order(nil, found); fresh[0] != netip.MustParseAddr("10.8.0.4") {
			t.Errorf("without an earlier order the first address is %v; want that of the default link, 10.8.0.4", fresh[0])
		}
	})
}

// parse reads addresses such as "10.0.0.1 old:2001:db8::1 3;192.0.2.1": a stable address, an
// unstable one, and one of rank 3.
func parse(words string) (out []HostAddr) {
	for w := range strings.FieldsSeq(words) {
		var a HostAddr
		if rest, ok := strings.CutPrefix(w, "old:"); ok {
			w, a.Unstable = rest, true
		}
		if n, rest, ok := strings.Cut(w, ";"); ok {
			_, _ = fmt.Sscan(n, &a.Rank)
			w = rest
		}
		a.Addr = netip.MustParseAddr(w)
		out = append(out, a)
	}
	return out
}

func TestUnderlayAddressesKeepTheirPlacesInTheOrder(t *testing.T) {
	for _, tt := range []struct {
		name  string
		times []string // the addresses of the kernel at successive times
		want  string   // the order after the last of these times
	}{
		{"the best rank is first", []string{"2;10.8.0.1 1;2001:db8::1 0;192.0.2.1"}, "192.0.2.1 2001:db8::1 10.8.0.1"},
		{"a VPN replaces the default route", []string{"0;192.0.2.1 1;2001:db8::1", "2;192.0.2.1 3;2001:db8::1 0;10.8.0.1"}, "192.0.2.1 2001:db8::1 10.8.0.1"},
		{"the VPN disappears again", []string{"192.0.2.1", "2;192.0.2.1 0;10.8.0.1", "192.0.2.1"}, "192.0.2.1"},
		{"a second network card", []string{"192.0.2.1", "198.51.100.1 192.0.2.1"}, "192.0.2.1 198.51.100.1"},
		{"an address that disappears and returns", []string{"192.0.2.1 2001:db8::1", "2001:db8::1", "2001:db8::1 192.0.2.1"}, "192.0.2.1 2001:db8::1"},
		{"a DHCP lease with another address", []string{"192.0.2.1", "192.0.2.7"}, "192.0.2.7"},
		{"a virtual address appears", []string{"192.0.2.1", "4;192.0.2.100 192.0.2.1"}, "192.0.2.1 192.0.2.100"},
		{"a virtual address exists from the start", []string{"4;192.0.2.100 0;192.0.2.1"}, "192.0.2.1 192.0.2.100"},
		{"a router announces another prefix and deprecates the old one", []string{"2001:db8:1::1", "old:2001:db8:1::1 2001:db8:2::1"}, "2001:db8:1::1 2001:db8:2::1"},
		{"the deprecated prefix expires", []string{"2001:db8:1::1", "old:2001:db8:1::1 2001:db8:2::1", "2001:db8:2::1"}, "2001:db8:2::1"},
		{"a new address that is deprecated is not advertised", []string{"192.0.2.1 old:2001:db8::1"}, "192.0.2.1"},
		{"no address is left", []string{"192.0.2.1", ""}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var order, got []netip.Addr
			for _, now := range tt.times {
				order, got = Order(order, parse(now))
			}
			if words := strings.Trim(fmt.Sprint(got), "[]"); words != tt.want {
				t.Errorf("the order is %s; want %s", words, tt.want)
			}
		})
	}
}

// After any sequence of changes, each address in the order exists, and occurs once. The order
// contains all addresses that may be advertised, up to the limit. Two addresses that stay never
// change places. The first address stays first while it exists.
func TestAddressOrderIsStableUnderAnyChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		address := rapid.Custom(func(t *rapid.T) HostAddr {
			n := rapid.IntRange(1, 100).Draw(t, "n")
			return HostAddr{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), Rank: rapid.IntRange(0, 5).Draw(t, "rank"), Unstable: rapid.IntRange(0, 9).Draw(t, "old") == 0}
		})
		times := rapid.SliceOfN(rapid.SliceOfNDistinct(address, 0, 40, func(a HostAddr) netip.Addr { return a.Addr }), 1, 20).Draw(t, "times")
		var order, before []netip.Addr
		for _, now := range times {
			next, addrs := Order(order, now)
			exists := map[netip.Addr]bool{}
			allowed := 0
			for _, a := range now {
				exists[a.Addr] = true
				if !a.Unstable || slices.Contains(order, a.Addr) {
					allowed++
				}
			}
			if len(addrs) > maxUnderlay || len(next) > maxRemembered || len(addrs) < min(allowed, maxUnderlay) {
				t.Fatalf("the order has %d of the %d addresses that may be advertised, and remembers %d; want as many as the bounds allow", len(addrs), allowed, len(next))
			}
			for i, a := range addrs {
				if !exists[a] || slices.Contains(addrs[:i], a) {
					t.Fatalf("%v in the order %v does not exist, or occurs twice; want each existing address once", a, addrs)
				}
			}
			stay := func(list []netip.Addr) (out []netip.Addr) {
				for _, a := range list {
					if exists[a] && slices.Contains(before, a) && slices.Contains(addrs, a) {
						out = append(out, a)
					}
				}
				return out
			}
			if !slices.Equal(stay(before), stay(addrs)) {
				t.Fatalf("the addresses %v of %v still exist, but the new order is %v; want them as before", stay(before), before, addrs)
			}
			if len(before) > 0 && exists[before[0]] && !slices.Contains(addrs, before[0]) {
				t.Fatalf("the first address %v still exists, but the new order is %v; want it kept", before[0], addrs)
			}
			order, before = next, addrs
		}
	})
}
