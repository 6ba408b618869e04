package router

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weft/router/endpoint"
	"weft/router/link"
	"weft/router/nft"
	"weft/router/policy"
	"weft/router/routertest"
)

// portCounter counts the UDP datagrams and TCP connections that arrive at a port of a host.
type portCounter struct{ udp, tcp atomic.Int64 }

func (d *portCounter) count() int64 { return d.udp.Load() + d.tcp.Load() }

// listenAt opens a port at one address, or at all addresses if addr is empty, until the test ends.
func listenAt(t *testing.T, ns routertest.Namespace, addr string, port int) *portCounter {
	t.Helper()
	d := &portCounter{}
	ns.Do(func() {
		at := net.JoinHostPort(addr, fmt.Sprint(port))
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		c, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			for {
				one, err := l.Accept()
				if err != nil {
					return
				}
				d.tcp.Add(1)
				one.Close()
			}
		}()
		go func() {
			for b := make([]byte, 2048); ; d.udp.Add(1) {
				if _, _, err := c.ReadFrom(b); err != nil {
					return
				}
			}
		}()
	})
	return d
}

// knock sends to a port over UDP and TCP, and reports whether TCP connects.
func knock(ns routertest.Namespace, to string, port int) (connected bool) {
	ns.Do(func() {
		at := net.JoinHostPort(to, fmt.Sprint(port))
		if c, err := net.Dial("udp", at); err == nil {
			for range 3 {
				_, _ = c.Write([]byte(marker))
			}
			c.Close()
		}
		if c, err := net.DialTimeout("tcp", at, 500*time.Millisecond); err == nil {
			connected = true
			c.Close()
		}
	})
	return connected
}

// expectOpen probes a port until packets of both protocols have arrived.
func expectOpen(t *testing.T, ns routertest.Namespace, to string, port int, d *portCounter) {
	t.Helper()
	udp := d.udp.Load()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if knock(ns, to, port) && d.udp.Load() > udp {
			return
		}
	}
	t.Errorf("UDP or TCP to port %d of %s does not arrive; want both", port, to)
}

// expectClosed probes ports that must be closed at several addresses. Then it probes another port, which
// must be open at each address. This proves that the earlier packets would have arrived by now.
func expectClosed(t *testing.T, ns routertest.Namespace, to []string, closed map[int]*portCounter, open int, through *portCounter) {
	t.Helper()
	before := map[int]int64{}
	for port, d := range closed {
		before[port] = d.count()
	}
	var all sync.WaitGroup
	for _, a := range to {
		for port := range closed {
			all.Go(func() {
				if knock(ns, a, port) {
					t.Errorf("port %d of %s accepts TCP; want it closed", port, a)
				}
			})
		}
	}
	all.Wait()
	for _, a := range to {
		expectOpen(t, ns, a, open, through)
	}
	for port, d := range closed {
		if n := d.count() - before[port]; n != 0 {
			t.Errorf("the number of datagrams and connections that arrived at port %d through %v is %d; want 0", port, to, n)
		}
	}
}

func loadRules(t *testing.T, ns routertest.Namespace, rules string) {
	t.Helper()
	program, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not installed: apt-get install nftables")
	}
	ns.Do(func() {
		cmd := exec.Command(program, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("loading rules with nft: %v: %s", err, out)
		}
	})
}

