package enforce

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/attach"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/kube"
	"weft/router/policy"
)

// given is a source with the rules that a test sets.
type given struct {
	live.Value[struct{}]
	rules Rules
	hosts []policy.Host
}

func (g *given) Read(before string) (Rules, bool) { return g.rules, g.rules.Generation != before }
func (g *given) Unknown() error                   { return nil }
func (g *given) Empty() error                     { return nil }
func (g *given) Hosts(*view.View) []policy.Host   { return g.hosts }
func (g *given) say(generation string, p ...policy.Policy) {
	g.rules = Rules{Generation: generation, Policies: p}
	g.Set(struct{}{})
}

// others is a directory with the endpoints of one other peer.
type others struct {
	owner   peer.ID
	version uint64
	entries []directory.Entry
}

func (o *others) Held() []directory.Held {
	return []directory.Held{{Owner: o.owner, Version: o.version}}
}
func (o *others) Of(peer.ID, directory.Ring) []directory.Entry { return o.entries }

type fixture struct {
	*Enforcer
	source   given
	others   others
	attached live.Value[[]attach.Endpoint]
	view     live.Value[*view.View]
	kernel   agenttest.Kernel
}

func newFixture() *fixture {
	f := &fixture{others: others{owner: peer.ID{2}}}
	f.view.Set(agenttest.View(f.others.owner))
	f.Enforcer = New(Config{
		Self: agenttest.Self, Source: &f.source, Directory: &f.others, Attached: &f.attached, View: &f.view, Router: &f.kernel, Log: slog.New(slog.DiscardHandler),
	})
	return f
}

// attach attaches an endpoint called name, with that as its label app.
func (f *fixture) attach(name string, s slot.Slot) {
	e := attach.Endpoint{Slot: s}
	e.ContainerID, e.Interface, e.Name, e.Labels = name, "eth0", name, map[string]string{"app": name}
	f.attached.Set(append(f.attached.Get(), e))
}

// isolate is a policy that isolates the endpoints with a label app.
func isolate(app string) policy.Policy {
	return policy.Policy{Namespace: "default", Name: app, Pods: policy.Selector{Labels: map[string]string{"app": app}}, Isolates: policy.Both}
}

func TestEnsureIsolatesEndpointsThatWereJustAttached(t *testing.T) {
	f := newFixture()
	f.source.say("1", isolate("db"))
	f.attach("db", 10)
	if err := f.Ensure(); err != nil || len(f.kernel.Program.Isolated) != 2 || f.InForce().Generation != "1" || f.InForce().Isolated != 1 {
		t.Errorf("Ensure returned %v; program %+v, in force %+v; want both addresses of db isolated, in generation 1", err, f.kernel.Program, f.InForce())
	}
	if !f.IsLocal(agenttest.Universe().Addr4(10)) || f.IsLocal(agenttest.Universe().Addr4(11)) {
		t.Error("an endpoint here is identified by its address")
	}
	f.attached.Set(nil)
	if err := f.Settle(); err != nil || len(f.kernel.Program.Isolated) != 0 {
		t.Errorf("after the endpoint ended: error %v, program %+v; want no isolated address", err, f.kernel.Program)
	}
}

// Only Ensure loads the first program: until then the rules of an earlier agent stay.
func TestSettleWaitsForTheFirstEnsure(t *testing.T) {
	f := newFixture()
	f.source.say("1", isolate("db"))
	if err := f.Settle(); err != nil || f.kernel.Loads != 0 {
		t.Errorf("before Ensure, Settle returned %v, and %d programs were loaded; want none", err, f.kernel.Loads)
	}
}

func TestSettleLoadsAProgramOnlyForChangedInput(t *testing.T) {
	f := newFixture()
	f.attach("db", 10)
	loads := func(want int, after string) {
		t.Helper()
		if err := f.Settle(); err != nil || f.kernel.Loads != want {
			t.Errorf("after %s: %d programs were loaded, want %d: %v", after, f.kernel.Loads, want, err)
		}
	}
	if err := f.Ensure(); err != nil {
		t.Fatal(err)
	}
	loads(1, "nothing")
	f.source.say("2", isolate("db"))
	loads(2, "a new policy")
	f.view.Set(f.view.Get())
	loads(2, "an equal view")
	f.attach("web", 11)
	loads(3, "a new endpoint here")
	f.others.version++
	f.others.entries = []directory.Entry{{Owner: f.others.owner, Endpoint: directory.Endpoint{ID: "c/eth0", Name: "far", Slots: []slot.Slot{1 << 19}}}}
	loads(4, "a new endpoint there")
	loads(4, "the same set")
}

// A program that the kernel refused is loaded with the next change, or by Ensure.
func TestFailedProgramStaysPending(t *testing.T) {
	f := newFixture()
	if err := f.Ensure(); err != nil {
		t.Fatal(err)
	}
	f.kernel.Fail = errors.New("no memory")
	f.source.say("2", isolate("db"))
	if err := f.Settle(); err == nil || f.InForce().Generation == "2" {
		t.Errorf("with a failing kernel: error %v, generation %s in force; want an error, and an older generation", err, f.InForce().Generation)
	}
	f.kernel.Fail = nil
	if err := f.Settle(); err != nil || f.InForce().Generation != "2" {
		t.Errorf("with a working kernel: error %v, generation %s in force; want generation 2", err, f.InForce().Generation)
	}
}

