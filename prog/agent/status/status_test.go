package status

import (
	"context"
	"errors"
	"slices"
	"testing"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/config"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/problem"
)

// host implements all components of a host with minimal answers.
type host struct {
	err error // the error of taking a view
	why string
	// peers are those of the view.
	peers []mesh.Peer
}

func (h *host) Look(context.Context) (*view.View, error) {
	v := agenttest.View()
	v.Peers = h.peers
	return v, h.err
}
func (*host) Status(*view.View) api.IPAM { return api.IPAM{Status: "ready"} }
func (h *host) Why() string              { return h.why }
func (*host) List() []api.Endpoint       { return nil }
func (*host) Get() settings.Values       { return settings.Values{Exposed: true} }
func (*host) MTU() int                   { return 1420 }
func (*host) Targets() []mesh.Target {
	return []mesh.Target{{Host: "h2", Connected: true}, {Host: "h3", Err: errors.New("refused")}, {Host: "h4"}}
}

func (*host) Rejections() []mesh.Rejection {
	return []mesh.Rejection{{Addr: "192.0.2.9", Reason: "another secret"}}
}

type (
	links    struct{}
	attached struct{}
	paths    struct{}
	relays   struct{}
	resolver struct{}
	policies struct{}
	cni      struct{}
)

func (attached) Status(*view.View) []api.Endpoint          { return []api.Endpoint{{Name: "web"}} }
func (paths) Status(*view.View) (string, []api.Connection) { return "kernel", []api.Connection{} }
func (relays) Status(*view.View) []api.Relay               { return []api.Relay{{From: "h2"}} }
func (resolver) Status(*view.View) api.DNS                 { return api.DNS{Off: true} }
func (policies) Status() api.PolicyReport                  { return api.PolicyReport{Policies: 3} }
func (links) Told(id peer.ID) topology.Links {
	return topology.Links{Cut: map[peer.ID]bool{{9}: true, {3}: true}, Refuses: !id.IsZero()}
}

func (cni) Status() *api.CNI { return nil }

func newReporter(h *host) *Reporter {
	return New(Config{
		Options: config.Options{Version: "v1"}, View: h, Board: h, Attached: attached{}, Unattached: h, Paths: paths{}, Relays: relays{}, Resolver: resolver{},
		Policies: policies{}, CNI: cni{}, Mesh: h, Settings: h, Datapath: h, Links: links{},
		Sources: []Source{
			{Area: "disk", Of: func(*view.View) []problem.Problem {
				return []problem.Problem{{Reason: "A", What: "the disk is slow", Fix: "see why"}}
			}},
			{Of: func(*view.View) []problem.Problem { return nil }},
			{Of: func(*view.View) []problem.Problem {
				return []problem.Problem{{Reason: "B", What: "x", Effect: "y", Fix: "z"}}
			}},
		},
	})
}

func TestTheReportHasTheStateOfEachComponent(t *testing.T) {
	r, err := newReporter(&host{}).Report(t.Context())
	if err != nil || !r.Ready || r.Version != "v1" || !r.Router.Exposed || r.Router.MTU != 1420 || r.Router.Datapath != "kernel" || len(r.Router.Relays) != 1 ||
		r.IPAM.Status != "ready" || len(r.Endpoints) != 1 || r.Policy.Policies != 3 || !r.DNS.Off {
		t.Errorf("report %+v, error %v; want the values of each component", r, err)
	}
	states := []string{"connected", "retrying", "retrying"}
	for i, target := range r.Router.Targets {
		if target.State != states[i] || (target.Error != "") != (i == 1) {
			t.Errorf("%+v, want %s", target, states[i])
		}
	}
}

// The report says of each peer what that peer tells of its links.
func TestReportHasTheLinksOfEachPeer(t *testing.T) {
	h := &host{peers: []mesh.Peer{{Record: peer.Record{Identity: make([]byte, 32)}}, {Record: peer.Record{}}}}
	r, err := newReporter(h).Report(t.Context())
	if err != nil || len(r.Router.Peers) != 1 {
		t.Fatalf("the peers are %+v, error %v; want the one with a record", r.Router.Peers, err)
	}
	want := []string{peer.ID{3}.String(), peer.ID{9}.String()}
	if p := r.Router.Peers[0]; !slices.Equal(p.Cut, want) || !p.NoRelay {
		t.Errorf("the peer has the cuts %v, and refuses to relay: %v; want %v, and that it refuses", p.Cut, p.NoRelay, want)
	}
}

// The report has each problem twice: as a sentence, and with cause, effect and fix apart. Both lists
// have the order of the components.
func TestReportHasProblemsAsSentencesAndAsCauseEffectFix(t *testing.T) {
	s := newReporter(&host{})
	r, err := s.Report(t.Context())
	if err != nil || len(r.Warnings) != 2 || r.Warnings[0] != "the disk is slow: see why" || r.Warnings[1] != "x: y. Z" ||
		len(r.Problems) != 2 || r.Problems[1] != (api.Problem{Reason: "B", What: "x", Effect: "y", Fix: "z"}) {
		t.Errorf("warnings %v, problems %+v, error %v; want both problems in both forms", r.Warnings, r.Problems, err)
	}
	if len(r.Rejections) != 1 {
		t.Errorf("rejections %+v, want one", r.Rejections)
	}
	all, err := s.Problems(t.Context())
	if err != nil || len(all) != 3 || all[2].Reason != problem.TurnedAway || all[2].About != "another secret" {
		t.Errorf("problems %+v, error %v; want the rejected host as the third", all, err)
	}
}

func TestAReportThatCannotBeMadeIsAnError(t *testing.T) {
	if _, err := newReporter(&host{err: errors.New("the agent is stopping")}).Report(t.Context()); err == nil {
		t.Error("a report was made without a view, want an error")
	}
}

func TestAnAgentThatIsNotReadySaysWhy(t *testing.T) {
	r, err := newReporter(&host{why: "waiting for the ring"}).Report(t.Context())
	if err != nil || r.Ready || r.NotReady != "waiting for the ring" {
		t.Errorf("report %+v, error %v; want not ready, and the reason", r, err)
	}
	early := Early(config.Options{Nickname: "h1"}, "waiting for the API server", true)
	if early.Ready || !early.Waiting || early.NotReady != "waiting for the API server" || early.IPAM.Status != "waiting: waiting for the API server" {
		t.Errorf("early report %+v; want that it waits, and for what", early)
	}
}
