package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// connectionIn returns the tunnel to a host in a report.
func connectionIn(r api.Report, host string) (c api.Connection) {
	if i := slices.IndexFunc(r.Router.Connections, func(c api.Connection) bool { return c.Nickname == host }); i >= 0 {
		return r.Router.Connections[i]
	}
	return c
}

// A host without power is silent, and not blocked: no port is to be opened. While the proof of its life is
// young, weft rmpeer refuses to take over its addresses. It is direct again soon after it is back.
func TestAHostWithoutPowerIsSilent(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3})
	measured(t, l)
	staysSilent(t, l)
	between(t, l, `iifname "h3" drop`, `oifname "h3" drop`)
	begun := time.Now()
	if out := fails(t, l, "h1", "", "weft", "rmpeer", "--force", "h3"); !strings.Contains(out, "alive") {
		t.Errorf("rmpeer printed the following, want a refusal while the proof is young:\n%s", out)
	}
	for _, h := range []string{"h1", "h2"} {
		eventually.Nil(t, 40*time.Second-time.Since(begun), h+" says that h3 is silent", func() error {
			r := report(t, l, h)
			c := connectionIn(r, "h3")
			if c.State != api.ConnSilent {
				return fmt.Errorf("it is %s", c.State)
			}
			if w := strings.Join(r.Warnings, "\n"); strings.Contains(w, "UDP 6784") {
				return fmt.Errorf("it is silent, but %s warns of a port: %q", h, w)
			}
			return nil
		})
		t.Logf("%s: silent after %v", h, time.Since(begun))
	}
	between(t, l)
	direct(t, l, 20*time.Second, "all tunnels work after h3 is back")
}

// If only one host sends, and nobody answers, the tunnel follows the other host to its new address as well.
func TestTheTunnelFollowsAHostThatOnlyReceives(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	labtest.Need(t, "ip", "iproute2")
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1, Underlay: "4"})
	measured(t, l)
	staysSilent(t, l)
	load(t, l, "h2/c1", "table inet sink {\nchain in { type filter hook input priority 0; udp dport 7007 counter drop; }\n}\n")
	flow := startFlow(t, l, "udp", "h1/c1", "h2/c1")
	arrives := func(more int, within time.Duration, what string) time.Duration {
		t.Helper()
		had := sunk(t, l, "h2/c1")
		return eventually.True(t, within, what, func() bool { return sunk(t, l, "h2/c1") > had+more })
	}
	arrives(100, 10*time.Second, "data arrives")
	for _, step := range [][2]string{{"192.0.2.2", "192.0.2.77"}, {"192.0.2.77", "192.0.2.2"}} {
		run(t, l, "h2", "sh", "-c", fmt.Sprintf("ip address del %s/24 dev eth0; ip address add %s/24 dev eth0", step[0], step[1]))
		t.Logf("at %s data arrives again after %v", step[1], arrives(10, 3*time.Second+busyMachine, "data arrives at "+step[1]))
		eventually.True(t, 3*time.Second, "h1 shows the new address", func() bool {
			return connection(t, l, "h1").Address.Addr() == netip.MustParseAddr(step[1])
		})
	}
	flow.stop(t)
}

var sinkCounter = regexp.MustCompile(`counter packets (\d+) `)

// sunk returns how many datagrams a container has dropped.
func sunk(t *testing.T, l *lab.Lab, target string) (n int) {
	t.Helper()
	for _, m := range sinkCounter.FindAllStringSubmatch(run(t, l, target, "nft", "list", "table", "inet", "sink"), -1) {
		one, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		n += one
	}
	return n
}

