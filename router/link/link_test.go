package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

var universe = slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd01:2:3:4::/96")}

// bridge makes a bridge that is up and has addresses.
func bridge(t *testing.T, name string, mtu int, addrs ...string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	return up(t, &netlink.Bridge{LinkAttrs: attrs}, addrs...)
}

// up makes a link, gives it addresses and sets it up.
func up(t *testing.T, l netlink.Link, addrs ...string) netlink.Link {
	t.Helper()
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestOverlapFindsRoutesToOtherNetworks(t *testing.T) {
	for _, tt := range []struct{ addr, names string }{
		{"192.0.2.1/24", ""},
		{"10.40.1.1/16", "10.40.0.0/16 dev uplink"},
		{"10.1.1.1/8", "10.0.0.0/8 dev uplink"},
		{"fd01:2:3:4::9/64", "fd01:2:3:4::/64 dev uplink"},
	} {
		routertest.New(t).Do(func() {
			l := bridge(t, "uplink", 1500, tt.addr, "198.51.100.1/24")
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(198, 51, 100, 2)}); err != nil {
				t.Fatal(err)
			}
			bridge(t, Device, 1420)
			o := Overlay{Universe: universe, Node: 5, MTU: 1400, IPv6: true}
			err := Overlap(universe)
			switch {
			case tt.names == "" && err != nil:
				t.Errorf("on a host with the address %s, Overlap returned %v; want no error", tt.addr, err)
			case tt.names != "" && (err == nil || !strings.Contains(err.Error(), "--ipalloc-range")):
				t.Errorf("on a host with the address %s, Overlap returned %v; want an error that names --ipalloc-range", tt.addr, err)
			}
			if tt.names != "" {
				return
			}
			for range 2 { // in the second pass Weft's own routes exist, and do not count
				if err := errors.Join(o.SetUnreachable(), o.Up(), o.SetRoutes(), Overlap(universe)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// The route to the universe becomes unreachable when the device is deleted. A new node address
// replaces the old one.
func TestOverlayIsUnreachableWithoutTheDevice(t *testing.T) {
	routertest.New(t).Do(func() {
		l := bridge(t, Device, 1500)
		for _, node := range []slot.Slot{5, 6} {
			o := Overlay{Universe: universe, Node: node, MTU: 1400, IPv6: true}
			for range 2 {
				if err := errors.Join(o.SetUnreachable(), o.Up(), o.SetRoutes()); err != nil {
					t.Fatal(err)
				}
			}
			for _, to := range []netip.Addr{universe.Addr4(99), universe.Addr6(99)} {
				src := universe.Addr4(node)
				if to.Is6() {
					src = universe.Addr6(node)
				}
				routes, err := netlink.RouteGet(to.AsSlice())
				if err != nil || routes[0].LinkIndex != l.Attrs().Index || !routes[0].Src.Equal(src.AsSlice()) {
					t.Errorf("the route to %v is %v, %v; want the tunnel with the source %v", to, routes, err, src)
				}
			}
		}
		have, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		have = slices.DeleteFunc(have, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
		if err != nil || len(have) != 2 {
			t.Errorf("the device has the addresses %v, error %v; want the two addresses of the last node", have, err)
		}
		if err := netlink.LinkDel(l); err != nil {
			t.Fatal(err)
		}
		for _, to := range []netip.Addr{universe.Addr4(99), universe.Addr6(99)} {
			if routes, err := netlink.RouteGet(to.AsSlice()); !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("without the device the route to %v is %v, %v; want unreachable", to, routes, err)
			}
		}
		for range 2 {
			if err := Remove(); err != nil {
				t.Error(err)
			}
		}
		h, _ := Handle()
		defer h.Close()
		if left, err := Routes(h); err != nil || len(left) > 0 {
			t.Errorf("after Remove the routes %v are left, error %v; want none", left, err)
		}
	})
}

func TestForwardingLinksStillAcceptRouterAdvertisements(t *testing.T) {
	routertest.New(t).Do(func() {
		bridge(t, "uplink", 1500)
		for range 2 {
			if err := Forwarding(true, nil); err != nil {
				if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
					t.Skip(err)
				}
				t.Fatal(err)
			}
		}
		for path, want := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/uplink/accept_ra": "2"} {
			if err := expectSysctl(path, want); err != nil {
				t.Error(err)
			}
		}
	})
}

func expectSysctl(path, want string) error {
	got, err := os.ReadFile(filepath.Join(sysctlRoot, path))
	if err == nil && strings.TrimSpace(string(got)) != want {
		err = fmt.Errorf("the sysctl %s is %s; want %s", path, strings.TrimSpace(string(got)), want)
	}
	return err
}
