package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh/meshtest/eventually"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

// All pairs of six containers on three hosts reach each other in both families, and the underlay
// carries none of their packets in the clear.
func TestInvariant1AllPairsConnectAndNothingIsInTheClear(t *testing.T) {
	l := labtest.New(t, lab.Options{Containers: 2})
	established(t, l)
	var all []string
	for _, h := range l.Hosts() {
		for _, c := range []string{"/c1", "/c2"} {
			all = append(all, h+c)
		}
	}
	capture, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range all {
		args := []string{"weft", "probe", "icmp", "--count", "3", "--interval", "20ms", "--size", "400", "--marker", marker}
		for _, to := range all {
			args = append(args, addrs(t, l, to)...) // the container also reaches itself
		}
		run(t, l, from, args...)
	}
	silent(t, capture)
}

// staysSilent captures the underlay until the test ends, and asserts that it then saw only allowed packets.
func staysSilent(t *testing.T, l *lab.Lab) {
	t.Helper()
	capture, err := l.Capture(context.WithoutCancel(t.Context()), marker)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent(t, capture) })
}

// silent ends a capture and asserts that it saw only allowed packets.
func silent(t *testing.T, c *lab.Capture) {
	t.Helper()
	sum, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.CheckSilence(sum); err != nil {
		t.Errorf("the capture saw %+v, want only tunnels and gossip: %v", sum, err)
	}
}

// The agent and then the datapath are killed under traffic, on both hosts: nothing is sent in the
// clear, and the tunnel recovers by itself.
func TestInvariant1NothingInTheClearWhileProcessesDie(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	established(t, l)
	capture, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	to := addrs(t, l, "h2/c1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { // losses are ignored: the capture checks where packets go
		for ctx.Err() == nil {
			_, _ = l.Exec(ctx, "h1/c1", nil, append([]string{"weft", "probe", "udp", "--count", "100", "--interval", "10ms", "--size", "300", "--marker", marker}, to...)...)
		}
		close(done)
	}()
	for _, host := range []string{"h1", "h2"} {
		for _, kind := range []string{"agent", "datapath"} {
			time.Sleep(500 * time.Millisecond)
			if err := l.Kill(t.Context(), host, kind); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second) // traffic goes on for a second without agent and datapath
		if err := l.Start(t.Context(), host); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
	eventually.True(t, 20*time.Second, "the tunnel works again", func() bool {
		_, err := l.Exec(t.Context(), "h1/c1", nil, append([]string{"weft", "probe", "icmp", "--count", "1", "--marker", marker}, to...)...)
		return err == nil
	})
	// The agent restarts a datapath that was killed.
	if err := l.Kill(t.Context(), "h1", "datapath"); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, 15*time.Second, "the agent started the datapath again", func() bool {
		_, err := l.Exec(t.Context(), "h1/c1", nil, append([]string{"weft", "probe", "icmp", "--count", "1", "--marker", marker}, to...)...)
		return err == nil
	})
	silent(t, capture)
}

// Invariant 6: the agent is not in the data path. If it is stopped, killed and started again,
// established connections lose nothing.
func TestInvariant6TheAgentIsNotInTheDataPath(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1})
	established(t, l)
	listen(t, l, "h2/c1")
	to := addrs(t, l, "h2/c1")
	for name, step := range map[string]func(host string) error{
		"killed and started": func(h string) error {
			if err := l.Kill(t.Context(), h, "agent"); err != nil {
				return err
			}
			time.Sleep(300 * time.Millisecond)
			return l.Start(t.Context(), h)
		},
		"stopped and launched": func(h string) error {
			if err := l.Stop(t.Context(), h); err != nil {
				return err
			}
			return l.Start(t.Context(), h)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if lost := disturb(t, l, to, step); lost > 0 {
				t.Errorf("%d messages were lost, want none", lost)
			}
		})
	}
}