// If a host sends to the other one's first addresses through its second link, the tunnel works, and no host
// changes its mind about the address once both have settled: with the source address of either link, and
// whichever host does so.
func TestAForeignSourceAddressMovesNoEndpoint(t *testing.T) {
	m := move(t, true)
	for _, h := range m.Hosts() {
		for _, link := range []string{"all", "eth0", "eth1"} {
			if err := tool(t, m.Lab, h, "sysctl", "/proc/sys/net/ipv4/conf/"+link+"/rp_filter", "0"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, h := range m.Hosts() {
		for _, source := range []bool{true, false} {
			routes := fmt.Sprintf("ip route replace 192.0.2.%[1]d/32 via 198.51.100.%[1]d dev eth1; ip route replace 2001:db8::%[1]d/128 via 2001:db8:1::%[1]d dev eth1", 2-i)
			if source {
				routes = fmt.Sprintf("ip route replace 192.0.2.%[1]d/32 via 198.51.100.%[1]d dev eth1 src 192.0.2.%[2]d; ip route replace 2001:db8::%[1]d/128 via 2001:db8:1::%[1]d dev eth1 src 2001:db8::%[2]d", 2-i, 1+i)
			}
			run(t, m.Lab, h, "sh", "-c", routes)
			t.Logf("%s sends through its second link, with the address of the first: %v", h, source)
			stays(m, 8*time.Second)
			run(t, m.Lab, h, "sh", "-c", fmt.Sprintf("ip route del 192.0.2.%[1]d/32; ip route del 2001:db8::%[1]d/128", 2-i))
		}
	}
	m.end()
}

// stays checks that the tunnels work, and that their endpoints settle within 20 s and then do not change for a
// time.
func stays(m moving, span time.Duration) {
	m.t.Helper()
	endpoints := func() (out [2]netip.AddrPort) {
		for i, h := range m.Hosts() {
			c := connection(m.t, m.Lab, h)
			if out[i] = c.Address; c.State != api.ConnDirect {
				m.t.Errorf("on %s the tunnel is %s, want direct", h, c.State)
			}
		}
		return out
	}
	was, since, begun := endpoints(), time.Now(), time.Now()
	for time.Since(since) < span {
		now := endpoints()
		if now == was {
			continue
		}
		m.t.Logf("after %v the endpoints changed from %v to %v", time.Since(begun), was, now)
		if was, since = now, time.Now(); since.Sub(begun) > 20*time.Second {
			m.t.Fatalf("the endpoints still change after 20 s, want that they settle: %v", now)
		}
	}
}

// The links of the two hosts have different MTUs, and a switch between them drops what the receiver's link
// cannot take, without a word. The path MTU is found on both hosts. Routes to the other host's containers
// have the MTU inside the tunnel, and packets of all sizes pass. IPv6 needs packets of 1280 bytes inside the
// tunnel: if the path is too narrow for them, IPv4 passes, and both hosts warn.
func TestTheMTUOfEachLinkIsFound(t *testing.T) {
	labtest.Waits(t)
	for _, family := range []string{"4", "6"} {
		t.Run("IPv"+family, func(t *testing.T) {
			labtest.Waits(t)
			labtest.Need(t, "ip", "iproute2")
			l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1, Underlay: family})
			measured(t, l)
			staysSilent(t, l)
			for _, c := range []string{"h1/c1", "h2/c1"} {
				listen(t, l, c)
			}
			flow := startFlow(t, l, "udp", "h1/c1", "h2/c1")
			for _, mtus := range [][2]int{{1500, 1400}, {1280, 1500}, {9000, 1500}, {9000, 9000}, {1400, 9000}} {
				for i, h := range l.Hosts() {
					if err := l.SetMTU(t.Context(), h, mtus[i]); err != nil {
						t.Fatal(err)
					}
				}
				linksCarry(t, l, family, mtus)
			}
			flow.stop(t)
		})
	}
}

// linksCarry checks what both hosts measure between links with these MTUs, and that packets pass.
func linksCarry(t *testing.T, l *lab.Lab, family string, mtus [2]int) {
	t.Helper()
	want := min(mtus[0], mtus[1])
	for _, h := range l.Hosts() {
		took := eventually.Nil(t, 15*time.Second, fmt.Sprintf("with links of %v bytes %s is right about the path", mtus, h), func() error {
			r := report(t, l, h)
			c := r.Router.Connections[0]
			inside := c.PathMTU - 80
			if family == "4" {
				inside = (c.PathMTU - 60) &^ 15
			}
			switch {
			case c.State != api.ConnDirect || c.PathMTU > want+4 || c.PathMTU < want-4: // a veth takes 4 bytes more than its MTU
				return fmt.Errorf("it is %s, with a path MTU of %d", c.State, c.PathMTU)
			case c.MTU < (want-80)&^15 || c.MTU > min(inside, r.Router.MTU):
				return fmt.Errorf("the MTU inside is %d, with a path MTU of %d", c.MTU, c.PathMTU)
			case c.MTU == r.Router.MTU:
				return nil // the device has the right one
			}
			for _, v := range []string{"-4", "-6"} {
				most := c.MTU
				if v == "-6" {
					most = max(most, 1280)
				}
				routes := run(t, l, h, "ip", v, "route", "show", "dev", "weft")
				if most < r.Router.MTU && !strings.Contains(routes, fmt.Sprintf("mtu %d", most)) && !strings.Contains(routes, fmt.Sprintf("mtu lock %d", most)) {
					return fmt.Errorf("the routes of the tunnel lack an MTU of %d:\n%s", most, routes)
				}
			}
			return nil
		})
		t.Logf("links of %v: %s was right after %v: %d", mtus, h, took, connection(t, l, h).PathMTU)
	}
	what := fmt.Sprintf("links of %v bytes", mtus)
	six := want >= 1280+80
	for _, h := range l.Hosts() {
		eventually.True(t, 5*time.Second, fmt.Sprintf("%s: %s warns that IPv6 does not fit: %v", what, h, !six), func() bool {
			return six != strings.Contains(strings.Join(report(t, l, h).Warnings, "\n"), "IPv6 in the tunnel needs")
		})
	}
	carries(t, l, what, six)
}
