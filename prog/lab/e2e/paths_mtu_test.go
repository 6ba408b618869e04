package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// routed makes a lab of one family, in which a router without Weft is between two hosts:
//
//	h1 eth0 ── eth0 h3 eth1 ── eth1 h2
//
// The router sends no ICMP errors.
func routed(t *testing.T, family string) *lab.Lab {
	t.Helper()
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	labtest.Need(t, "ip", "iproute2")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true, Underlay: family})
	for _, h := range []string{"h2", "h3"} {
		if err := l.AddLink(t.Context(), h, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, sysctl := range []string{"net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"} {
		if err := tool(t, l, "h3", "sysctl", "/proc/sys/"+sysctl, "1"); err != nil {
			t.Fatal(err)
		}
	}
	load(t, l, "h3", "table inet quiet {\nchain out { type filter hook output priority 0; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }\n}\n")
	run(t, l, "h2", "sh", "-c", "ip address flush dev eth0; ip link set eth0 down")
	first, second, from, to := "192.0.2.0/24", "198.51.100.0/24", "192.0.2.3", "198.51.100.3"
	if family == "6" {
		first, second, from, to = "2001:db8::/64", "2001:db8:1::/64", "2001:db8::3", "2001:db8:1::3"
	}
	run(t, l, "h1", "ip", "route", "replace", second, "via", from)
	run(t, l, "h2", "ip", "route", "replace", first, "via", to)
	return l
}

// narrow makes the router forward packets of up to mtu bytes.
func narrow(t *testing.T, l *lab.Lab, family string, mtu int) {
	t.Helper()
	routes := map[string]string{"192.0.2.0/24": "eth0", "198.51.100.0/24": "eth1"}
	if family == "6" {
		routes = map[string]string{"2001:db8::/64": "eth0", "2001:db8:1::/64": "eth1"}
	}
	for prefix, link := range routes {
		run(t, l, "h3", "sh", "-c", fmt.Sprintf("ip -%s route del %s dev %s; ip -%s route add %s dev %s mtu lock %d", family, prefix, link, family, prefix, link, mtu))
	}
}

// jumbo gives all links 9000 bytes, but the router stays as it is.
func jumbo(t *testing.T, l *lab.Lab) {
	t.Helper()
	run(t, l, lab.UnderlayName, "sh", "-c", "for p in h1 h3 h2-2 h3-2; do ip link set $p mtu 9000; done")
	run(t, l, "h3", "sh", "-c", "ip link set eth0 mtu 9000; ip link set eth1 mtu 9000")
	run(t, l, "h1", "ip", "link", "set", "eth0", "mtu", "9000")
	run(t, l, "h2", "ip", "link", "set", "eth1", "mtu", "9000")
}

// The path MTU that a router without ICMP allows is found, also when it shrinks under traffic. TCP streams and
// UDP datagrams of up to 60,000 bytes pass in both families, over an underlay of either family.
func TestTheMTUOfARouterIsFound(t *testing.T) {
	labtest.Waits(t)
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) {
			l := routed(t, family)
			narrow(t, l, family, 1500)
			staysSilent(t, l)
			launchFounder(t, l)
			first, err := l.UnderlayAddr("h1")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Exec(t.Context(), "h2", strings.NewReader(token(t, l)), "weft", "launch", "--token", "-", first.String()); err != nil {
				t.Fatal(err)
			}
			for _, c := range []string{"h1/c1", "h2/c1"} {
				if _, err := l.Plug(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				listen(t, l, c)
			}
			flow := startFlow(t, l, "udp", "h1/c1", "h2/c1")
			step := func(what string, mtu int) {
				t.Helper()
				start := time.Now()
				var got [2]api.Connection
				if !within(13*time.Second, func() bool {
					for i, h := range []string{"h1", "h2"} {
						if got[i] = connection(t, l, h); got[i].PathMTU > mtu || got[i].PathMTU < mtu-4 {
							return false
						}
					}
					return true
				}) {
					t.Errorf("%s: after 13 s the hosts measured %d and %d, want %d", what, got[0].PathMTU, got[1].PathMTU, mtu)
				}
				t.Logf("%s: after %v the hosts measured %d and %d", what, time.Since(start), got[0].PathMTU, got[1].PathMTU)
				// IPv6 allows no MTU below 1280, so it needs 1360 bytes on the way with WireGuard's part: the status says so.
				six := mtu >= 1360
				if !within(3*time.Second, func() bool {
					return six != slices.ContainsFunc(report(t, l, "h1").Warnings, func(w string) bool { return strings.Contains(w, "IPv6 in the tunnel needs 13") })
				}) {
					t.Errorf("%s: h1 warns %q, want a warning that IPv6 needs more: %v", what, report(t, l, "h1").Warnings, !six)
				}
				carries(t, l, what, six || family == "4") // the router fragments IPv4
			}
			step("a router with 1500 bytes", 1500)
			narrow(t, l, family, 1400)
			step("a router with 1400 bytes", 1400)
			narrow(t, l, family, 1280)
			step("a router with 1280 bytes", 1280)
			narrow(t, l, family, 1500)
			jumbo(t, l)
			step("links with 9000 bytes, and a router with 1500", 1500)
			flow.stop(t)
		})
	}
}

