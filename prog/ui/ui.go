// Package ui serves the page of weft ui over HTTP: the files of site/ui, and below /api the answers of the agent
// that the page shows. It is read-only by construction, since Agent has no method that changes anything. It owns
// no state but the token; a Handler is safe for concurrent use.
//
// Every request must be addressed to a name of this server (against DNS rebinding), and come from the page itself if
// it names an origin. Requests below /api also need the token. The package never logs the token, and never writes
// it into a file.
package ui

import (
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"weft/prog/api"
	page "weft/site/ui"
)

// Agent answers what the page asks. api.Client is one.
type Agent interface {
	Network(context.Context) (api.Network, error)
	NetworkEndpoints(context.Context) (api.NetworkEndpoints, error)
	HostReport(context.Context, api.HostRequest) (api.Report, error)
	Matrix(context.Context, api.MatrixRequest) (api.Matrix, error)
	Flows(context.Context, api.FlowsRequest) (api.FlowsReply, error)
	Explain(context.Context, api.ExplainRequest) (api.Explanation, error)
}

// Config configures a Handler. All fields are required.
type Config struct {
	Agent Agent
	// Words prints an explanation as weft policy explain does.
	Words func(api.Explanation) string
	// Token is what requests below /api must have as their bearer token.
	Token string
	// Hosts are the names and addresses of this server, without port. Requests to other names are refused.
	Hosts []string
	// Version is shown in the page.
	Version string
}

// NewToken returns 256 random bits as text.
func NewToken() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

const (
	maxBody    = 64 << 10         // bytes of a request; flows of 1,000 hosts need half of it
	patience   = 20 * time.Second // for an answer of the agent
	atOnce     = 8                // requests that the agent gets at the same time
	worthwhile = 4 << 10          // bytes from which an answer is compressed
)

// explained is the answer to an ExplainRequest: the explanation, and the text of weft policy explain.
type explained struct {
	Explanation api.Explanation `json:"explanation"`
	Text        string          `json:"text"`
}

// about describes this server.
type about struct {
	Version string `json:"version"`
}

// Handler serves the page and its API.
func Handler(c Config) http.Handler {
	s := &server{turns: make(chan struct{}, atOnce)}
	mux := http.NewServeMux()
	ask(s, mux, "/api/about", func(context.Context, struct{}) (about, error) { return about{c.Version}, nil })
	ask(s, mux, "/api/network", plain(c.Agent.Network))
	ask(s, mux, "/api/endpoints", plain(c.Agent.NetworkEndpoints))
	ask(s, mux, "/api/host", c.Agent.HostReport)
	ask(s, mux, "/api/matrix", c.Agent.Matrix)
	ask(s, mux, "/api/flows", c.Agent.Flows)
	ask(s, mux, "/api/explain", func(ctx context.Context, in api.ExplainRequest) (explained, error) {
		e, err := c.Agent.Explain(ctx, in)
		if err != nil {
			return explained{}, err
		}
		return explained{e, c.Words(e)}, nil
	})
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "there is no "+path.Clean(r.URL.Path)+": the page and its server may have different versions; load the page again")
	})
	mux.Handle("/", files())
	return guard(c, mux)
}

// server limits how much the agent is asked.
type server struct{ turns chan struct{} }

func plain[Out any](f func(context.Context) (Out, error)) func(context.Context, struct{}) (Out, error) {
	return func(ctx context.Context, _ struct{}) (Out, error) { return f(ctx) }
}

// result is the answer to a request below /api. An error of the agent has status 200 too: the request has an
// answer, and a browser reports each other status as a fault of the page.
type result struct {
	Answer any        `json:"answer,omitempty"`
	Error  *api.Error `json:"error,omitempty"`
}

// ask serves one question to the agent: a POST with JSON.
func ask[In, Out any](s *server, mux *http.ServeMux, path string, f func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); kind != "application/json" {
			refuse(w, http.StatusUnsupportedMediaType, "the request is no JSON: send Content-Type: application/json")
			return
		}
		var in In
		if err := decode(http.MaxBytesReader(w, r.Body, maxBody), &in); err != nil {
			refuse(w, http.StatusBadRequest, fmt.Sprintf("unreadable request: %v", err))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		select {
		case s.turns <- struct{}{}:
			defer func() { <-s.turns }()
		case <-ctx.Done():
			refuse(w, http.StatusServiceUnavailable, "too many requests wait for the agent: try again later")
			return
		}
		out, err := f(ctx, in)
		if err != nil {
			e, ok := errors.AsType[*api.Error](err)
			if !ok {
				e = &api.Error{Code: api.CodeInternal, Message: err.Error()}
			}
			write(w, r, result{Error: e})
			return
		}
		write(w, r, result{Answer: out})
	})
}

// decode reads one JSON value. An empty body is an empty request.
func decode(from io.Reader, into any) error {
	dec := json.NewDecoder(from)
	if err := dec.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

func write(w http.ResponseWriter, r *http.Request, out any) {
	data, err := json.Marshal(out)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if len(data) < worthwhile || !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		_, _ = w.Write(data) // ignored: it only fails if the client is gone
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is valid
	_, _ = z.Write(data)
	_ = z.Close()
}

// refuse answers a request that does not reach the agent.
func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	code := api.CodeBadRequest
	if status >= http.StatusInternalServerError {
		code = api.CodeInternal
	}
	_ = json.NewEncoder(w).Encode(result{Error: &api.Error{Code: code, Message: message}})
}

// kinds are the types of the page's files. The machine's own table of types may be wrong.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
	".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}

// files serves the embedded page.
func files() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/")
		if name == "" {
			name = "index.html"
		}
		data, err := fs.ReadFile(page.Files, name)
		kind := kinds[path.Ext(name)]
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			refuse(w, http.StatusMethodNotAllowed, "the page is read-only")
		case err != nil || kind == "":
			refuse(w, http.StatusNotFound, "there is no such file")
		default:
			w.Header().Set("Content-Type", kind)
			_, _ = w.Write(data) // ignored: it only fails if the client is gone
		}
	})
}
