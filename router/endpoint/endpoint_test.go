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

func TestHostLinkIsStableAndUnique(t *testing.T) {
	if got := HostLink("8d1f", "eth0"); got != "weft-c5e5b99f2c" || len(got) > 15 {
		t.Errorf("HostLink is %q; want the name of earlier releases, weft-c5e5b99f2c: otherwise existing endpoints would be lost", got)
	}
	if HostLink("a", "b") == HostLink("a\x00b", "") || HostLink("a", "eth0") == HostLink("a", "eth1") {
		t.Error("two endpoints have the same HostLink; want different names")
	}
}

// make4and6 makes and configures an endpoint of container c. It must run in the host's namespace.
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
		routertest.AddAddr(t, lo, netip.PrefixFrom(a, a.BitLen()))
	}
}

func TestEndpointIsCreatedCheckedAndDeleted(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	host.Do(func() {
		addNode(t)
		e := make4and6(t, c, "one", 7)
		addrs := []netip.Addr{e.Addr4, e.Addr6}
		if err := Check(e.HostLink, c.Path(), "eth0", addrs); err != nil {
			t.Error(err)
		}
		if err := Check(e.HostLink, c.Path(), "eth0", append(addrs, node4)); err == nil || !strings.Contains(err.Error(), node4.String()) {
			t.Errorf("Check with a missing address returned %v; want an error that names the address", err)
		}
		in, err := Open(c.Path(), "eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if err := in.Create(e.HostLink); !errors.Is(err, ErrExists) {
			t.Errorf("the second Create of a link returned %v; want ErrExists", err)
		}
		if err := in.Create(HostLink("two", "eth0")); err == nil || errors.Is(err, ErrExists) {
			t.Errorf("Create of an interface that the container has returned %v; want an error other than ErrExists", err)
		}
		if err := Plug(e, node4, node6); err != nil {
			t.Fatal(err)
		}
		if names, err := List(); err != nil || len(names) != 1 || names[0] != e.HostLink {
			t.Errorf("List returned %v, %v; want only %s", names, err, e.HostLink)
		}
		for range 2 {
			if err := errors.Join(Delete(e.HostLink), Unplug(e)); err != nil {
				t.Errorf("deleting and unplugging the endpoint returned %v; want no error", err)
			}
		}
		if err := Check(e.HostLink, c.Path(), "eth0", addrs); err == nil {
			t.Error("Check of a deleted endpoint returned no error, want one")
		}
	})
}

// otherRoutes returns several routes to an endpoint, as other releases or administrators may have
// added them. None is equal to a route that Plug adds.
func otherRoutes(e Endpoint, index int) (out []*netlink.Route) {
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

// routesTo returns the routes to an address in all tables except "local".
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

// After Unplug, no packet reaches a container that still runs, whatever routes led to it. Other
// containers stay reachable, even a container that was given the same address since.
func TestUnplugRemovesAllRoutesToARunningContainer(t *testing.T) {
	for name, add := range map[string]bool{"routes of this release": false, "and routes of other programs": true} {
		t.Run(name, func(t *testing.T) {
			routertest.New(t).Do(func() {
				addNode(t)
				unplugged, other := make4and6(t, routertest.New(t), "one", 7), make4and6(t, routertest.New(t), "two", 8)
				successor := unplugged
				successor.HostLink = make4and6(t, routertest.New(t), "three", 9).HostLink
				if err := errors.Join(Plug(unplugged, node4, node6), Plug(other, node4, node6)); err != nil {
					t.Fatal(err)
				}
				l, err := netlink.LinkByName(unplugged.HostLink)
				if err != nil {
					t.Fatal(err)
				}
				if add {
					for _, r := range otherRoutes(unplugged, l.Attrs().Index) {
						if err := netlink.RouteAdd(r); err != nil {
							t.Fatalf("adding the route %v: %v", r, err)
						}
					}
				}
				if err := Unplug(unplugged); err != nil {
					t.Error(err)
				}
				for _, addr := range []netip.Addr{unplugged.Addr4, unplugged.Addr6} {
					if left := routesTo(t, addr); len(left) > 0 {
						t.Errorf("after Unplug, routes to %v are left: %v; want none", addr, left)
					}
				}
				if err := errors.Join(Plug(successor, node4, node6), Unplug(unplugged)); err != nil {
					t.Error(err)
				}
				for _, addr := range []netip.Addr{other.Addr4, other.Addr6, successor.Addr4, successor.Addr6} {
					if left := routesTo(t, addr); len(left) != 1 {
						t.Errorf("the routes to %v are %v; want one", addr, left)
					}
				}
			})
		})
	}
}

// A container runtime may have disabled IPv6 in the container. Configure enables IPv6 only on the
// interface that it configures.
func TestConfigureEnablesIPv6OnItsInterfaceOnly(t *testing.T) {
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
			t.Error("Configure changed the default of disable_ipv6; want a change of its own interface only")
		}
	})
}