// An endpoint cannot reach the ports of gossip and of the tunnel, at any address of any host, nor
// through a service. It can reach all other ports and all other machines.
func TestEndpointsCannotReachGossipAndTunnelPorts(t *testing.T) {
	h1, h2, c1, _, _, _ := twoHosts(t)
	node := func(h *host) []string {
		return []string{universe.Addr4(h.config.Node).String(), universe.Addr6(h.config.Node).String()}
	}
	const gossip, tunnel, other = 6783, 6785, 7
	under := map[*host][]string{h1: {"192.0.2.1", "2001:db8::1"}, h2: {"192.0.2.2", "2001:db8::2"}}
	for h, o := range map[*host]*host{h1: h2, h2: h1} {
		h.config.Hosts = nft.Hosts{TCP: []uint16{gossip, tunnel}, UDP: []uint16{gossip, tunnel}}
		for _, a := range append(node(o), under[o]...) {
			for _, port := range []uint16{gossip, tunnel} {
				for _, number := range []policy.Protocol{policy.TCP, policy.UDP} {
					h.config.Hosts.Peers = append(h.config.Hosts.Peers, policy.Service{Addr: netip.MustParseAddr(a), Protocol: number, Port: port})
				}
			}
		}
		h.config.Hosts.Nodes = []netip.Addr{universe.Addr4(o.config.Node), universe.Addr6(o.config.Node)}
		h.must(request{Config: &h.config})
	}
	closed, open := map[*host]map[int]*portCounter{}, map[*host]*portCounter{}
	for _, h := range []*host{h1, h2} {
		closed[h] = map[int]*portCounter{gossip: listenAt(t, h.ns, "", gossip), tunnel: listenAt(t, h.ns, "", tunnel)}
		open[h] = listenAt(t, h.ns, "", other)
	}
	t.Run("at their own host", func(t *testing.T) {
		own := append(append(node(h1), under[h1]...), endpoint.Gateway4.String(), endpoint.Gateway6.String()+"%eth0")
		expectClosed(t, c1, own, closed[h1], other, open[h1])
	})
	t.Run("at another host", func(t *testing.T) {
		expectClosed(t, c1, append(node(h2), under[h2]...), closed[h2], other, open[h2])
	})
	t.Run("through a service", func(t *testing.T) {
		var rules strings.Builder
		for _, port := range []int{gossip, tunnel, other} {
			for i, to := range append(node(h2), under[h2]...) {
				from, family, target := fmt.Sprintf("198.51.100.%d", i), "ip", to
				if i%2 == 1 {
					from, family, target = fmt.Sprintf("2001:db8:5e::%d", i), "ip6", "["+to+"]"
				}
				fmt.Fprintf(&rules, "%s daddr %s meta l4proto { tcp, udp } th dport %d dnat %[1]s to %[4]s:%[5]d\n", family, from, port+1000, target, port)
			}
		}
		loadRules(t, h1.ns, "table inet services { chain translate { type nat hook prerouting priority -100\n"+rules.String()+"}\n}\n")
		services := []string{"198.51.100.0", "2001:db8:5e::1", "198.51.100.2", "2001:db8:5e::3"}
		moved := map[int]*portCounter{gossip + 1000: closed[h2][gossip], tunnel + 1000: closed[h2][tunnel]}
		expectClosed(t, c1, services, moved, other+1000, open[h2])
	})
	t.Run("through a service at another host's node address", func(t *testing.T) {
		loadRules(t, h2.ns, fmt.Sprintf("table inet services { chain translate { type nat hook prerouting priority -100\n"+
			"tcp dport 30080 redirect to %d\nudp dport 30080 redirect to %[1]d\ntcp dport 30081 redirect to %[2]d\nudp dport 30081 redirect to %[2]d\n}\n}\n", gossip, other))
		expectClosed(t, c1, node(h2), map[int]*portCounter{30080: closed[h2][gossip]}, 30081, open[h2])
	})
	t.Run("the ports are open at machines outside the mesh", func(t *testing.T) {
		h2.ns.Do(func() {
			l, err := netlink.LinkByName("under")
			if err != nil {
				t.Fatal(err)
			}
			addr, _ := netlink.ParseAddr("192.0.2.77/24")
			if err := netlink.AddrAdd(l, addr); err != nil {
				t.Fatal(err)
			}
		})
		expectOpen(t, c1, "192.0.2.77", gossip, closed[h2][gossip])
	})
	t.Run("the ports of hosts are open to other hosts", func(t *testing.T) {
		for _, a := range append(node(h2), under[h2]...) {
			expectOpen(t, h1.ns, a, gossip, closed[h2][gossip])
		}
	})
}

