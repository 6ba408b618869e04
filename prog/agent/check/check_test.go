package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/problem"
)

// healthy is the report of a host that works, with a tunnel to h2.
func healthy() api.Report {
	r := api.Report{Version: "v1", Ready: true, Policy: api.PolicyReport{Current: true}}
	r.Router.IPv6, r.IPAM.Free = true, 1
	r.Router.Connections = []api.Connection{{Peer: "02", Nickname: "h2", State: api.ConnDirect, Gossip: true}}
	r.Router.Peers = []api.Peer{{ID: "02", Nickname: "h2", State: "running"}}
	return r
}

func TestAHealthyHostPassesEveryArea(t *testing.T) {
	list := evaluate(healthy(), measured{})
	seen := map[string]int{}
	for _, c := range list {
		seen[c.Area]++
		if c.Result != api.CheckPass || c.Fix != "" {
			t.Errorf("%+v, want PASS", c)
		}
	}
	for _, area := range order {
		if seen[area] > 1 || seen[area] == 0 && area != api.AreaKubernetes {
			t.Errorf("the area %s has %d results, want 1", area, seen[area])
		}
	}
}

// Each row makes one thing wrong. The area gets the result, which names the cause and never comes with a PASS.
func TestWhatIsWrongIsNamed(t *testing.T) {
	for _, c := range []struct {
		area, result, says string
		wrong              func(*api.Report, *measured)
	}{
		{api.AreaReady, api.CheckFail, "the disk is full", func(r *api.Report, _ *measured) { r.Ready, r.NotReady = false, "the disk is full" }},
		{api.AreaTunnels, api.CheckFail, "02(h2) does not work (blocked)", func(r *api.Report, _ *measured) { r.Router.Connections[0].State = api.ConnBlocked }},
		{api.AreaTunnels, api.CheckFail, "does not work (one-way)", func(r *api.Report, _ *measured) { r.Router.Connections[0].State = api.ConnOneWay }},
		{api.AreaTunnels, api.CheckFail, "answers neither through its tunnel nor by gossip", func(r *api.Report, _ *measured) {
			r.Router.Connections[0].State, r.Router.Connections[0].Gossip = api.ConnSilent, false
		}},
		{api.AreaTunnels, api.CheckWarn, "not measured yet", func(r *api.Report, _ *measured) { r.Router.Connections[0].State = api.ConnPending }},
		{api.AreaTunnels, api.CheckWarn, "was stopped", func(r *api.Report, _ *measured) { r.Router.Peers[0].State = "stopped" }},
		{api.AreaTunnels, api.CheckFail, "UDP 6784 of 02(h2)", func(r *api.Report, _ *measured) {
			r.Router.Connections[0].State = api.ConnBlocked
			r.Problems = []api.Problem{{Area: api.AreaTunnels, Reason: problem.Port, What: "UDP 6784 of 02(h2) does not answer"}}
		}},
		{api.AreaGossip, api.CheckFail, "gossip does not reach 02(h2)", func(r *api.Report, _ *measured) { r.Router.Connections[0].Gossip = false }},
		{api.AreaGossip, api.CheckFail, "gossip does not reach 02(h2)", func(r *api.Report, _ *measured) { // beside another problem of that host
			r.Router.Connections[0].Gossip = false
			r.Problems = []api.Problem{{Area: api.AreaTunnels, Reason: problem.Flapping, What: "the tunnel to 02(h2) failed and worked again"}}
		}},
		{api.AreaMTU, api.CheckWarn, "fragments", func(r *api.Report, _ *measured) {
			r.Problems = []api.Problem{{Area: api.AreaTunnels, Reason: problem.PathMTU, What: "large packets go in fragments"}}
		}},
		{api.AreaMTU, api.CheckFail, "02(h2), 1420 bytes", func(_ *api.Report, m *measured) {
			m.silent = map[string][]string{api.AreaMTU: {"02(h2), 1420 bytes"}}
		}},
		{api.AreaIPv4, api.CheckFail, "over IPv4: 02(h2)", func(_ *api.Report, m *measured) { m.silent = map[string][]string{api.AreaIPv4: {"02(h2)"}} }},
		{api.AreaIPv6, api.CheckFail, "over IPv6: 02(h2)", func(_ *api.Report, m *measured) { m.silent = map[string][]string{api.AreaIPv6: {"02(h2)"}} }},
		{api.AreaIPv4, api.CheckWarn, "over IPv4, though the tunnel works: 02(h2)", func(_ *api.Report, m *measured) { m.quiet = map[string][]string{api.AreaIPv4: {"02(h2)"}} }},
		{api.AreaEndpoints, api.CheckFail, "weft-12 of web", func(_ *api.Report, m *measured) { m.links = []string{"weft-12 of web"} }},
		{api.AreaIPv6, api.CheckWarn, "no IPv6", func(r *api.Report, _ *measured) { r.Router.IPv6 = false }},
		{api.AreaAddresses, api.CheckWarn, "no free address", func(r *api.Report, _ *measured) { r.IPAM.Free = 0 }},
		{api.AreaAddresses, api.CheckFail, "two rings", func(r *api.Report, _ *measured) { r.IPAM.Conflict = "two rings" }},
		{api.AreaAddresses, api.CheckFail, "taken over", func(r *api.Report, _ *measured) {
			r.Problems = []api.Problem{{Area: api.AreaAddresses, Reason: problem.Address, What: "10.32.0.5 was taken over"}}
		}},
		{api.AreaDNS, api.CheckFail, "port 53 is in use", func(r *api.Report, _ *measured) { r.DNS.Problem = "port 53 is in use" }},
		{api.AreaDNS, api.CheckFail, "no answer in time", func(_ *api.Report, m *measured) { m.dns = errors.New("no answer in time") }},
		{api.AreaDNS, api.CheckWarn, "192.0.2.53", func(r *api.Report, _ *measured) {
			r.DNS.Upstreams = []api.Upstream{{Server: "192.0.2.53", Error: "refused"}}
		}},
		{api.AreaPolicies, api.CheckWarn, "newest policies", func(r *api.Report, _ *measured) { r.Policy.Current = false }},
		{api.AreaFirewall, api.CheckFail, "ufw drops", func(r *api.Report, _ *measured) {
			r.Problems = []api.Problem{{Area: api.AreaFirewall, Reason: problem.Host, What: "ufw drops forwarded packets", Fix: "allow them"}}
		}},
		{api.AreaSysctls, api.CheckFail, "ip_forward", func(_ *api.Report, m *measured) { m.sysctls = []string{"net.ipv4.ip_forward"} }},
		{api.AreaDisk, api.CheckFail, "is full", func(_ *api.Report, m *measured) { m.disk = errors.New("the disk is full") }},
		{api.AreaMembers, api.CheckWarn, "192.0.2.9 was turned away", func(r *api.Report, _ *measured) {
			r.Rejections = []api.Rejection{{Addr: "192.0.2.9", Reason: "another secret"}}
		}},
	} {
		r, m := healthy(), measured{}
		c.wrong(&r, &m)
		found := 0
		for _, one := range evaluate(r, m) {
			switch {
			case one.Area == c.area && one.Result == c.result && strings.Contains(one.What, c.says):
				found++
			case one.Area == c.area && one.Area != api.AreaVersions && one.Result == api.CheckPass:
				t.Errorf("%s has also %+v, want no PASS beside %s", c.area, one, c.result)
			}
		}
		if found != 1 {
			t.Errorf("%s %s %q: %d such results in %+v, want 1", c.result, c.area, c.says, found, evaluate(r, m))
		}
	}
}

