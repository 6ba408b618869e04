package router

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/mesh/topology"
	"weft/router/routertest"
)

// setMTUs sets the MTU of a host's underlay, and configures its tunnel for that MTU and for theirs,
// the MTU of the other host's underlay.
func (h *host) setMTUs(t *testing.T, own, theirs int) {
	t.Helper()
	h.ns.Do(func() {
		l, err := netlink.LinkByName("under")
		if err == nil {
			err = netlink.LinkSetMTU(l, own)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	h.config.Tunnels[0].Route, h.config.Tunnels[0].Link = own, theirs
	h.config.MTU = topology.SetMTUs(h.config.Tunnels, own, 0)
	h.must(request{Config: &h.config})
}

// exchange sends UDP datagrams of a size, which may be fragmented, until one is echoed.
func exchange(t *testing.T, ns routertest.Namespace, to netip.Addr, size int) {
	t.Helper()
	ns.Do(func() {
		c, err := net.Dial("udp", netip.AddrPortFrom(to, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 1<<16)
		for end := time.Now().Add(patience); time.Now().Before(end); {
			_, _ = c.Write(make([]byte, size))
			_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if n, err := c.Read(buf); err == nil && n >= size {
				return
			}
		}
		t.Fatalf("no UDP datagram of %d bytes to %v was echoed; want one", size, to)
	})
}

// expectPathMTU sends packets with Don't Fragment, as large as the sender's path MTU allows, until
// path MTU discovery has reduced the path MTU to want.
func expectPathMTU(t *testing.T, ns routertest.Namespace, to netip.Addr, want int) {
	t.Helper()
	ns.Do(func() {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		level, discover, value, headers := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU, 28
		if to.Is6() {
			level, discover, value, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU, 48
		}
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, discover, unix.IP_PMTUDISC_DO) })
		if err != nil {
			t.Fatal(err)
		}
		mtu := 0
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
			_ = raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, value) })
			if err != nil {
				t.Fatal(err)
			}
			if mtu == want {
				return
			}
			_, _ = c.Write(make([]byte, mtu-headers))
		}
		t.Fatalf("the path MTU to %v is %d; want %d", to, mtu, want)
	})
}

// Hosts whose links have MTUs of 9000 and 1500 exchange packets of any size, between containers and
// from the host itself, in both families. A sender of a packet that is too big learns the path MTU.
func TestHostsWithDifferentMTUsExchangePacketsOfAnySize(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN device: %v", err)
	}
	routertest.New(t) // skip the test where namespaces are not allowed
	h1, h2 := startHost(t, 1), startHost(t, 2)
	join(t, h1, h2)
	h1.tunnelTo(h2, 2)
	h2.tunnelTo(h1, 1)
	h1.setMTUs(t, 9000, 1500)
	h2.setMTUs(t, 1500, 9000)
	c1, e1 := h1.attach(1<<16 + 7)
	c2, e2 := h2.attach(2<<16 + 9)
	if e1.MTU != 8920 || e2.MTU != 1420 {
		t.Fatalf("containers have MTUs %d and %d; want 8920 and 1420", e1.MTU, e2.MTU)
	}
	echo(t, c1)
	echo(t, c2)
	for _, to := range []netip.Addr{e2.Addr4, e2.Addr6} {
		expectPathMTU(t, c1, to, 1420)
		exchange(t, c1, to, 2000)
		exchange(t, c1, to, 8000)
		exchange(t, h1.ns, to, 2000)
	}
	for _, to := range []netip.Addr{e1.Addr4, e1.Addr6} {
		exchange(t, c2, to, 2000)
		exchange(t, h2.ns, to, 2000)
	}
	// These containers were attached when the links of their hosts had a smaller MTU.
	h1.config.MTU, h2.config.MTU = 1400, 1300
	c3, e3 := h1.attach(1<<16 + 8)
	c4, e4 := h2.attach(2<<16 + 10)
	h1.setMTUs(t, 9000, 1500)
	h2.setMTUs(t, 1500, 9000)
	echo(t, c3)
	echo(t, c4)
	for _, to := range []netip.Addr{e3.Addr4, e3.Addr6, e4.Addr4, e4.Addr6} {
		exchange(t, c1, to, 2000)
		exchange(t, h1.ns, to, 2000)
	}
	expectPathMTU(t, c1, e3.Addr6, 1400)
	expectPathMTU(t, c1, e4.Addr4, 1300)
	expectPathMTU(t, c1, e4.Addr6, 1300)

	// The MTU of this route is below the minimum of IPv6.
	h1.setMTUs(t, 9000, 1280)
	routeMTU(t, h1, 1280)
	expectPathMTU(t, c1, e2.Addr4, 1200)
	expectPathMTU(t, c1, e2.Addr6, 1280)
	exchange(t, c1, e2.Addr4, 2000)
	exchange(t, c1, e2.Addr6, 2000)
}

// routeMTU sets the MTU of a host's IPv4 route to the other host.
func routeMTU(t *testing.T, h *host, mtu int) {
	t.Helper()
	h.ns.Do(func() {
		l, err := netlink.LinkByName("under")
		if err != nil {
			t.Fatal(err)
		}
		err = netlink.RouteReplace(&netlink.Route{
			LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(192, 0, 2, 0), Mask: net.CIDRMask(24, 32)}, MTU: mtu, Scope: netlink.SCOPE_LINK,
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
