package link

import (
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/routertest"
)

// A Watch notices every change to links, addresses, routes and permanent neighbour entries. It
// ignores neighbours that the kernel resolves itself.
func TestWatchNoticesChangesOfLinksAndRoutes(t *testing.T) {
	routertest.New(t).Do(func() {
		l := quiet(t)
		w, err := OpenWatch()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		time.Sleep(1500 * time.Millisecond) // the kernel announces a link's state at most once a second
		neighbour := func(state int) *netlink.Neigh {
			last := byte(state)
			return &netlink.Neigh{LinkIndex: l.Attrs().Index, State: state, IP: net.IPv4(192, 0, 2, last), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, last}}
		}
		route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(198, 51, 100, 0), Mask: net.CIDRMask(24, 32)}}
		addr, err := netlink.ParseAddr("203.0.113.1/24")
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			name    string
			do      func() error
			changed bool
		}{
			{"no change", func() error { return nil }, false},
			{"a link is added", func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other0"}}) }, true},
			{"a link is deleted", func() error { return netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other0"}}) }, true},
			{"another MTU", func() error { return netlink.LinkSetMTU(l, 1400) }, true},
			{"an address is added", func() error { return netlink.AddrAdd(l, addr) }, true},
			{"an address is deleted", func() error { return netlink.AddrDel(l, addr) }, true},
			{"a route is added", func() error { return netlink.RouteAdd(route) }, true},
			{"a route is deleted", func() error { return netlink.RouteDel(route) }, true},
			{"a permanent neighbour entry is added", func() error { return netlink.NeighSet(neighbour(netlink.NUD_PERMANENT)) }, true},
			{"the permanent neighbour entry is deleted", func() error { return netlink.NeighDel(neighbour(netlink.NUD_PERMANENT)) }, true},
			{"a neighbour entry that is not permanent is added", func() error { return netlink.NeighSet(neighbour(netlink.NUD_STALE)) }, false},
			{"the link is set down", func() error { return netlink.LinkSetDown(l) }, true},
			{"the link is set up", func() error { return netlink.LinkSetUp(l) }, true},
			{"more announcements than the socket's buffer holds", func() error {
				if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
					return err
				}
				for i := range 200 {
					n := neighbour(netlink.NUD_STALE)
					n.HardwareAddr[4] = byte(i)
					if err := netlink.NeighSet(n); err != nil {
						return err
					}
				}
				return nil
			}, true},
		} {
			before := settled(w)
			if err := step.do(); err != nil {
				t.Fatalf("making the change %q: %v", step.name, err)
			}
			if changed := settled(w) != before; changed != step.changed {
				t.Errorf("%s: the version changed: %v; want %v", step.name, changed, step.changed)
			}
		}
	})
}

// quiet makes a link about which the kernel announces nothing by itself later.
func quiet(t *testing.T) netlink.Link {
	t.Helper()
	l := bridge(t, "under0", 1500, "192.0.2.1/24")
	if err := errors.Join(netlink.LinkSetDown(l), netlink.LinkSetIP6AddrGenMode(l, 1), netlink.LinkSetUp(l)); err != nil {
		t.Fatal(err)
	}
	return l
}

// settled returns the version when it has stopped changing: the kernel announces some changes with
// a delay.
func settled(w *Watch) (version uint64) {
	for quiet := 0; quiet < 10; quiet++ {
		time.Sleep(10 * time.Millisecond)
		if now := w.Version(); now != version {
			version, quiet = now, 0
		}
	}
	return version
}

// The version also changes after a fixed time, because the kernel does not announce every change.
func TestWatchVersionChangesWithoutAnnouncements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // this socket receives nothing
		if err != nil {
			t.Fatal(err)
		}
		w := &Watch{fd: fd, version: 1, since: time.Now()}
		defer w.Close()
		before := w.Version()
		time.Sleep(maxUnnoticed - time.Second)
		if now := w.Version(); now != before {
			t.Errorf("the version changed from %[2]d to %[1]d without an announcement; want no change yet", now, before)
		}
		time.Sleep(2 * time.Second)
		if now := w.Version(); now == before {
			t.Errorf("the version did not change within %v; want a change", maxUnnoticed)
		}
	})
}

func TestANilWatchHasVersionZero(t *testing.T) {
	var w *Watch
	if v := w.Version(); v != 0 {
		t.Errorf("a nil Watch has version %d; want 0", v)
	}
}

func FuzzAnnounces(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x1c, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, messages []byte) { announces(messages) })
}
