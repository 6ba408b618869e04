package attach

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/settings"
	"weft/prog/agent/unattached"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/endpoint"
	"weft/router/routertest"
)

func TestMain(m *testing.M) { routertest.Main(m) }

// plugs is a router that records changes of endpoints.
type plugs struct{ unplugged []endpoint.Endpoint }

func (*plugs) Plug(context.Context, endpoint.Endpoint) error { return nil }

func (p *plugs) Unplug(_ context.Context, list ...endpoint.Endpoint) error {
	p.unplugged = append(p.unplugged, list...)
	return nil
}

// notes are the endpoints in the store.
type notes map[string]api.AttachRequest

func (n notes) Notes(add func(key string, s slot.Slot, note []byte) error) error {
	next := slot.Slot(100)
	for key, req := range n {
		data, _ := json.Marshal(req)
		if err := add(key, next, data); err != nil {
			return err
		}
		next++
	}
	return nil
}

// fixture is Attachments with fakes of all its inputs.
type fixture struct {
	*Attachments
	ipam     *agenttest.IPAM
	router   *plugs
	settings *settings.Settings
	isolated int // how often Isolate was called
	err      error
}

func newFixture(t *testing.T, stored notes, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{ipam: &agenttest.IPAM{}, router: &plugs{}}
	var err error
	if f.settings, err = settings.Load(&agenttest.Settings{}, nil); err != nil {
		t.Fatal(err)
	}
	seen := &live.Value[*view.View]{}
	seen.Set(agenttest.View())
	cfg := Config{
		Store: stored, IPAM: f.ipam, Router: f.router, Pods: NoPods{}, Settings: f.settings, View: seen,
		Log: slog.New(slog.DiscardHandler), Ready: func(context.Context) error { return nil },
		Isolate:  func() error { f.isolated++; return f.err },
		Resolver: func(string) *api.Resolver { return nil }, Short: func(name string) string { return strings.TrimSuffix(name, ".weft.internal") },
		MTU: func() int { return 1420 }, Checked: func() {}, Unattached: &unattached.Containers{}, Releases: filepath.Join(t.TempDir(), "releases"),
	}
	if change != nil {
		change(&cfg)
	}
	if f.Attachments, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return f
}

func request(id string) api.AttachRequest {
	return api.AttachRequest{ContainerID: id, Interface: "eth0", HostLink: endpoint.HostLink(id, "eth0"), Source: api.SourceCNI, MAC: "02:00:00:00:00:01"}
}

func ref(id string) api.EndpointRef { return api.EndpointRef{ContainerID: id, Interface: "eth0"} }

