package cli

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/prog/api"
	"weft/router/problem"
)

// joining is the report of a host whose one target is h2, after gossip has reached h2.
func joining(state string) api.Report {
	return api.Report{Ready: true, Router: api.Router{
		Nickname: "h1", GossipPort: 6783, Underlay: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Targets:     []api.Target{{Host: "192.0.2.2", State: "connected"}},
		Connections: []api.Connection{{Address: netip.MustParseAddrPort("192.0.2.2:6784"), State: state, Peer: "3cced98783461972", Nickname: "h2", Gossip: true, Info: "its info"}},
		Peers:       []api.Peer{{ID: "9bad1c5cd23bfaef", Nickname: "h1", Self: true, Ring: "00"}, {ID: "3cced98783461972", Nickname: "h2", Ring: "00"}},
	}}
}

// with changes a report.
func with(r api.Report, change func(*api.Report)) api.Report { change(&r); return r }

// await waits for the first tunnel of a host whose report depends on the time since launch.
func await(ctx context.Context, t *testing.T, report func(time.Duration) (api.Report, error)) (took time.Duration, said string, err error) {
	t.Helper()
	var out bytes.Buffer
	start := time.Now()
	err = firstTunnel(ctx, func(context.Context) (api.Report, error) { return report(time.Since(start)) }, &out)
	return time.Since(start), out.String(), err
}

func TestLaunchWaitsForAFirstTunnelOnlyIfThereAreTargets(t *testing.T) {
	for host, waits := range map[string]bool{
		"": false, "h1": false, "h1:6783": false, "192.0.2.1": false, "192.0.2.1:7000": false, "2001:db8::1": false, "[2001:db8::1]:6783": false,
		"h2": true, "192.0.2.2": true, "192.0.2.2:6783": true, "2001:db8::2": true,
	} {
		r := with(joining(api.ConnPending), func(r *api.Report) { r.Router.Targets = []api.Target{{Host: host}} })
		if host == "" {
			r.Router.Targets = nil
		}
		if waits {
			alone := with(r, func(r *api.Report) { r.Router.Peers, r.Router.Targets[0].State = r.Router.Peers[:1], "connected" })
			if hasTargets(alone.Router) {
				t.Errorf("target %q answers, and no other host is known: launch waits, want that it takes the target for this host", host)
			}
			r.Router.Targets[0].State = "retrying"
		}
		if got := hasTargets(r.Router); got != waits {
			t.Errorf("target %q: launch waits: %v, want %v", host, got, waits)
		}
		if waits {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			if took, said, err := await(t.Context(), t, func(time.Duration) (api.Report, error) { return r, nil }); err != nil || took != 0 || said != "" {
				t.Errorf("target %q: launch waited for %v, printed %q, error %v; want none of these", host, took, said, err)
			}
		})
	}
}

func TestLaunchSaysWhatItWaitsForIfATunnelTakesLong(t *testing.T) {
	for after, want := range map[time.Duration]string{
		300 * time.Millisecond: "",
		3 * time.Second:        "waiting for a first tunnel: the tunnel to 3cced98783461972(h2) is pending\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			took, said, err := await(t.Context(), t, func(d time.Duration) (api.Report, error) {
				if d < after {
					return joining(api.ConnPending), nil
				}
				return joining(api.ConnDirect), nil
			})
			if err != nil || took != after || said != want {
				t.Errorf("a tunnel that works after %v: launch took %v, printed %q, error %v; want %q and no error", after, took, said, err, want)
			}
		})
	}
}

// Launch fails if no tunnel works in time, whether gossip reaches another host or not. It names the cause and the
// fix.
func TestLaunchFailsIfNoTunnelWorks(t *testing.T) {
	warned := func(reason, what string) func(*api.Report) {
		return func(r *api.Report) {
			r.Problems = []api.Problem{{Reason: reason, What: what, Effect: "an effect", Fix: "open it"}}
		}
	}
	open := "open UDP 6784 between the two hosts, both ways"
	for name, tt := range map[string]struct {
		report api.Report
		want   string
	}{
		"the agent's own warning":     {with(joining(api.ConnBlocked), warned(problem.Port, "the firewall drops packets to 3cced98783461972(h2)")), "\n  the firewall drops packets to 3cced98783461972(h2): open it"},
		"a warning of another peer":   {with(joining(api.ConnBlocked), warned(problem.Port, "packets to f5acec0fd73f54c7(h3) are dropped")), "\n  nothing comes from UDP 6784 of 3cced98783461972(h2), though gossip reaches that host: " + open},
		"a warning of another reason": {with(joining(api.ConnBlocked), warned(problem.PathMTU, "3cced98783461972(h2)")), "\n  nothing comes from UDP 6784"},
		"not measured":                {joining(api.ConnPending), open},
		"one-way":                     {joining(api.ConnOneWay), "it does not hear this host: open UDP 6784 on that host"},
		"another ring":                {joining(api.ConnFailed), "\n  its info"},
		"gossip reaches no host": {with(joining(api.ConnPending), func(r *api.Report) {
			r.Router.Connections, r.Router.Targets = nil, []api.Target{{Host: "192.0.2.2", State: "retrying", Error: "connection refused"}, {Host: "h3", State: "retrying"}}
		}), "\n  target 192.0.2.2: connection refused: launch Weft there, or open TCP and UDP 6783 between the two hosts, or `weft forget` a host that is gone for good\n  target h3: retrying: launch"},
		"gossip has lost the host":  {with(joining(api.ConnPending), func(r *api.Report) { r.Router.Connections[0].Gossip = false }), "\n  target 192.0.2.2: connected: launch"},
		"the ring is being founded": {with(joining(api.ConnPending), func(r *api.Report) { r.Router.Peers[1].Ring = "" }), "\n  3cced98783461972(h2) waits for the ring"},
		"many peers": {with(joining(api.ConnFailed), func(r *api.Report) {
			r.Router.Connections = slices.Repeat(r.Router.Connections, 8)
		}), strings.Repeat("\n  its info", 5) + "\n  and 3 more"},
	} {
		synctest.Test(t, func(t *testing.T) {
			took, _, err := await(t.Context(), t, func(time.Duration) (api.Report, error) { return tt.report, nil })
			if took != tunnelWait || exitCode(err) != ExitNotReady {
				t.Errorf("%s: after %v: error %v; want exit code %d after %v", name, took, err, ExitNotReady, tunnelWait)
				return
			}
			for _, want := range []string{tt.want, "keeps running", "weft status connections --watch"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s: the error lacks %q, want it:\n%v", name, want, err)
				}
			}
		})
	}
}

func TestLaunchCanBeInterruptedWhileItWaitsForATunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		took, _, err := await(ctx, t, func(time.Duration) (api.Report, error) { return joining(api.ConnBlocked), nil })
		if took != 2*time.Second || exitCode(err) != ExitNotReady || !strings.Contains(err.Error(), "keeps running") {
			t.Errorf("after %v: error %v; want exit code %d after 2 s, and that the agent keeps running", took, err, ExitNotReady)
		}
	})
}

func TestLaunchSaysIfTheAgentEndsWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := &api.NotRunningError{Socket: "s", Err: errors.New("no such file")}
		_, _, err := await(t.Context(), t, func(d time.Duration) (api.Report, error) {
			if d < time.Second {
				return joining(api.ConnPending), nil
			}
			return api.Report{}, gone
		})
		if !errors.Is(err, gone) {
			t.Errorf("got error %v, want that no agent runs", err)
		}
	})
}
