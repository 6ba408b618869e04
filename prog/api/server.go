package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

const (
	pathReport   = "/v1/report"
	pathReady    = "/v1/ready"
	pathAttach   = "/v1/attach"
	pathDetach   = "/v1/detach"
	pathEndpoint = "/v1/endpoint"
	pathCollect  = "/v1/collect"
	pathTargets  = "/v1/targets"
	pathExpose   = "/v1/expose"
	pathStop     = "/v1/stop"
)

// Agent is what a server serves. Errors that are an *Error reach the client as they are.
type Agent interface {
	Report(context.Context) (Report, error)
	Ready(context.Context) error
	Attach(context.Context, AttachRequest) (AttachReply, error)
	Detach(context.Context, EndpointRef) error
	Endpoint(context.Context, EndpointRef) (Endpoint, error)
	Collect(context.Context, CollectRequest) error
	Targets(context.Context, TargetsRequest) error
	Expose(ctx context.Context, on bool) error
	Stop(ctx context.Context, leave bool) error
}

// Handler serves the whole contract; it belongs on a socket that only root can open.
func Handler(a Agent) http.Handler {
	mux := http.NewServeMux()
	read(mux, pathReport, a.Report)
	read(mux, pathReady, func(ctx context.Context) (struct{}, error) { return struct{}{}, a.Ready(ctx) })
	write(mux, pathAttach, a.Attach)
	write(mux, pathDetach, quiet(a.Detach))
	write(mux, pathEndpoint, a.Endpoint)
	write(mux, pathCollect, quiet(a.Collect))
	write(mux, pathTargets, quiet(a.Targets))
	write(mux, pathExpose, quiet(a.Expose))
	write(mux, pathStop, quiet(a.Stop))
	return mux
}

// ReadOnly serves what anybody on this host may see: /status, which answers 503
// until the agent is ready, and /ready, the same without the content.
func ReadOnly(a Agent) http.Handler {
	mux := http.NewServeMux()
	read(mux, "/ready", func(ctx context.Context) (struct{}, error) { return struct{}{}, a.Ready(ctx) })
	read(mux, "/status", func(ctx context.Context) (Report, error) {
		if err := a.Ready(ctx); err != nil {
			return Report{}, err
		}
		return a.Report(ctx)
	})
	return mux
}

func quiet[In any](f func(context.Context, In) error) func(context.Context, In) (struct{}, error) {
	return func(ctx context.Context, in In) (struct{}, error) { return struct{}{}, f(ctx, in) }
}

func read[Out any](mux *http.ServeMux, path string, f func(context.Context) (Out, error)) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		out, err := f(r.Context())
		answer(w, out, err)
	})
}

func write[In, Out any](mux *http.ServeMux, path string, f func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in); err != nil {
			answer(w, nil, &Error{CodeBadRequest, fmt.Sprintf("unreadable request: %v", err)})
			return
		}
		out, err := f(r.Context(), in)
		answer(w, out, err)
	})
}

// answer is the one place where an error becomes an HTTP status.
func answer(w http.ResponseWriter, out any, err error) {
	status := http.StatusOK
	if err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			e = &Error{CodeInternal, err.Error()}
		}
		out = e
		switch e.Code {
		case CodeBadRequest:
			status = http.StatusBadRequest
		case CodeNotFound:
			status = http.StatusNotFound
		case CodeConflict:
			status = http.StatusConflict
		case CodeNotReady, CodeNoSpace:
			status = http.StatusServiceUnavailable
		default:
			status = http.StatusInternalServerError
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out) // the client is gone: nobody to tell
}
