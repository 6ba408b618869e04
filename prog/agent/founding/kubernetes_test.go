package founding

import (
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"

	"weft/ipam/ring"
	"weft/mesh/secret"
	"weft/prog/agent/config"
	"weft/prog/agent/settings"
	"weft/prog/agent/statedir"
	"weft/prog/agent/trust"
	"weft/prog/kube"
	"weft/prog/kube/kubetest"
	"weft/prog/kube/node"
	"weft/prog/state"
)

// cluster is an API server with three Nodes, and how agents find it.
func cluster(t *testing.T) (server *kubetest.Server, kubeconfig string) {
	t.Helper()
	server = kubetest.New()
	for _, n := range []string{"1", "2", "3"} {
		server.Set(kubetest.Node("n"+n, "uid-"+n, "192.0.2."+n, "2001:db8::"+n))
	}
	return server, kubetest.Start(t, server)
}

// found lets a Node with a state folder decide, asking for a range; zero: for none.
func found(t *testing.T, kubeconfig, name, dir string, asked netip.Prefix) (Founding, *node.Node, error) {
	t.Helper()
	store := open(t, dir)
	defer store.Close()
	log := slog.New(slog.DiscardHandler)
	set, err := settings.Load(store, nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.New(node.Config{Kubeconfig: kubeconfig, Name: name, Store: store, Log: log, Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Kubernetes{
		Options: config.Options{StateDir: dir, Universe: config.Ranges{V4: asked}}, Store: store, Settings: set, Node: n, Log: log,
	}.Found(t.Context())
	return f, n, err
}

func open(t *testing.T, dir string) *state.Store {
	t.Helper()
	store, err := state.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// ringIn returns the ring in a state folder.
func ringIn(t *testing.T, dir string) ring.Ring {
	t.Helper()
	store := open(t, dir)
	defer store.Close()
	st, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ring.Decode(st.Ring)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestNodesOfAClusterMakeOneRingAndKeepItWithoutTheAPIServer(t *testing.T) {
	t.Parallel() // Found waits a second between two requests
	server, kubeconfig := cluster(t)
	var dirs []string
	names := []string{"n1", "n2", "n3"}
	for _, name := range names {
		dir := t.TempDir()
		dirs = append(dirs, dir)
		f, n, err := found(t, kubeconfig, name, dir, netip.Prefix{})
		if err != nil {
			t.Fatal(err)
		}
		if own := n.Own(); own.Name != name || len(own.Addrs) != 2 || n.Nickname() != name {
			t.Errorf("own Node %+v, nickname %s; want the row's name, and two addresses", own, n.Nickname())
		}
		if f.Ring != nil || f.Election != nil || f.Kubernetes.Node != "n1" || f.Kubernetes.Token != f.Trust.Token {
			t.Errorf("%s: %+v; want no ring to found, no vote, and n1's Secret", name, f)
		}
		if name == "n1" && len(ringIn(t, dir).Owned()[f.Trust.Self]) != 1 {
			t.Error("n1 does not own all addresses; want it to own them, since it made the Secret")
		}
	}
	token, err := statedir.Secret(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs[1:] {
		if r := ringIn(t, dir); !r.Equal(ringIn(t, dirs[0])) || len(r.Owned()) != 1 {
			t.Errorf("ring %v, want the ring of the first Node", r)
		}
		if other, err := statedir.Secret(dir); err != nil || other != token {
			t.Errorf("the token differs from the first Node's, or error %v; want the same token", err)
		}
	}
	server.Refuse(func(string, string) int { return kubetest.Break })
	for i, dir := range dirs {
		f, n, err := found(t, kubeconfig, names[i], dir, netip.Prefix{})
		if err != nil || f.Universe.V4 != ringIn(t, dir).Universe.V4 || f.Kubernetes.Node != "n1" || len(n.Problems()) != 0 {
			t.Errorf("without the API server: error %v, %+v, problems %v; want the stored ring, and no problem", err, f, n.Problems())
		}
	}
}

// Other peers may have taken over its addresses meanwhile.
func TestFounderWithoutStoredRingIsNewPeer(t *testing.T) {
	t.Parallel() // between two requests it waits a second
	_, kubeconfig := cluster(t)
	dir := t.TempDir()
	first, _, err := found(t, kubeconfig, "n1", dir, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, state.File)); err != nil {
		t.Fatal(err)
	}
	store := open(t, dir) // the store has the founder's identity, and no ring
	if _, err := store.Keys(&sameKeys{first.Trust.Keys.Identity.Seed(), first.Trust.Keys.WireGuard[:]}); err != nil {
		t.Fatal(err)
	}
	if self, err := trust.Self(store); err != nil || self != first.Trust.Self {
		t.Fatalf("the store's identity is %v, want %v; error %v", self, first.Trust.Self, err)
	}
	store.Close()
	again, _, err := found(t, kubeconfig, "n1", dir, netip.Prefix{})
	if err != nil || again.Trust.Self == first.Trust.Self || len(ringIn(t, dir).Owned()[first.Trust.Self]) != 1 {
		t.Errorf("the peer is %v, the earlier peer was %v; owners %v, error %v; want a new peer, which owns nothing", again.Trust.Self, first.Trust.Self, ringIn(t, dir).Owned(), err)
	}
}

// sameKeys has the keys of the first run, so that another run gets the same ones.
type sameKeys [2][]byte

func (s *sameKeys) Read(b []byte) (int, error) {
	return copy(b, slices.Concat(s[0], s[1])), nil
}

func TestARangeThatDiffersFromTheRingIsIgnoredAndReported(t *testing.T) {
	t.Parallel() // Found waits a second between two requests
	server, kubeconfig := cluster(t)
	if _, _, err := found(t, kubeconfig, "n1", t.TempDir(), netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	f, n, err := found(t, kubeconfig, "n2", t.TempDir(), netip.MustParsePrefix("10.99.0.0/16"))
	if err != nil || f.Universe.V4.String() != "10.32.0.0/12" {
		t.Errorf("universe %+v, error %v; want 10.32.0.0/12", f.Universe, err)
	}
	list := n.Problems()
	if len(list) != 1 || !strings.Contains(list[0].What, "10.32.0.0/12") || !strings.Contains(list[0].Effect, "WEFT_IPALLOC_RANGE") {
		t.Fatalf("problems %+v; want one problem that names the range in use and the setting WEFT_IPALLOC_RANGE", list)
	}
	n.Warn(list[0]) // the second warning makes no second event
	if again := n.Problems(); len(again) != 1 {
		t.Errorf("problems after a second warning %+v, want one", again)
	}
	go n.Report.Run(t.Context()) //nolint:errcheck // nil
	kubetest.Eventually(t, "an event on the Node", func() bool { return len(server.All("events")) == 1 })
	e := server.All("events")[0].(*core.Event)
	if e.Namespace != "default" || e.InvolvedObject.Kind != "Node" || e.InvolvedObject.UID != "uid-2" || e.Type != "Warning" || e.Reason != kube.ReasonUniverseFixed {
		t.Errorf("event %+v, want a warning about the universe on the Node n2", e)
	}
}

func TestAnInvalidUniverseFoundsNoRingAndIsReportedOnTheNode(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	server, kubeconfig := cluster(t)
	dir := t.TempDir()
	_, _, err := found(t, kubeconfig, "n1", dir, netip.MustParsePrefix("10.96.0.0/12"))
	if err == nil || !strings.Contains(err.Error(), "10.96.0.1") || len(server.All("secrets")) != 0 {
		t.Errorf("error %v, Secrets %v; want an error that names the used address, and no Secret", err, server.All("secrets"))
	}
	if _, err := statedir.Secret(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading the host's secret returned %v, want no file", err)
	}
	if events := server.All("events"); len(events) != 1 || events[0].(*core.Event).Reason != kube.ReasonInvalidSetting {
		t.Errorf("events %+v, want one about an invalid setting", events)
	}
}

func TestANodeWithTheSecretOfAnotherClusterDoesNotJoin(t *testing.T) {
	server, kubeconfig := cluster(t)
	dir := t.TempDir()
	other, err := secret.FromPassword("of another cluster", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := statedir.WriteSecret(dir, other); err != nil {
		t.Fatal(err)
	}
	_, _, err = found(t, kubeconfig, "n1", dir, netip.Prefix{})
	if err == nil || !strings.Contains(err.Error(), "the secret of another cluster") || !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}
	if kept, err := statedir.Secret(dir); err != nil || kept != other {
		t.Errorf("the host's secret was changed, or error %v; want the secret of before", err)
	}
	if events := server.All("events"); len(events) != 1 || events[0].(*core.Event).Reason != kube.ReasonSecret {
		t.Errorf("events %+v, want one about the secret", events)
	}
}