// carries checks that TCP streams and datagrams of all sizes pass between the containers, in both directions: over
// IPv4, and over IPv6 if it fits.
func carries(t *testing.T, l *lab.Lab, what string, six bool) {
	t.Helper()
	for _, way := range [][2]string{{"h1/c1", "h2/c1"}, {"h2/c1", "h1/c1"}} {
		to := addrs(t, l, way[1])
		if !six {
			to = slices.DeleteFunc(to, func(a string) bool { return strings.Contains(a, ":") })
		}
		args := append([]string{"weft", "probe", "tcp", "--interval", "5ms", "--size", "60000", "--count", "20", "--timeout", "10s"}, to...)
		if out, err := l.Exec(t.Context(), way[0], nil, args...); err != nil {
			t.Fatalf("%s: a TCP stream from %s to %s failed, want that all of it passes: %v\n%s", what, way[0], way[1], err, out)
		}
		for _, size := range []string{"56", "1200", "1300", "1372", "1472", "4000", "9000", "60000"} {
			args := append([]string{"weft", "probe", "udp", "--interval", "30ms", "--size", size, "--count", "2", "--timeout", "500ms"}, to...)
			var out string
			if !within(4*time.Second, func() (ok bool) { // the first packets may teach the sender the MTU
				var err error
				out, err = l.Exec(t.Context(), way[0], nil, args...)
				return err == nil
			}) {
				t.Fatalf("%s: datagrams of %s bytes from %s to %s are lost, want all:\n%s", what, size, way[0], way[1], out)
			}
		}
	}
}

// flapFor is the environment variable with the time for which links flap.
const flapFor = "FLAP_FOR"

// longestStay is how long a tunnel that moved often stays on a relay once its link is back (2 min), and then moves.
const longestStay = 2*time.Minute + 10*time.Second

// Ten links between five hosts fail and recover for a while. Ten seconds later all tunnels work, if need be over relays:
// those that moved often wait before they go back. In the end all are direct, no agent was restarted, and the logs are
// short.
func TestFlappingLinksCalmDown(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 5, Containers: 1})
	measured(t, l)
	staysSilent(t, l)
	pids := agentPIDs(t, l)
	span := 45 * time.Second
	if given := os.Getenv(flapFor); given != "" {
		var err error
		if span, err = time.ParseDuration(given); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("links flap for %v; %s=10m makes that longer", span, flapFor)
	for _, h := range []string{"h2", "h4"} {
		listen(t, l, h+"/c1")
	}
	flow := []flows{startFlow(t, l, "udp", "h1/c1", "h2/c1"), startFlow(t, l, "udp", "h3/c1", "h4/c1")}
	type link struct {
		a, b string
		cut  bool
		next time.Time
	}
	var links []*link
	random := rand.New(rand.NewPCG(1, 2))
	later := func() time.Time {
		return time.Now().Add(time.Second + time.Duration(random.Int64N(int64(5*time.Second))))
	}
	hosts := l.Hosts()
	for i := range hosts {
		for j := range i {
			links = append(links, &link{a: hosts[j], b: hosts[i], next: later()})
		}
	}
	set := func(k *link, cut bool) {
		k.cut, k.next = cut, later()
		if err := l.Link(t.Context(), k.a, k.b, !cut); err != nil {
			t.Fatal(err)
		}
	}
	cuts := 0
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, k := range links {
			if time.Now().After(k.next) {
				set(k, !k.cut)
				cuts++
			}
		}
	}
	for _, k := range links {
		set(k, false)
	}
	start := time.Now()
	eventually.True(t, 10*time.Second, "all tunnels work 10 s after the last failure", func() bool {
		return tunnelsAre(t, l, api.ConnDirect, api.ConnRelayed)
	})
	t.Logf("after %d changes, all tunnels worked within %v", cuts, time.Since(start))
	direct(t, l, longestStay, "all tunnels go directly again")
	t.Logf("all tunnels were direct %v after the last change", time.Since(start))
	if now := agentPIDs(t, l); now != pids {
		t.Errorf("the agents are the processes %s, want those from before: %s", now, pids)
	}
	for _, h := range hosts {
		log := run(t, l, h, "cat", "/var/lib/weft/agent.log")
		// A line for each state of each tunnel, at most ten changes long, and as much from gossip.
		if lines, most := strings.Count(log, "\n"), 40+4*40*max(1, int(span/(10*time.Minute))); lines > most {
			t.Errorf("%s logged %d lines, want at most %d", h, lines, most)
		} else {
			t.Logf("%s logged %d lines", h, lines)
		}
	}
	for _, f := range flow {
		for _, s := range f.stop(t) {
			if _, err := netip.ParseAddr(s.Addr); err != nil || s.Received == 0 {
				t.Errorf("no packets of the flow to %s came back, want some", s.Addr)
			}
		}
	}
	eventually.True(t, 10*time.Second, "all hosts are ready", func() bool {
		for _, h := range hosts {
			if !report(t, l, h).Ready {
				return false
			}
		}
		return true
	})
}
