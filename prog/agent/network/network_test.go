package network

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/policytest"
	"weft/prog/api"
)

// others is a mesh of peers with fixed answers.
type others struct {
	answers map[peer.ID]string // empty: none comes
	asked   atomic.Int32
}

func (o *others) Others() (out []peer.ID) {
	for id := range o.answers {
		out = append(out, id)
	}
	return out
}
func (o *others) Reachable(peer.ID) bool { return true }
func (o *others) Request(ctx context.Context, to peer.ID, _ string, _ []byte) ([]byte, error) {
	o.asked.Add(1)
	if o.answers[to] == "" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return []byte(o.answers[to]), nil
}

type reporter struct{ report api.Report }

func (r *reporter) Report(context.Context) (api.Report, error) { return r.report, nil }

func newOverview(t *testing.T, mesh *others) (*Overview, *policytest.Host, *reporter) {
	h := policytest.New(t, true)
	r := &reporter{}
	router := &r.report.Router
	router.ID = agenttest.Self.String()
	router.Peers = []api.Peer{{ID: router.ID, Nickname: "here", Self: true, State: "running"}}
	for id := range mesh.answers {
		router.Peers = append(router.Peers, api.Peer{ID: id.String(), Nickname: "host" + id.String()[:2], State: "running"})
	}
	return New(Config{Self: agenttest.Self, Mesh: mesh, View: &h.View, Reporter: r, Know: h.Enforcer.Snapshot}), h, r
}

func host(t *testing.T, n api.Network, id peer.ID) api.Host {
	t.Helper()
	i := slices.IndexFunc(n.Hosts, func(h api.Host) bool { return h.Peer == id.String() })
	if i < 0 {
		t.Fatalf("hosts %+v: want %v among them", n.Hosts, id)
	}
	return n.Hosts[i]
}

// A host that does not answer delays the picture by the time limit, and has its reason in it.
func TestAPictureHasHostsThatDoNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := &others{answers: map[peer.ID]string{{2}: `{"version":"v1","ready":true,"direct":1}`, {3}: "", {4}: "garbage"}}
		o, _, _ := newOverview(t, mesh)
		start := time.Now()
		n, err := o.Network(t.Context())
		if err != nil || time.Since(start) != Timeout || len(n.Hosts) != 4 {
			t.Fatalf("%d hosts after %v, error %v; want 4 after %v", len(n.Hosts), time.Since(start), err, Timeout)
		}
		if h := host(t, n, peer.ID{2}); h.Error != "" || !h.Ready || h.Direct != 1 || h.Nickname != "host02" {
			t.Errorf("host 2: %+v, want its answer", h)
		}
		for _, id := range []peer.ID{{3}, {4}} {
			if h := host(t, n, id); h.Error == "" || h.Ready {
				t.Errorf("host %v: %+v, want why it did not answer", id, h)
			}
		}
		if h := host(t, n, agenttest.Self); !h.Self || h.Error != "" {
			t.Errorf("this host: %+v", h)
		}
	})
}

// Many pages cost no more than one.
func TestAnswersAreUsedAgainForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mesh := &others{answers: map[peer.ID]string{{2}: `{}`}}
		o, _, _ := newOverview(t, mesh)
		for range 10 {
			if _, err := o.Network(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if mesh.asked.Load() != 1 {
			t.Errorf("the peer was asked %d times for 10 pictures at once, want 1", mesh.asked.Load())
		}
		time.Sleep(2 * fresh)
		if _, err := o.Network(t.Context()); err != nil || mesh.asked.Load() != 2 {
			t.Errorf("the peer was asked %d times, error %v; want again after a while", mesh.asked.Load(), err)
		}
	})
}

