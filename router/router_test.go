package router

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
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/mesh/topology"
	"weft/router/endpoint"
	"weft/router/link"
	"weft/router/routertest"
)

// twoHosts makes two hosts with a tunnel, and one container on each.
func twoHosts(t *testing.T) (h1, h2 *host, c1, c2 routertest.Namespace, e1, e2 endpoint.Endpoint) {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN device: %v", err)
	}
	routertest.New(t) // skip the test where namespaces are not allowed
	h1, h2 = startHost(t, 1), startHost(t, 2)
	join(t, h1, h2)
	h1.tunnelTo(h2, 2)
	h2.tunnelTo(h1, 1)
	h1.must(request{Config: &h1.config})
	h2.must(request{Config: &h2.config})
	c1, e1 = h1.attach(1<<16 + 7)
	c2, e2 = h2.attach(2<<16 + 9)
	echo(t, c1)
	echo(t, c2)
	return h1, h2, c1, c2, e1, e2
}

const patience = 10 * time.Second

func expectCall(t *testing.T, from routertest.Namespace, to netip.Addr, seen string) {
	t.Helper()
	if got := call(t, from, to, patience); got != seen {
		t.Errorf("the echo server at %v saw the source %q; want %q", to, got, seen)
	}
}

func expectNoReply(t *testing.T, from routertest.Namespace, to netip.Addr) {
	t.Helper()
	if got := call(t, from, to, 400*time.Millisecond); got != "" {
		t.Errorf("%v answered, and saw the source %s; want no answer", to, got)
	}
}

func TestOverlayConnectsEndpointsAndIsClosedToTheUnderlay(t *testing.T) {
	h1, h2, c1, c2, e1, e2 := twoHosts(t)
	leaks := sniff(t, h2)
	t.Run("endpoints reach each other with their own addresses", func(t *testing.T) {
		expectCall(t, c1, e2.Addr4, e1.Addr4.String())
		expectCall(t, c2, e1.Addr6, e2.Addr6.String())
	})
	t.Run("a host reaches endpoints from its node address", func(t *testing.T) {
		node := h1.config.Node
		expectCall(t, h1.ns, e1.Addr4, universe.Addr4(node).String())
		expectCall(t, h1.ns, e2.Addr4, universe.Addr4(node).String())
		expectCall(t, h1.ns, e2.Addr6, universe.Addr6(node).String())
	})
	t.Run("endpoints reach the outside with the host's address", func(t *testing.T) {
		echo(t, h2.ns)
		expectCall(t, c1, netip.MustParseAddr("192.0.2.2"), "192.0.2.1")
		expectCall(t, c1, netip.MustParseAddr("2001:db8::2"), "2001:db8::1")
		for end := time.Now().Add(patience); leaks.Load() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the sniffer did not see the plaintext packets to the outside; want them seen, else the test proves nothing")
			}
		}
		leaks := sniff(t, h2) // a new sniffer: the old one may still read the plaintext packets, which were intended
		expectCall(t, c1, e2.Addr4, e1.Addr4.String())
		if n := leaks.Load(); n > 0 {
			t.Errorf("the number of overlay packets that were seen on the underlay is %d; want 0", n)
		}
	})
	t.Run("packets with a spoofed source are dropped", func(t *testing.T) { testSpoofedSources(t, h2, c2, e2) })
	t.Run("the underlay does not reach endpoints", func(t *testing.T) { testUnderlayIsBlocked(t, h1, h2, e2) })
}

