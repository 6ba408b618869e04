package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// cutLink drops everything between two hosts.
func cutLink(t *testing.T, l *lab.Lab, a, b string) {
	t.Helper()
	between(t, l, fmt.Sprintf(`iifname %q oifname %q drop`, a, b), fmt.Sprintf(`iifname %q oifname %q drop`, b, a))
}

// connectionTo returns the tunnel of a host to another one.
func connectionTo(t *testing.T, l *lab.Lab, host, other string) api.Connection {
	t.Helper()
	c, ok := connections(t, l, host)[other]
	if !ok {
		t.Fatalf("%s has no connection to %s", host, other)
	}
	return c
}

// becomes waits until the tunnel between two hosts has a state, on both.
func becomes(t *testing.T, l *lab.Lab, limit time.Duration, a, b, state, via string) {
	t.Helper()
	for _, ends := range [][2]string{{a, b}, {b, a}} {
		took := eventually.Nil(t, limit, fmt.Sprintf("the tunnel of %s to %s is %s %s", ends[0], ends[1], state, via), func() error {
			if c := connectionTo(t, l, ends[0], ends[1]); c.State != state || !strings.HasSuffix(c.Info, via) {
				return fmt.Errorf("it is %s: %s", c.State, c.Info)
			}
			return nil
		})
		t.Logf("%s to %s is %s after %v", ends[0], ends[1], state, took)
	}
}

// lossless ends flows, and asserts that they lost nothing. Packets that take a shorter way overtake others.
func lossless(t *testing.T, what string, flows map[string]func() []probe.Result) {
	t.Helper()
	for name, stop := range flows {
		for _, r := range stop() {
			if r.OutOfOrder = 0; !r.OK() || r.Sent < 5 {
				t.Errorf("%s, %s: %+v; want at least 5 messages, and none lost, repeated or changed", what, name, r)
			}
			t.Logf("%s, %s to %v: %d sent, %d lost", what, name, r.Addr, r.Sent, r.Lost)
		}
	}
}

// The link between two hosts is cut under traffic. A third host forwards within 2 s, what it cannot read. Nothing is
// lost while its agent restarts, and when the link is back.
func TestACutLinkGoesOverARelay(t *testing.T) {
	labtest.Need(t, "nft", "nftables")
	// Known fault: if hosts reach the relay by different families, its restart costs them packets for a second or more.
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Underlay: "4"})
	measured(t, l)
	staysSilent(t, l)
	for _, c := range []string{"h1/c1", "h2/c1"} {
		listen(t, l, c)
	}
	udp, tcp := startFlow(t, l, "udp", "h1/c1", "h2/c1"), startFlow(t, l, "tcp", "h1/c1", "h2/c1")
	since := time.Now()
	cutLink(t, l, "h1", "h2")
	becomes(t, l, 5*time.Second, "h1", "h2", api.ConnRelayed, "(h3)")
	for _, s := range udp.stop(t) {
		if most := s.longest(since); most > 2*time.Second+busyMachine {
			t.Errorf("packets to %s arrived again %v after the cut, want within 2 s", s.Addr, most)
		} else {
			t.Logf("packets to %s arrived again %v after the cut", s.Addr, most)
		}
	}
	flow := func() map[string]func() []probe.Result {
		return map[string]func() []probe.Result{
			"there": traffic(t, l, "h1/c1", "udp", marker, addrs(t, l, "h2/c1")...), "back": traffic(t, l, "h2/c1", "udp", marker, addrs(t, l, "h1/c1")...),
		}
	}
	for _, h := range l.Hosts() {
		if w := strings.Join(report(t, l, h).Warnings, "\n"); strings.Contains(w, "UDP 6784") {
			t.Errorf("%s warns of the tunnel, which a relay carries: %s", h, w)
		}
	}
	flows := flow()
	run(t, l, "h3", "weft", "stop")
	if err := l.Start(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 20*time.Second, "h3 runs again", func() bool { return len(report(t, l, "h3").Router.Connections) == 2 })
	becomes(t, l, 20*time.Second, "h1", "h2", api.ConnRelayed, "(h3)")
	lossless(t, "while the relay's agent restarted", flows)
	if err := l.SetMTU(t.Context(), "h3", 1400); err != nil {
		t.Fatal(err)
	}
	for _, ends := range [][2]string{{"h1", "h2"}, {"h2", "h1"}} {
		eventually.Nil(t, 30*time.Second, "the MTU of the tunnel of "+ends[0]+" follows the relay's", func() error {
			if c := connectionTo(t, l, ends[0], ends[1]); c.PathMTU < 1390 || c.PathMTU > 1404 {
				return fmt.Errorf("the path MTU is %d", c.PathMTU)
			}
			return nil
		})
	}
	flows = flow()
	between(t, l)
	becomes(t, l, 20*time.Second, "h1", "h2", api.ConnDirect, "")
	before := connectionTo(t, l, "h1", "h2").Sent
	eventually.True(t, 20*time.Second, "the flows go on", func() bool { return connectionTo(t, l, "h1", "h2").Sent > before+20_000 })
	lossless(t, "when the link was back", flows)
	tcp.stop(t)
	for _, h := range l.Hosts() {
		if bad := regexp.MustCompile(`Udp6?InCsumErrors\s+[1-9].*`).FindString(run(t, l, h, "cat", "/proc/net/snmp6")); bad != "" {
			t.Errorf("%s received packets that a relay's rules had spoiled: %s", h, bad)
		}
	}
}

