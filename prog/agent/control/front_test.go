package control

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"weft/ipam/slot"
	"weft/prog/agent/attach"
	"weft/prog/agent/logs"
	"weft/prog/agent/ready"
	"weft/prog/api"
)

// noAttachments are those of a host where nothing is attached.
func noAttachments(t *testing.T) *attach.Attachments {
	t.Helper()
	a, err := attach.New(attach.Config{Store: empty{}, Pods: attach.NoPods{}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

type empty struct{}

func (empty) Notes(func(string, slot.Slot, []byte) error) error { return nil }

// ask asks a handler.
func ask(h http.Handler, method, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader("{}")))
	return w.Code, w.Body.String()
}

// Until the agent can serve, the sockets report what it waits for.
func TestSocketsReportWhatAgentWaitsFor(t *testing.T) {
	stopped, why := false, "waiting for the node n1"
	f := NewFront(Starting{
		Logs: &logs.Recent{}, Why: func() string { return why }, Report: func() api.Report { return api.Report{NotReady: why} }, Stop: func() { stopped = true },
	})
	for _, x := range []struct {
		h            http.Handler
		method, path string
	}{{f.All, "GET", api.PathReady}, {f.All, "POST", api.PathAttach}, {f.ReadOnly, "GET", "/ready"}, {f.ReadOnly, "GET", "/status"}} {
		code, body := ask(x.h, x.method, x.path)
		var e api.Error
		if err := json.Unmarshal([]byte(body), &e); err != nil || code != http.StatusServiceUnavailable || e.Code != api.CodeNotReady || !strings.Contains(e.Message, "node n1") {
			t.Errorf("%s while the agent starts: %d %s; want 503, and what it waits for", x.path, code, body)
		}
	}
	if code, body := ask(f.ReadOnly, "GET", "/live"); code != http.StatusOK {
		t.Errorf("/live during the start: %d %s, want 200", code, body)
	}
	if code, body := ask(f.All, "GET", api.PathReport); code != http.StatusOK || !strings.Contains(body, "waiting for the node n1") {
		t.Errorf("the report while the agent starts: %d %s; want 200, and what it waits for", code, body)
	}
	why = ""
	if _, body := ask(f.All, "GET", api.PathReady); !strings.Contains(body, "the agent is starting") {
		t.Errorf("%s: %s; want the reason that the agent is starting", api.PathReady, body)
	}
	if code, _ := ask(f.All, "POST", api.PathStop); code != http.StatusOK || !stopped {
		t.Errorf("stop while the agent starts: %d, stopped %v; want 200, true", code, stopped)
	}
}

// /live of an agent that serves fails only if a restart could help.
func TestLiveFailsOnlyIfARestartHelps(t *testing.T) {
	f := NewFront(Starting{Why: func() string { return "waiting" }})
	s := New(Config{})
	s.Board = ready.New(ready.Config{Log: slog.New(slog.DiscardHandler), Notify: func(string) {}}, "the policies are not known")
	var hangs error
	f.Open(s, http.NotFoundHandler(), func() error { return hangs })
	for _, h := range []http.Handler{f.All, f.ReadOnly} {
		path := api.PathReady
		if h == f.ReadOnly {
			path = "/ready"
		}
		if code, body := ask(h, "GET", path); code != http.StatusServiceUnavailable || !strings.Contains(body, "the policies are not known") {
			t.Errorf("%s: %d %s; want 503, and the agent's reason", path, code, body)
		}
	}
	if code, body := ask(f.ReadOnly, "GET", "/live"); code != http.StatusOK {
		t.Errorf("/live of an agent that is not ready but does not hang: %d %s, want 200", code, body)
	}
	hangs = errors.New("the data path was not looked at for an hour")
	if code, body := ask(f.ReadOnly, "GET", "/live"); code != http.StatusServiceUnavailable || !strings.Contains(body, "an hour") {
		t.Errorf("/live of an agent that hangs: %d %s; want 503, and the reason", code, body)
	}
}

func TestADeadAgentsSocketIsReplacedAndALiveOnesIsNot(t *testing.T) {
	path := t.TempDir() + "/run/weft.sock"
	l, err := ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, http.NotFoundHandler()) }()
	if _, err := ListenSocket(path); err == nil || !strings.Contains(err.Error(), "weft stop") {
		t.Errorf("ListenSocket for a second agent returned %v, want an error that names weft stop", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	again, err := ListenSocket(path)
	if err != nil {
		t.Fatalf("ListenSocket after the first agent ended returned %v, want success", err)
	}
	again.Close()
	if l, err := listenTCP("status", ""); l != nil || err != nil {
		t.Errorf("listenTCP without an address returned %v, %v; want nil, nil", l, err)
	}
}
