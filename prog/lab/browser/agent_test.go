package browser

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"weft/prog/api"
	"weft/prog/lab/labtest"
)

// fakeAgent answers the questions of weft ui on a control socket, with a made-up network. Its fields may be changed
// inside do.
type fakeAgent struct {
	socket string
	server *http.Server

	mu        sync.Mutex
	network   api.Network
	endpoints []api.NetworkEndpoint
	flows     []api.Flow // the newest last
	matrix    func(api.MatrixRequest) api.Matrix
	explain   func(api.ExplainRequest) (api.Explanation, error)
	off       []string // nicknames of hosts that were launched with --no-flows
	asked     []string // the paths of requests
	refusal   *api.Error
}

// do changes the agent's network.
func (a *fakeAgent) do(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// start serves the socket. An agent that was stopped can start again.
func (a *fakeAgent) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	answer(a, mux, api.PathNetwork, func(struct{}) (any, error) { return a.network, nil })
	answer(a, mux, api.PathEndpoints, func(struct{}) (any, error) {
		return api.NetworkEndpoints{Version: a.network.Endpoints, Endpoints: a.endpoints}, nil
	})
	answer(a, mux, api.PathHost, func(r api.HostRequest) (any, error) { return a.report(r.Peer) })
	answer(a, mux, api.PathMatrix, func(r api.MatrixRequest) (any, error) { return a.matrix(r), nil })
	answer(a, mux, api.PathFlows, func(r api.FlowsRequest) (any, error) { return a.reply(r), nil })
	answer(a, mux, api.PathExplain, func(r api.ExplainRequest) (any, error) { return a.explain(r) })
	a.server = &http.Server{Handler: mux}
	go func() { _ = a.server.Serve(l) }() // ends with stop
}

func (a *fakeAgent) stop() { _ = a.server.Close() }

func answer[In any](a *fakeAgent, mux *http.ServeMux, path string, f func(In) (any, error)) {
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if r.Method == http.MethodPost {
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.asked = append(a.asked, path)
		out, err := f(in)
		if a.refusal != nil {
			err = a.refusal
		}
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			out = err
		}
		_ = json.NewEncoder(w).Encode(out)
	})
}

func (a *fakeAgent) host(peer string) *api.Host {
	i := slices.IndexFunc(a.network.Hosts, func(h api.Host) bool { return h.Peer == peer || h.Nickname == peer })
	if i < 0 {
		return nil
	}
	return &a.network.Hosts[i]
}

// report has the tunnels of a host to all others.
func (a *fakeAgent) report(peer string) (any, error) {
	h := a.host(peer)
	if h == nil {
		return nil, &api.Error{Code: api.CodeNotFound, Message: "there is no peer " + peer}
	}
	r := api.Report{Version: h.Version, Ready: h.Ready, Problems: h.Problems}
	r.Router.ID, r.Router.Nickname = h.Peer, h.Nickname
	listed := map[string]api.Link{}
	for _, l := range h.Links {
		listed[l.Peer] = l
	}
	for i, other := range a.network.Hosts {
		if other.Peer == h.Peer {
			continue
		}
		l, ok := listed[other.Peer]
		if !ok {
			l = api.Link{Peer: other.Peer, State: api.ConnDirect, RoundTrip: new(0.0004 + float64(i%9)*0.0001)}
		}
		r.Router.Connections = append(r.Router.Connections, api.Connection{
			Peer: l.Peer, Nickname: other.Nickname, State: l.State, Info: l.Info, Via: l.Via, RoundTrip: l.RoundTrip,
			Loss: l.Loss, SentRate: l.SentRate, ReceivedRate: l.ReceivedRate,
		})
	}
	return r, nil
}

// reply selects flows by verdict and port only; the agent's own selection has tests elsewhere.
func (a *fakeAgent) reply(r api.FlowsRequest) api.FlowsReply {
	out := api.FlowsReply{}
	for i, f := range a.flows {
		if uint64(i) >= r.After[f.Peer] && (r.Verdict == "" || r.Verdict == f.Verdict) && (r.Port == 0 || r.Port == f.Destination.Port()) {
			out.Flows = append(out.Flows, f)
		}
	}
	for _, h := range a.network.Hosts {
		out.Hosts = append(out.Hosts, api.FlowsHost{
			Peer: h.Peer, Nickname: h.Nickname, Error: h.Error, Next: uint64(len(a.flows)), Off: slices.Contains(a.off, h.Nickname),
		})
	}
	return out
}

// serve starts the agent, and the real weft ui that asks it. It returns the address of the page.
func serve(t *testing.T, a *fakeAgent) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ui-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	a.socket = filepath.Join(dir, "weft.sock")
	a.start(t)
	t.Cleanup(func() { a.stop() })
	return runUI(t, exec.Command(filepath.Join(labtest.Bin(t), "weft"), "ui", "--listen", "127.0.0.1:0", "--json", "--socket", a.socket))
}

// runUI starts weft ui and returns the address that it prints.
func runUI(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // Wait says whether it ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("weft ui ended with %v, want success after an interrupt", err)
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("weft ui printed %q: %v, want its address", line, err)
	}
	var said struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(line, &said); err != nil || said.URL == "" {
		t.Fatalf("weft ui printed %q: %v, want its address as JSON", line, err)
	}
	return said.URL
}

func addr(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

func addrPort(format string, args ...any) netip.AddrPort {
	return netip.MustParseAddrPort(fmt.Sprintf(format, args...))
}
