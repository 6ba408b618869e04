package node

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"weft/ipam/slot"
	"weft/prog/kube"
	"weft/prog/kube/kubetest"
	"weft/router/problem"
)

// direct calls a server's handler without a network: virtual time does not wait for sockets.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (_ *http.Response, err error) {
	defer func() {
		if recover() != nil { // the handler panicked to break the connection
			err = io.EOF
		}
	}()
	w := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	d.ServeHTTP(w, r)
	return w.Result(), nil
}

// timeless makes the Node n1, which sends requests to a server in virtual time.
func timeless(t *testing.T, server *kubetest.Server) *Node {
	t.Helper()
	server.Set(kubetest.Node("n1", "uid-1", "192.0.2.1"))
	config := &rest.Config{Host: "http://server", Transport: direct{server}, QPS: -1}
	n := &Node{cfg: Config{Name: "n1", Log: slog.New(slog.DiscardHandler)}}
	var err error
	if n.Client, err = kube.NewClient(config); err != nil {
		t.Fatal(err)
	}
	n.Report = kube.NewReporter(n.Client, "n1", n.cfg.Log)
	if n.Source, err = kube.New(kube.Config{API: config, Node: "n1", Log: n.cfg.Log, Save: func([]byte) error { return nil }, Changed: func() {}}); err != nil {
		t.Fatal(err)
	}
	return n
}

// kube-proxy's configuration is read again, and a problem is cleared after it was fixed.
func TestChangesOfKubeProxysConfigurationAreNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New()
		n := timeless(t, server)
		told := func(cidr string) {
			server.Set(&core.ConfigMap{
				ObjectMeta: meta.ObjectMeta{Namespace: "kube-system", Name: "kube-proxy"}, Data: map[string]string{"config.conf": "clusterCIDR: " + cidr},
			})
		}
		want := func(when, warning string) {
			t.Helper()
			synctest.Wait()
			got := ""
			for _, p := range n.Problems() {
				got += p.String() + "\n"
			}
			if (got == "") != (warning == "") || !strings.Contains(got, warning) || strings.Count(got, "kube-proxy takes") > 1 {
				t.Errorf("%s: %q, want %q", when, got, warning)
			}
		}
		go n.Report.Run(t.Context()) //nolint:errcheck // nil
		u := slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/12"), V6: netip.MustParsePrefix("fd00:32::/64")}
		go n.checkProxy(t.Context(), Duties{Universe: u, IPv6: true}) //nolint:errcheck // nil
		want("nothing is known", "")
		told("10.244.0.0/16")
		time.Sleep(proxyRight)
		want("the wrong range", "10.244.0.0/16")
		told("10.245.0.0/16")
		time.Sleep(proxyWrong)
		want("another wrong one", "10.245.0.0/16")
		server.Refuse(func(_, _ string) int { return http.StatusInternalServerError })
		told("10.32.0.0/12,fd00:32::/64")
		time.Sleep(2 * proxyWrong)
		want("the API server is down", "10.245.0.0/16")
		server.Refuse(nil)
		time.Sleep(time.Minute + proxyWrong) // the API server is asked ever more rarely while it is down
		want("mended", "")
		if n := len(server.All("events")); n != 2 {
			t.Errorf("%d events, want one for each problem", n)
		}
	})
}

// A host that is not ready for long gets an event. Problems of other hosts do not become events here.
func TestProblemsOfThisHostBecomeEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New()
		n := timeless(t, server)
		var why atomic.Value
		why.Store("")
		// In virtual time all events of a moment have one name, so that the API server takes the first.
		list := []problem.Problem{{Reason: problem.CopiedDisk, What: "there", Elsewhere: true}, {Reason: problem.Host, What: "here"}}
		events := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			reasons := map[string]string{}
			for _, o := range server.All("events") {
				e := o.(*core.Event)
				reasons[e.Reason] = e.Message
			}
			for _, reason := range want {
				if reasons[reason] == "" {
					t.Errorf("%s: no event with reason %s, want one", when, reason)
				}
			}
			if len(reasons) != len(want) {
				t.Errorf("%s: %v, want %v", when, reasons, want)
			}
		}
		go n.Report.Run(t.Context()) //nolint:errcheck // nil
		duties := Duties{
			NotReady: func() string { return why.Load().(string) }, Problems: func(context.Context) ([]problem.Problem, error) { return list, nil },
		}
		go n.tellProblems(t.Context(), duties) //nolint:errcheck // nil
		events("at once", problem.Host)
		why.Store("the policies are not known")
		time.Sleep(problemsEvery)
		events("not ready for a moment", problem.Host)
		time.Sleep(notReadyFor + problemsEvery)
		events("not ready for long", problem.Host, kube.ReasonNotReady)
	})
}

func TestWhatAnAgentWaitsForIsReportedAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New()
		n := timeless(t, server)
		started := time.Now()
		if n.Waiting(t.Context(), "waiting for n2", started); len(server.All("events")) != 0 {
			t.Error("the event was written at once, want it only after a while")
		}
		time.Sleep(notReadyFor)
		n.Waiting(t.Context(), "waiting for n2", started)
		if events := server.All("events"); len(events) != 1 || events[0].(*core.Event).Message != "waiting for n2" {
			t.Errorf("events %+v, want one with the message", events)
		}
	})
}

func TestAnUnreachableAPIServerIsOneProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New()
		n := timeless(t, server)
		server.Refuse(func(string, string) int { return kubetest.Break })
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- n.Source.Run(ctx) }()
		keys := map[[2]string]bool{}
		for range 20 {
			time.Sleep(10 * time.Second)
			for _, p := range n.Problems() {
				keys[p.Key()] = true
			}
		}
		if !keys[[2]string{kube.ReasonAPIServer, "away"}] || len(keys) != 1 {
			t.Errorf("events %v, want one for the unreachable API server", keys)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