// Answers, and missing ones with and without a tunnel that works, are told apart.
func TestAnswersAreNoted(t *testing.T) {
	m := newMeasured()
	m.note(api.AreaIPv4, "h2", true, nil)
	m.note(api.AreaIPv4, "h3", true, errors.New("no answer"))
	m.note(api.AreaIPv4, "h4", false, errors.New("no answer"))
	if m.asked[api.AreaIPv4] != 3 || !m.answered["h2"] || len(m.answered) != 1 || !slices.Equal(m.quiet[api.AreaIPv4], []string{"h3: no answer"}) || !slices.Equal(m.silent[api.AreaIPv4], []string{"h4: no answer"}) {
		t.Errorf("%+v; want h2 answered, h3 quiet, h4 silent", m)
	}
}

// A tunnel that was not used before works if echo requests through it are answered.
func TestANewTunnelIsTested(t *testing.T) {
	r := healthy()
	r.Router.Connections[0].State = api.ConnPending
	for _, c := range evaluate(r, measured{answered: map[string]bool{"02(h2)": true}}) {
		if c.Result != api.CheckPass {
			t.Errorf("%+v, want PASS", c)
		}
	}
}

// An operator has stopped an agent on purpose, and containers still communicate: a warning, no failure.
func TestAStoppedHostIsNoFailure(t *testing.T) {
	for _, state := range []string{"stopped", "left"} {
		r := healthy()
		r.Router.Peers[0].State, r.Router.Connections[0].Gossip = state, false
		for _, c := range evaluate(r, measured{}) {
			if c.Result == api.CheckFail {
				t.Errorf("a host that is %s gives %+v, want no FAIL", state, c)
			}
		}
	}
}

