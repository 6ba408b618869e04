package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/api"
	"weft/prog/state"
	"weft/router"
	"weft/router/endpoint"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

// alone is the mesh of a peer that has no others.
type alone struct{}

func (alone) Broadcast(string, []byte) {}
func (alone) Reachable(peer.ID) bool   { return false }
func (alone) Others() []peer.ID        { return nil }
func (alone) Stopped(peer.ID) bool     { return false }
func (alone) Name(id peer.ID) string   { return id.String() }
func (alone) Request(context.Context, peer.ID, string, []byte) ([]byte, error) {
	return nil, context.Canceled
}

// partial makes an agent that allocates and keeps state, and touches no kernel.
func partial(t *testing.T) *Agent {
	t.Helper()
	a := New(Options{StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	var err error
	if a.store, err = state.Open(a.opts.StateDir); err != nil {
		t.Fatal(err)
	}
	if a.keys, err = a.store.Keys(rand.Reader); err != nil {
		t.Fatal(err)
	}
	u := slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}
	found := ring.Found(ring.ID{1}, [16]byte{1}, u, a.self())
	a.router = router.New(router.Options{Log: a.log})
	if err := a.newDocuments(alone{}); err != nil {
		t.Fatal(err)
	}
	a.ipam = ipam.New(ipam.Config{Self: a.self(), Store: a.store, Mesh: alone{}, Log: a.log, Found: &found, Changed: a.changed})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.ipam.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		a.store.Close()
	})
	return a
}