// withoutLoopback makes 127.0.0.0/8 and ::1 ordinary destinations: routed through a link, and
// through gateways if there are any.
func withoutLoopback(t *testing.T, ns routertest.Namespace, dev string, gateways ...string) {
	t.Helper()
	ns.Do(func() {
		if err := link.Sysctl("1", "ipv4/conf/all/route_localnet"); err != nil {
			t.Fatal(err)
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		l, err := netlink.LinkByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		for i, to := range []string{"127.0.0.0/8", "::1/128"} {
			have, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range have {
				if a.IP.IsLoopback() {
					if err := netlink.AddrDel(lo, &a); err != nil {
						t.Fatal(err)
					}
				}
			}
			r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: link.IPNet(netip.MustParsePrefix(to))}
			if len(gateways) > 0 {
				r.Gw = net.ParseIP(gateways[i])
			}
			if err := netlink.RouteReplace(r); err != nil {
				t.Fatal(err)
			}
			route, err := netlink.RouteGet(net.ParseIP([]string{"127.0.0.1", "::1"}[i]))
			if err != nil || route[0].LinkIndex != r.LinkIndex {
				t.Fatalf("the route to %s is %v, %v; want one through %s", to, route, err, dev)
			}
		}
	})
}

// With route_localnet, which kube-proxy sets, no other machine or container reaches a port on a
// host's loopback address. The host itself reaches an endpoint through a translated port at
// localhost.
func TestLoopbackIsReachableFromTheHostOnly(t *testing.T) {
	h1, h2, c1, _, e1, _ := twoHosts(t)
	h1.ns.Do(func() {
		if err := link.Sysctl("1", "ipv4/conf/all/route_localnet"); err != nil {
			t.Fatal(err)
		}
	})
	const private = 8080
	loopback := map[int]*portCounter{private: listenAt(t, h1.ns, "127.0.0.1", private)}
	loopback[private+1] = listenAt(t, h1.ns, "::1", private+1)
	public := listenAt(t, h1.ns, "", 9)
	expectPrivate := func(t *testing.T, from routertest.Namespace, witness string) {
		t.Helper()
		var probes sync.WaitGroup // in parallel: a probe without an answer waits
		for range 3 {
			for to, port := range map[string]int{"127.0.0.1": private, "::1": private + 1} {
				probes.Go(func() {
					if knock(from, to, port) {
						t.Errorf("the loopback address %s accepts TCP; want no answer", to)
					}
				})
			}
		}
		probes.Wait()
		expectOpen(t, from, witness, 9, public)
		for port, d := range loopback {
			if d.count() != 0 {
				t.Errorf("a packet arrived at port %d of the loopback address; want none", port)
			}
		}
	}
	t.Run("from an endpoint", func(t *testing.T) {
		withoutLoopback(t, c1, "eth0", endpoint.Gateway4.String(), endpoint.Gateway6.String())
		expectPrivate(t, c1, "192.0.2.1")
	})
	t.Run("from the underlay", func(t *testing.T) {
		withoutLoopback(t, h2.ns, "under", "192.0.2.1", "2001:db8::1")
		expectPrivate(t, h2.ns, "192.0.2.1")
	})
	node := universe.Addr4(h1.config.Node).String()
	t.Run("from the tunnel", func(t *testing.T) {
		h2.config.Tunnels[0].AllowedIPs = append(h2.config.Tunnels[0].AllowedIPs, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
		h2.must(request{Config: &h2.config})
		withoutLoopback(t, h2.ns, link.Device)
		expectPrivate(t, h2.ns, node)
	})
	t.Run("a port at localhost leads to an endpoint", func(t *testing.T) {
		loadRules(t, h1.ns, fmt.Sprintf("table ip services { chain output { type nat hook output priority -100\nip daddr 127.0.0.1 meta l4proto { tcp, udp } th dport 30000 dnat to %v:9\n}\n"+
			"chain postrouting { type nat hook postrouting priority 90\nip saddr 127.0.0.0/8 oifname != \"lo\" snat to %s\n}\n}\n", e1.Addr4, node))
		expectOpen(t, h1.ns, "127.0.0.1", 30000, listenAt(t, c1, "", 9))
	})
	t.Run("a deliberate translation to loopback passes", func(t *testing.T) {
		loadRules(t, h1.ns, "table ip purpose { chain prerouting { type nat hook prerouting priority -100\n"+
			fmt.Sprintf("ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 81 dnat to 127.0.0.1:%d\n}\n}\n", private))
		expectOpen(t, c1, "192.0.2.1", 81, loopback[private])
	})
}
