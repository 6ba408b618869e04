package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/prog/api"
	"weft/prog/api/server"
)

const storedManifest = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: db-access\n  namespace: shop\n"

// policyAgent is an agent with canned answers that records requests.
type policyAgent struct {
	apply   api.ApplyRequest
	remove  api.DeleteRequest
	explain api.ExplainRequest
	err     error

	explanation api.Explanation
	drops       []api.Drop

	asked  atomic.Int32 // number of status requests
	status func(n int32) api.PolicyStatus
}

func (p *policyAgent) Policies(context.Context) ([]api.Policy, error) { return samplePolicies(), p.err }

func (p *policyAgent) ApplyPolicy(_ context.Context, req api.ApplyRequest) (api.ApplyReply, error) {
	p.apply = req
	return policyReply(api.Created, req.DryRun), p.err
}

func (p *policyAgent) DeletePolicy(_ context.Context, req api.DeleteRequest) (api.ApplyReply, error) {
	p.remove = req
	return policyReply(api.Deleted, req.DryRun), p.err
}

func policyReply(change string, dryRun bool) api.ApplyReply {
	r := api.ApplyReply{Generation: "g2", Changes: []api.DocumentChange{
		{DocumentRef: api.DocumentRef{Kind: api.KindNamespace, Name: "shop"}, Change: api.Configured},
		{DocumentRef: api.DocumentRef{Kind: api.KindPolicy, Namespace: "shop", Name: "db-access"}, Change: change},
	}}
	if dryRun {
		r.Effects = sampleEffects()
	}
	return r
}

func (p *policyAgent) Explain(_ context.Context, req api.ExplainRequest) (api.Explanation, error) {
	p.explain = req
	return p.explanation, p.err
}

func (p *policyAgent) Drops(context.Context) ([]api.Drop, error) { return p.drops, p.err }

func (p *policyAgent) PolicyStatus(context.Context) (api.PolicyStatus, error) {
	return p.status(p.asked.Add(1)), p.err
}

func servePolicies(t *testing.T, p *policyAgent) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	server.AddPolicies(mux, p)
	s := &http.Server{Handler: mux}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return socket
}

func samplePolicies() []api.Policy {
	hours := func(n int) time.Time { return time.Now().Add(-time.Duration(n)*time.Hour - time.Minute) }
	return []api.Policy{
		{DocumentRef: api.DocumentRef{Kind: api.KindPolicy, Namespace: "default", Name: "deny"}, Selector: "all", Types: []string{"Ingress", "Egress"}, Endpoints: 7, Written: hours(72), Writer: "9bad1c5cd23bfaef(h1)", Manifest: "kind: NetworkPolicy"},
		{DocumentRef: api.DocumentRef{Kind: api.KindPolicy, Namespace: "shop", Name: "db-access"}, Selector: "app=db", Types: []string{"Ingress"}, Endpoints: 2, Audit: true, Written: hours(3), Writer: "3cced98783461972(h2)", Manifest: storedManifest},
		{DocumentRef: api.DocumentRef{Kind: api.KindNamespace, Name: "shop"}, Written: time.Now().Add(-330 * time.Second), Manifest: "kind: Namespace\n"},
	}
}

func sampleEffects() *api.Effects {
	port := netip.MustParseAddrPort
	return &api.Effects{
		Flows: []api.FlowChange{
			{Peer: "9bad1c5cd23bfaef(h1)", Protocol: "TCP", Source: port("10.32.0.4:51234"), Destination: port("10.40.0.2:5432"), From: "shop/web", To: "shop/db", Why: "shop/db-access: the policy allows no ingress at all"},
			{Peer: "3cced98783461972(h2)", Protocol: "UDP", Source: port("[fd00::4]:5353"), Destination: port("[2001:db8::53]:53"), From: "shop/web", Allowed: true, Why: "no policy selects shop/web any more"},
		},
		Pairs:     []api.PairChange{{From: "shop/web", To: "shop/db", Before: "all", After: "80/TCP, 8000-9000/UDP"}},
		MoreFlows: 3, MorePairs: 40, Silent: []string{"f5acec0fd73f54c7(h3)"},
	}
}