// give makes an endpoint as Attach leaves it, but for its link.
func (a *Agent) give(t *testing.T, id string) api.EndpointRef {
	t.Helper()
	e := &endpointRecord{AttachRequest: api.AttachRequest{ContainerID: id, Interface: "eth0", HostLink: endpoint.HostLink(id, "eth0"), Source: SourceCNI}}
	var err error
	if e.Slot, err = a.ipam.Allocate(t.Context(), e.ref().Key(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	a.setEndpoint(e.ref().Key(), e)
	return e.ref()
}

func (a *Agent) allocations(t *testing.T) int {
	t.Helper()
	snap, err := a.ipam.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(snap.Allocations)
}

// After a reboot the runtime deletes its old containers while the agent starts: the
// two do not stand in each other's way.
func TestStartDuringDeletes(t *testing.T) {
	a := partial(t)
	a.give(t, "c1")
	done, err := a.begin(a.give(t, "c2").Key()) // DEL of c2 is under way
	if err != nil {
		t.Fatal(err)
	}
	if err := a.detachWhere(t.Context(), func(*endpointRecord) bool { return true }); err != nil {
		t.Error(err)
	}
	if a.endpoint("c1/eth0") != nil || a.endpoint("c2/eth0") == nil {
		t.Errorf("left: %v", a.endpoints)
	}
	done()
	a.releaseVanished(t.Context())
	if n := a.allocations(t); n != 0 || len(a.endpoints) != 0 {
		t.Errorf("%d slots and %d endpoints are left", n, len(a.endpoints))
	}
}

func TestQueuedReleases(t *testing.T) {
	a := partial(t)
	if err := a.releaseQueue().check(); err != nil {
		t.Fatal(err)
	}
	ref, _ := json.Marshal(a.give(t, "c1"))
	for name, data := range map[string][]byte{"1.json": ref, "2.json": []byte("{torn"), "3.tmp": ref} {
		if err := os.WriteFile(filepath.Join(string(a.releaseQueue()), name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a.releaseQueued(t.Context())
	a.releaseQueued(t.Context())
	left, _ := filepath.Glob(filepath.Join(string(a.releaseQueue()), "*"))
	if len(left) != 2 || filepath.Base(left[0]) != "2.json.unreadable" || a.allocations(t) != 0 {
		t.Errorf("left: %v, %d allocations", left, a.allocations(t))
	}
}

// What was queued while the agent started is of an earlier life of the endpoint: it
// does not end the next one.
func TestQueuedReleaseComesBeforeAttach(t *testing.T) {
	a := partial(t)
	a.notReady = ""
	if err := a.releaseQueue().check(); err != nil {
		t.Fatal(err)
	}
	ref := a.give(t, "c1")
	data, _ := json.Marshal(ref)
	file := filepath.Join(string(a.releaseQueue()), "1.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	// It cannot be plugged here, but that comes last.
	_, _ = a.Attach(t.Context(), api.AttachRequest{
		ContainerID: "c1", Interface: "eth0", Source: SourceCNI, HostLink: endpoint.HostLink("c1", "eth0"), MAC: "02:00:00:00:00:01",
	})
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Error("the release is still queued")
	}
}

// The plugin finds an agent that does not listen where it looks by itself.
func TestConflistNamesWhatIsElsewhere(t *testing.T) {
	usual := Options{StateDir: DefaultStateDir, RunDir: DefaultRunDir}
	elsewhere := Options{StateDir: "/srv/weft", RunDir: "/srv/run"}
	for want, o := range map[string]Options{
		`{"capabilities":{"ips":true},"type":"weft-cni"}`:                                                      usual,
		`{"capabilities":{"ips":true},"socket":"/srv/run/weft.sock","stateDir":"/srv/weft","type":"weft-cni"}`: elsewhere,
	} {
		var list struct {
			Name    string
			Plugins []json.RawMessage
		}
		if err := json.Unmarshal(o.conflist(o.chain(t.Context())), &list); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := json.Compact(&got, list.Plugins[0]); err != nil || got.String() != want || list.Name != "weft" {
			t.Errorf("got %s, want %s: %+v", &got, want, list)
		}
	}
}

// A reset of a host without CNI touches no files of that name in the working directory.
func TestResetWithoutCNI(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{ConflistFile, PluginName} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state := filepath.Join(t.TempDir(), "file") // no folder: it ends there, before the data path
	if err := os.WriteFile(state, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _ = Reset(t.Context(), Options{StateDir: state})
	for _, name := range []string{ConflistFile, PluginName} {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}

// Only a host that has neither targets nor a ring founds one.
func TestFounds(t *testing.T) {
	dir := t.TempDir()
	founds := func(targets ...string) bool {
		t.Helper()
		yes, err := Founds(dir, targets)
		if err != nil {
			t.Fatal(err)
		}
		return yes
	}
	if !founds() || founds("h1") {
		t.Error("a new host")
	}
	for _, tt := range []struct {
		change func(*state.Store) error
		founds bool
	}{
		{func(*state.Store) error { return nil }, true}, // a first launch that failed
		{func(s *state.Store) error { return s.SaveTargets([]string{"h1"}) }, false},
		{func(s *state.Store) error {
			return errors.Join(s.SaveTargets(nil), s.Update(ipam.Change{Ring: []byte("ring")}))
		}, false},
	} {
		s, err := state.Open(dir)
		if err == nil {
			err = errors.Join(tt.change(s), s.Close())
		}
		if err != nil || founds() != tt.founds {
			t.Errorf("founds, want %v: %v", tt.founds, err)
		}
	}
}

// The advertised address has to be gone for a while: links that come and go do not make the agent run anew, nor does
// another address that comes first.
func TestMoved(t *testing.T) {
	old, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")
	a := &Agent{advertised: old}
	start := time.Now()
	for _, tt := range []struct {
		after time.Duration
		addrs []netip.Addr
		want  bool
	}{
		{0, []netip.Addr{old}, false},
		{time.Hour, []netip.Addr{other}, false},
		{time.Hour + settle - 1, []netip.Addr{other}, false},
		{2 * time.Hour, []netip.Addr{other, old}, false},
		{3 * time.Hour, []netip.Addr{other}, false},
		{3*time.Hour + settle, []netip.Addr{other}, true},
		{4 * time.Hour, []netip.Addr{other, old}, false},
	} {
		if got := a.moved(tt.addrs, start.Add(tt.after)); got != tt.want {
			t.Errorf("%v after %v: %v", tt.addrs, tt.after, got)
		}
	}
}

// Two runtimes' calls, or one that repeats itself: both ends of an endpoint succeed.
func TestDeleteDuringADelete(t *testing.T) {
	a := partial(t)
	ref := a.give(t, "c1")
	done, err := a.begin(ref.Key()) // DEL of c1 is under way
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() { second <- a.Detach(t.Context(), ref) }()
	if err := a.end(t.Context(), ref.Key()); err != nil {
		t.Fatal(err)
	}
	done()
	if err := <-second; err != nil {
		t.Error(err)
	}
	if n := a.allocations(t); n != 0 {
		t.Errorf("%d slots are left", n)
	}
}

// An agent that was told to stop did not fail, and its log does not speak of an error.
func TestNoErrorIsNotLogged(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{{nil, "level=INFO msg=\"agent ends\"\n"}, {errors.New("why"), "level=INFO msg=\"agent ends\" err=why\n"}} {
		var out strings.Builder
		slog.New(slog.NewTextHandler(&out, nil)).Info("agent ends", failure(tt.err)...)
		if !strings.HasSuffix(out.String(), tt.want) {
			t.Errorf("%s, want %s", out.String(), tt.want)
		}
	}
}
