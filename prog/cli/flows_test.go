package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/prog/api"
)

func sampleFlows() []api.Flow {
	at := time.Date(2026, 11, 29, 14, 3, 11, 0, time.UTC)
	web := api.FlowEnd{Namespace: "shop", Name: "web", Peer: "11(h1)"}
	return []api.Flow{
		{
			ID: 1, Peer: "11", Nickname: "h1", Start: at.Add(-time.Hour), Last: at, Verdict: api.FlowAllowed, Protocol: "TCP",
			Source: netip.MustParseAddrPort("10.32.0.3:40412"), Destination: netip.MustParseAddrPort("10.40.0.1:5432"), Service: netip.MustParseAddrPort("10.96.0.1:5432"),
			From: web, To: api.FlowEnd{Namespace: "shop", Name: "db"}, SentPackets: 9, SentBytes: 900, ReceivedPackets: 70000, ReceivedBytes: 90 << 20, Policy: "shop/db", Rule: "spec.ingress[0]",
		},
		{
			ID: 2, Peer: "11", Nickname: "h1", Start: at, Last: at, Ended: true, Verdict: api.FlowAllowed, Protocol: "ICMP",
			Source: netip.MustParseAddrPort("10.32.0.3:0"), Destination: netip.MustParseAddrPort("10.40.0.2:0"), From: web, To: api.FlowEnd{Name: "h2", Node: true},
		},
		{
			ID: 3, Peer: "22", Start: at, Last: at, Verdict: api.FlowDenied, Protocol: "UDP", Source: netip.MustParseAddrPort("[fd00::1]:9"), Destination: netip.MustParseAddrPort("192.0.2.7:53"),
			From: web, SentPackets: 3, Direction: "egress", Policy: "shop/p", Why: "shop/p: the policy allows no egress at all",
		},
	}
}

func TestFlowsArePrinted(t *testing.T) {
	var out bytes.Buffer
	printFlows(&out, sampleFlows(), time.UTC, true)
	want := `TIME      STATE  VERDICT  PROTOCOL  FROM → TO                                                                         SENT   RECEIVED  HOST  WHY
14:03:11  open   allowed  TCP       10.32.0.3:40412(shop/web) → 10.40.0.1:5432(shop/db) (service 10.96.0.1:5432)      900 B  90.0 MiB  h1    shop/db spec.ingress[0]
14:03:11  ended  allowed  ICMP      10.32.0.3(shop/web) → 10.40.0.2(host h2)                                          -      -         h1
14:03:11  new    denied   UDP       [fd00::1]:9(shop/web) → 192.0.2.7:53                                              3×     -         22    egress: shop/p: the policy allows no egress at all
`
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if squeeze(out.String()) != squeeze(want) {
		t.Errorf("the output is\n%s\nwant\n%s", out.String(), want)
	}
	for n, want := range map[uint64]string{0: "0 B", 9999: "9999 B", 10240: "10.0 KiB", 5 << 20: "5.0 MiB", 3 << 30: "3.0 GiB", 2 << 50: "2048.0 TiB"} {
		if got := byteCount(n); got != want {
			t.Errorf("%d bytes are printed as %s, want %s", n, got, want)
		}
	}
}

// flowsAgent answers each request for flows with the next reply, and the last one for ever.
type flowsAgent struct {
	mu      sync.Mutex
	replies []api.FlowsReply
	asked   []api.FlowsRequest
}

func serveFlows(t *testing.T, replies ...api.FlowsReply) (*flowsAgent, string) {
	t.Helper()
	a := &flowsAgent{replies: replies}
	socket := filepath.Join(t.TempDir(), "weft.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req api.FlowsRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.asked = append(a.asked, req)
		_ = json.NewEncoder(w).Encode(a.replies[0])
		if len(a.replies) > 1 {
			a.replies = a.replies[1:]
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return a, socket
}

// What is missing goes to standard error, so that a script gets clean output.
func TestFlowsTellWhatIsMissing(t *testing.T) {
	_, socket := serveFlows(t, api.FlowsReply{Hosts: []api.FlowsHost{
		{Peer: "11", Nickname: "h1", Lost: 7, More: 1}, {Peer: "22", Nickname: "h2", Error: "the peer is unreachable at present"}, {Peer: "33", Nickname: "h3", Off: true}, {Peer: "44", Nickname: "h4"},
	}})
	code, out, errOut := weft(t, "", "flows", "--all-hosts", "--socket", socket)
	for _, want := range []string{"h1: 7 events of connections lost", "1 older flow omitted", "h2: no answer: the peer is unreachable", "h3: launched with --no-flows"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("standard error lacks %q: %s", want, errOut)
		}
	}
	if code != ExitOK || out != "" || strings.Contains(errOut, "h4") {
		t.Errorf("exit code %d, output %q; want success, no output, and nothing about h4", code, out)
	}
	_, socket = serveFlows(t, api.FlowsReply{Hosts: []api.FlowsHost{{Peer: "11", Nickname: "h1", Off: true}}})
	if code, _, errOut := weft(t, "", "flows", "--socket", socket); code != ExitFailed || !strings.Contains(errOut, "remembers no flows") {
		t.Errorf("on a host without flows: exit code %d, %s; want a failure that says so", code, errOut)
	}
	for _, bad := range []string{"--since 0s", "--since -5m", "--port 70000"} {
		if code, _, _ := weft(t, "", append([]string{"flows", "--socket", socket}, strings.Fields(bad)...)...); code != ExitUsage {
			t.Errorf("flows %s: exit code %d, want %d", bad, code, ExitUsage)
		}
	}
}

// --follow shows only what happens after the first answer, and goes on from each host's cursor. With
// --json it prints one flow on each line.
func TestFlowsAreFollowed(t *testing.T) {
	list := sampleFlows()
	host := func(next uint64) []api.FlowsHost {
		return []api.FlowsHost{{Peer: "11", Nickname: "h1", Next: next, Lost: 2, More: int(next)}}
	}
	for _, asJSON := range []bool{false, true} {
		agent, socket := serveFlows(t, api.FlowsReply{Flows: list[:1], Hosts: host(5)}, api.FlowsReply{Flows: list[1:], Hosts: host(8)}, api.FlowsReply{Hosts: host(8)})
		var out, errOut bytes.Buffer
		a := &app{out: &out, err: &errOut, socket: socket, json: asJSON, watchPeriod: time.Millisecond}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.followFlows(ctx, api.FlowsRequest{To: "db"}) }()
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			agent.mu.Lock()
			n := len(agent.asked)
			agent.mu.Unlock()
			if n > 3 {
				break
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		agent.mu.Lock()
		asked := agent.asked
		agent.mu.Unlock()
		if asked[0].Most != 1 || asked[1].Most != 0 || asked[1].After["11"] != 5 || asked[3].After["11"] != 8 || asked[3].To != "db" {
			t.Errorf("the requests are %+v, want those that continue at 5 and 8", asked)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 2 || strings.Contains(out.String(), "10.40.0.1") {
			t.Errorf("the output is %q, want two lines, of the flows after the first answer", out.String())
		}
		for _, line := range lines {
			if f := (api.Flow{}); asJSON && (json.Unmarshal([]byte(line), &f) != nil || f.ID < 2) {
				t.Errorf("the line %q is no flow", line)
			}
		}
		if n := strings.Count(errOut.String(), "2 events"); n < 1 || n > 3 {
			t.Errorf("lost events are told %d times, want once for each change: %s", n, errOut.String())
		}
	}
}
