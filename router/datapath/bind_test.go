package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"weft/router/link"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

const patience = 10 * time.Second

// connect joins two namespaces by a veth pair with the addresses 192.0.NET.1 and .2, and
// 2001:db8:NET::1 and ::2.
func connect(t *testing.T, a, b routertest.Namespace, name string, number int) {
	t.Helper()
	a.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(b.Fd())}); err != nil {
			t.Fatal(err)
		}
	})
	for i, ns := range []routertest.Namespace{a, b} {
		ns.Do(func() {
			l, err := netlink.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			addr, _ := netlink.ParseAddr(fmt.Sprintf("192.0.%d.%d/24", number, i+1))
			addr6, _ := netlink.ParseAddr(fmt.Sprintf("2001:db8:%d::%d/64", number, i+1))
			addr6.Flags = unix.IFA_F_NODAD
			if err := errors.Join(netlink.AddrAdd(l, addr), netlink.AddrAdd(l, addr6), netlink.LinkSetUp(l)); err != nil {
				t.Fatal(err)
			}
		})
	}
	settle(t, a, b, fmt.Sprintf("2001:db8:%d::2", number)) // IPv6 addresses are usable only after a delay
	settle(t, b, a, fmt.Sprintf("2001:db8:%d::1", number))
}

// settle waits until packets arrive from one namespace at an address of another.
func settle(t *testing.T, from, to routertest.Namespace, addr string) {
	t.Helper()
	server, port := listen(t, to)
	from.Do(func() {
		for end := time.Now().Add(patience); ; {
			c, err := net.Dial("udp", netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port)).String())
			if err == nil {
				_, err = c.Write([]byte("probe"))
				c.Close()
			}
			_ = server.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
			if n, _ := server.Read(make([]byte, 10)); n > 0 {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("no packet arrived at %s: error %v; want one", addr, err)
			}
		}
	})
}

// routeMTU sets the MTU of the routes that connect made; 0 means the MTU of the link.
func routeMTU(t *testing.T, ns routertest.Namespace, name string, number, mtu int) {
	t.Helper()
	ns.Do(func() {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range []string{fmt.Sprintf("192.0.%d.0/24", number), fmt.Sprintf("2001:db8:%d::/64", number)} {
			r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: link.IPNet(netip.MustParsePrefix(to)), MTU: mtu, Scope: netlink.SCOPE_LINK}
			if to[0] == '2' {
				r.Scope, r.Priority = netlink.SCOPE_UNIVERSE, 256
			}
			if err := netlink.RouteReplace(r); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// opened returns an open bind in a namespace.
func opened(t *testing.T, ns routertest.Namespace) (b *bind) {
	t.Helper()
	ns.Do(func() {
		var err error
		if b, err = newBind(slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		if _, _, err = b.Open(0); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { b.Close(); b.release() })
	return b
}

func listen(t *testing.T, ns routertest.Namespace) (c *net.UDPConn, port int) {
	t.Helper()
	ns.Do(func() {
		var err error
		if c, err = net.ListenUDP("udp", nil); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).Port
}

// batch returns packets with free capacity behind each packet, where wireguard-go appends the next
// packet.
func batch(count, size int) (out [][]byte) {
	for range count {
		out = append(out, make([]byte, size, 1<<16))
	}
	return out
}

// send sends packets. It retries while there is no route, as for a moment after an IPv6 route was
// replaced.
func send(t *testing.T, b *bind, packets [][]byte, to conn.Endpoint) {
	t.Helper()
	err := b.Send(packets, to)
	for end := time.Now().Add(patience); errors.Is(err, unix.ENETUNREACH) && time.Now().Before(end); time.Sleep(time.Millisecond) {
		err = b.Send(packets, to)
	}
	if err != nil {
		t.Fatalf("sending to %s: %v", to.DstToString(), err)
	}
}

// Packets to IPv4 and IPv6 addresses in turns all arrive.
func TestPacketsOfBothFamiliesArrive(t *testing.T) {
	t.Parallel()
	a, z := routertest.New(t), routertest.New(t)
	connect(t, a, z, "under", 2)
	b := opened(t, a)
	server, port := listen(t, z)
	for i := range 100 {
		for _, to := range []string{"192.0.2.2", "2001:db8:2::2"} {
			e, err := b.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(to), uint16(port)).String())
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Send(batch(1, 100), e); err != nil {
				t.Fatalf("packet %d to %s: %v", i, to, err)
			}
			_ = server.SetReadDeadline(time.Now().Add(patience))
			if _, err := server.Read(make([]byte, 200)); err != nil {
				t.Fatalf("packet %d to %s did not arrive: %v", i, to, err)
			}
		}
	}
}

// All packets of a batch arrive, although some exceed the MTU of the route, in both families. When
// the route's MTU is larger again, packets are joined again.
func TestPacketsAboveTheRouteMTUArrive(t *testing.T) {
	t.Parallel()
	a, z := routertest.New(t), routertest.New(t)
	connect(t, a, z, "under", 2)
	b := opened(t, a)
	server, port := listen(t, z)
	for _, to := range []string{"192.0.2.2", "2001:db8:2::2"} {
		routeMTU(t, a, "under", 2, 0)
		e, err := b.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(to), uint16(port)).String())
		if err != nil {
			t.Fatal(err)
		}
		arrives := func(when string) {
			t.Helper()
			packets := slices.Concat(batch(3, 100), batch(20, 1400), batch(3, 100))
			send(t, b, packets, e)
			large := 0
			for buf := make([]byte, 1<<16); large < 20; {
				_ = server.SetReadDeadline(time.Now().Add(patience))
				n, err := server.Read(buf)
				if err != nil {
					t.Fatalf("to %s, %s: %d of 20 large packets arrived; want all: %v", to, when, large, err)
				}
				if n == 1400 {
					large++
				}
			}
		}
		arrives("with the link's MTU")
		routeMTU(t, a, "under", 2, 1280)
		arrives("right after the route's MTU shrank")
		arrives("after the smaller MTU is known")
		carries := func() int { return b.path(e.(*conn.StdNetEndpoint)).carries }
		if c := carries(); c >= 1280 || c < 1200 {
			t.Errorf("to %s: the maximum payload of packets that are sent together is %d; want 1200 to 1279", to, c)
		}
		routeMTU(t, a, "under", 2, 0)
		for end := time.Now().Add(patience); carries() < 1400; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("to %s: the route's MTU grew, but the maximum payload did not; want both to grow", to)
			}
		}
		arrives("after the route's MTU grew")
	}
}