// disturb calls step for both hosts while messages flow, and returns the number of lost messages.
func disturb(t *testing.T, l *lab.Lab, to []string, step func(host string) error) (lost int) {
	t.Helper()
	var mu sync.Mutex
	var flows sync.WaitGroup
	for _, proto := range []string{"tcp", "udp"} {
		args := append([]string{"weft", "probe", proto, "--count", "600", "--interval", "10ms", "--timeout", "5s", "--json"}, to...)
		flows.Go(func() {
			out, err := l.Exec(t.Context(), "h1/c1", nil, args...)
			var results []probe.Result
			if e := json.Unmarshal([]byte(out), &results); e != nil {
				t.Errorf("%s: error %v, and the result is unreadable (%v), want JSON: %s", proto, err, e, out)
			}
			for _, r := range results {
				mu.Lock()
				lost += r.Lost
				mu.Unlock()
				if r.Error != "" || r.Lost == 0 && !r.OK() {
					t.Errorf("a flow ended with %+v, want no error, and all messages unchanged and in order", r)
				}
			}
			if err != nil {
				t.Logf("%s: %s", proto, out)
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	for _, h := range []string{"h1", "h2"} {
		if err := step(h); err != nil {
			t.Error(err)
		}
	}
	flows.Wait()
	return lost
}

// An endpoint cannot use the source address of another endpoint, on the same host or on another. Hosts
// on the underlay that do not run Weft cannot use addresses of the overlay.
func TestSourcesCannotBeSpoofed(t *testing.T) {
	labtest.Waits(t)
	l := twoAndAPlainOne(t)
	if err := errors.Join(l.AddContainer(t.Context(), "h1/c2"), l.AddContainer(t.Context(), "h2/c2")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"h1/c2", "h2/c2"} {
		if _, err := l.Plug(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	routeByGateway(t, l, "h2") // with this route, only the guard can stop the plain host's packets
	for i, family := range []string{"IPv4", "IPv6"} {
		victim := addrs(t, l, "h2/c1")[i]
		for name, tt := range map[string]struct {
			from, src string
			want      int
		}{
			"its own address":                   {"h1/c1", addrs(t, l, "h1/c1")[i], 20},
			"its neighbour's address":           {"h1/c1", addrs(t, l, "h1/c2")[i], 0},
			"the victim's neighbour's address":  {"h1/c1", addrs(t, l, "h2/c2")[i], 0},
			"an outside address":                {"h1/c1", []string{"198.51.100.1", "2001:db8:99::1"}[i], 0},
			"a plain host's own address":        {"h3", addrs(t, l, "h3")[i], 0},
			"a plain host, as an endpoint":      {"h3", addrs(t, l, "h1/c2")[i], 0},
			"a plain host, as a local endpoint": {"h3", addrs(t, l, "h2/c2")[i], 0},
			"a plain host, as another peer":     {"h3", addrs(t, l, "h1")[i], 0},
		} {
			t.Run(family+" "+name, func(t *testing.T) {
				seen := watch(t, l, "h2/c1", func() {
					if err := tool(t, l, tt.from, "spoof", tt.src, victim, "20"); err != nil {
						t.Error(err)
					}
				})
				if seen != tt.want {
					t.Errorf("%d packets arrived at the container, want %d", seen, tt.want)
				}
			})
		}
	}
}

// twoAndAPlainOne returns a lab with Weft and a container on h1 and h2, and a plain host h3.
func twoAndAPlainOne(t *testing.T) *lab.Lab {
	t.Helper()
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true})
	launchTwo(t, l)
	return l
}

// launchTwo launches Weft on the first two hosts of a bare lab, and attaches c1 of both.
func launchTwo(t *testing.T, l *lab.Lab) {
	t.Helper()
	if err := l.Launch(t.Context(), "h1", ""); err != nil {
		t.Fatal(err)
	}
	token, err := l.Token()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Launch(t.Context(), "h2", token, "h1"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"h1/c1", "h2/c1"} {
		if _, err := l.Plug(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, 10*time.Second, "h1/c1 reaches h2/c1", func() bool {
		_, err := l.Exec(t.Context(), "h1/c1", nil, "weft", "probe", "icmp", "--count", "1", addrs(t, l, "h2/c1")[0])
		return err == nil
	})
}

// routeByGateway adds routes on the plain host h3: to Weft's address ranges, through another host.
func routeByGateway(t *testing.T, l *lab.Lab, gateway string) {
	t.Helper()
	for i, u := range []string{"10.32.0.0/12", report(t, l, gateway).IPAM.Range6} {
		if err := tool(t, l, "h3", "route", u, addrs(t, l, gateway)[i]); err != nil {
			t.Fatal(err)
		}
	}
}

// watch returns how many packets with the marker a container receives while meanwhile runs.
func watch(t *testing.T, l *lab.Lab, target string, meanwhile func()) int {
	t.Helper()
	p, err := l.Background(context.WithoutCancel(t.Context()), target, probe.CaptureReady,
		"weft", "probe", "capture", "eth0", "--incoming", "--marker", marker, "--duration", "3s", "--json")
	if err != nil {
		t.Fatal(err)
	}
	meanwhile()
	out, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	var sum probe.CaptureSummary
	if err := json.Unmarshal([]byte(out), &sum); err != nil {
		t.Fatalf("the capture's summary is unreadable, want JSON: %v: %s", err, out)
	}
	return sum.Marked
}

// Machines on the underlay only reach endpoints while weft expose is in effect on the host that they
// use as gateway. Containers reach the outside with the host's address.
func TestTheUnderlayReachesEndpointsOnlyOfExposedHosts(t *testing.T) {
	labtest.Waits(t)
	l := twoAndAPlainOne(t)
	listen(t, l, "h3")
	listen(t, l, "h1/c1")
	listen(t, l, "h2/c1")
	run(t, l, "h1/c1", append([]string{"weft", "probe", "tcp", "--count", "3"}, addrs(t, l, "h3")...)...)
	inside := append(addrs(t, l, "h1/c1"), addrs(t, l, "h2/c1")...)
	routeByGateway(t, l, "h1")
	reach := func(to string) bool {
		_, err := l.Exec(t.Context(), "h3", nil, "weft", "probe", "tcp", "--count", "2", "--timeout", "500ms", to)
		return err == nil
	}
	for _, to := range inside {
		if reach(to) {
			t.Errorf("the underlay reaches %s, want it unreachable before expose", to)
		}
	}
	run(t, l, "h1", "weft", "expose")
	for _, to := range inside {
		eventually.True(t, 5*time.Second, "the underlay reaches "+to+" through h1", func() bool { return reach(to) })
	}
	run(t, l, "h1", "weft", "hide")
	for _, to := range inside {
		eventually.True(t, 5*time.Second, to+" is hidden again", func() bool { return !reach(to) })
	}
}

// A host without IPv6 only carries IPv4, and reports that.
func TestHostWithoutIPv6CarriesIPv4(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1, Bare: true, Underlay: "4"})
	for _, scope := range []string{"all", "default"} {
		if err := tool(t, l, "h1", "sysctl", "/proc/sys/net/ipv6/conf/"+scope+"/disable_ipv6", "1"); err != nil {
			t.Fatal(err)
		}
	}
	launchTwo(t, l)
	if a := addrs(t, l, "h1/c1"); len(a) != 1 || strings.Contains(a[0], ":") {
		t.Errorf("h1/c1 has %v, want one IPv4 address", a)
	}
	if s := run(t, l, "h1", "weft", "status"); !strings.Contains(s, "IPv6: disabled on this host") {
		t.Errorf("the status lacks \"IPv6: disabled on this host\", want it:\n%s", s)
	}
}

// The overlay works on an underlay of one family.
func TestOverlayWorksOnUnderlayOfOneFamily(t *testing.T) {
	for _, family := range []string{"4", "6"} {
		t.Run(family, func(t *testing.T) {
			l := labtest.New(t, lab.Options{Hosts: 2, Containers: 1, Underlay: family})
			established(t, l)
			run(t, l, "h1/c1", append([]string{"weft", "probe", "icmp", "--count", "2"}, addrs(t, l, "h2/c1")...)...)
		})
	}
}

// Up to twenty hosts with a container each are launched at once, with only a password in common. They agree on a ring
// within seconds and all connect.
func TestManyHostsFormOneRing(t *testing.T) {
	n := labtest.Crowd(t, 20, 16, 12)
	l := bare(t, n)
	last := l.Hosts()[n-1]
	var launches errgroup.Group
	for _, h := range l.Hosts() {
		command := []string{"env", "WEFT_PASSWORD=correct horse battery", "weft", "launch", "--cluster", "rack7"}
		for _, other := range l.Hosts() {
			addr, err := l.UnderlayAddr(other)
			if err != nil {
				t.Fatal(err)
			}
			command = append(command, addr.String())
		}
		launches.Go(func() error {
			_, err := l.Exec(t.Context(), h, nil, command...)
			return err
		})
	}
	if err := launches.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		founded(t, l, h, 15*time.Second)
		if _, err := l.Plug(t.Context(), h+"/c1"); err != nil {
			t.Fatal(err)
		}
	}
	measured(t, l)
	for _, h := range l.Hosts() { // the ring may still be spreading when the last host is ready
		args := append([]string{"weft", "probe", "icmp", "--count", "1"}, addrs(t, l, h+"/c1")...)
		eventually.True(t, 10*time.Second, last+" reaches "+h, func() bool {
			_, err := l.Exec(t.Context(), last+"/c1", nil, args...)
			return err == nil
		})
	}
	eventually.True(t, 10*time.Second, "h7 reports all owners of addresses", func() bool { return len(report(t, l, "h7").IPAM.Owners) == n })
}

// founded asserts that a host's agent was ready within a time.
func founded(t *testing.T, l *lab.Lab, host string, within time.Duration) {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(l.StateDir(host), "agent.log"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(log), "msg=ready after=")
	text, _, _ := strings.Cut(rest, "\n")
	after, err := time.ParseDuration(strings.TrimSpace(text))
	if err != nil || after > within {
		t.Errorf("%s was ready after %v, want at most %v: %v", host, after, within, err)
	}
}
