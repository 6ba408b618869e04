package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"

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
	readOnly.HandleFunc("GET /live", a.live)
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
	all, readOnly := server.Handler(a), http.NewServeMux()
	readOnly.Handle("/", server.ReadOnly(a, a.metrics()))
	readOnly.HandleFunc("GET /live", a.live)
	var status http.Handler = readOnly
	f.all.behind.Store(&all)
	f.readOnly.behind.Store(&status)
}

// stuck is how long one turn of the reconciler may take: it gives up what hangs long before.
const stuck = 2 * time.Minute

// live answers whether starting this agent anew could help: only if it hangs. That the API
// server or other peers are down does not end it, and it has nothing to reconcile before it
// knows the network.
func (a *Agent) live(w http.ResponseWriter, _ *http.Request) {
	since := a.turned.Load()
	if since == nil || time.Since(*since) < stuck {
		_, _ = w.Write([]byte("ok\n")) // who is gone needs no answer
		return
	}
	http.Error(w, fmt.Sprintf("the reconciler has not come round for %v", time.Since(*since).Round(time.Second)), http.StatusServiceUnavailable)
}

// early is what can be said of an agent that has not started yet.
func (a *Agent) early() api.Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	return api.Report{
		Version: a.opts.Version, NotReady: a.notReady, Endpoints: []api.Endpoint{}, Settings: a.opts.Settings, Waiting: a.waiting,
		Router: api.Router{
			Protocol: mesh.Version, ID: "-", Nickname: a.opts.Nickname, Port: a.opts.Port, GossipPort: a.opts.GossipPort, PID: os.Getpid(),
			Targets: []api.Target{}, Connections: []api.Connection{}, Peers: []api.Peer{},
		},
		IPAM: api.IPAM{Status: "waiting: " + a.notReady, Owners: []api.Owner{}},
	}
}