// Packets from a container cannot change the host's routes, and reverse path filtering of its link
// is strict.
func TestPlugSetsStrictReversePathFiltering(t *testing.T) {
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
				t.Errorf("the sysctl %s has another value, want %s", name, want)
			}
		}
	})
}

func TestOpenRefusesPathsOtherThanContainerNamespaces(t *testing.T) {
	host := routertest.New(t)
	host.Do(func() {
		for _, path := range []string{"/nowhere", "/proc/self/ns/mnt", "/etc/passwd", "/dev/null"} {
			if _, err := Open(path, "eth0"); !errors.Is(err, ErrNoNamespace) {
				t.Errorf("Open(%s) returned %v; want ErrNoNamespace", path, err)
			}
		}
		if _, err := Open(host.Path(), "eth0"); err == nil || errors.Is(err, ErrNoNamespace) {
			t.Errorf("Open of the host's own namespace returned %v; want an error other than ErrNoNamespace", err)
		}
	})
}

// Sync restores anything that another program changed on an endpoint's host end.
func TestSyncRestoresTheHostEnd(t *testing.T) {
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
		intact := func() bool {
			s, err := readState(h)
			if err != nil {
				t.Fatal(err)
			}
			return s.matches(s.links[e.HostLink], e, node4, node6)
		}
		for name, change := range map[string]func(l netlink.Link) error{
			"not programmed yet": func(netlink.Link) error { return nil },
			"link set down":      h.LinkSetDown,
			"MTU changed":        func(l netlink.Link) error { return h.LinkSetMTU(l, 1300) },
			"gateway address deleted": func(l netlink.Link) error {
				return h.AddrDel(l, &netlink.Addr{IPNet: link.IPNet(netip.PrefixFrom(Gateway4, 32))})
			},
			"route deleted": func(l netlink.Link) error {
				return h.RouteDel(&netlink.Route{Dst: link.IPNet(netip.PrefixFrom(e.Addr6, 128)), LinkIndex: l.Attrs().Index})
			},
			"neighbour entry deleted": func(l netlink.Link) error {
				return h.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: e.Addr4.AsSlice()})
			},
		} {
			if name != "not programmed yet" {
				if err := Sync(all, node4, node6); err != nil {
					t.Fatal(err)
				}
			}
			l, err := h.LinkByName(e.HostLink)
			if err != nil {
				t.Fatal(err)
			}
			if err := change(l); err != nil {
				t.Fatalf("%s: changing the endpoint: %v", name, err)
			}
			if name != "not programmed yet" && intact() {
				t.Errorf("%s: matches reports true; want false", name)
			}
			if err := Sync(all, node4, node6); err != nil || !intact() {
				t.Errorf("%s: Sync returned %v, or did not restore the endpoint; want it restored", name, err)
			}
		}
	})
}

// Endpoints are made, listed and deleted at the same time: a list that changes while it is read is
// read again.
func TestEndpointsCanBeMadeListedAndDeletedConcurrently(t *testing.T) {
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
					t.Errorf("List returned %v, %v; want at least the link of this goroutine", names, err)
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
			t.Errorf("after all deletions, links %v are left, error %v; want none", names, err)
		}
	})
}

// This is the agent's cost for 50 unchanged endpoints, every two seconds.
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
