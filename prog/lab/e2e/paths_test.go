package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
)

// connection returns the tunnel of a host to the only other host.
func connection(t *testing.T, l *lab.Lab, host string) api.Connection {
	t.Helper()
	all := report(t, l, host).Router.Connections
	if len(all) != 1 {
		t.Fatalf("%s has %d connections, want 1", host, len(all))
	}
	return all[0]
}

// between drops what a rule matches on its way through a switch, in both directions, until restored with an
// empty rule. The hosts do not notice: their links stay up.
func between(t *testing.T, l *lab.Lab, rules ...string) {
	t.Helper()
	table := "add table bridge middle\ndelete table bridge middle\n"
	if len(rules) > 0 {
		table += "table bridge middle {\nchain forward { type filter hook forward priority 10;\n" + strings.Join(rules, "\n") + "\n}\n}\n"
	}
	load(t, l, lab.UnderlayName, table)
}

// measured waits until every host has measured its tunnels to all others, also their MTUs.
func measured(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, h := range l.Hosts() {
		eventually.True(t, 20*time.Second, h+" has measured all its tunnels", func() bool {
			n := 0
			for _, c := range report(t, l, h).Router.Connections {
				if c.State == api.ConnDirect && c.RoundTrip != nil && c.PathMTU != 0 {
					n++
				}
			}
			return n == len(l.Hosts())-1
		})
	}
}

// within waits until a condition is true, and reports whether it became so in time.
func within(limit time.Duration, f func() bool) bool {
	for start := time.Now(); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Since(start) > limit {
			return false
		}
	}
	return true
}

// load loads rules of nftables into a host.
func load(t *testing.T, l *lab.Lab, target, rules string) {
	t.Helper()
	if _, err := l.Exec(t.Context(), target, strings.NewReader(rules), "nft", "-f", "-"); err != nil {
		t.Fatalf("%s: loading rules failed: %v\n%s", target, err, rules)
	}
}

// direct waits until the tunnels of all hosts work.
func direct(t *testing.T, l *lab.Lab, limit time.Duration, why string) {
	t.Helper()
	eventually.True(t, limit, why, func() bool { return tunnelsAre(t, l, api.ConnDirect) })
}

// tunnelsAre reports whether all tunnels of all hosts are in one of the states.
func tunnelsAre(t *testing.T, l *lab.Lab, states ...string) bool {
	t.Helper()
	for _, h := range l.Hosts() {
		for _, c := range report(t, l, h).Router.Connections {
			if !slices.Contains(states, c.State) {
				return false
			}
		}
	}
	return true
}

// blockade is a way to close UDP 6784 between h1 and h2. States are what each host may say, and says what its
// warning contains.
type blockade struct {
	name   string
	rules  []string // in the switch
	h1     string   // a firewall on h1
	states [2][]string
	says   [2]string
}

var blockades = []blockade{
	{
		name:   "both ways",
		rules:  []string{"udp dport 6784 drop"},
		states: [2][]string{{api.ConnBlocked}, {api.ConnBlocked}},
		says:   [2]string{"UDP 6784 of", "UDP 6784 of"},
	},
	{
		name:   "from h1 to h2",
		rules:  []string{`iifname "h1" udp dport 6784 drop`},
		states: [2][]string{{api.ConnOneWay}, {api.ConnBlocked, api.ConnOneWay}},
		says:   [2]string{"packets of this host to its UDP 6784 do not", "UDP 6784 of"},
	},
	{
		name:   "from h2 to h1",
		rules:  []string{`iifname "h2" udp dport 6784 drop`},
		states: [2][]string{{api.ConnBlocked, api.ConnOneWay}, {api.ConnOneWay}},
		says:   [2]string{"UDP 6784 of", "packets of this host to its UDP 6784 do not"},
	},
	{
		name:   "by the input firewall of h1",
		h1:     "chain in { type filter hook input priority 0; udp dport 6784 drop; }",
		states: [2][]string{{api.ConnBlocked, api.ConnOneWay}, {api.ConnOneWay}},
		says:   [2]string{"UDP 6784 of", "packets of this host to its UDP 6784 do not"},
	},
	{
		name:   "by the output firewall of h1",
		h1:     "chain out { type filter hook output priority 0; udp dport 6784 drop; }",
		states: [2][]string{{api.ConnOneWay}, {api.ConnBlocked, api.ConnOneWay}},
		says:   [2]string{"this host's own firewall drops packets to UDP 6784", "UDP 6784 of"},
	},
}

// apply closes the port, or opens it again.
func (b blockade) apply(t *testing.T, l *lab.Lab, closed bool) {
	t.Helper()
	switch {
	case b.h1 == "" && closed:
		between(t, l, b.rules...)
	case b.h1 == "":
		between(t, l)
	case closed:
		load(t, l, "h1", "table inet firewall {\n"+b.h1+"\n}\n")
	default:
		load(t, l, "h1", "delete table inet firewall\n")
	}
}

// texts returns what the warning of a host may contain: the text of each state that the host may be in.
func (b blockade) texts(host int) []string {
	texts := []string{b.says[host]}
	if len(b.states[host]) > 1 {
		texts = append(texts, "UDP 6784 of", "packets of this host to its UDP 6784 do not")
	}
	return texts
}