func TestADisabledNameServerPasses(t *testing.T) {
	r := healthy()
	r.DNS.Off = true
	for _, c := range evaluate(r, measured{}) {
		if c.Result != api.CheckPass {
			t.Errorf("%+v, want PASS", c)
		}
	}
}

// mesh has peers with fixed answers; an empty one never comes.
type mesh map[peer.ID]string

func (m mesh) Others() (out []peer.ID) {
	for id := range m {
		out = append(out, id)
	}
	return out
}
func (m mesh) Reachable(peer.ID) bool { return true }
func (m mesh) Request(ctx context.Context, to peer.ID, _ string, _ []byte) ([]byte, error) {
	if m[to] == "" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return []byte(m[to]), nil
}

func newChecker(t *testing.T, m mesh) (*Checker, *int) {
	var v live.Value[*view.View]
	var others []peer.ID
	for id := range m {
		others = append(others, id)
	}
	seen, reports := agenttest.View(others...), 0
	v.Set(seen)
	return New(Config{Self: agenttest.Self, Mesh: m, View: &v, StateDir: t.TempDir(), Report: func(context.Context) (api.Report, error) {
		reports++
		return api.Report{Version: "v1", Ready: true}, nil
	}}), &reports
}

// Hosts that do not answer, and different versions, are results of their own.
func TestHostsAreCompared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := func(version string) string {
			text, err := json.Marshal(api.HostCheck{Peer: "01", Version: version, Checks: []api.Check{{Area: "dns", Result: "PASS", What: "\x1b[2Jfine"}}})
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		c, _ := newChecker(t, mesh{{2}: other("v2"), {3}: ""})
		start := time.Now()
		r, err := c.Checks(t.Context(), api.CheckRequest{AllHosts: true})
		if err != nil || len(r.Hosts) != 3 || r.Result != api.CheckFail || time.Since(start) > timeout {
			t.Fatalf("%+v after %v, error %v; want 3 hosts within %v", r, time.Since(start), err, timeout)
		}
		if h := r.Hosts[1]; h.Peer != (peer.ID{2}).String() || h.Checks[0].What != " [2Jfine" {
			t.Errorf("%+v, want the peer's checks under its own id, printable", h)
		}
		text := fmt.Sprint(r.Between)
		if !strings.Contains(text, "1 host does not answer") || !strings.Contains(text, "v1 on") || !strings.Contains(text, "v2 on") {
			t.Errorf("between the hosts: %+v; want the silent host, and both versions", r.Between)
		}
	})
}

// A host that answers without any check is no host that passes.
func TestAnAnswerWithoutChecksFails(t *testing.T) {
	for _, answer := range []string{"{}", "null", `{"checks":[]}`} {
		c, _ := newChecker(t, mesh{{2}: answer})
		r, err := c.Checks(t.Context(), api.CheckRequest{AllHosts: true})
		if text := fmt.Sprint(r.Between); err != nil || r.Result != api.CheckFail || !strings.Contains(text, "no checks") {
			t.Errorf("the answer %s gives %s, %s, error %v; want FAIL", answer, r.Result, text, err)
		}
	}
}

// Peers that ask again and again do not make a host send more packets.
func TestPeersGetARecentResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, reports := newChecker(t, nil)
		for range 10 {
			if _, err := c.Handlers()[requestCheck](t.Context(), peer.ID{2}, nil); err != nil {
				t.Fatal(err)
			}
		}
		if *reports != 1 {
			t.Errorf("the host checked itself %d times for 10 requests at once, want 1", *reports)
		}
	})
}

// Decoding a peer's checks never panics, and bounds them.
func FuzzHostCheck(f *testing.F) {
	f.Add([]byte(`{"checks":[{"area":"dns"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var h api.HostCheck
		if json.Unmarshal(data, &h) == nil {
			if bound(&h); len(h.Checks) > mostChecks {
				t.Errorf("%d checks", len(h.Checks))
			}
		}
	})
}
