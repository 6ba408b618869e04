package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"weft/prog/agent/config"
	"weft/prog/api"
	"weft/prog/lab"
)

var update = flag.Bool("update", false, "write golden files anew")

// sample is the report of a host with every kind of entry, all in trouble or in use.
func sample() api.Report {
	addr, port := netip.MustParseAddr, netip.MustParseAddrPort
	handshake := time.Unix(1_800_000_000, 0)
	return api.Report{
		Version: "0.1.0", NotReady: "waiting for a node address from the other peers (see `weft status ipam`)",
		Warnings: []string{"the firewall chain \"filter FORWARD\" drops forwarded packets by default"},
		Policy:   api.PolicyReport{Current: true, Policies: 3, Audit: 1, Isolated: 2, Dropped: map[string]uint64{"ingress": 7}},
		DNS: api.DNS{
			Domain: "weft.internal", TTL: 1, Entries: 3, Listening: []netip.Addr{addr("10.32.0.1")}, Problem: "10.32.0.1:53: cannot assign requested address", NoUpstream: "/etc/resolv.conf names no server",
			Upstreams: []api.Upstream{{Server: "192.0.2.53:53", Error: "timeout"}, {Domain: "corp", Server: "192.0.2.54:53"}, {Server: "10.32.0.1:53", Own: true}},
		},
		Router: api.Router{
			Protocol: 1, ID: "9bad1c5cd23bfaef", Nickname: "h1", Cluster: "00112233445566778899aabbccddeeff", Datapath: "userspace", MTU: 1420,
			Exposed: true, Node: []netip.Addr{addr("10.32.0.1")}, Underlay: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
			Targets: []api.Target{{Host: "192.0.2.2", State: "connected"}, {Host: "h9", State: "retrying", Error: "h9: no such host"}},
			Connections: []api.Connection{
				{Outbound: true, Address: port("192.0.2.2:6784"), State: api.ConnEstablished, Peer: "3cced98783461972", Nickname: "h2", Handshake: &handshake, Info: "encrypted   userspace 3cced98783461972(h2) mtu=1420"},
				{Address: port("[2001:db8::3]:6784"), State: api.ConnRetrying, Peer: "f5acec0fd73f54c7", Nickname: "h3", Info: "encrypted   userspace f5acec0fd73f54c7(h3) mtu=1420 (gossip: unreachable)"},
			},
			Peers: []api.Peer{
				{ID: "9bad1c5cd23bfaef", Nickname: "h1", Self: true, State: "running", Underlay: []netip.Addr{addr("192.0.2.1")}},
				{ID: "3cced98783461972", Nickname: "h2", State: "running", Underlay: []netip.Addr{addr("192.0.2.2")}},
				{ID: "f5acec0fd73f54c7", Nickname: "h3", State: "unreachable", Underlay: []netip.Addr{addr("2001:db8::3")}},
			},
		},
		IPAM: api.IPAM{
			Status: "ready", Range: "10.32.0.0/12", Range6: "fd00::/96", Size: 1 << 20, Active: 12, Conflict: "ring: two peers founded one each",
			Ring: "000102030405060708090a0b0c0d0e0f", Generation: 2, Vote: &api.Voting{Expected: 3, Quorum: 2, Known: []string{"9bad1c5cd23bfaef(h1)"}},
			Lost: []api.Lost{{Endpoint: "c1/eth0", Address: addr("10.44.0.7"), Owner: "f5acec0fd73f54c7(h3)"}},
			Owners: []api.Owner{
				{Peer: "9bad1c5cd23bfaef", Nickname: "h1", Self: true, Slots: 1 << 19, Percent: 50, Usage: &api.Usage{Active: 12}},
				{Peer: "3cced98783461972", Nickname: "h2", Slots: 1 << 18, Percent: 25, Reachable: true},
				{Peer: "f5acec0fd73f54c7", Nickname: "h3", Slots: 1 << 18, Percent: 25},
			},
		},
		Endpoints: []api.Endpoint{},
	}
}

func TestStatusForPeople(t *testing.T) {
	for name, print := range map[string]func(io.Writer, api.Report){
		"status": printStatus, "connections": printConnections, "peers": printPeers, "targets": printTargets, "ipam": printIPAM,
	} {
		var out bytes.Buffer
		print(&out, sample())
		path := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), out.String()); diff != "" {
			t.Errorf("%s (-want +got; run with -update if it is right):\n%s", name, diff)
		}
	}
}

// serveReport runs an agent that answers with the sample.
func serveReport(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.PathUsage {
			_ = json.NewEncoder(w).Encode(map[string]api.Usage{"3cced98783461972": {Active: 3}})
			return
		}
		_ = json.NewEncoder(w).Encode(sample())
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return socket
}

