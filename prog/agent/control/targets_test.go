package control

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"weft/ipam"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/view"
	"weft/prog/api"
)

// fakeMesh has two targets, and knows three other peers, of which two are called h2.
type fakeMesh struct {
	Mesh
	forgotten, joined []string
	forgot            []peer.ID
	replaced          bool
	farewell          []peer.State
	fail              error
}

func (*fakeMesh) Targets() []mesh.Target {
	return []mesh.Target{{Host: "h1"}, {Host: "192.0.2.2:6783"}}
}

func (m *fakeMesh) Forget(hosts []string) error {
	m.forgotten = append(m.forgotten, hosts...)
	return nil
}

func (m *fakeMesh) Connect(hosts []string, replace bool) error {
	m.joined, m.replaced = append(m.joined, hosts...), replace
	return m.fail
}

func (m *fakeMesh) ForgetPeer(_ context.Context, id peer.ID) error {
	m.forgot = append(m.forgot, id)
	return nil
}
func (*fakeMesh) Knows(id peer.ID) bool       { return id == agenttest.Record(3).ID() }
func (*fakeMesh) Name(id peer.ID) string      { return id.String() }
func (m *fakeMesh) Farewell(state peer.State) { m.farewell = append(m.farewell, state) }
func (*fakeMesh) Peers() []mesh.Peer {
	twin := agenttest.Record(4)
	twin.Nickname = "h2"
	left := agenttest.Record(5)
	left.Nickname, left.State = "h3", peer.Left
	return []mesh.Peer{{Record: agenttest.Record(2)}, {Record: agenttest.Record(3)}, {Record: twin}, {Record: left}, {}}
}

// fakeIPAM hands over to heir, or fails.
type fakeIPAM struct {
	IPAM
	heir  peer.ID
	slots uint64
	fail  error
}

func (i *fakeIPAM) Leave(context.Context) (peer.ID, error) { return i.heir, i.fail }
func (i *fakeIPAM) RemovePeer(context.Context, peer.ID, bool) (uint64, error) {
	return i.slots, i.fail
}

// refreshed counts the views that were taken.
type refreshed int

func (r *refreshed) Refresh(context.Context) (*view.View, error) { *r++; return agenttest.View(), nil }
func (*refreshed) Look(context.Context) (*view.View, error)      { return agenttest.View(), nil }

func code(err error) string {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Code
	}
	return ""
}

func TestForgettingAHostThatIsNoTargetIsRefused(t *testing.T) {
	m := &fakeMesh{}
	s := New(Config{Mesh: m})
	err := s.Targets(t.Context(), api.TargetsRequest{Forget: []string{"h1", "nosuch"}, Connect: []string{"h2"}})
	if code(err) != api.CodeNotFound || !strings.Contains(err.Error(), "nosuch is no target") || len(m.forgotten) > 0 || len(m.joined) > 0 {
		t.Errorf("error %v; forgotten %v, joined %v; want not found, and no change", err, m.forgotten, m.joined)
	}
	if err := s.Targets(t.Context(), api.TargetsRequest{Forget: []string{"192.0.2.2:6783", "h1"}}); err != nil || len(m.forgotten) != 2 || len(m.joined) != 0 {
		t.Errorf("error %v; forgotten %v, want both targets", err, m.forgotten)
	}
	if err := s.Targets(t.Context(), api.TargetsRequest{Connect: []string{"h2"}, Replace: true}); err != nil || !slices.Equal(m.joined, []string{"h2"}) || !m.replaced {
		t.Errorf("error %v; joined %v, want h2 in place of all targets", err, m.joined)
	}
	m.fail = errors.New("no host name")
	if err := s.Targets(t.Context(), api.TargetsRequest{Connect: []string{"?"}}); code(err) != api.CodeBadRequest {
		t.Error(err)
	}
}

