package agent

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"weft/prog/kube"
	"weft/prog/kube/kubetest"
)

// direct asks a server without a network, for which virtual time would not wait.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	d.ServeHTTP(w, r)
	return w.Result(), nil
}

// What kube-proxy was told is read again, and a warning ends when it was mended, whatever was there before.
func TestProxyIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := kubetest.New()
		server.Set(kubetest.Node("n1", "uid-1", "192.0.2.1"))
		told := func(cidr string) {
			server.Set(&core.ConfigMap{
				ObjectMeta: meta.ObjectMeta{Namespace: "kube-system", Name: "kube-proxy"}, Data: map[string]string{"config.conf": "clusterCIDR: " + cidr},
			})
		}
		a := New(Options{Log: slog.New(slog.DiscardHandler), Universe: Ranges{V4: netip.MustParsePrefix("10.32.0.0/12"), V6: netip.MustParsePrefix("fd00:32::/64")}})
		client, err := kube.NewClient(&rest.Config{Host: "http://server", Transport: direct{server}, QPS: -1})
		if err != nil {
			t.Fatal(err)
		}
		a.ipv6, a.cluster = true, &kubeCluster{client: client, report: kube.NewReporter(client, "n1", a.log)}
		want := func(when, warning string) {
			t.Helper()
			synctest.Wait()
			got := ""
			for _, w := range a.clusterWarnings() {
				got += w.text + "\n"
			}
			if (got == "") != (warning == "") || !strings.Contains(got, warning) || strings.Count(got, "kube-proxy takes") > 1 {
				t.Errorf("%s: %q, want %q", when, got, warning)
			}
		}
		go a.cluster.report.Run(t.Context())
		go a.checkProxy(t.Context())
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
			t.Errorf("%d events, want one for each warning", n)
		}
	})
}