// attach attaches endpoints by their container ids.
func (f *fixture) attach(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if _, err := f.Attach(t.Context(), request(id)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAttachPublishesBeforeItIsolates(t *testing.T) {
	var f *fixture
	published := 0
	f = newFixture(t, nil, func(c *Config) { c.Isolate = func() error { published = len(f.Get()); return nil } })
	reply, err := f.Attach(t.Context(), request("c1"))
	if err != nil || published != 1 || len(reply.Addresses) != 1 || reply.MTU != 1420 || !reply.Universe[0].Contains(reply.Addresses[0]) {
		t.Errorf("Attach returned %+v, error %v; %d endpoints were published when policies were enforced, want 1", reply, err, published)
	}
}

func TestAttachFailsWhereItCannotIsolate(t *testing.T) {
	f := newFixture(t, nil, nil)
	f.err = errors.New("nf_tables is gone")
	if _, err := f.Attach(t.Context(), request("c1")); err == nil || !strings.Contains(err.Error(), "isolate c1/eth0: nf_tables is gone") {
		t.Errorf("Attach returned %v, want the error of the kernel", err)
	}
	if err := f.Detach(t.Context(), ref("c1")); err != nil || f.ipam.Given() != 0 {
		t.Errorf("Detach after a failed Attach returned %v; %d addresses are allocated, want none", err, f.ipam.Given())
	}
}

func TestAttachIsRefusedUntilTheHostIsReady(t *testing.T) {
	f := newFixture(t, nil, func(c *Config) { c.Ready = func(context.Context) error { return errors.New("not ready") } })
	if _, err := f.Attach(t.Context(), request("c1")); err == nil || f.ipam.Given() != 0 || f.isolated != 0 {
		t.Errorf("Attach returned %v with %d addresses allocated; want an error, no address and no call of Isolate", err, f.ipam.Given())
	}
}

func TestASecondAttachIsAConflict(t *testing.T) {
	f := newFixture(t, nil, nil)
	f.attach(t, "c1")
	_, err := f.Attach(t.Context(), request("c1"))
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeConflict {
		t.Errorf("Attach returned %v, want a conflict", err)
	}
}

func TestAttachGivesOrRefusesTheRequestedAddresses(t *testing.T) {
	u := agenttest.Universe()
	for name, c := range map[string]struct {
		asked  []string
		refuse error
		code   string
		says   string
	}{
		"one of the universe":                           {[]string{"10.32.0.9"}, nil, "", ""},
		"both addresses, of IPv4 and IPv6, of one slot": {[]string{"10.32.0.9", u.Addr6(9).String()}, nil, "", ""},
		"of two slots":                                  {[]string{"10.32.0.9", u.Addr6(10).String()}, nil, api.CodeBadRequest, "cannot be allocated together"},
		"outside":                                       {[]string{"192.0.2.1"}, nil, api.CodeBadRequest, "outside"},
		"taken":                                         {[]string{"10.32.0.9"}, &ipam.ClaimError{Why: "h2 uses it"}, api.CodeConflict, "h2 uses it"},
		"taken for a while":                             {[]string{"10.32.0.9"}, &ipam.ClaimError{Why: "it is in quarantine", Later: true}, api.CodeNoSpace, "quarantine"},
	} {
		f := newFixture(t, nil, nil)
		f.ipam.Refuse = c.refuse
		req := request("c1")
		for _, addr := range c.asked {
			req.Addresses = append(req.Addresses, netip.MustParseAddr(addr))
		}
		reply, err := f.Attach(t.Context(), req)
		if e, ok := errors.AsType[*api.Error](err); c.code != "" && (!ok || e.Code != c.code || !strings.Contains(e.Message, c.says)) {
			t.Errorf("%s: %v, want %s, %q", name, err, c.code, c.says)
		}
		if c.code == "" && (err != nil || reply.Addresses[0] != req.Addresses[0]) {
			t.Errorf("%s: Attach returned %+v, error %v; want the requested address", name, reply, err)
		}
	}
}

func TestBadRequestsAreNotAttached(t *testing.T) {
	for says, change := range map[string]func(*api.AttachRequest){
		"only letters":         func(r *api.AttachRequest) { r.Name = "a b" },
		"port name":            func(r *api.AttachRequest) { r.Ports = []api.Port{{Name: "HTTP!", Protocol: "tcp", Number: 1}} },
		"protocol":             func(r *api.AttachRequest) { r.Ports = []api.Port{{Name: "http", Protocol: "quic", Number: 1}} },
		"label":                func(r *api.AttachRequest) { r.Labels = map[string]string{"": "x"} },
		"hyphen":               func(r *api.AttachRequest) { r.Name, r.Namespace = "a", "b-" },
		"id is missing":        func(r *api.AttachRequest) { r.ContainerID = "" },
		"the endpoint's name":  func(r *api.AttachRequest) { r.HostLink = "eth0" },
		"is no MAC address":    func(r *api.AttachRequest) { r.MAC = "here" },
		"unknown source nomad": func(r *api.AttachRequest) { r.Source = "nomad" },
	} {
		req := request("c1")
		req.Source = api.SourceAttach
		if err := validate(req); err != nil {
			t.Fatal(err)
		}
		change(&req)
		if err := validate(req); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// Endpoints that the store has are published before anything runs.
func TestStoredEndpointsArePublishedAtOnce(t *testing.T) {
	f := newFixture(t, notes{"c2/eth0": request("c2"), "c1/eth0": request("c1")}, nil)
	if list := f.Get(); len(list) != 2 || list[0].Key() != "c1/eth0" || f.Check() == nil {
		t.Errorf("published %+v, ready before the reaper looked: %v; want both endpoints, false", list, f.Check() == nil)
	}
}

// After a reboot the runtime deletes its old containers while the agent starts. Neither the deletions
// nor the start fail.
func TestEndpointsCanBeDeletedDuringTheStart(t *testing.T) {
	f := newFixture(t, nil, nil)
	f.attach(t, "c1", "c2")
	done, err := f.busy.begin("c2/eth0") // DEL of c2 is under way
	if err != nil {
		t.Fatal(err)
	}
	if err := f.DetachAll(t.Context()); err != nil {
		t.Error(err)
	}
	if list := f.Get(); len(list) != 1 || list[0].ContainerID != "c2" {
		t.Errorf("endpoints %v, want only c2", list)
	}
	done()
	f.releaseVanished(t.Context())
	if len(f.Get()) != 0 || f.ipam.Given() != 0 || len(f.router.unplugged) != 2 {
		t.Errorf("endpoints %v with %d addresses are left, and %v were unplugged; want none left, both unplugged", f.Get(), f.ipam.Given(), f.router.unplugged)
	}
}

// A runtime may repeat a DEL while the first one is under way: both succeed.
func TestARepeatedDeleteSucceeds(t *testing.T) {
	f := newFixture(t, nil, nil)
	f.attach(t, "c1")
	done, err := f.busy.begin("c1/eth0") // DEL of c1 is under way
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() { second <- f.Detach(t.Context(), ref("c1")) }()
	if err := f.end(t.Context(), "c1/eth0"); err != nil {
		t.Fatal(err)
	}
	done()
	if err := <-second; err != nil || f.ipam.Given() != 0 {
		t.Errorf("the second Detach returned %v, with %d addresses allocated; want success, and no address", err, f.ipam.Given())
	}
}

func TestQueuedReleasesFreeAddresses(t *testing.T) {
	f := newFixture(t, nil, nil)
	if err := f.queue.check(); err != nil {
		t.Fatal(err)
	}
	f.attach(t, "c1")
	release, _ := json.Marshal(ref("c1"))
	for name, data := range map[string][]byte{"1.json": release, "2.json": []byte("{torn"), "3.tmp": release} {
		if err := os.WriteFile(filepath.Join(f.queue.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.releaseQueued(t.Context())
	f.releaseQueued(t.Context())
	left, _ := filepath.Glob(filepath.Join(f.queue.dir, "*"))
	if len(left) != 2 || filepath.Base(left[0]) != "2.json.unreadable" || f.ipam.Given() != 0 {
		t.Errorf("files %v and %d addresses are left; want the two unreadable files, and no address", left, f.ipam.Given())
	}
}

// A release that was queued while the agent started belongs to an earlier endpoint with that key. It
// does not end the next endpoint.
func TestQueuedReleaseComesBeforeAttach(t *testing.T) {
	f := newFixture(t, notes{"c1/eth0": request("c1")}, nil)
	if err := f.queue.check(); err != nil {
		t.Fatal(err)
	}
	release, _ := json.Marshal(ref("c1"))
	file := filepath.Join(f.queue.dir, "1.json")
	if err := os.WriteFile(file, release, 0o600); err != nil {
		t.Fatal(err)
	}
	f.attach(t, "c1")
	if _, err := os.Stat(file); !os.IsNotExist(err) || len(f.Get()) != 1 {
		t.Errorf("the queued release: stat returned %v; endpoints %v; want no file, and the new endpoint", err, f.Get())
	}
}

func TestContainersAreFoundByIDOrName(t *testing.T) {
	named := func(id, name string) api.AttachRequest {
		r := request(id)
		r.Name = name
		return r
	}
	two := named("0123456789ab", "Web")
	two.Interface = "eth1"
	f := newFixture(t, notes{
		"0123456789ab/eth0": named("0123456789ab", "Web"), "0123456789ab/eth1": two, "0123ff/eth0": named("0123ff", "db"), "dbdbdb/eth0": named("dbdbdb", "01234"),
	}, nil)
	for word, want := range map[string]string{
		"web": "0123456789ab/eth0 0123456789ab/eth1", "db": "0123ff/eth0", "dbd": "dbdbdb/eth0",
		"0123ff": "0123ff/eth0", "01234": "dbdbdb/eth0", "012345": "0123456789ab/eth0 0123456789ab/eth1", "x": "", "": "",
	} {
		got, err := f.Find(word)
		if strings.Join(got, " ") != want || (err != nil) != (want == "") {
			t.Errorf("Find(%q) returned %v, error %v; want %q", word, got, err, want)
		}
	}
}

// A pod has the API server's current labels. They stay when the pod ends.
func TestPodsHaveTheLabelsOfTheAPIServer(t *testing.T) {
	pods := &podLabels{labels: map[string]string{"app": "web"}}
	f := newFixture(t, nil, func(c *Config) { c.Pods = pods })
	f.attach(t, "c1")
	for _, now := range []struct {
		what   string
		labels map[string]string
		want   string
		news   uint64 // how often the step publishes endpoints
	}{
		{"it was attached", map[string]string{"app": "web"}, "web", 0},
		{"the API server changed the labels", map[string]string{"app": "db"}, "db", 1},
		{"the API server changed another pod", map[string]string{"app": "db"}, "db", 0},
		{"it ended", nil, "db", 0},
	} {
		before := f.Version()
		pods.labels = now.labels
		f.PodsChanged()
		if got := f.Get()[0].Labels["app"]; got != now.want || f.Version() != before+now.news {
			t.Errorf("after %s: label %q, published %d times; want %q, %d", now.what, got, f.Version()-before, now.want, now.news)
		}
	}
}

type podLabels struct {
	NoPods
	labels map[string]string // nil: the pod ended
}

func (p *podLabels) Current(string, string, string) (map[string]string, []api.Port, bool) {
	return p.labels, nil, p.labels != nil
}
