package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
)

var other = peer.ID{2}

// mesh has one peer, with an answer for each kind of request.
type mesh map[string]string

func (mesh) Others() []peer.ID      { return []peer.ID{other} }
func (mesh) Reachable(peer.ID) bool { return true }
func (m mesh) Request(_ context.Context, _ peer.ID, kind string, _ []byte) ([]byte, error) {
	if m[kind] == "" {
		return nil, errors.New("no answer")
	}
	return []byte(m[kind]), nil
}

// newMatrix returns a matrix that can start no test endpoint.
func newMatrix(m mesh) *Matrix {
	var v live.Value[*view.View]
	v.Set(agenttest.View(other))
	matrix := New(Config{Self: agenttest.Self, Mesh: m, View: &v, Log: slog.New(slog.DiscardHandler)})
	matrix.start = func(context.Context) (*tester, error) { return nil, errors.New("not ready") }
	return matrix
}

func TestPairsThatFailAreNamed(t *testing.T) {
	a, b := netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("10.40.0.1")
	at := map[peer.ID][]netip.Addr{{1}: {a}, {2}: {b}}
	name := func(id peer.ID) string { return "h" + id.String()[1:2] }
	good := map[peer.ID]result{{1}: {}, {2}: {}}
	if c := judge(at, good, nil, name); len(c) != 1 || c[0].Result != api.CheckPass || !strings.Contains(c[0].What, "2 hosts") {
		t.Errorf("%+v, want PASS", c)
	}
	bad := map[peer.ID]result{{1}: {Failed: map[netip.Addr]string{b: "no answer\x1b[2J"}}, {2}: {Failed: map[netip.Addr]string{netip.MustParseAddr("192.0.2.1"): "a lie"}}}
	if c := judge(at, bad, nil, name); len(c) != 1 || c[0].Result != api.CheckFail || !strings.Contains(c[0].What, "h1 to h2 (10.40.0.1): no answer [2J") || strings.Contains(c[0].What, "lie") {
		t.Errorf("%+v, want FAIL with the one pair", c)
	}
	if c := judge(at, good, map[peer.ID]string{{3}: "forbidden"}, name); len(c) != 1 || c[0].Result != api.CheckWarn || !strings.Contains(c[0].What, "h3: forbidden") {
		t.Errorf("%+v, want WARN with the host that is not tested", c)
	}
}

// A peer that names addresses of another host, or none of the overlay, is not tested, and tests no others.
func TestPeersOnlyNameTheirOwnAddresses(t *testing.T) {
	v := agenttest.View(other)
	own := v.Ring.Universe.Addr4(v.Owners[other][0].Start + 5).String()
	foreign := v.Ring.Universe.Addr4(v.Owners[agenttest.Self][0].Start + 5).String()
	for addresses, want := range map[string]bool{own: true, foreign: false, "192.0.2.1": false, "": false} {
		list := `[]`
		if addresses != "" {
			list = `["` + addresses + `"]`
		}
		checks := newMatrix(mesh{requestStart: `{"addresses":` + list + `}`, requestProbe: `{}`, requestStop: `x`}).Test(t.Context())
		text := ""
		for _, c := range checks {
			text += c.What
		}
		if refused := strings.Contains(text, "not its own"); refused == want {
			t.Errorf("a peer that names %q: %s; want it to be believed: %v", addresses, text, want)
		}
		if !strings.Contains(text, "(here)") && !strings.Contains(text, "here") {
			t.Errorf("%s: want that this host has no test container", text)
		}
	}
}

// Peers cannot make a test endpoint talk to addresses outside the overlay.
func TestTargetsAreInTheOverlay(t *testing.T) {
	m := newMatrix(nil)
	for payload, valid := range map[string]bool{`{"targets":["10.32.0.9"]}`: true, `{"targets":["192.0.2.1"]}`: false, `{"targets":["10.32.0.9","127.0.0.1"]}`: false, `x`: false} {
		if _, err := m.targets([]byte(payload)); (err == nil) != valid {
			t.Errorf("%s: error %v, want it to be valid: %v", payload, err, valid)
		}
	}
	many, err := json.Marshal(order{make([]netip.Addr, mostTargets+1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.targets(many); err == nil {
		t.Errorf("more than %d targets are accepted", mostTargets)
	}
	if _, err := m.Handlers()[requestProbe](t.Context(), other, []byte(`{"targets":["10.32.0.9"]}`)); err == nil {
		t.Error("a request without a test endpoint was answered, want an error")
	}
}

func FuzzTargets(f *testing.F) {
	f.Add([]byte(`{"targets":["10.32.0.9"]}`))
	m := newMatrix(nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		if list, err := m.targets(data); err == nil && len(list) > mostTargets {
			t.Errorf("%d targets", len(list))
		}
	})
}

// A check ends only the test endpoint that it asked for: checks of several hosts at once do not disturb each other.
func TestOnlyItsOwnerEndsATestEndpoint(t *testing.T) {
	m := newMatrix(mesh{requestStart: `{}`, requestStop: `{}`})
	closed := false
	m.tester, m.owner, m.expiry = &tester{close: func() { closed = true }}, other, time.NewTimer(time.Hour)
	m.Test(t.Context())
	if _, err := m.Handlers()[requestStop](t.Context(), peer.ID{3}, nil); err != nil || closed {
		t.Fatalf("error %v, ended %v; want the endpoint to stay, since another host asked for it", err, closed)
	}
	if _, err := m.Handlers()[requestStop](t.Context(), other, nil); err != nil || !closed || m.tester != nil {
		t.Errorf("error %v, ended %v; want its owner to end it", err, closed)
	}
}