// check closes the port and opens it again. Both hosts say so within limit, and warn within two seconds more.
func (b blockade) check(t *testing.T, l *lab.Lab, limit time.Duration) {
	t.Helper()
	b.apply(t, l, true)
	start := time.Now()
	var states [2]string
	if !within(limit+busyMachine, func() bool {
		states = [2]string{connection(t, l, "h1").State, connection(t, l, "h2").State}
		return slices.Contains(b.states[0], states[0]) && slices.Contains(b.states[1], states[1])
	}) {
		t.Errorf("%s: %v after the cut, the states on h1 and h2 are %v, want %v", b.name, limit, states, b.states)
	}
	t.Logf("%s: the cut showed after %v", b.name, time.Since(start))
	for i, h := range l.Hosts() {
		warned := func() bool {
			return slices.ContainsFunc(report(t, l, h).Warnings, func(w string) bool {
				said := slices.ContainsFunc(b.texts(i), func(text string) bool { return strings.Contains(w, text) })
				return said && strings.Contains(w, "UDP 6784") && (strings.Contains(w, "Open UDP 6784") || strings.Contains(w, "Accept outgoing packets to UDP 6784"))
			})
		}
		if start := time.Now(); !within(4*time.Second, warned) {
			t.Errorf("%s: %v after the cut showed %s is %s and warns %q, want a warning of UDP 6784 with %q", b.name, time.Since(start), h, connection(t, l, h).State, report(t, l, h).Warnings, b.says[i])
		}
	}
	b.apply(t, l, false)
	start = time.Now()
	direct(t, l, 5*time.Second+busyMachine, b.name+": both tunnels work again")
	closed := func(host string) bool {
		return slices.ContainsFunc(report(t, l, host).Warnings, func(w string) bool { return strings.Contains(w, "UDP 6784") })
	}
	if !within(2*time.Second, func() bool { return !closed("h1") && !closed("h2") }) {
		t.Errorf("%s: both tunnels work again, but the hosts warn %q and %q, want no warning of UDP 6784", b.name, report(t, l, "h1").Warnings, report(t, l, "h2").Warnings)
	}
	t.Logf("%s: all was well %v after the end", b.name, time.Since(start))
}

// busyMachine is what a test grants beyond the time that is promised, since hosts share a machine.
const busyMachine = 500 * time.Millisecond

// Closed ports show within 3 s while containers send data. The side that hears the other one says so. The
// warnings name the port and what to do, and go when the port is open.
func TestClosedPortsShowUnderTraffic(t *testing.T) {
	labtest.Waits(t)
	labtest.Need(t, "nft", "nftables")
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	measured(t, l)
	staysSilent(t, l)
	listen(t, l, "h2/c1")
	flow := startFlow(t, l, "udp", "h1/c1", "h2/c1")
	for _, h := range l.Hosts() {
		eventually.True(t, 3*time.Second, h+" shows the traffic", func() bool { return connection(t, l, h).ReceivedRate > 0 })
	}
	for _, b := range blockades {
		b.check(t, l, 3*time.Second)
	}
	for _, s := range flow.stop(t) {
		if len(s.Gaps) < len(blockades)-1 {
			t.Errorf("the flow to %v has the gaps %v, want one for each time that the port was closed", s.Addr, s.Gaps)
		}
	}
}

// Closed ports show within 20 s at rest.
func TestClosedPortsShowAtRest(t *testing.T) {
	labtest.Waits(t)
	for _, b := range []blockade{blockades[0], blockades[1], blockades[4]} {
		t.Run(b.name, func(t *testing.T) {
			labtest.Waits(t)
			labtest.Need(t, "nft", "nftables")
			l := labtest.New(t, lab.Options{Hosts: 2})
			measured(t, l)
			staysSilent(t, l)
			b.check(t, l, 20*time.Second)
		})
	}
}

// Loss slows a tunnel down, but does not break it: its state stays direct, and the status shows a loss.
func TestLossIsNoCut(t *testing.T) {
	labtest.Waits(t)
	for _, percent := range []int{10, 30} {
		t.Run(fmt.Sprintf("%d percent", percent), func(t *testing.T) {
			labtest.Waits(t)
			labtest.Need(t, "nft", "nftables")
			l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
			measured(t, l)
			staysSilent(t, l)
			listen(t, l, "h2/c1")
			flow := startFlow(t, l, "udp", "h1/c1", "h2/c1")
			between(t, l, fmt.Sprintf("udp dport 6784 numgen random mod 100 < %d drop", percent))
			seen := [2]float64{}
			// Of 15 questions in 30 s, none may be lost by chance.
			start, none := time.Now(), true
			for ; time.Since(start) < 30*time.Second || none && time.Since(start) < 2*time.Minute; time.Sleep(250 * time.Millisecond) {
				for i, h := range l.Hosts() {
					c := connection(t, l, h)
					if c.State != api.ConnDirect {
						t.Errorf("with a loss of %d %% %s says that the tunnel is %s, want direct", percent, h, c.State)
					}
					if c.Loss != nil {
						seen[i] = max(seen[i], *c.Loss)
					}
				}
				none = slices.Contains(seen[:], 0)
			}
			for i, loss := range seen {
				if loss <= 0 || loss >= 1 {
					t.Errorf("with a loss of %d %% the largest loss that host %d showed is %v, want more than 0 and less than 1", percent, i+1, loss)
				}
			}
			t.Logf("with a loss of %d %% the hosts showed up to %v", percent, seen)
			for _, s := range flow.stop(t) {
				if s.Received == 0 || s.Received == s.Sent {
					t.Errorf("with a loss of %d %% the flow to %v had %d answers to %d packets, want some, but not all", percent, s.Addr, s.Received, s.Sent)
				}
			}
		})
	}
}
