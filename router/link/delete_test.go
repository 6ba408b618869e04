package link

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/routertest"
)

// "Not found" from the kernel does not prove that an object is gone. Only an empty list does.
func TestPurgeEndsWhenTheListIsEmpty(t *testing.T) {
	there := []int{1, 2, 3}
	list := func() ([]int, error) { return slices.Clone(there), nil }
	err := Purge("numbers", list, func(int) error { return unix.ESRCH })
	if !errors.Is(err, unix.ESRCH) || !strings.Contains(err.Error(), "numbers: 3 are left") {
		t.Errorf("Purge without any deletion returned %v; want ESRCH and the number that is left", err)
	}
	remove := func(n int) error {
		there = slices.DeleteFunc(there, func(have int) bool { return have == n })
		return unix.ESRCH // another program deleted it first
	}
	if err := Purge("numbers", list, remove); err != nil || len(there) > 0 {
		t.Errorf("after Purge the objects %v are left, error %v; want none", there, err)
	}
}

// SetRoutes removes addresses and routes that an older release added with other attributes. Remove
// removes all addresses and routes of Weft.
func TestSetRoutesRemovesOldRoutesAndAddresses(t *testing.T) {
	routertest.New(t).Do(func() {
		l := bridge(t, Device, 1500)
		o := Overlay{Universe: universe, Node: 5, MTU: 1400, IPv6: true}
		if err := errors.Join(o.SetUnreachable(), o.Up()); err != nil {
			t.Fatal(err)
		}
		old := []netip.Prefix{
			netip.PrefixFrom(universe.Addr4(5), universe.V4.Bits()), // the node's address with another prefix length
			netip.PrefixFrom(universe.Addr4(6), 32), netip.PrefixFrom(universe.Addr6(6), 128),
		}
		for _, p := range old {
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: IPNet(p)}); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []netip.Prefix{universe.V4, universe.V6} {
			for i, r := range []netlink.Route{
				{Scope: netlink.SCOPE_HOST}, {Scope: netlink.SCOPE_LINK, MTU: 1300}, {Scope: netlink.SCOPE_LINK, Table: 100},
			} {
				r.Dst, r.LinkIndex, r.Protocol, r.Priority = IPNet(p), l.Attrs().Index, Protocol, 70+i
				if err := netlink.RouteAdd(&r); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := o.SetRoutes(); err != nil {
			t.Fatal(err)
		}
		have, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		have = slices.DeleteFunc(have, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
		if err != nil || len(have) != 2 {
			t.Errorf("the device has the addresses %v, error %v; want the node's two addresses", have, err)
		}
		count := func() (n int) {
			all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range all {
				if r.Protocol == Protocol {
					n++
				}
			}
			return n
		}
		if n := count(); n != 4 {
			t.Errorf("there are %d routes of Weft; want 4: the tunnel's and the unreachable route, in two families", n)
		}
		if err := Remove(); err != nil || count() != 0 {
			t.Errorf("%d routes of Weft are left after Remove, %v; want none", count(), err)
		}
	})
}

// A link and its routes are gone when RemoveLink returns, although the kernel has not freed the
// link yet. Another link can take the name at once.
func TestRemoveLinkReturnsWhenTheLinkIsGone(t *testing.T) {
	routertest.New(t).Do(func() {
		h, err := Handle()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for range 20 {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "v0"
			if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "v1"}); err != nil {
				t.Fatal(err)
			}
			l, err := h.LinkByName("v0")
			if err != nil {
				t.Fatal(err)
			}
			to := netip.MustParsePrefix("10.32.0.7/32")
			route := netlink.Route{Dst: IPNet(to), LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK}
			if err := errors.Join(h.LinkSetUp(l), h.RouteAdd(&route)); err != nil {
				t.Fatal(err)
			}
			if err := RemoveLink("v0"); err != nil {
				t.Fatal(err)
			}
			routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: IPNet(to)}, netlink.RT_FILTER_DST)
			if err != nil || len(routes) > 0 {
				t.Errorf("after RemoveLink the routes %v are left, error %v; want none", routes, err)
			}
			for _, name := range []string{"v0", "v1"} {
				if left, err := named(h, name); err != nil || len(left) > 0 {
					t.Errorf("after RemoveLink the link %s is left, error %v; want none", name, err)
				}
			}
		}
		if err := RemoveLink("v0"); err != nil {
			t.Errorf("removing a missing link returned %v; want no error", err)
		}
		if err := RemoveLink("lo"); err == nil {
			t.Error("the kernel refuses to remove lo, but RemoveLink returned no error, want one")
		}
	})
}
