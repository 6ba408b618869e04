package agent

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"

	"weft/ipam/ring"
	"weft/prog/api"
	"weft/prog/kube"
	"weft/prog/kube/kubetest"
	"weft/prog/state"
)

// apiServer is one with three Nodes, and how agents find it.
func apiServer(t *testing.T) (server *kubetest.Server, config string) {
	t.Helper()
	server = kubetest.New()
	for _, n := range []string{"1", "2", "3"} {
		server.Set(kubetest.Node("n"+n, "uid-"+n, "192.0.2."+n, "2001:db8::"+n))
	}
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	config = filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"" + web.URL + "\"}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return server, config
}

// onNode is an agent of a node as far as prepare takes it before it makes the mesh.
func onNode(t *testing.T, config, node, dir string, change func(*Options)) (*Agent, error) {
	t.Helper()
	opts := Options{StateDir: dir, Log: slog.New(slog.DiscardHandler), Kubernetes: KubernetesOptions{On: true, Config: config, Node: node}}
	if change != nil {
		change(&opts)
	}
	a := New(opts)
	var err error
	if a.store, err = state.Open(dir); err != nil {
		t.Fatal(err)
	}
	defer func() { a.store.Close() }()
	if err := a.makeKeys(); err != nil {
		t.Fatal(err)
	}
	if err := a.store.Settings(&a.settings); err != nil {
		t.Fatal(err)
	}
	if err := a.makeKube(); err != nil {
		t.Fatal(err)
	}
	return a, a.bootstrap(t.Context())
}

