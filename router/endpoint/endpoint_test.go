package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/link"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

func TestHostLink(t *testing.T) {
	if got := HostLink("8d1f", "eth0"); got != "weft-c5e5b99f2c" || len(got) > 15 {
		t.Errorf("HostLink is %q: endpoints that exist would be lost", got)
	}
	if HostLink("a", "b") == HostLink("a\x00b", "") || HostLink("a", "eth0") == HostLink("a", "eth1") {
		t.Error("two endpoints share a link")
	}
}

// make4and6 makes and configures an endpoint of container c, from inside the host.
func make4and6(t testing.TB, c routertest.Namespace, name string, n byte) Endpoint {
	t.Helper()
	e := Endpoint{
		HostLink: HostLink(name, "eth0"), MTU: 1400,
		Addr4: netip.AddrFrom4([4]byte{10, 32, 0, n}), Addr6: netip.AddrFrom16([16]byte{0: 0xfd, 15: n}),
	}
	in, err := Open(c.Path(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := in.Create(e.HostLink); err != nil {
		t.Fatal(err)
	}
	pair := PairOf(e.HostLink)
	e.ContainerMAC = pair.ContainerMAC
	cfg := Config{
		Addr4: e.Addr4, Addr6: e.Addr6, HostMAC: pair.HostMAC, MTU: e.MTU,
		Routes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
	}
	for range 2 {
		if err := in.Configure(cfg); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

var node4, node6 = netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")

// addNode gives the host its node addresses.
func addNode(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{node4, node6} {
		addr := &netlink.Addr{IPNet: link.IPNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLifeOfAnEndpoint(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	host.Do(func() {
		addNode(t)
		e := make4and6(t, c, "one", 7)
		addrs := []netip.Addr{e.Addr4, e.Addr6}
		if err := Check(e.HostLink, c.Path(), "eth0", addrs); err != nil {
			t.Error(err)
		}
		if err := Check(e.HostLink, c.Path(), "eth0", append(addrs, node4)); err == nil || !strings.Contains(err.Error(), node4.String()) {
			t.Errorf("a missing address: %v", err)
		}
		in, err := Open(c.Path(), "eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if err := in.Create(e.HostLink); !errors.Is(err, ErrExists) {
			t.Errorf("a second time: %v", err)
		}
		if err := in.Create(HostLink("two", "eth0")); err == nil || errors.Is(err, ErrExists) {
			t.Errorf("an interface that the container has: %v", err)
		}
		if err := Plug(e, node4, node6); err != nil {
			t.Fatal(err)
		}
		if names, err := List(); err != nil || len(names) != 1 || names[0] != e.HostLink {
			t.Errorf("links %v, %v", names, err)
		}
		for range 2 {
			if err := errors.Join(Delete(e.HostLink), Unplug(e)); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		if err := Check(e.HostLink, c.Path(), "eth0", addrs); err == nil {
			t.Error("an endpoint that is gone passes the check")
		}
	})
}

// older are routes to an endpoint as other releases and people may have made them: more than one, and none as Plug makes
// them.
func older(e Endpoint, index int) (out []*netlink.Route) {
	for _, addr := range []netip.Addr{e.Addr4, e.Addr6} {
		for _, r := range []netlink.Route{
			{Scope: netlink.SCOPE_HOST, Protocol: link.Protocol, Priority: 7},
			{Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC, Priority: 8},
			{Scope: netlink.SCOPE_LINK, Protocol: link.Protocol, Priority: 9, MTU: 1300},
			{Scope: netlink.SCOPE_HOST, Protocol: link.Protocol, Priority: 10, Type: unix.RTN_LOCAL},
			{Scope: netlink.SCOPE_LINK, Protocol: link.Protocol, Priority: 11, Table: 100},
		} {
			r.Dst, r.LinkIndex = link.IPNet(netip.PrefixFrom(addr, addr.BitLen())), index
			out = append(out, &r)
		}
	}
	return out
}

// routesTo are the routes to an address, of all tables but the kernel's own.
func routesTo(t *testing.T, addr netip.Addr) (out []netlink.Route) {
	t.Helper()
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Dst != nil && addrOf(r.Dst.IP) == addr && r.Table != unix.RT_TABLE_LOCAL {
			out = append(out, r)
		}
	}
	return out
}

// A container that keeps running without its address is reached no more, whatever its routes look like. Others are, also
// one that has the address by now.
func TestUnplugCutsOffWhatIsStillAttached(t *testing.T) {
	for name, add := range map[string]bool{"routes of this release": false, "routes of others besides": true} {
		t.Run(name, func(t *testing.T) {
			routertest.New(t).Do(func() {
				addNode(t)
				lost, other := make4and6(t, routertest.New(t), "one", 7), make4and6(t, routertest.New(t), "two", 8)
				again := lost
				again.HostLink = make4and6(t, routertest.New(t), "three", 9).HostLink
				if err := errors.Join(Plug(lost, node4, node6), Plug(other, node4, node6)); err != nil {
					t.Fatal(err)
				}
				l, err := netlink.LinkByName(lost.HostLink)
				if err != nil {
					t.Fatal(err)
				}
				if add {
					for _, r := range older(lost, l.Attrs().Index) {
						if err := netlink.RouteAdd(r); err != nil {
							t.Fatalf("%v: %v", r, err)
						}
					}
				}
				if err := Unplug(lost); err != nil {
					t.Error(err)
				}
				for _, addr := range []netip.Addr{lost.Addr4, lost.Addr6} {
					if left := routesTo(t, addr); len(left) > 0 {
						t.Errorf("routes to %v are left: %v", addr, left)
					}
				}
				if err := errors.Join(Plug(again, node4, node6), Unplug(lost)); err != nil {
					t.Error(err)
				}
				for _, addr := range []netip.Addr{other.Addr4, other.Addr6, again.Addr4, again.Addr6} {
					if left := routesTo(t, addr); len(left) != 1 {
						t.Errorf("routes to %v are %v: want one", addr, left)
					}
				}
			})
		})
	}
}

// The runtime of a container may have switched IPv6 off in it: for its other interfaces that stays.
func TestConfigureAllowsIPv6(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	c.Do(func() {
		if err := link.Sysctl("1", "ipv6/conf", "default", "disable_ipv6"); err != nil {
			t.Fatal(err)
		}
	})
	host.Do(func() {
		e := make4and6(t, c, "one", 7)
		if err := Check(e.HostLink, c.Path(), "eth0", []netip.Addr{e.Addr4, e.Addr6}); err != nil {
			t.Error(err)
		}
	})
	c.Do(func() {
		if !link.SysctlIs("1", "ipv6/conf", "default", "disable_ipv6") {
			t.Error("it was switched on for all")
		}
	})
}

// Nothing that a container sends changes the host's routes, and reverse path filtering is strict.
func TestPlugIsStrict(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	host.Do(func() {
		addNode(t)
		e := make4and6(t, c, "one", 7)
		if err := Plug(e, node4, node6); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"ipv4/conf/%s/rp_filter": "1", "ipv4/conf/%s/accept_redirects": "0", "ipv4/conf/%s/send_redirects": "0",
			"ipv6/conf/%s/accept_ra": "0", "ipv6/conf/%s/accept_redirects": "0",
		} {
			if name = fmt.Sprintf(name, e.HostLink); !link.SysctlIs(want, name) {
				t.Errorf("%s is not %s", name, want)
			}
		}
	})
}

func TestOpenNeedsAnotherNamespace(t *testing.T) {
	host := routertest.New(t)
	host.Do(func() {
		for _, path := range []string{"/nowhere", "/proc/self/ns/mnt", "/etc/passwd", "/dev/null"} {
			if _, err := Open(path, "eth0"); !errors.Is(err, ErrNoNamespace) {
				t.Errorf("%s: %v", path, err)
			}
		}
		if _, err := Open(host.Path(), "eth0"); err == nil || errors.Is(err, ErrNoNamespace) {
			t.Errorf("the host's own: %v", err)
		}
	})
}

// Whatever somebody takes away from an endpoint's host side, Sync gives it back, and
// leaves the rest alone.
func TestSyncRepairs(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	host.Do(func() {
		addNode(t)
		e := make4and6(t, c, "one", 7)
		all := []Endpoint{e, {HostLink: HostLink("gone", "eth0"), Addr4: node4.Next()}}
		h, err := link.Handle()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		right := func() bool {
			s, err := look(h)
			if err != nil {
				t.Fatal(err)
			}
			return s.right(s.links[e.HostLink], e, node4, node6)
		}
		for name, breakIt := range map[string]func(l netlink.Link) error{
			"new":  func(netlink.Link) error { return nil },
			"down": h.LinkSetDown,
			"MTU":  func(l netlink.Link) error { return h.LinkSetMTU(l, 1300) },
			"gateway": func(l netlink.Link) error {
				return h.AddrDel(l, &netlink.Addr{IPNet: link.IPNet(netip.PrefixFrom(Gateway4, 32))})
			},
			"route": func(l netlink.Link) error {
				return h.RouteDel(&netlink.Route{Dst: link.IPNet(netip.PrefixFrom(e.Addr6, 128)), LinkIndex: l.Attrs().Index})
			},
			"neighbour": func(l netlink.Link) error {
				return h.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: e.Addr4.AsSlice()})
			},
		} {
			if name != "new" {
				if err := Sync(all, node4, node6); err != nil {
					t.Fatal(err)
				}
			}
			l, err := h.LinkByName(e.HostLink)
			if err != nil {
				t.Fatal(err)
			}
			if err := breakIt(l); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if name != "new" && right() {
				t.Errorf("%s: not noticed", name)
			}
			if err := Sync(all, node4, node6); err != nil || !right() {
				t.Errorf("%s: not repaired: %v", name, err)
			}
		}
	})
}

// Many at once: a list that changes while it is read is read again.
func TestManyAtOnce(t *testing.T) {
	const n = 24
	host := routertest.New(t)
	containers := make([]routertest.Namespace, n)
	for i := range containers {
		containers[i] = routertest.New(t)
	}
	host.Do(func() { addNode(t) })
	var group sync.WaitGroup
	for i, c := range containers {
		group.Go(func() {
			host.Do(func() {
				name := string(rune('a' + i))
				e := make4and6(t, c, name, byte(10+i))
				if err := Plug(e, node4, node6); err != nil {
					t.Error(err)
				}
				if names, err := List(); err != nil || len(names) == 0 {
					t.Errorf("links %v, %v", names, err)
				}
				if err := Delete(e.HostLink); err != nil {
					t.Error(err)
				}
			})
		})
	}
	group.Wait()
	host.Do(func() {
		if names, err := List(); err != nil || len(names) > 0 {
			t.Errorf("links %v are left, %v", names, err)
		}
	})
}

// What the agent pays every two seconds for 50 endpoints that are right.
func BenchmarkSyncUnchanged(b *testing.B) {
	host := routertest.New(b)
	host.Do(func() {
		addNode(b)
		var all []Endpoint
		for n := range byte(50) {
			all = append(all, make4and6(b, routertest.New(b), string(rune('A'+n)), 10+n))
		}
		for b.Loop() {
			if err := Sync(all, node4, node6); err != nil {
				b.Fatal(err)
			}
		}
	})
}