func TestEachChangedInputIsEnforced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		if err := f.Ensure(); err != nil {
			t.Fatal(err)
		}
		agenttest.Run(t, f.Run)
		for what, change := range map[string]func(){
			"rules":     func() { f.source.say("2", isolate("db")) },
			"endpoints": func() { f.attach("db", 10) },
			"directory": func() {
				f.others.version++
				f.others.entries = []directory.Entry{{Owner: f.others.owner, Endpoint: directory.Endpoint{ID: "c/eth0", Name: "far", Slots: []slot.Slot{1 << 19}}}}
				f.Wake()
			},
		} {
			synctest.Wait()
			before := f.kernel.Loads
			change()
			synctest.Wait()
			if f.kernel.Loads == before {
				t.Errorf("%s: no program was loaded, want one", what)
			}
		}
	})
}

// A Node's addresses belong to the peer that announces that it runs there. The peer must own its node
// address, and no other peer may announce the same Node.
func TestPoliciesSeeNodesAsHosts(t *testing.T) {
	u := agenttest.Universe()
	one, two := peer.ID{1}, peer.ID{2}
	r := ring.Found(ring.ID{1}, [16]byte{1}, u, one, two)
	owned := r.Owned()
	slotOf := func(id peer.ID) slot.Slot { return owned[id][0].Start + 5 }
	nodes := map[string]kube.Node{
		"n1": {Name: "n1", UID: "u1", Addrs: []netip.Addr{netip.MustParseAddr("10.200.0.11")}},
		"n2": {Name: "n2", UID: "u2"},
	}
	for name, c := range map[string]struct {
		records map[peer.ID]peer.Record
		present map[peer.ID]bool
		want    peer.ID // the peer that the host stands for; zero: no host is expected
	}{
		"the peer that runs on the Node":                {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(one)}}, nil, one},
		"another peer names a Node that does not exist": {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(one)}, two: {Host: "u9", Node: slotOf(two)}}, nil, one},
		"another peer owns the peer's node address":     {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(two)}}, nil, peer.ID{}},
		"the peer has no node address yet":              {map[peer.ID]peer.Record{one: {Host: "u1"}}, nil, peer.ID{}},
		"two peers name the Node":                       {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(one)}, two: {Host: "u1", Node: slotOf(two)}}, map[peer.ID]bool{one: true, two: true}, peer.ID{}},
		"the disk of the other peer was lost":           {map[peer.ID]peer.Record{one: {Host: "u1", Node: slotOf(one)}, two: {Host: "u1", Node: slotOf(two)}}, map[peer.ID]bool{two: true}, two},
		"a Node without an address":                     {map[peer.ID]peer.Record{one: {Host: "u2", Node: slotOf(one)}}, nil, peer.ID{}},
	} {
		v := agenttest.View()
		v.Ring, v.Records, v.Present = r, c.records, c.present
		hosts := hosts(v, nodes, true)
		if len(hosts) > 1 || (len(hosts) == 1) != (c.want != peer.ID{}) {
			t.Errorf("%s: hosts %+v, want one only if a peer counts", name, hosts)
			continue
		}
		if len(hosts) == 1 && (len(hosts[0].Overlay) != 2 || hosts[0].Overlay[0] != u.Addr4(slotOf(c.want)) || hosts[0].Overlay[1] != u.Addr6(slotOf(c.want))) {
			t.Errorf("%s: hosts %+v, want both node addresses of the peer", name, hosts)
		}
	}
}

// server is an API server with the state that a test sets.
type server struct {
	state    *kube.State
	troubles []kube.Trouble
}

func (s *server) State() *kube.State       { return s.state }
func (s *server) Troubles() []kube.Trouble { return s.troubles }
func (s *server) Server() string           { return "https://api" }

func TestPoliciesStayKnownWhileTheAPIServerIsUnreachable(t *testing.T) {
	away, refused := kube.Trouble{Err: errors.New("away")}, kube.Trouble{Err: errors.New("forbidden"), Refused: true}
	for name, c := range map[string]struct {
		server       server
		known, empty bool
	}{
		"the API server has not answered yet":                {server{}, false, true},
		"the API server is unreachable, and never answered":  {server{troubles: []kube.Trouble{away}}, false, true},
		"the API server is unreachable, and answered before": {server{state: &kube.State{Generation: "1"}, troubles: []kube.Trouble{away}}, true, false},
		"the API server refuses, and answered before":        {server{state: &kube.State{Generation: "1"}, troubles: []kube.Trouble{refused}}, false, false},
		"the API server answers":                             {server{state: &kube.State{Generation: "1", Live: true}}, true, false},
	} {
		k := NewKubernetes(&c.server, false)
		if (k.Unknown() == nil) != c.known || (k.Empty() != nil) != c.empty {
			t.Errorf("%s: Unknown is %v, Empty is %v; want the row's result", name, k.Unknown(), k.Empty())
		}
		if _, news := k.Read(""); news != (c.server.state != nil) {
			t.Errorf("%s: Read found rules: %v, want them once there is a state", name, news)
		}
		if _, news := k.Read("1"); news {
			t.Errorf("%s: Read returned the rules of the same generation again, want false", name)
		}
	}
}