// A smaller MTU that a router reports by ICMP has the same effect as the MTU of a route.
func TestPacketsAboveThePathMTUArrive(t *testing.T) {
	t.Parallel()
	a, router, z := routertest.New(t), routertest.New(t), routertest.New(t)
	connect(t, a, router, "one", 1)
	connect(t, z, router, "two", 2)
	router.Do(func() {
		two, err := netlink.LinkByName("two")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(netlink.LinkSetMTU(two, 1280), link.Forwarding(true, nil)); err != nil {
			t.Fatal(err)
		}
	})
	for i, ns := range []routertest.Namespace{a, z} {
		ns.Do(func() {
			for _, gateway := range []string{"192.0.%d.2", "2001:db8:%d::2"} {
				if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(fmt.Sprintf(gateway, i+1))}); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	b := opened(t, a)
	server, port := listen(t, z)
	for _, to := range []string{"192.0.2.1", "2001:db8:2::1"} {
		e, err := b.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(to), uint16(port)).String())
		if err != nil {
			t.Fatal(err)
		}
		arrived := 0
		for end := time.Now().Add(patience); arrived < 20; { // the ICMP errors to the first batch report the path MTU
			send(t, b, batch(20, 1400), e)
			for buf := make([]byte, 1<<16); ; arrived++ {
				_ = server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				if n, err := server.Read(buf); err != nil || n != 1400 {
					break
				}
			}
			if time.Now().After(end) {
				t.Fatalf("to %s: %d of 20 packets arrived; want all", to, arrived)
			}
		}
	}
}

// cameIn returns a peer's endpoint as wireguard-go makes it from a packet that arrived on a link,
// if the kernel has no UDP_GRO. With UDP_GRO, wireguard-go loses the link.
func cameIn(from netip.AddrPort, to netip.Addr, by int) conn.Endpoint {
	e := &conn.StdNetEndpoint{AddrPort: from}
	var control []byte
	if to.Is4() {
		control = unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(by), Spec_dst: to.As4()})
	} else {
		control = unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: uint32(by), Addr: to.As16()})
	}
	*(*[]byte)(reflect.ValueOf(e).Elem().FieldByName("src").Addr().UnsafePointer()) = control
	return e
}

// Packets go to a peer from the address and link at which the peer's packets arrived, as long as
// the route uses that link.
func TestPacketsLeaveThroughTheLinkOfTheRoute(t *testing.T) {
	t.Parallel()
	a, z := routertest.New(t), routertest.New(t)
	connect(t, a, z, "one", 1)
	connect(t, a, z, "two", 2)
	b := opened(t, a)
	for _, at := range []string{"198.51.100.9", "2001:db8:f::9"} {
		far := netip.MustParseAddr(at)
		z.Do(func() {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				t.Fatal(err)
			}
			routertest.AddAddr(t, lo, netip.PrefixFrom(far, far.BitLen()))
		})
		setRoute := func(number int) (local netip.Addr, by int) {
			t.Helper()
			format, gateway := "192.0.%d.1", ""
			if far.Is6() {
				format = "2001:db8:%d::1"
			}
			local = netip.MustParseAddr(fmt.Sprintf(format, number))
			gateway = local.Next().String()
			a.Do(func() {
				to := link.IPNet(netip.PrefixFrom(far, far.BitLen()))
				if err := netlink.RouteReplace(&netlink.Route{Dst: to, Gw: net.ParseIP(gateway)}); err != nil {
					t.Fatal(err)
				}
				l, err := netlink.LinkByName([]string{1: "one", 2: "two"}[number])
				if err != nil {
					t.Fatal(err)
				}
				by = l.Attrs().Index
			})
			return local, by
		}
		peer, port := listen(t, z)
		local, by := setRoute(1)
		e := cameIn(netip.AddrPortFrom(far, uint16(port)), local, by)
		source := func() netip.Addr {
			t.Helper()
			for end := time.Now().Add(patience); ; { // the kernel drops packets while it resolves the gateway
				send(t, b, batch(1, 10), e)
				_ = peer.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				_, seen, err := peer.ReadFromUDPAddrPort(make([]byte, 100))
				switch {
				case err == nil:
					return seen.Addr().Unmap()
				case time.Now().After(end):
					t.Fatal(err)
				}
			}
		}
		if s := source(); s != local {
			t.Errorf("an answer came from %v; want %v, to which the request was sent", s, local)
		}
		other, _ := setRoute(2)
		for end := time.Now().Add(patience); source() != other; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("to %v: packets still leave through the link of the old route; want the new one", far)
			}
		}
	}
}
