package uml

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// A relay carries the tunnel of the kernel's WireGuard between two hosts that do not hear each other, with a delay. While
// flows go both ways, nothing is lost when the agents of the hosts and of the relay start anew, and when the hosts hear
// each other again.
func TestRelaysCarryTunnels(t *testing.T) {
	if os.Getenv(wantVar) != "kernel" {
		t.Skip("delays need a kernel with netem: run prog/lab/uml/test-kernel.sh")
	}
	labtest.Need(t, "tc", "iproute2")
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 2, Underlay: "4", Bare: true})
	delays{l, t}.set("eth0", "delay", "5ms")
	join(t, l, "h1")
	join(t, l, "h2", "h1")
	join(t, l, "h3", "h1", "h2")
	labtest.Listen(t, l, "h2/c1")
	deaf := map[string]string{"h1": "192.0.2.2", "h2": "192.0.2.1"}
	becomes := func(state string) {
		t.Helper()
		for _, h := range []string{"h1", "h2"} {
			eventually.Nil(t, 20*time.Second, "the tunnel of "+h+" is "+state, func() error {
				for _, c := range report(t, l, h).Router.Connections {
					if strings.HasPrefix(c.Address.String(), deaf[h]+":") && c.State != state {
						return fmt.Errorf("it is %s: %s", c.State, c.Info)
					}
				}
				return nil
			})
		}
	}
	becomes(api.ConnDirect)
	for h, from := range deaf {
		rules := fmt.Sprintf("table inet cut { chain in { type filter hook input priority 0; ip saddr %s drop; }; }", from)
		if err := l.LoadRules(t.Context(), h, "cut.nft", []byte(rules)); err != nil {
			t.Fatal(err)
		}
	}
	becomes(api.ConnRelayed)
	lossless(t, l, both, func() {
		for _, h := range []string{"h3", "h1", "h2"} {
			if err := l.Kill(t.Context(), h, "agent"); err != nil {
				t.Error(err)
			}
			if err := l.Start(t.Context(), h); err != nil {
				t.Error(err)
			}
			eventually.Nil(t, 20*time.Second, "the agent of "+h+" has measured its tunnels", func() error {
				r := report(t, l, h)
				for _, c := range r.Router.Connections {
					if c.RoundTrip == nil {
						return fmt.Errorf("not that to %s: %s", c.Nickname, c.Info)
					}
				}
				if !r.Ready || len(r.Router.Connections) < 2 {
					return fmt.Errorf("ready: %v, %d tunnels", r.Ready, len(r.Router.Connections))
				}
				return nil
			})
			becomes(api.ConnRelayed)
		}
		// The kernel of this guest pads numbers in rules, which few kernels do.
		if list := report(t, l, "h3").Router.Relays; len(list) != 2 || list[0].Bytes == 0 || list[1].Bytes == 0 {
			t.Errorf("the relay reports %+v, want what it forwarded each way", list)
		}
		for h := range deaf {
			run(t, l, h, "nft", "delete", "table", "inet", "cut")
		}
		becomes(api.ConnDirect)
	}, "--any-order")
}

// stalls runs a step, and returns for how long in all this busy guest ran nothing of the test: a sleep that is late by
// 50 ms or more counts.
func stalls(step func()) time.Duration {
	const rest, most = 20 * time.Millisecond, 50 * time.Millisecond
	ended, total := make(chan struct{}), make(chan time.Duration, 1)
	go func() { // ends with the step
		var sum time.Duration
		for last := time.Now(); ; {
			select {
			case <-ended:
				total <- sum
				return
			case <-time.After(rest):
			}
			now := time.Now()
			if late := now.Sub(last) - rest; late >= most {
				sum += late
			}
			last = now
		}
	}()
	func() {
		defer close(ended) // also if the step ends the test
		step()
	}()
	return <-total
}