// testUnderlayIsBlocked sends to an endpoint from a neighbour that routes the universe to this
// host. It sends packets with an underlay source and packets with an overlay source.
func testUnderlayIsBlocked(t *testing.T, h1, h2 *host, e2 endpoint.Endpoint) {
	h1.must(request{Remove: true}) // h1 is now a machine outside the mesh
	h1.ns.Do(func() {
		l, err := netlink.LinkByName("under")
		if err != nil {
			t.Fatal(err)
		}
		lo, _ := netlink.LinkByName("lo")
		own, _ := netlink.ParseAddr(universe.Addr4(5).String() + "/32")
		err = errors.Join(netlink.AddrAdd(lo, own),
			netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: link.IPNet(universe.V4), Gw: net.IPv4(192, 0, 2, 2)}))
		if err != nil {
			t.Fatal(err)
		}
	})
	expectNoAnswer := func(t *testing.T, source string) { // a reply would be an overlay packet on the underlay
		h1.ns.Do(func() {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}, Timeout: time.Second}
			for _, to := range []netip.Addr{e2.Addr4, universe.Addr4(h2.config.Node)} {
				c, err := d.Dial("udp", netip.AddrPortFrom(to, 7).String())
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Write([]byte("probe"))
				_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				if n, err := c.Read(make([]byte, 100)); err == nil {
					t.Errorf("%s received %d bytes from %v; want none", source, n, to)
				}
				c.Close()
			}
		})
	}
	expectNoAnswer(t, "192.0.2.1")
	expectNoAnswer(t, universe.Addr4(5).String())
	h2.config.Exposed = true
	h2.must(request{Config: &h2.config})
	if got := call(t, h1.ns, e2.Addr4, time.Second); got != "192.0.2.1" {
		t.Errorf("while the overlay is exposed, the endpoint saw the source %q; want 192.0.2.1", got)
	}
	expectNoAnswer(t, universe.Addr4(5).String())
	h2.config.Exposed = false
	h2.must(request{Config: &h2.config})
}

// testSpoofedSources sends to the endpoint's own host. Packets with the endpoint's addresses
// arrive; packets with other source addresses do not.
func testSpoofedSources(t *testing.T, h *host, c routertest.Namespace, e endpoint.Endpoint) {
	var listener net.PacketConn
	h.ns.Do(func() {
		var err error
		if listener, err = net.ListenPacket("udp", ":4001"); err != nil {
			t.Fatal(err)
		}
	})
	defer listener.Close()
	for _, claim := range []string{"10.34.0.77", "10.33.0.7", "192.0.2.77", "169.254.1.1", "fd01:2:3:4::2:77", "2001:db8::77", e.Addr4.String(), e.Addr6.String()} {
		source := netip.MustParseAddr(claim)
		to := universe.Addr4(h.config.Node)
		if source.Is6() {
			to = universe.Addr6(h.config.Node)
		}
		own := source == e.Addr4 || source == e.Addr6
		c.Do(func() {
			lo, _ := netlink.LinkByName("lo")
			if !own {
				prefix := netip.PrefixFrom(source, source.BitLen())
				routertest.AddAddr(t, lo, prefix)
				defer func() { _ = netlink.AddrDel(lo, &netlink.Addr{IPNet: link.IPNet(prefix)}) }()
			}
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: source.AsSlice()}}
			conn, err := d.Dial("udp", netip.AddrPortFrom(to, 4001).String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte(claim)); err != nil {
				t.Fatal(err)
			}
			conn.Close()
		})
		_ = listener.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, _, err := listener.ReadFrom(make([]byte, 100))
		if arrived := err == nil && n > 0; arrived != own {
			t.Errorf("a packet from %s arrived: %v, want %v", claim, arrived, own)
		}
	}
}

// Apply restarts a datapath that was killed with SIGKILL, and no packet leaves in plaintext
// meanwhile. It also restores a device, routes and rules that another program deleted.
func TestApplyRestoresWhatOthersDeleted(t *testing.T) {
	h1, h2, c1, _, e1, e2 := twoHosts(t)
	leaks := sniff(t, h2)
	again := func(t *testing.T) {
		t.Helper()
		expectCall(t, c1, e2.Addr4, e1.Addr4.String())
		expectCall(t, c1, e2.Addr6, e1.Addr6.String())
		expectCall(t, h1.ns, e1.Addr4, universe.Addr4(h1.config.Node).String())
	}
	again(t)
	if kind := h1.ask(request{Observe: true}); kind == "userspace" {
		for range 3 {
			killDatapath(t, h1)
			again(t)
		}
	}
	t.Run("the device is deleted", func(t *testing.T) {
		h1.ns.Do(func() { deleteLink(t, link.Device) })
		again(t)
	})
	t.Run("the routes are deleted", func(t *testing.T) {
		h1.ns.Do(func() {
			routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: link.Protocol}, netlink.RT_FILTER_PROTOCOL)
			if err != nil || len(routes) < 6 {
				t.Fatalf("found %d routes of Weft, %v; want at least 6", len(routes), err)
			}
			for _, r := range routes {
				if err := netlink.RouteDel(&r); err != nil {
					t.Errorf("deleting the route %v: %v", r, err)
				}
			}
		})
		again(t)
	})
	if n := leaks.Load(); n > 0 {
		t.Errorf("the number of overlay packets that were seen on the underlay is %d; want 0", n)
	}
	t.Run("Remove leaves no links and no routes", func(t *testing.T) {
		h1.must(request{Remove: true})
		h1.ns.Do(func() { expectNothing(t) })
		expectNoReply(t, h1.ns, e2.Addr4)
	})
}

