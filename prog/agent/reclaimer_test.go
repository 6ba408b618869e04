package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/kube"
	"weft/prog/kube/kubetest"
	"weft/prog/state"
)

// node is an agent on the Node n1 that shares the ring with a silent peer on n2.
type node struct {
	*Agent
	dead   peer.ID
	server *kubetest.Server
}

func newNode(t *testing.T) *node {
	t.Helper()
	server, _ := apiServer(t)
	server.Delete(kubetest.Node("n3", ""))
	web := httptest.NewServer(server)
	a := New(Options{StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	var err error
	if a.store, err = state.Open(a.opts.StateDir); err != nil {
		t.Fatal(err)
	}
	if err := a.makeKeys(); err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := peer.Sign(peer.Record{Nickname: "n2", Host: "uid-2", Underlay: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Sequence: 1}, key)
	if err != nil {
		t.Fatal(err)
	}
	a.mesh, err = mesh.New(mesh.Config{
		Identity: a.keys.Identity, Record: peer.Record{Nickname: "n1", Host: "uid-1"}, Peers: [][]byte{dead.Encode()}, Store: a.store, Log: a.log, Changed: func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	u := slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}
	found := ring.Found(ring.ID{1}, [16]byte{1}, u, a.self(), dead.Record.ID())
	a.ipam = ipam.New(ipam.Config{Self: a.self(), Store: a.store, Mesh: alone{}, Log: a.log, Found: &found, Changed: a.changed})
	config := &rest.Config{Host: web.URL, QPS: -1}
	a.cluster = &kubeCluster{node: "n1"}
	if a.cluster.client, err = kube.NewClient(config); err != nil {
		t.Fatal(err)
	}
	a.cluster.report = kube.NewReporter(a.cluster.client, "n1", a.log)
	a.kube, err = kube.New(kube.Config{API: config, Node: "n1", Log: a.log, Save: func([]byte) error { return nil }, Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 3)
	for _, run := range []func(context.Context) error{a.ipam.Run, a.kube.Run, a.cluster.report.Run} {
		go func() { done <- run(ctx) }()
	}
	t.Cleanup(func() {
		stop()
		server.Refuse(nil)
		server.HangUp()
		web.CloseClientConnections()
		web.Close()
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		a.store.Close()
	})
	return &node{a, dead.Record.ID(), server}
}

// owned reports whether the silent peer still has its addresses.
func (n *node) owned(t *testing.T) bool {
	t.Helper()
	snap, err := n.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(snap.Ring.Owned()[n.dead]) > 0
}

// knows waits until the watch has told of so many Nodes.
func (n *node) knows(t *testing.T, nodes int) {
	t.Helper()
	eventually(t, "told of the Nodes", func() bool { st := n.kube.State(); return st != nil && st.Live && len(st.Nodes) == nodes })
}

// What the watch says is not enough: it can be behind. Nobody is reclaimed while the API
// server does not answer, or before the silence has lasted; and then once.
func TestReclaimAsksTheAPIServer(t *testing.T) {
	n := newNode(t)
	r := &reclaimer{a: n.Agent, start: time.Now().Add(-time.Hour), heard: map[peer.ID]time.Time{}, said: map[peer.ID]bool{}, next: map[peer.ID]time.Time{}}
	look := func(what string, owned bool) {
		t.Helper()
		err := r.look(t.Context())
		if n.owned(t) != owned || (err != nil) != (what == "the API server is down") {
			t.Fatalf("%s: %v, still owned: %v", what, err, n.owned(t))
		}
	}
	look("nothing is known yet", true)
	n.knows(t, 2)
	look("its Node is there", true)
	gone := kubetest.Node("n2", "uid-2")
	n.server.Delete(gone)
	n.knows(t, 1)

	n.server.Refuse(func(verb, resource string) int {
		if verb == "list" && resource == "nodes" {
			n.server.Set(kubetest.Node("n2", "uid-2", "192.0.2.2"))
		}
		return kubetest.Serve
	})
	look("the watch was behind", true)
	n.server.Refuse(nil)
	n.knows(t, 2)
	n.server.Delete(gone)
	n.knows(t, 1)

	n.server.Refuse(func(string, string) int { return kubetest.Break })
	look("the API server is down", true)
	n.server.Refuse(nil)

	r.heard[n.dead] = time.Now().Add(-silence + 5*time.Second)
	look("it was heard of a moment ago", true)
	delete(r.heard, n.dead)
	look("it is gone", false)
	look("it is gone already", false)
	eventually(t, "said on the Node", func() bool { return len(n.server.All("events")) == 1 })
	if e := n.server.All("events")[0].(*core.Event); e.Reason != kube.ReasonReclaimed || e.InvolvedObject.Name != "n1" || !strings.Contains(e.Message, "uid-2") || !strings.Contains(e.Message, "addresses of "+n.dead.String()) {
		t.Errorf("%+v", e)
	}
}
