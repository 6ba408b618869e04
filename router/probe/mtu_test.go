package probe_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/router/routertest"
)

// A padded probe arrives up to the MTU of the link, with its size and the beginning of its payload.
func TestPaddedProbesArriveUpToTheLinksMTU(t *testing.T) {
	t.Parallel()
	for _, mtu := range []int{1280, 1500, 9000} {
		a, b := neighbours(t, mtu)
		for _, f := range families {
			for _, size := range []int{mtu, mtu - 1, 200} {
				a.send(f.b, "", "padded", size)
				if d := b.expect("padded"); d.Size != size || len(d.Payload) > 256 {
					t.Errorf("%s: a probe of %d bytes arrived with %d bytes and a payload of %d, want its size and a payload up to 256", f.name, size, d.Size, len(d.Payload))
				}
			}
			if err := a.trySend(f.b, "", payload("larger"), mtu+1); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("%s: sending one byte more than the MTU %d: error %v, want EMSGSIZE", f.name, mtu, err)
			}
			a.send(f.b, "", "next", 0)
			b.expect("next")
		}
	}
}

// What is larger than the MTU on the way is lost, whether the router says so or not. Nothing remembers
// the smaller MTU: when it grows, the larger probe arrives.
func TestAProbeIsNeverFragmentedOnTheWay(t *testing.T) {
	t.Parallel()
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("the router sends no ICMP error: %v", silent), func(t *testing.T) {
			a, b, router := newHost(t), newHost(t), routertest.New(t)
			connect(t, a.ns, router, 1500, "under", "left", []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.254/24", "2001:db8::254/64"})
			connect(t, router, b.ns, 1400, "right", "under", []string{"198.51.100.254/24", "2001:db8:1::254/64"}, []string{"198.51.100.2/24", "2001:db8:1::2/64"})
			run(t, router, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
			for h, via := range map[*host][]string{a: {"192.0.2.254", "2001:db8::254"}, b: {"198.51.100.254", "2001:db8:1::254"}} {
				for _, gateway := range via {
					run(t, h.ns, "ip", "route", "add", "default", "via", gateway)
				}
			}
			if silent {
				loadRules(t, router, "table inet silent { chain output { type filter hook output priority 0; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }")
			}
			for name, to := range map[string]string{"IPv4": "198.51.100.2", "IPv6": "2001:db8:1::2"} {
				a.send(to, "", "fits", 1400)
				if d := b.expect("fits"); d.Size != 1400 {
					t.Errorf("%s: a probe of 1400 bytes arrived with %d bytes", name, d.Size)
				}
				for range 3 {
					a.send(to, "", "too large", 1500)
				}
				a.send(to, "", "small", 0)
				b.expect("small")
				if !silent {
					waitForMTU(t, a, to, 1400)
				}
				for ns, link := range map[routertest.Namespace]string{router: "right", b.ns: "under"} {
					run(t, ns, "ip", "link", "set", link, "mtu", "1500")
				}
				a.send(to, "", "fits now", 1500)
				b.expect("fits now")
				for ns, link := range map[routertest.Namespace]string{router: "right", b.ns: "under"} {
					run(t, ns, "ip", "link", "set", link, "mtu", "1400")
				}
			}
		})
	}
}

// waitForMTU waits until the kernel has cached the path MTU from a router's ICMP error.
func waitForMTU(t *testing.T, h *host, to string, mtu int) {
	t.Helper()
	h.ns.Do(func() {
		var seen []string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			routes, err := netlink.RouteGet(net.ParseIP(to))
			if err != nil {
				t.Fatal(err)
			}
			if seen = append(seen[:0], fmt.Sprint(routes)); routes[0].MTU == mtu {
				return
			}
		}
		t.Fatalf("the kernel has not cached the path MTU %d to %s: its routes are %s", mtu, to, strings.Join(seen, " "))
	})
}