// If WireGuard's port is in use, Apply returns an error that names the port. Apply never leaves a tunnel
// without a port.
func TestApplyFailsWhileTheWireGuardPortIsInUse(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN device: %v", err)
	}
	routertest.New(t) // skip the test where namespaces are not allowed
	h := startHost(t, 1)
	var taken net.PacketConn
	h.ns.Do(func() {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil {
			taken, err = net.ListenPacket("udp", ":6784")
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if a := h.ask(request{Config: &h.config}); !strings.Contains(a, "6784") || !strings.Contains(a, "--wireguard-port") {
		t.Errorf("with the port in use, Apply returned %q; want the port and the flag", a)
	}
	taken.Close()
	h.must(request{Config: &h.config})
}

func expectNothing(t *testing.T) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if link.Ours(l.Attrs().Name) {
			t.Errorf("after Remove the link %s is left; want none", l.Attrs().Name)
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: link.Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) > 0 {
		t.Errorf("after Remove the routes %v are left, error %v; want none", routes, err)
	}
}

func deleteLink(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// killDatapath kills the userspace process, which is the process with the argument "datapath" in
// the host's PID namespace.
func killDatapath(t *testing.T, h *host) {
	t.Helper()
	ours, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", h.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	killed := false
	for _, path := range all {
		dir := strings.TrimSuffix(path, "/ns/pid")
		in, _ := os.Readlink(path)
		line, _ := os.ReadFile(dir + "/cmdline")
		if in != ours || !slices.Contains(strings.Split(string(line), "\x00"), "datapath") {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(dir, "/proc/%d", &pid); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed = true
	}
	if !killed {
		t.Fatal("the host runs no datapath process, want one")
	}
}

func TestFormattingAConfigShowsNoKeys(t *testing.T) {
	c := Config{PrivateKey: [32]byte{1, 2, 3, 250}, Tunnels: []topology.Tunnel{{PresharedKey: [32]byte{251}}}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(verb, c); strings.Contains(s, "250") || strings.Contains(s, "251") {
			t.Errorf("formatting with %s shows a key: %s; want it hidden", verb, s)
		}
	}
}

// A UDP packet arrives also if its computed checksum is zero, as for one packet in 65,536. Over
// IPv6 such a packet has the checksum 0xffff instead (RFC 8200, 8.1).
func TestUDPPacketsWithAChecksumOfZeroArrive(t *testing.T) {
	_, _, c1, c2, e1, e2 := twoHosts(t)
	const port = 7070
	c2.Do(func() {
		server, err := net.ListenUDP("udp6", &net.UDPAddr{Port: port})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				n, from, err := server.ReadFromUDP(buf)
				if err != nil {
					return
				}
				_, _ = server.WriteToUDP(buf[:n], from)
			}
		}()
	})
	c1.Do(func() {
		conn, err := net.DialUDP("udp6", &net.UDPAddr{IP: e1.Addr6.AsSlice(), Port: port}, &net.UDPAddr{IP: e2.Addr6.AsSlice(), Port: port})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		zero := 0xffff ^ onesSum(slices.Concat(e1.Addr6.AsSlice(), e2.Addr6.AsSlice(), []byte{0, 10, 0, unix.IPPROTO_UDP, port >> 8, port & 0xff, port >> 8, port & 0xff, 0, 10}))
		for what, number := range map[string]int{"another checksum": zero ^ 1, "a checksum of zero": zero} {
			for end := time.Now().Add(patience); ; { // the first packet starts the handshake, and may be lost
				if _, err := conn.Write([]byte{byte(number >> 8), byte(number)}); err != nil {
					t.Fatal(err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				n, err := conn.Read(make([]byte, 64))
				if err == nil && n == 2 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("no packet with %s was echoed: error %v; want one", what, err)
				}
			}
		}
	})
}

// onesSum returns the one's complement sum of which the Internet checksum is the complement (RFC
// 1071).
func onesSum(b []byte) (sum int) {
	for i := 0; i+1 < len(b); i += 2 {
		sum += int(b[i])<<8 | int(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}
