package link

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"weft/router/routertest"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// The MTU to an address is the MTU of its route, not of an unrelated bridge.
func TestWayToReportsTheMTUOfTheRoute(t *testing.T) {
	routertest.New(t).Do(func() {
		uplink := bridge(t, "uplink", 1500, "192.0.2.4/24", "2001:db8::4/64")
		bridge(t, "unrelated", 1400, "172.17.0.1/16")
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		anycast := &netlink.Addr{IPNet: IPNet(netip.MustParsePrefix("203.0.113.1/32"))}
		if err := errors.Join(netlink.AddrAdd(lo, anycast), netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)})); err != nil {
			t.Fatal(err)
		}
		mtus, err := ReadMTUs()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{"default": mtus.Default}
		for _, a := range addrs("192.0.2.4", "2001:db8::4", "172.17.0.1", "203.0.113.1", "127.0.0.1") {
			got[a.String()] = mtus.ByAddr[a]
		}
		want := map[string]int{"default": 1500, "192.0.2.4": 1500, "2001:db8::4": 1500, "172.17.0.1": 1400, "203.0.113.1": 0, "127.0.0.1": 0}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("the MTUs of the links differ (-want +got):\n%s", d)
		}
		h, err := Handle()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		expectMTU := func(want int, to ...string) {
			t.Helper()
			for _, to := range addrs(to...) {
				if w, err := WayTo(h, to, netip.Addr{}); err != nil || w.MTU != want || w.Link != uplink.Attrs().Index {
					t.Errorf("the route to %v is %+v, %v; want MTU %d through link %d", to, w, err, want, uplink.Attrs().Index)
				}
			}
		}
		expectMTU(1500, "192.0.2.9", "2001:db8::9", "198.51.100.1")
		for _, to := range []string{"192.0.2.9/32", "2001:db8::9/128"} {
			r := &netlink.Route{LinkIndex: uplink.Attrs().Index, Dst: IPNet(netip.MustParsePrefix(to)), MTU: 1300}
			if err := netlink.RouteAdd(r); err != nil {
				t.Fatal(err)
			}
		}
		expectMTU(1300, "192.0.2.9", "2001:db8::9")
		expectMTU(1500, "192.0.2.8", "2001:db8::8")
		if w, err := WayTo(h, netip.MustParseAddr("2001:db8:9::1"), netip.Addr{}); err == nil {
			t.Errorf("an address without a route has the route %+v; want an error", w)
		}
	})
}

// Each part of the universe with a smaller MTU than the device has a route of its own, in both
// families. The route changes with the part's MTU, and disappears when that MTU is no longer smaller.
func TestEachSmallerTunnelMTUHasARoute(t *testing.T) {
	routertest.New(t).Do(func() {
		bridge(t, Device, 1500)
		limits := func(to4, to6 string, mtu int) []Limit {
			return []Limit{
				{netip.MustParsePrefix(to4), mtu},
				{netip.MustParsePrefix(to6), mtu},
				{netip.MustParsePrefix(to4), 600}, // the first of two limits for one prefix counts
			}
		}
		h, err := Handle()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for _, step := range []struct {
			limits      []Limit
			far, nearby int // the MTUs to 10.40.0.9 and to 10.41.0.9
		}{
			{nil, 8920, 8920},
			{limits("10.40.0.0/16", "fd01:2:3:4::8:0/112", 1420), 1420, 8920},
			{limits("10.40.0.0/16", "fd01:2:3:4::8:0/112", 1320), 1320, 8920},
			{limits("10.41.0.0/16", "fd01:2:3:4::10:0/112", 1320), 8920, 1320},
			{nil, 8920, 8920},
		} {
			o := Overlay{Universe: universe, Node: 5, MTU: 8920, IPv6: true, Limits: step.limits}
			for range 2 {
				if err := errors.Join(o.SetUnreachable(), o.Up(), o.SetRoutes()); err != nil {
					t.Fatal(err)
				}
			}
			for to, want := range map[string]int{"10.40.0.9": step.far, "fd01:2:3:4::8:9": step.far, "10.41.0.9": step.nearby, "fd01:2:3:4::10:9": step.nearby} {
				if w, err := WayTo(h, netip.MustParseAddr(to), netip.Addr{}); err != nil || w.MTU != want {
					t.Errorf("with the limits %v, the MTU to %s is %d, error %v; want %d", step.limits, to, w.MTU, err, want)
				}
			}
			have, err := Routes(h)
			if want := 4 + min(2, len(step.limits)); err != nil || len(have) != want {
				t.Errorf("with the limits %v there are %d routes, %v; want %d", step.limits, len(have), err, want)
			}
		}
	})
}

func TestOtherEndMTUReadsTheVethInAnotherNamespace(t *testing.T) {
	container := routertest.New(t)
	routertest.New(t).Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "here", 1400
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "there", PeerMTU: 1234, PeerNamespace: netlink.NsFd(container.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		socket, err := OpenSocket()
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		for name, want := range map[string]int{"here": 1234, "lo": 0} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			if mtu := socket.OtherEndMTU(l); mtu != want {
				t.Errorf("the other end of %s has MTU %d; want %d", name, mtu, want)
			}
		}
	})
}