func weft(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = Main(args, strings.NewReader(stdin), &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestJSONEverywhere(t *testing.T) {
	socket := serveReport(t)
	for _, args := range [][]string{
		{"status"}, {"status", "connections"}, {"status", "peers"}, {"status", "targets"}, {"status", "ipam"}, {"ps"}, {"report"}, {"version"},
	} {
		code, out, errOut := weft(t, "", append(args, "--json", "--socket", socket)...)
		want := ExitOK
		if len(args) == 1 && args[0] == "status" { // the sample is not ready
			want = ExitNotReady
		}
		if code != want || !json.Valid([]byte(out)) {
			t.Errorf("%v: exit code %d, %s%s", args, code, out, errOut)
		}
	}
	if code, out, _ := weft(t, "", "report", "--socket", socket, "-f", "{{range .router.peers}}{{.nickname}} {{end}}"); code != ExitOK || out != "h1 h2 h3 \n" {
		t.Errorf("report -f: %d %q", code, out)
	}
}

func TestExitCodesAndErrors(t *testing.T) {
	none := filepath.Join(t.TempDir(), "nobody")
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"launch", "--ipalloc-rest", "0"}, ExitUsage, "more than 0"},
		{[]string{"launch", "--ipalloc-init", "consensus=0"}, ExitUsage, "1 to 1024"},
		{[]string{"launch", "--ipalloc-init", "paxos"}, ExitUsage, "consensus=N"},
		{[]string{"launch", "--ipalloc-exclude", "10.32.0.1"}, ExitUsage, "--ipalloc-exclude"},
		{[]string{"status", "--socket", none}, ExitNotRunning, "weft launch"},
		{[]string{"frobnicate"}, ExitUsage, "unknown command"},
		{[]string{"status", "frobnicate"}, ExitUsage, "unknown command"},
		{[]string{"status", "--frob"}, ExitUsage, "--help"},
		{[]string{"connect"}, ExitUsage, "got 0 arguments: want `weft connect [--replace] PEER..."},
		{[]string{"launch", "a b"}, ExitUsage, "want HOST or HOST:PORT"},
		{[]string{"launch", "300.1.2.3"}, ExitUsage, "300.1.2.3 is neither an IP address"},
		{[]string{"launch", "--advertise", "x"}, ExitUsage, "--advertise x"},
		{[]string{"launch", "--port", "70000"}, ExitUsage, "--port 70000"},
		{[]string{"launch", "--wireguard-port", "0"}, ExitUsage, "--wireguard-port 0"},
		{[]string{"launch", "--mtu", "576"}, ExitUsage, "1280"},
		{[]string{"launch", "--policy-exempt", "none,dns"}, ExitUsage, "nothing else"},
		{[]string{"launch", "--policy-exempt", "all"}, ExitUsage, "own-host"},
		{[]string{"launch", "--dns-domain", "a..b"}, ExitUsage, "--dns-domain"},
		{[]string{"launch", "--dns-domain", "onion"}, ExitUsage, "take weft.internal"},
		{[]string{"launch", "--dns-domain", "arpa"}, ExitUsage, "take weft.internal"},
		{[]string{"launch", "--dns-ttl", "1500ms"}, ExitUsage, "whole seconds"},
		{[]string{"launch", "--dns-forward", "=192.0.2.53"}, ExitUsage, "DOMAIN=ADDRESS"},
		{[]string{"launch", "--dns-forward", "corp=ns1"}, ExitUsage, "no address of a server"},
		{[]string{"launch", "--dns-forward", "corp=0.0.0.0"}, ExitUsage, "--dns-forward corp=0.0.0.0"},
		{[]string{"launch", "--dns-forward", "x.weft.internal=192.0.2.53"}, ExitUsage, "answers for"},
		{[]string{"launch", "--token", "/no/such/file"}, ExitUsage, "no such file"},
		{[]string{"report", "-f", "{{"}, ExitUsage, "-f"},
	} {
		code, _, errOut := weft(t, "", tt.args...)
		if code != tt.code || !strings.Contains(errOut, tt.says) {
			t.Errorf("weft %v: exit code %d, %s", tt.args, code, errOut)
		}
	}
	for err, want := range map[error]int{
		errors.New("x"): ExitFailed,
		&api.Error{Code: api.CodeNotReady, Message: "x"}: ExitNotReady, &api.Error{Code: api.CodeNoSpace, Message: "x"}: ExitNotReady,
		&api.Error{Code: api.CodeBadRequest, Message: "x"}: ExitUsage, &api.Error{Code: api.CodeConflict, Message: "x"}: ExitFailed,
		&lab.ExitError{Code: 42}: 42,
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%T %v: exit code %d, want %d", err, err, got, want)
		}
	}
}

func TestShortIDs(t *testing.T) {
	hash := strings.Repeat("4f66ad9a0b2e11d4", 4)
	for id, want := range map[string]string{
		hash: "4f66ad9a0b2e", "netns-4026533141": "netns-4026533141", "lab-h1-c1": "lab-h1-c1", "outside": "outside",
	} {
		if got := shortID(id); got != want {
			t.Errorf("%s: %s, want %s", id, got, want)
		}
	}
}

