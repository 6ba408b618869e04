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

// What the kernel does not find is not gone: only a list says that.
func TestPurgeBelievesTheListOnly(t *testing.T) {
	there := []int{1, 2, 3}
	list := func() ([]int, error) { return slices.Clone(there), nil }
	err := Purge("numbers", list, func(int) error { return unix.ESRCH })
	if !errors.Is(err, unix.ESRCH) || !strings.Contains(err.Error(), "numbers: 3 are left") {
		t.Errorf("nothing was deleted: %v", err)
	}
	remove := func(n int) error {
		there = slices.DeleteFunc(there, func(have int) bool { return have == n })
		return unix.ESRCH // somebody was faster
	}
	if err := Purge("numbers", list, remove); err != nil || len(there) > 0 {
		t.Errorf("%v are left, %v", there, err)
	}
}

// What an older release gave the tunnel, in other words, goes when this one opens it, and all of ours on a reset.
func TestOldRoutesAndAddressesGo(t *testing.T) {
	routertest.New(t).Do(func() {
		l := bridge(t, Device, 1500)
		o := Overlay{Universe: universe, Node: 5, MTU: 1400, IPv6: true}
		if err := errors.Join(o.Close(), o.Up()); err != nil {
			t.Fatal(err)
		}
		old := []netip.Prefix{
			netip.PrefixFrom(universe.Addr4(5), universe.V4.Bits()), // this node's, with another length
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
		if err := o.Open(); err != nil {
			t.Fatal(err)
		}
		have, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		have = slices.DeleteFunc(have, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
		if err != nil || len(have) != 2 {
			t.Errorf("addresses %v, %v: want the node's two", have, err)
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
			t.Errorf("%d routes of ours, want the tunnel's and the last resort, for two families", n)
		}
		if err := Remove(); err != nil || count() != 0 {
			t.Errorf("%d routes of ours are left after a reset, %v", count(), err)
		}
	})
}
