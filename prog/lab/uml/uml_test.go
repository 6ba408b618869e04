package uml

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/probe"
)

const (
	marker = "a-payload-that-nobody-may-see-"

	// wantVar names the datapath that the machine must have, so that the test does not run with
	// another datapath.
	wantVar = "WEFT_TEST_DATAPATH"
)

// both are the protocols of flows.
var both = []string{"tcp", "udp"}

// h1 ──── underlay ──── h2        h3 joins later
// │                     │         │
// c1 c2                 c1 c2     c1 c2
func TestMeshWorksOnKernelAndUserspaceWireGuard(t *testing.T) {
	opts := lab.Options{Hosts: 3, Containers: 2, Bare: true}
	kernel := os.Getenv(wantVar) == "kernel"
	if kernel { // as under Kubernetes, where a separate process runs the datapath
		opts.Launch = []string{"--start-datapath=false"}
	}
	l := labtest.New(t, opts)
	join(t, l, "h1")
	join(t, l, "h2", "h1")
	if kernel {
		standby(t, l, "h1")
	}
	capture, err := l.Capture(t.Context(), marker)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("datapath", func(t *testing.T) { datapath(t, l, "h1", "h2") })
	t.Run("all pairs", func(t *testing.T) { allPairs(t, l, "h1", "h2") })
	if _, err := l.Background(context.WithoutCancel(t.Context()), "h2/c1", probe.ListenReady, "weft", "probe", "listen"); err != nil {
		t.Fatal(err)
	}
	t.Run("the agent is killed", func(t *testing.T) {
		lossless(t, l, both, func() {
			for _, h := range []string{"h1", "h2"} {
				if err := l.Kill(t.Context(), h, "agent"); err != nil {
					t.Error(err)
				}
				time.Sleep(200 * time.Millisecond) // let the flow send some packets
				if err := l.Start(t.Context(), h); err != nil {
					t.Error(err)
				}
			}
		})
	})
	t.Run("the address in use fails", func(t *testing.T) { addressFails(t, l) })
	t.Run("prefixes move", func(t *testing.T) { prefixesMove(t, l) })
	t.Run("all pairs of three", func(t *testing.T) { allPairs(t, l, "h1", "h2", "h3") })
	sum, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.CheckSilence(sum); err != nil {
		t.Errorf("the capture saw %+v, want only tunnels and gossip: %v", sum, err)
	}
	t.Run("reset", func(t *testing.T) { reset(t, l, "h2") })
}

