package control

import (
	"encoding/json"
	"net/http"
	"sync/atomic"

	"weft/prog/agent/logs"
	"weft/prog/api"
	"weft/prog/api/server"
)

// Front answers on the agent's sockets from its start on. Until the agent can serve, it reports what
// the agent waits for. Under Kubernetes that can take as long as the API server is down.
type Front struct {
	All, ReadOnly, Metrics *Door
	alive                  atomic.Pointer[func() error]
}

// Door passes requests to the agent's handler once the agent runs. Until then it answers itself.
type Door struct {
	starting http.Handler
	behind   atomic.Pointer[http.Handler]
}

func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := d.behind.Load(); h != nil {
		(*h).ServeHTTP(w, r)
		return
	}
	d.starting.ServeHTTP(w, r)
}

// Starting holds what a Front answers before the agent runs.
type Starting struct {
	// Why returns what the agent waits for; empty if it is only starting.
	Why    func() string
	Report func() api.Report
	Logs   *logs.Recent
	Stop   func()
}

// NewFront makes a front.
func NewFront(s Starting) *Front {
	f := &Front{}
	all, readOnly := http.NewServeMux(), http.NewServeMux()
	notReady := func(w http.ResponseWriter, _ *http.Request) {
		why := s.Why()
		if why == "" { // the agent began to start, and waits for nothing yet
			why = "the agent is starting"
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(&api.Error{Code: api.CodeNotReady, Message: "not ready: " + why}) // a client that is gone needs no answer
	}
	all.HandleFunc("/", notReady)
	readOnly.HandleFunc("/", notReady)
	readOnly.HandleFunc("GET /live", f.live)
	all.HandleFunc("GET "+api.PathReport, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Report())
	})
	server.AddLogs(all, s.Logs)
	all.HandleFunc("POST "+api.PathStop, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(api.StopReply{})
		s.Stop()
	})
	f.All, f.ReadOnly, f.Metrics = &Door{starting: all}, &Door{starting: readOnly}, &Door{starting: http.HandlerFunc(notReady)}
	return f
}

// Open passes all requests to the agent from now on. alive returns an error if the agent hangs, so
// that a restart could help.
func (f *Front) Open(a server.Agent, metrics http.Handler, alive func() error) {
	f.alive.Store(&alive)
	all, readOnly := server.Handler(a), http.NewServeMux()
	readOnly.Handle("/", server.ReadOnly(a, metrics))
	readOnly.HandleFunc("GET /live", f.live)
	var status http.Handler = readOnly
	f.All.behind.Store(&all)
	f.ReadOnly.behind.Store(&status)
	only := http.NewServeMux()
	only.Handle("GET /metrics", metrics)
	var numbers http.Handler = only
	f.Metrics.behind.Store(&numbers)
}

// live fails if a restart of this agent could help: only if it hangs. It does not fail if the API
// server or other peers are down, or before the agent serves.
func (f *Front) live(w http.ResponseWriter, _ *http.Request) {
	if alive := f.alive.Load(); alive != nil {
		if err := (*alive)(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = w.Write([]byte("ok\n")) // a client that is gone needs no answer
}