// outage returns for how long packets from h1/c1 to h2/c1 and back got lost during a step, by the number of those lost,
// and for how long the guest stalled.
func outage(t *testing.T, l *lab.Lab, step func()) (longest, stalled time.Duration) {
	t.Helper()
	// A packet every 20 ms takes half of the guest's only processor: then the agents wait for it, too.
	const interval, most = 50 * time.Millisecond, 4 * time.Minute
	rate := func() float64 {
		for _, c := range report(t, l, "h1").Router.Connections {
			if c.Nickname == "h2" {
				return c.SentRate
			}
		}
		return 0
	}
	before := rate()
	args := []string{"weft", "probe", "udp", "--json", "--until-eof", "--count", fmt.Sprint(int(most / interval)), "--interval", interval.String(), "--timeout", "2s"}
	f := startFlow(t, l, append(args, addrs(t, l, "h2/c1")...))
	eventually.True(t, 20*time.Second, "h1 has measured the flow", func() bool { now := rate(); return now > 500 && now != before })
	stalled = stalls(step)
	f.end.Close()
	out := (<-f.done).out // lost packets are an error
	var results []probe.Result
	if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) == 0 {
		t.Fatalf("weft probe printed %q, want its results: %v", out, err)
	}
	for _, r := range results {
		if r.Received == 0 {
			t.Errorf("no packet to %v came back, want some", r.Addr)
		}
		longest = max(longest, time.Duration(r.Lost)*interval)
	}
	return longest, stalled
}

// The tunnel of the kernel's WireGuard between two hosts is cut in one direction only, with a delay and under two-way
// traffic. A relay takes over. It is banned, and the next one loses its power: each time another one takes over. When
// the direction works again, nothing is lost on the way back.
func TestRelaysTakeOver(t *testing.T) {
	if os.Getenv(wantVar) != "kernel" {
		t.Skip("delays need a kernel with netem: run prog/lab/uml/test-kernel.sh")
	}
	labtest.Need(t, "tc", "iproute2")
	l := labtest.New(t, lab.Options{Hosts: 5, Containers: 2, Underlay: "4", Bare: true})
	delays{l, t}.set("eth0", "delay", "5ms")
	join(t, l, "h1")
	for _, h := range l.Hosts()[1:] {
		join(t, l, h, "h1")
	}
	labtest.Listen(t, l, "h2/c1")
	rest := []string{"h3", "h4", "h5"}
	relay := func() (used string) {
		t.Helper()
		eventually.Nil(t, 20*time.Second, fmt.Sprintf("the tunnel of h1 and h2 goes over one of %v", rest), func() error {
			var via [2]string
			for i, h := range []string{"h1", "h2"} {
				for _, c := range report(t, l, h).Router.Connections {
					if c.Nickname == []string{"h2", "h1"}[i] {
						via[i] = c.State + " " + c.Info
					}
				}
			}
			for _, h := range rest {
				if end := "(" + h + ")"; strings.HasSuffix(via[0], end) && strings.HasSuffix(via[1], end) {
					used = h
					return nil
				}
			}
			return fmt.Errorf("it is %s, and back %s", via[0], via[1])
		})
		rest = slices.DeleteFunc(rest, func(h string) bool { return h == used })
		return used
	}
	now := ""
	for _, step := range []struct {
		what  string
		fail  func() error
		limit time.Duration
	}{
		{"h1 hears nothing from h2", func() error {
			return l.LoadRules(t.Context(), "h1", "cut.nft", []byte("table inet cut { chain in { type filter hook input priority 0; ip saddr 192.0.2.2 drop; }; }"))
		}, 2 * time.Second},
		{"the relay is banned", func() error { run(t, l, "h1", "weft", "rmpeer", "--ban", now); return nil }, 2 * time.Second},
		{"the relay loses its power", func() error { return l.PowerOff(t.Context(), now) }, 4 * time.Second},
	} {
		most, stalled := outage(t, l, func() {
			if err := step.fail(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(step.limit) // questions to the agents would take the guest's only processor from them
			now = relay()
		})
		t.Logf("%s: %s is the relay then, and packets of %v got lost; the guest stalled for %v", step.what, now, most, stalled)
		if most > step.limit+stalled {
			t.Errorf("%s: packets of %v got lost, want at most %v, besides %v in which the guest stalled", step.what, most, step.limit, stalled)
		}
	}
	lossless(t, l, both, func() {
		run(t, l, "h1", "nft", "delete", "table", "inet", "cut")
		for i, h := range []string{"h1", "h2"} {
			eventually.True(t, 30*time.Second, "the tunnel of "+h+" is direct", func() bool {
				return slices.ContainsFunc(report(t, l, h).Router.Connections, func(c api.Connection) bool {
					return c.Nickname == []string{"h2", "h1"}[i] && c.State == api.ConnDirect
				})
			})
		}
	}, "--any-order")
}
