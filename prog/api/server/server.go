// Package server serves the control socket's contract (prog/api) with net/http. It is apart from
// prog/api so that the CNI plugin need not import net/http. It holds no state, and calls the agent
// concurrently. Who may connect is not checked here: the socket's mode decides.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"weft/prog/api"
)

// Agent answers the requests. An *api.Error reaches the client unchanged; other errors become
// CodeInternal.
type Agent interface {
	Report(context.Context) (api.Report, error)
	Ready(context.Context) error
	Attach(context.Context, api.AttachRequest) (api.AttachReply, error)
	Plug(context.Context, api.EndpointRef) error
	Detach(context.Context, api.EndpointRef) error
	Endpoint(context.Context, api.EndpointRef) (api.Endpoint, error)
	Collect(context.Context, api.CollectRequest) error
	Targets(context.Context, api.TargetsRequest) error
	Expose(context.Context, api.ExposeRequest) error
	Names(context.Context) ([]api.Name, error)
	AddName(context.Context, api.NameRequest) error
	RemoveName(context.Context, api.NameRequest) error
	Lookup(context.Context, api.LookupRequest) ([]api.Name, error)
	Stop(context.Context, api.StopRequest) (api.StopReply, error)
	RemovePeer(context.Context, api.RemovePeerRequest) (api.RemovePeerReply, error)
	Unban(context.Context, api.UnbanRequest) error
	CreateToken(context.Context, api.TokenRequest) (api.TokenReply, error)
	Tokens(context.Context) ([]api.Token, error)
	RevokeToken(context.Context, api.RevokeRequest) (api.RevokeReply, error)
	Usage(context.Context) (map[string]api.Usage, error)
	Flows(context.Context, api.FlowsRequest) (api.FlowsReply, error)
	Trace(context.Context, api.TraceRequest) (api.TraceReply, error)
	Policies
	Network
}

// Handler serves the whole contract. Only root may have access to its socket.
func Handler(a Agent) http.Handler {
	mux := http.NewServeMux()
	read(mux, api.PathReport, a.Report)
	read(mux, api.PathReady, func(ctx context.Context) (struct{}, error) { return struct{}{}, a.Ready(ctx) })
	write(mux, api.PathAttach, a.Attach)
	write(mux, api.PathPlug, quiet(a.Plug))
	write(mux, api.PathDetach, quiet(a.Detach))
	write(mux, api.PathEndpoint, a.Endpoint)
	write(mux, api.PathCollect, quiet(a.Collect))
	write(mux, api.PathTargets, quiet(a.Targets))
	write(mux, api.PathExpose, quiet(a.Expose))
	write(mux, api.PathStop, a.Stop)
	write(mux, api.PathRemove, a.RemovePeer)
	write(mux, api.PathUnban, quiet(a.Unban))
	write(mux, api.PathCreateToken, a.CreateToken)
	read(mux, api.PathTokens, a.Tokens)
	write(mux, api.PathRevokeToken, a.RevokeToken)
	read(mux, api.PathUsage, a.Usage)
	read(mux, api.PathNames, a.Names)
	write(mux, api.PathAddName, quiet(a.AddName))
	write(mux, api.PathDropName, quiet(a.RemoveName))
	write(mux, api.PathLookup, a.Lookup)
	write(mux, api.PathFlows, a.Flows)
	write(mux, api.PathTrace, a.Trace)
	AddPolicies(mux, a)
	addNetwork(mux, a)
	return mux
}

// ReadOnly serves what every user of this host may read: /status, /ready and /metrics. /status and
// /ready answer 503 until the agent is ready; /ready has no content.
func ReadOnly(a Agent, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	read(mux, "/ready", func(ctx context.Context) (struct{}, error) { return struct{}{}, a.Ready(ctx) })
	read(mux, "/status", func(ctx context.Context) (api.Report, error) {
		if err := a.Ready(ctx); err != nil {
			return api.Report{}, err
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
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, api.MaxBody)).Decode(&in); err != nil {
			answer(w, nil, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("unreadable request: %v", err)})
			return
		}
		out, err := f(r.Context(), in)
		answer(w, out, err)
	})
}

// answer maps errors to HTTP status codes. No other code does that.
func answer(w http.ResponseWriter, out any, err error) {
	status := http.StatusOK
	if err != nil {
		e, ok := errors.AsType[*api.Error](err)
		if !ok {
			e = &api.Error{Code: api.CodeInternal, Message: err.Error()}
		}
		out = e
		switch e.Code {
		case api.CodeBadRequest:
			status = http.StatusBadRequest
		case api.CodeNotFound:
			status = http.StatusNotFound
		case api.CodeConflict:
			status = http.StatusConflict
		case api.CodeNotReady, api.CodeNoSpace:
			status = http.StatusServiceUnavailable
		default:
			status = http.StatusInternalServerError
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out) // ignored: it only fails if the client is gone
}