// join launches Weft on a host, and attaches its containers.
func join(t *testing.T, l *lab.Lab, host string, targets ...string) {
	t.Helper()
	token := ""
	if len(targets) > 0 {
		var err error
		if token, err = l.Token(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Launch(t.Context(), host, token, targets...); err != nil {
		t.Fatal(err)
	}
	for _, c := range containers(host) {
		if _, err := l.Plug(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func containers(hosts ...string) []string {
	var all []string
	for _, h := range hosts {
		all = append(all, h+"/c1", h+"/c2")
	}
	return all
}

// datapath checks that `weft status` shows the datapath that this machine must have.
func datapath(t *testing.T, l *lab.Lab, hosts ...string) {
	for _, h := range hosts {
		status := run(t, l, h, "weft", "status")
		t.Log(status)
		if want := os.Getenv(wantVar); !strings.Contains(status, want) || report(t, l, h).Router.Datapath != want && want != "" {
			t.Errorf("%s: weft status shows another datapath, want %q", h, want)
		}
	}
}

// standby runs weft datapath --standby on a host whose kernel has WireGuard. It must find that it is
// not needed, and end on SIGTERM.
func standby(t *testing.T, l *lab.Lab, host string) {
	p, err := l.Background(context.WithoutCancel(t.Context()), host, "this process is not needed", "weft", "datapath", "--standby")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Signal(unix.SIGTERM)
		if _, err := p.Wait(); err != nil {
			t.Errorf("the standby process ended with %v, want success", err)
		}
	})
}

// allPairs sends ICMP from every container to every other, in both address families.
func allPairs(t *testing.T, l *lab.Lab, hosts ...string) {
	all := containers(hosts...)
	for _, from := range all {
		// The first packet to a peer waits for the WireGuard handshake, which is retried every 5 s.
		args := []string{"weft", "probe", "icmp", "--count", "3", "--interval", "10ms", "--timeout", "12s", "--size", "400", "--marker", marker}
		for _, to := range all {
			args = append(args, addrs(t, l, to)...)
		}
		run(t, l, from, args...)
	}
}

// addressFails blocks the address family that the tunnel between h1 and h2 uses. The tunnel has been
// measured, moves to the other family, and TCP flows go on.
func addressFails(t *testing.T, l *lab.Lab) {
	connection := func(host string) api.Connection { return report(t, l, host).Router.Connections[0] }
	for _, h := range []string{"h1", "h2"} {
		eventually.True(t, 5*time.Second, h+" has measured the path", func() bool {
			c := connection(h)
			return c.State == api.ConnDirect && c.RoundTrip != nil && *c.RoundTrip > 0 && c.PathMTU == 1500
		})
	}
	lossless(t, l, []string{"tcp"}, func() {
		was, family := connection("h1").Address.Addr(), "ipv4"
		if was.Is6() {
			family = "ipv6"
		}
		rules := fmt.Sprintf("table inet cut { chain in { type filter hook input priority 0; meta nfproto %s udp dport 6784 drop; }; }", family)
		if err := l.LoadRules(t.Context(), "h2", "cut.nft", []byte(rules)); err != nil {
			t.Error(err)
			return
		}
		for _, h := range []string{"h1", "h2"} {
			eventually.True(t, 5*time.Second, h+" uses the other address family", func() bool {
				c := connection(h)
				return c.State == api.ConnDirect && c.Address.Addr().Is4() != was.Is4()
			})
		}
		run(t, l, "h2", "nft", "delete", "table", "inet", "cut")
	})
}

// lossless runs step while flows of each family go from h1/c1 to h2/c1. It asserts that the flows lose no
// message. flags are more flags of weft probe.
func lossless(t *testing.T, l *lab.Lab, protocols []string, step func(), flags ...string) {
	t.Helper()
	const interval, most = 10 * time.Millisecond, 4 * time.Minute
	to := addrs(t, l, "h2/c1")
	var flows []flow
	for _, proto := range protocols {
		args := []string{
			"weft", "probe", proto, "--until-eof", "--count", fmt.Sprint(int(most / interval)), "--interval", interval.String(),
			"--timeout", "6s", "--marker", marker,
		}
		args = append(args, flags...)
		flows = append(flows, startFlow(t, l, append(args, to...)))
	}
	time.Sleep(300 * time.Millisecond) // let the flows be established
	step()
	if slices.ContainsFunc(flows, func(f flow) bool { return len(f.done) > 0 }) {
		t.Error("a flow ended before the end of the step, want it to go on: the test proves nothing")
	}
	for _, f := range flows {
		f.end.Close()
	}
	for _, f := range flows {
		if r := <-f.done; r.err != nil {
			t.Errorf("a flow lost messages, want no loss: %v\n%s", r.err, r.out)
		}
	}
}

// flow is a running weft probe with --until-eof: it goes on until end is closed, and then done receives its result.
type flow struct {
	end  io.Closer
	done chan flowResult
}

type flowResult struct {
	out string
	err error
}

// startFlow runs a command in h1/c1.
func startFlow(t *testing.T, l *lab.Lab, args []string) flow {
	stdin, end := io.Pipe()
	f := flow{end, make(chan flowResult, 1)}
	go func() {
		out, err := l.Exec(t.Context(), "h1/c1", stdin, args...)
		f.done <- flowResult{out, err}
	}()
	return f
}

// prefixesMove lets h3 join under traffic. One of h1 and h2 grants h3 a part of the ring. The other host
// moves the granted prefixes, in its allowed IPs, from the granter to h3.
func prefixesMove(t *testing.T, l *lab.Lab) {
	others := map[string]string{"h1": report(t, l, "h2").Router.PublicKey, "h2": report(t, l, "h1").Router.PublicKey}
	before := make(map[string][]string)
	for host, other := range others {
		before[host] = allowed(t, l, host)[other]
	}
	lossless(t, l, both, func() { join(t, l, "h3", "h1") })
	newcomer := report(t, l, "h3").Router.PublicKey

	moved := 0
	for start := time.Now(); moved == 0 && time.Since(start) < 10*time.Second; time.Sleep(100 * time.Millisecond) {
		for host, other := range others {
			after := allowed(t, l, host)
			if len(after[newcomer]) == 0 || slices.Equal(before[host], after[other]) {
				continue
			}
			moved++
			t.Logf("%s's allowed IPs for the granter were %v and now are %v; those for h3 are %v", host, before[host], after[other], after[newcomer])
			for _, p := range after[newcomer] {
				if slices.Contains(after[other], p) {
					t.Errorf("%s: the granter and h3 both have %s in their allowed IPs, want h3 only", host, p)
				}
			}
		}
	}
	if moved == 0 {
		t.Errorf("no prefix moved to h3, want one of the prefixes before: %v", before)
	}
}

// reset asserts that weft reset leaves nothing on a host.
func reset(t *testing.T, l *lab.Lab, host string) {
	run(t, l, host, "weft", "reset", "--force")
	if left := tool(t, l, host, "leftovers"); left != "" {
		t.Errorf("after the reset, %s has the following, want nothing:\n%s", host, left)
	}
	if left, err := os.ReadDir(l.StateDir(host)); err != nil || len(left) > 0 {
		t.Errorf("after the reset, the state folder of %s has %v, error %v, want no files", host, left, err)
	}
}

func addrs(t *testing.T, l *lab.Lab, target string) []string {
	t.Helper()
	a := labtest.Addrs(t, l, target)
	if len(a) != 2 {
		t.Fatalf("%s has the addresses %v, want one of each family", target, a)
	}
	return a
}

var run, report = labtest.Run, labtest.Report