func TestAPeerIsFoundByItsIDOrItsOnlyNickname(t *testing.T) {
	s := New(Config{Mesh: &fakeMesh{}})
	unknown := agenttest.Record(9).ID() // a peer that owns addresses, but whose record was lost
	for name, want := range map[string]peer.ID{unknown.String(): unknown, "h3": agenttest.Record(3).ID(), "h2": {}, "nosuch": {}} {
		got, err := view.FindPeer(s.cfg.Mesh.Peers(), name)
		if !want.IsZero() && (err != nil || got != want) || want.IsZero() && code(err) != api.CodeBadRequest {
			t.Errorf("%s: found %v, error %v; want the peer of the table, or a bad request", name, got, err)
		}
	}
}

func TestARemovedPeerIsForgottenByAllHosts(t *testing.T) {
	for name, c := range map[string]struct {
		peer   string
		ipam   fakeIPAM
		forgot bool
		code   string
	}{
		"it owns addresses":                     {"h3", fakeIPAM{slots: 8}, true, ""},
		"it owns nothing":                       {"h3", fakeIPAM{fail: &ipam.RemovalError{Nothing: true}}, true, ""},
		"the host owns nothing, and is no peer": {agenttest.Record(9).ID().String(), fakeIPAM{fail: &ipam.RemovalError{Nothing: true, Why: "it owns nothing"}}, false, api.CodeConflict},
		"another peer reaches it":               {"h3", fakeIPAM{fail: &ipam.RemovalError{Why: "h2 reaches it"}}, false, api.CodeConflict},
	} {
		m, views := &fakeMesh{}, refreshed(0)
		r, err := New(Config{Mesh: m, IPAM: &c.ipam, View: &views}).RemovePeer(t.Context(), api.RemovePeerRequest{Peer: c.peer})
		if (err != nil) != (c.code != "") || code(err) != c.code || (len(m.forgot) == 1) != c.forgot || err == nil && (r.Addresses != c.ipam.slots || r.Peer == "") {
			t.Errorf("%s: %+v, error %v; forgotten %v; want the row's result", name, r, err, m.forgot)
		}
		if c.forgot && views != 1 { // the mesh asks the view what a peer owns
			t.Errorf("%s: %d views were taken, want 1", name, views)
		}
	}
}

func TestAPeerThatLeavesHandsItsAddressesOver(t *testing.T) {
	for name, c := range map[string]struct {
		ipam  fakeIPAM
		force bool
		stops bool
		says  string
	}{
		"an heir has them":             {fakeIPAM{heir: peer.ID{2}}, false, true, ""},
		"no peer is reachable":         {fakeIPAM{fail: errors.New("no peer can be reached")}, false, false, "weft rmpeer"},
		"no peer is reachable, forced": {fakeIPAM{fail: errors.New("no peer can be reached")}, true, true, ""},
	} {
		m, stopped := &fakeMesh{}, false
		s := New(Config{Self: peer.ID{1}, Mesh: m, IPAM: &c.ipam, Stop: func() { stopped = true }})
		s.Attachments = noAttachments(t)
		r, err := s.Stop(t.Context(), api.StopRequest{Leave: true, Force: c.force})
		if stopped != c.stops || (len(m.farewell) == 1) != c.stops || (err == nil) != c.stops || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: stopped %v, farewell %v, error %v; want the row's result", name, stopped, m.farewell, err)
		}
		if !c.ipam.heir.IsZero() && r.Heir != c.ipam.heir.String() {
			t.Errorf("%s: reply %+v, want the heir's name", name, r)
		}
	}
	m, stopped := &fakeMesh{}, false
	if _, err := New(Config{Mesh: m, Stop: func() { stopped = true }}).Stop(t.Context(), api.StopRequest{}); err != nil || !stopped || len(m.farewell) != 0 {
		t.Errorf("a stop without leaving: stopped %v, farewell %v, error %v; want only the stop", stopped, m.farewell, err)
	}
}