func samplePolicyStatus() api.PolicyStatus {
	return api.PolicyStatus{
		Source: "gossip", Generation: "g2", Exempt: []string{"a host and its own endpoints", "ICMPv6 neighbour discovery"},
		Policies: []api.PolicyInForce{{Policy: "default/deny", Peers: 4, Endpoints: 7}, {Policy: "shop/db-access", Audit: true, Peers: 1, Endpoints: 2}, {
			Policy: "shop/web", Peers: 4, Endpoints: 1, Unread: []string{`spec.ingress[0].from[1].ipBlock.cidr: "10.0.0/24" is no CIDR, such as 192.0.2.0/24 or 2001:db8::/32`},
		}},
		Peers: []api.PeerPolicies{
			{Peer: "9bad1c5cd23bfaef", Nickname: "h1", Generation: "g2", Current: true, Isolated: 7, Dropped: 12},
			{Peer: "3cced98783461972", Nickname: "h2", Generation: "g1", Isolated: 2},
			{Peer: "f5acec0fd73f54c7", Nickname: "h3", Unreachable: true},
			{Peer: "0011223344556677", Nickname: "h4", Generation: "g2", Current: true, Error: "table inet weft: permission denied"},
		},
	}
}

// golden compares output with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the output differs from testdata/%s.golden (-want +got; if the output is right, run with -update):\n%s", name, diff)
	}
}

func TestPolicyCommandsPrintText(t *testing.T) {
	agent := &policyAgent{status: func(int32) api.PolicyStatus { return samplePolicyStatus() }}
	socket := servePolicies(t, agent)
	for name, args := range map[string][]string{
		"list":          {"list"},
		"list-shop":     {"list", "-n", "shop"},
		"apply":         {"apply", "-f", "-"},
		"apply-dry-run": {"apply", "-f", "-", "--dry-run"},
		"delete":        {"delete", "shop/db-access", "namespace/shop"},
		"get":           {"get", "shop/db-access"},
		"get-json":      {"get", "-n", "shop", "db-access", "-o", "json"},
	} {
		code, out, errOut := weft(t, storedManifest, append([]string{"policy", "--socket", socket}, args...)...)
		if code != ExitOK || errOut != "" {
			t.Errorf("%v: want success without messages, got exit code %d, %s", args, code, errOut)
		}
		golden(t, "policy-"+name, out)
	}
	code, out, errOut := weft(t, "", "status", "policy", "--socket", socket)
	if code != ExitOK {
		t.Errorf("weft status policy: want success, got exit code %d, %s", code, errOut)
	}
	golden(t, "policy-status", out)
}

func TestEmptyPolicyListsPrintAnExplanation(t *testing.T) {
	for want, print := range map[string]func(io.Writer){
		"nothing would change for any current connection\n": func(w io.Writer) { printEffects(w, nil) },
		"no policies: everything is allowed":                func(w io.Writer) { printPolicies(w, nil) },
		"Exempt: nothing":                                   func(w io.Writer) { printPolicyStatus(w, api.PolicyStatus{}) },
	} {
		var out bytes.Buffer
		if print(&out); !strings.Contains(out.String(), want) {
			t.Errorf("the output is %q, want %q", out.String(), want)
		}
	}
}

func TestPolicyCommandsPrintJSON(t *testing.T) {
	agent := &policyAgent{status: func(int32) api.PolicyStatus { return samplePolicyStatus() }}
	socket := servePolicies(t, agent)
	for _, args := range [][]string{
		{"policy", "list"},
		{"policy", "list", "-n", "nobody"},
		{"policy", "get", "deny"},
		{"policy", "apply", "-f", "-", "--dry-run"},
		{"policy", "delete", "deny"},
		{"status", "policy"},
	} {
		code, out, errOut := weft(t, storedManifest, append(args, "--json", "--socket", socket)...)
		if code != ExitOK || !json.Valid([]byte(out)) || strings.HasPrefix(out, "null") {
			t.Errorf("%v: want success and JSON, got exit code %d, %s%s", args, code, out, errOut)
		}
	}
}