// A relay cannot turn IPv4 into IPv6. If two hosts reach it by different families, one of them takes its other one.
func TestARelayIsReachedByOneFamily(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1})
	measured(t, l)
	for _, family := range []string{"ip", "ip6"} {
		rule := `iifname %q oifname %q ether type ` + family + ` udp dport 6784 drop`
		between(t, l, fmt.Sprintf(rule, "h2", "h3"), fmt.Sprintf(rule, "h3", "h2"))
		eventually.True(t, 30*time.Second, "h2 and h3 use the other family", func() bool {
			for _, ends := range [][2]string{{"h2", "h3"}, {"h3", "h2"}} {
				if c := connectionTo(t, l, ends[0], ends[1]); c.State != api.ConnDirect || c.Address.Addr().Is4() != (family == "ip6") {
					return false
				}
			}
			return true
		})
		cutLink(t, l, "h1", "h2")
		becomes(t, l, 10*time.Second, "h1", "h2", api.ConnRelayed, "(h3)")
		between(t, l)
		becomes(t, l, 20*time.Second, "h1", "h2", api.ConnDirect, "")
	}
}

// Four hosts in a row reach only their neighbours. The ends use two relays, once hosts have told which links are cut.
func TestTwoRelaysInARow(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 4, Containers: 1})
	measured(t, l)
	staysSilent(t, l)
	for _, c := range []string{"h1/c1", "h4/c1"} {
		listen(t, l, c)
	}
	flow := startFlow(t, l, "tcp", "h1/c1", "h4/c1")
	var rules []string
	for _, far := range [][2]string{{"h1", "h3"}, {"h1", "h4"}, {"h2", "h4"}} {
		rules = append(rules, fmt.Sprintf("iifname %q oifname %q drop", far[0], far[1]), fmt.Sprintf("iifname %q oifname %q drop", far[1], far[0]))
	}
	between(t, l, rules...)
	becomes(t, l, 40*time.Second, "h1", "h3", api.ConnRelayed, "(h2)")
	becomes(t, l, 40*time.Second, "h2", "h4", api.ConnRelayed, "(h3)")
	becomes(t, l, 90*time.Second, "h1", "h4", api.ConnRelayed, "")
	if c := connectionTo(t, l, "h1", "h4"); len(c.Via) != 2 {
		t.Errorf("the tunnel of h1 to h4 is %s, want two relays", c.Info)
	}
	reachEachOther(t, l, "h1", "h4")
	between(t, l)
	becomes(t, l, 40*time.Second, "h1", "h4", api.ConnDirect, "")
	flow.stop(t)
}

// Hosts that connect to planned hosts only reach the others over them. No packet travels between those directly.
func TestPlannedTopologies(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true, Launch: []string{"--no-discovery"}})
	between(t, l, `iifname "h2" oifname "h3" meta l4proto { tcp, udp } counter drop`, `iifname "h3" oifname "h2" meta l4proto { tcp, udp } counter drop`)
	launchFounder(t, l)
	for _, h := range []string{"h2", "h3"} {
		if err := l.Launch(t.Context(), h, token(t, l), "h1"); err != nil {
			t.Fatal(err)
		}
	}
	for _, ends := range [][2]string{{"h1", "h2"}, {"h1", "h3"}} {
		eventually.True(t, 20*time.Second, "the planned hosts have a tunnel", func() bool { return connections(t, l, ends[0])[ends[1]].State == api.ConnDirect })
	}
	eventually.True(t, 30*time.Second, "h2 and h3 know each other", func() bool {
		return connections(t, l, "h2")["h3"].Nickname != "" && connections(t, l, "h3")["h2"].Nickname != ""
	})
	becomes(t, l, 30*time.Second, "h2", "h3", api.ConnRelayed, "(h1)")
	plugEach(t, l, l.Hosts()...)
	reachEachOther(t, l, "h2", "h3")
	eventually.True(t, 30*time.Second, "gossip of h2 and h3 goes through their tunnel", func() bool {
		return connections(t, l, "h2")["h3"].Gossip && connections(t, l, "h3")["h2"].Gossip
	})
	if out := run(t, l, lab.UnderlayName, "nft", "list", "table", "bridge", "middle"); strings.Count(out, "packets 0 bytes 0") != 2 {
		t.Errorf("h2 and h3 sent packets to each other directly, want none: %s", out)
	}
}
