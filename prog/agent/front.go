package agent

import (
	"encoding/json"
	"net/http"
	"os"
	"sync/atomic"

	"weft/mesh"
	"weft/prog/api"
	"weft/prog/api/server"
)

// front answers on the agent's sockets from its start on. Until the agent has what it needs
// to serve (under Kubernetes that can take as long as the API server is down), it says what
// is waited for.
type front struct {
	all, readOnly *door
}

// door leads to a handler once there is one.
type door struct {
	starting http.Handler
	behind   atomic.Pointer[http.Handler]
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := d.behind.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	d.starting.ServeHTTP(w, r)
}

func newFront(a *Agent) *front {
	all, readOnly := http.NewServeMux(), http.NewServeMux()
	notReady := func(w http.ResponseWriter, r *http.Request) {
		err := a.Ready(r.Context())
		if err == nil { // not before the door is open
			err = &api.Error{Code: api.CodeNotReady, Message: "not ready: the agent is starting"}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(err) // who is gone needs no answer
	}
	all.HandleFunc("/", notReady)
	readOnly.HandleFunc("/", notReady)
	all.HandleFunc("GET "+api.PathReport, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a.early())
	})
	all.HandleFunc("POST "+api.PathStop, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(api.StopReply{})
		a.stop()
	})
	return &front{all: &door{starting: all}, readOnly: &door{starting: readOnly}}
}

// open lets everybody in.
func (f *front) open(a *Agent) {
	all, readOnly := server.Handler(a), server.ReadOnly(a, a.metrics())
	f.all.behind.Store(&all)
	f.readOnly.behind.Store(&readOnly)
}

// early is what can be said of an agent that has not started yet.
func (a *Agent) early() api.Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	return api.Report{
		Version: a.opts.Version, NotReady: a.notReady, Endpoints: []api.Endpoint{},
		Router: api.Router{
			Protocol: mesh.Version, ID: "-", Nickname: a.opts.Nickname, Port: a.opts.Port, GossipPort: a.opts.GossipPort, PID: os.Getpid(),
			Targets: []api.Target{}, Connections: []api.Connection{}, Peers: []api.Peer{},
		},
		IPAM: api.IPAM{Status: "waiting: " + a.notReady, Owners: []api.Owner{}},
	}
}