// Arguments of policy commands become the agent's request.
func TestPolicyArgumentsBecomeRequests(t *testing.T) {
	agent := &policyAgent{}
	socket := servePolicies(t, agent)
	run := func(args ...string) {
		t.Helper()
		if code, _, errOut := weft(t, storedManifest, append([]string{"policy", "--socket", socket}, args...)...); code != ExitOK {
			t.Errorf("%v: want success, got exit code %d, %s", args, code, errOut)
		}
	}
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte("from: file"), 0o600); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{"-": storedManifest, file: "from: file"} {
		run("apply", "-f", from)
		run("delete", "-f", from, "--dry-run")
		if agent.apply != (api.ApplyRequest{Manifest: want}) || agent.remove.Manifest != want || !agent.remove.DryRun {
			t.Errorf("the agent got the requests %+v and %+v; want the manifest and the flags", agent.apply, agent.remove)
		}
	}
	run("delete", "-n", "shop", "a", "b/c", "namespace/d", "networkpolicy/e/f")
	want := []api.DocumentRef{
		{Kind: api.KindPolicy, Namespace: "shop", Name: "a"},
		{Kind: api.KindPolicy, Namespace: "b", Name: "c"},
		{Kind: api.KindNamespace, Name: "d"},
		{Kind: api.KindPolicy, Namespace: "e", Name: "f"},
	}
	if diff := cmp.Diff(want, agent.remove.Refs); diff != "" {
		t.Errorf("the agent got other documents to delete (-want +got):\n%s", diff)
	}
}

func TestPolicyApplyWaitsForAllReachablePeers(t *testing.T) {
	peers := func(generation string, list ...api.PeerPolicies) api.PolicyStatus {
		return api.PolicyStatus{Generation: generation, Peers: list}
	}
	h1 := api.PeerPolicies{Peer: "aa", Nickname: "h1", Generation: "g2", Current: true}
	late := api.PeerPolicies{Peer: "bb", Nickname: "h2", Generation: "g1"}
	gone := api.PeerPolicies{Peer: "cc", Nickname: "h3", Unreachable: true}
	newer := api.PeerPolicies{Peer: "bb", Nickname: "h2", Generation: "g3", Current: true}
	failing := api.PeerPolicies{Peer: "dd", Nickname: "h4", Generation: "g2", Error: "no nftables"}
	for name, tt := range map[string]struct {
		status   func(n int32) api.PolicyStatus
		code     int
		out, err string // the end of the output, and a part of the error
	}{
		"all enforce it": {func(int32) api.PolicyStatus { return peers("g2", h1, h1) }, ExitOK, "in force on 2 peers\n", ""},
		"later": {func(n int32) api.PolicyStatus {
			if n < 3 {
				return peers("g2", h1, late)
			}
			return peers("g2", h1, h1)
		}, ExitOK, "in force on 2 peers\n", ""},
		"an unreachable peer":           {func(int32) api.PolicyStatus { return peers("g2", h1, gone) }, ExitOK, "in force on 1 peer\n", "cc(h3) is unreachable"},
		"newer policies":                {func(int32) api.PolicyStatus { return peers("g3", newer, newer) }, ExitOK, "in force on 2 peers\n", ""},
		"newer policies, one peer late": {func(int32) api.PolicyStatus { return peers("g3", newer, late) }, ExitFailed, "", "1 of 2 peers did not enforce the change: bb(h2) (it still enforces generation g1)"},
		"late and failing peers":        {func(int32) api.PolicyStatus { return peers("g2", h1, late, failing, gone) }, ExitFailed, "", "2 of 3 peers did not enforce the change: bb(h2) (it still enforces generation g1), dd(h4) (no nftables)"},
		"no peers":                      {func(int32) api.PolicyStatus { return peers("g2") }, ExitFailed, "", "no peer reported"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			agent := &policyAgent{status: tt.status}
			code, out, errOut := weft(t, storedManifest, "policy", "apply", "-f", "-", "--wait", "--timeout", "1500ms", "--socket", servePolicies(t, agent))
			if code != tt.code || !strings.HasSuffix(out, tt.out) || !strings.Contains(errOut, tt.err) || tt.err == "" && errOut != "" {
				t.Errorf("--wait: got exit code %d, %s%s; want exit code %d, output that ends in %q, an error with %q", code, out, errOut, tt.code, tt.out, tt.err)
			}
		})
	}
}