func TestForwardFlags(t *testing.T) {
	var o config.DNS
	d := dnsFlags{domain: "Weft.Internal.", forward: []string{".=192.0.2.53", "Corp.=192.0.2.54", "corp=[2001:db8::53]:5353"}}
	if err := d.complete(&o); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(o.Domain, " ", o.Forward)
	if want := "weft.internal map[.:[192.0.2.53:53] corp:[192.0.2.54:53 [2001:db8::53]:5353]]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestDockerNames(t *testing.T) {
	for name, ok := range map[string]bool{"": true, "Web_1": true, "web.shop": true, "web-": false, "a..b": false, strings.Repeat("a", 64): false} {
		if err := checkDocker(name); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "--name") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// dns-add turns its arguments into one request.
func TestNameRequests(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var got api.NameRequest
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = api.NameRequest{}
		_ = json.NewDecoder(r.Body).Decode(&got)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	netns, err := namespaceOf(container{netns: "/proc/self/ns/net"}, "")
	if err != nil {
		t.Fatal(err)
	}
	inside := []netip.Addr{netip.MustParseAddr("10.32.0.2")}
	for _, tt := range []struct {
		args []string
		code int
		want api.NameRequest
	}{
		{[]string{"web"}, ExitOK, api.NameRequest{Name: "web", Container: "web"}},
		{[]string{"web", "-h", "shop"}, ExitOK, api.NameRequest{Name: "shop", Container: "web"}},
		{[]string{"10.32.0.2", "web"}, ExitOK, api.NameRequest{Name: "web", Container: "web", Addresses: inside}},
		{[]string{"::ffff:10.32.0.2", "-h", "shop"}, ExitOK, api.NameRequest{Name: "shop", Addresses: inside}},
		{[]string{"/proc/self/ns/net", "-h", "shop"}, ExitOK, api.NameRequest{Name: "shop", Container: netns.id}},
		{[]string{"/proc/self/ns/net"}, ExitUsage, api.NameRequest{}},
		{[]string{"/no/such/netns"}, ExitUsage, api.NameRequest{}},
		{[]string{"10.32.0.2"}, ExitUsage, api.NameRequest{}},
		{[]string{"a", "b"}, ExitUsage, api.NameRequest{}},
	} {
		got = api.NameRequest{}
		code, _, errOut := weft(t, "", append([]string{"dns-add", "--socket", socket}, tt.args...)...)
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); code != tt.code || diff != "" {
			t.Errorf("%v: exit code %d, %s%s", tt.args, code, errOut, diff)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, out, errOut := weft(t, "", "completion", shell); code != ExitOK || !strings.Contains(out, "weft") {
			t.Errorf("completion %s: %d %s", shell, code, errOut)
		}
	}
}

// The Docker API, as far as attach uses it.
func TestDockerContainer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/containers/web/json":
			_, _ = io.WriteString(w, `{"Id":"4f66ad9a0b2e11d4","Name":"/web","State":{"Pid":4711}}`)
		case "/containers/stopped/json":
			_, _ = io.WriteString(w, `{"Id":"aa","Name":"/stopped","State":{"Pid":0}}`)
		case "/containers/broken/json":
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message":"disk\nfull`+strings.Repeat(".", 1000)+`"}`)
		case "/containers/html/json":
			_, _ = io.WriteString(w, `hello`)
		case "/containers/silent/json":
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"message":"No such container"}`)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	c, err := dockerContainer(t.Context(), socket, "web")
	if want := (container{id: "4f66ad9a0b2e11d4", netns: "/proc/4711/ns/net", name: "web"}); err != nil || c != want {
		t.Errorf("%+v, %v", c, err)
	}
	for name, says := range map[string]string{
		"stopped": "start it first", "other": "has no container", "broken": "Docker says: disk full...",
		"html": "that is not Docker's", "silent": "(it hung up)",
	} {
		if _, err := dockerContainer(t.Context(), socket, name); err == nil || !strings.Contains(err.Error(), says) || len(err.Error()) > 500 || internals.MatchString(err.Error()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := dockerContainer(t.Context(), socket+"x", "web"); err == nil || !strings.Contains(err.Error(), "neither a PID nor a path") ||
		!strings.Contains(err.Error(), "x (no such file or directory): is it running") || strings.Contains(err.Error(), "http://") {
		t.Errorf("no Docker: %v", err)
	}
}

// Child processes do not inherit the password from the environment.
func TestPasswordIsNotPassedOn(t *testing.T) {
	t.Setenv("WEFT_PASSWORD", "correct horse battery")
	if given, err := (&app{}).secretGiven(""); given == nil || err != nil {
		t.Fatal(given, err)
	}
	if _, there := os.LookupEnv("WEFT_PASSWORD"); there {
		t.Error("children would inherit the password")
	}
}