// What a peer says of itself is bounded, cannot control a terminal, and says nothing about another peer.
func TestALyingSummaryHarmsOnlyItsHost(t *testing.T) {
	lie := api.Host{Peer: agenttest.Self.String(), Nickname: "here", Self: true, State: "left", Error: "\x1b[2J", Version: "\x1b[2Jv1", NotReady: strings.Repeat("x", 1<<20)}
	for i := range 10_000 {
		lie.Links = append(lie.Links, api.Link{Peer: fmt.Sprint(i), State: api.ConnDirect, Via: make([]string, 1000)})
		lie.Problems = append(lie.Problems, api.Problem{Area: "\x1b[2J", What: "\x1b]0;owned\x07"})
	}
	text, err := json.Marshal(lie)
	if err != nil {
		t.Fatal(err)
	}
	o, _, _ := newOverview(t, &others{answers: map[peer.ID]string{{2}: string(text)}})
	n, err := o.Network(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h := host(t, n, peer.ID{2})
	if h.Self || h.Nickname != "host02" || h.State != "running" || strings.Contains(h.Version+h.Error, "\x1b") || len(h.NotReady) > 2*mostText {
		t.Errorf("the summary has %q %q %v, version %q, %d bytes of text; want only what a host may say of itself", h.Nickname, h.State, h.Self, h.Version, len(h.NotReady))
	}
	if len(h.Links) != mostLinks || len(h.Problems) != mostProblems || len(h.Links[0].Via) > mostLinks || strings.ContainsAny(h.Problems[0].Area+h.Problems[0].What, "\x1b\x07") {
		t.Errorf("%d links, %d problems, %q; want them bounded and printable", len(h.Links), len(h.Problems), h.Problems[0].What)
	}
}

// Tunnels that need attention come before busy ones.
func TestASummaryHasTheTunnelsThatMatter(t *testing.T) {
	var r api.Report
	for i := range 200 {
		r.Router.Connections = append(r.Router.Connections, api.Connection{Peer: fmt.Sprint(i), State: api.ConnDirect, SentRate: float64(i)})
	}
	r.Router.Connections = append(r.Router.Connections, api.Connection{Peer: "cut", State: api.ConnBlocked}, api.Connection{Peer: "far", State: api.ConnRelayed, Via: []string{"1"}})
	h := summarize(r)
	if len(h.Links) != mostLinks || h.Links[0].Peer != "cut" || h.Links[1].Peer != "far" || h.Links[2].Peer != "199" || h.Direct != 200 || h.More != 200+2-mostLinks {
		t.Errorf("%d links, the first are %+v; %d direct, %d more", len(h.Links), h.Links[:3], h.Direct, h.More)
	}
}

func TestReportsOfOtherHosts(t *testing.T) {
	o, _, own := newOverview(t, &others{answers: map[peer.ID]string{}})
	own.report.Version = "v2"
	if r, err := o.HostReport(t.Context(), api.HostRequest{Peer: agenttest.Self.String()}); err != nil || r.Version != "v2" {
		t.Errorf("this host: %+v, %v", r, err)
	}
	if _, err := o.HostReport(t.Context(), api.HostRequest{Peer: "nobody"}); err == nil {
		t.Error("a report of a host that does not exist, want an error")
	}
}

func TestTheVersionOfTheEndpointsFollowsThem(t *testing.T) {
	o, h, _ := newOverview(t, &others{})
	list, err := o.NetworkEndpoints(t.Context())
	if err != nil || len(list.Endpoints) != 4 || list.Version != o.version() || list.Endpoints[0].Peer != agenttest.Self.String() {
		t.Fatalf("%+v, %v; want 4 endpoints of this host", list, err)
	}
	changed := slices.Clone(h.Attached.Get())
	changed[0].Labels = map[string]string{"app": "other"}
	h.Attached.Set(changed)
	if v := o.version(); v == list.Version {
		t.Error("a label changed, and the version did not")
	}
}

// With the policy of the test, in the namespace shop only web reaches db, at one port.
func TestTheMatrixSaysWhoReachesWhom(t *testing.T) {
	o, h, _ := newOverview(t, &others{})
	h.Write(t, map[string]string{"shop/db": policytest.Shop})
	m, err := o.Matrix(t.Context(), api.MatrixRequest{})
	if err != nil || len(m.Rows) != 2 || m.Rows[0].Name != "jobs" || m.Rows[1].Name != "shop" || m.Rows[1].Endpoints != 2 {
		t.Fatalf("%+v, %v; want a row for each of two namespaces", m, err)
	}
	want := [][]api.Access{
		{{Kind: api.AccessAll}, {Kind: api.AccessSome}},
		{{Kind: api.AccessAll}, {Kind: api.AccessSome}},
	}
	for i, row := range m.Cells {
		if !slices.Equal(row, want[i]) {
			t.Errorf("from %s: %+v, want %+v", m.Rows[i].Name, row, want[i])
		}
	}
	m, err = o.Matrix(t.Context(), api.MatrixRequest{From: "shop", To: "shop"})
	if err != nil || len(m.Rows) != 2 || m.Rows[0].Name != "shop/db" || m.Rows[1].Name != "shop/web" {
		t.Fatalf("%+v, %v; want the two endpoints of shop", m, err)
	}
	if m.Cells[1][0] != (api.Access{Kind: api.AccessSome, Ports: "5432/TCP"}) || m.Cells[0][1].Kind != api.AccessAll {
		t.Errorf("cells %+v; want web to db at 5432/TCP, db to web at all ports", m.Cells)
	}
	m, err = o.Matrix(t.Context(), api.MatrixRequest{From: "jobs", To: "shop"})
	if err != nil || len(m.Rows) != 1 || m.Rows[0].Endpoints != 2 || m.Cells[0][0].Kind != api.AccessNone {
		t.Errorf("%+v, %v; want the endpoints of jobs as one group, which does not reach db", m, err)
	}
	if _, err := o.Matrix(t.Context(), api.MatrixRequest{From: "jobs"}); err == nil {
		t.Error("a matrix of one namespace, want an error")
	}
}

// Decoding a summary of a peer never panics, whatever it sends.
func FuzzSummary(f *testing.F) {
	f.Add([]byte(`{"links":[{"via":["x"]}],"problems":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var h api.Host
		if json.Unmarshal(data, &h) == nil {
			bound(&h)
			if len(h.Links) > mostLinks || len(h.Problems) > mostProblems {
				t.Errorf("%d links, %d problems", len(h.Links), len(h.Problems))
			}
		}
	})
}