// ringOf is the ring on a disk.
func ringOf(t *testing.T, dir string) ring.Ring {
	t.Helper()
	s, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	st, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ring.Decode(st.Ring)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Nodes of a cluster make one ring, of which one owns all, and keep the cluster's token; with
// it on their disk they start without the API server.
func TestNodesMakeOneRing(t *testing.T) {
	t.Parallel() // between two requests it waits a second
	server, config := apiServer(t)
	var dirs []string
	for _, n := range []string{"n1", "n2", "n3"} {
		dirs = append(dirs, t.TempDir())
		a, err := onNode(t, config, n, dirs[len(dirs)-1], nil)
		if err != nil {
			t.Fatal(err)
		}
		if own := a.ownNode(); own.Name != n || len(own.Addrs) != 2 || a.nickname() != n {
			t.Errorf("%+v, %s", own, a.nickname())
		}
		if n == "n1" && len(ringOf(t, dirs[0]).Owned()[a.self()]) != 1 {
			t.Error("the first one owns nothing")
		}
	}
	token, err := readSecret(filepath.Join(dirs[0], SecretFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs[1:] {
		if r := ringOf(t, dir); !r.Equal(ringOf(t, dirs[0])) || len(r.Owned()) != 1 {
			t.Errorf("%v", r)
		}
		if other, err := readSecret(filepath.Join(dir, SecretFile)); err != nil || other != token {
			t.Errorf("another token, %v", err)
		}
	}
	server.Refuse(func(string, string) int { return kubetest.Break })
	for i, dir := range dirs {
		a, err := onNode(t, config, []string{"n1", "n2", "n3"}[i], dir, nil)
		if err != nil || a.opts.Universe.V4 != ringOf(t, dir).Universe.V4 || a.cluster.founding.Node != "n1" {
			t.Errorf("without the API server: %v, %+v", err, a.opts.Universe)
		}
	}
}

// A founder that did not keep its ring, and did not know whether others have used it since,
// is a new peer; the old one's addresses are reclaimed from it.
func TestFounderThatLostItsRing(t *testing.T) {
	t.Parallel() // between two requests it waits a second
	_, config := apiServer(t)
	dir := t.TempDir()
	first, err := onNode(t, config, "n1", dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, state.File)); err != nil {
		t.Fatal(err)
	}
	s, err := state.Open(dir) // a state that has the founder's identity, and nothing else
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Keys(&sameAgain{first.keys.Identity.Seed(), first.keys.WireGuard[:]}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	again, err := onNode(t, config, "n1", dir, nil)
	if err != nil || again.self() == first.self() || len(ringOf(t, dir).Owned()[first.self()]) != 1 {
		t.Errorf("%v, was %v: %v, %v", again.self(), first.self(), ringOf(t, dir).Owned(), err)
	}
}

// sameAgain is a source of randomness that gives the keys of before.
type sameAgain [2][]byte

func (s *sameAgain) Read(b []byte) (int, error) {
	return copy(b, slices.Concat(s[0], s[1])), nil
}

// Another range than what was founded has no effect, and is said on the Node and in the status.
func TestUniverseIsFixed(t *testing.T) {
	t.Parallel() // between two requests it waits a second
	server, config := apiServer(t)
	if _, err := onNode(t, config, "n1", t.TempDir(), nil); err != nil {
		t.Fatal(err)
	}
	a, err := onNode(t, config, "n2", t.TempDir(), func(o *Options) { o.Universe.V4 = netip.MustParsePrefix("10.99.0.0/16") })
	if err != nil || a.opts.Universe.V4.String() != "10.32.0.0/12" {
		t.Errorf("%+v, %v", a.opts.Universe, err)
	}
	if w := a.clusterWarnings(); len(w) != 1 || !strings.Contains(w[0].text, "10.32.0.0/12") || !strings.Contains(w[0].text, "WEFT_IPALLOC_RANGE") {
		t.Errorf("%+v", w)
	}
	a.warn(kube.ReasonUniverseFixed, a.clusterWarnings()[0].text) // once is enough
	go a.cluster.report.Run(t.Context())                          //nolint:errcheck // nil
	eventually(t, "said on the Node", func() bool { return len(server.All("events")) == 1 })
	e := server.All("events")[0].(*core.Event)
	if e.Namespace != "default" || e.InvolvedObject.Kind != "Node" || e.InvolvedObject.UID != "uid-2" || e.Type != "Warning" || e.Reason != kube.ReasonUniverseFixed {
		t.Errorf("%+v", e)
	}
}

// What is refused ends the agent, is said on the Node, and founds nothing.
func TestRefusedUniverse(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	server, config := apiServer(t)
	_, err := onNode(t, config, "n1", t.TempDir(), func(o *Options) { o.Universe.V4 = netip.MustParsePrefix("10.96.0.0/12") })
	if err == nil || !strings.Contains(err.Error(), "10.96.0.1") || len(server.All("secrets")) != 0 {
		t.Errorf("%v, %v", err, server.All("secrets"))
	}
	if events := server.All("events"); len(events) != 1 || events[0].(*core.Event).Reason != kube.ReasonInvalidSetting {
		t.Errorf("%+v", events)
	}
	opts := Options{Log: slog.New(slog.DiscardHandler), Kubernetes: KubernetesOptions{On: true, Config: config, Node: "n3"}}
	if err := WarnInvalid(t.Context(), opts, io.ErrUnexpectedEOF); err != nil || len(server.All("events")) != 2 {
		t.Errorf("%v, %+v", err, server.All("events"))
	}
}

// Targets are the other Nodes, in the families that this one has.
func TestNodeTargets(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	nodes := map[string]kube.Node{
		"a": {Name: "a", Addrs: addrs("192.0.2.1")}, "b": {Name: "b", Addrs: addrs("192.0.2.2", "2001:db8::2")},
		"c": {Name: "c", Addrs: addrs("2001:db8::3")}, "d": {Name: "d"},
	}
	for self, want := range map[string][]string{
		"a": {"192.0.2.2"}, "b": {"192.0.2.1", "2001:db8::3"}, "c": {"2001:db8::2"}, "elsewhere": {"192.0.2.1", "192.0.2.2", "2001:db8::2", "2001:db8::3"},
	} {
		if got := nodeTargets(nodes, self); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", self, got, want)
		}
	}
}

// Until there is something to serve, the sockets say what is waited for.
func TestFront(t *testing.T) {
	a := New(Options{Log: slog.New(slog.DiscardHandler), Version: "x"})
	stopped := false
	a.stop = func() { stopped = true }
	a.notReady = "waiting for the node n1"
	f := newFront(a)
	ask := func(h http.Handler, method, path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader("{}")))
		return w.Code, w.Body.String()
	}
	for _, x := range []struct {
		h            http.Handler
		method, path string
	}{{f.all, "GET", api.PathReady}, {f.all, "POST", api.PathAttach}, {f.readOnly, "GET", "/ready"}, {f.readOnly, "GET", "/status"}} {
		code, body := ask(x.h, x.method, x.path)
		var e api.Error
		if err := json.Unmarshal([]byte(body), &e); err != nil || code != http.StatusServiceUnavailable || e.Code != api.CodeNotReady || !strings.Contains(e.Message, "node n1") {
			t.Errorf("%s: %d %s", x.path, code, body)
		}
	}
	if code, body := ask(f.readOnly, "GET", "/live"); code != http.StatusOK {
		t.Errorf("live before the first turn: %d %s", code, body)
	}
	for age, want := range map[time.Duration]int{time.Minute: http.StatusOK, time.Hour: http.StatusServiceUnavailable} {
		at := time.Now().Add(-age)
		a.turned.Store(&at)
		if code, body := ask(f.readOnly, "GET", "/live"); code != want {
			t.Errorf("live, %v after the last turn: %d %s", age, code, body)
		}
	}
	if code, body := ask(f.all, "GET", api.PathReport); code != http.StatusOK || !strings.Contains(body, "waiting for the node n1") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := ask(f.all, "POST", api.PathStop); code != http.StatusOK || !stopped {
		t.Errorf("%d, stopped %v", code, stopped)
	}
}
