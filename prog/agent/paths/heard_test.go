package paths

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/router/wg"
)

// Traffic through a tunnel proves for a while that the peer is alive. Keys in use only prove it when
// a tunnel is first seen.
func TestTrafficThroughATunnelProvesThatAPeerLives(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	key := [32]byte{1}
	for _, tt := range []struct {
		name     string
		received []int64 // the tunnel's count of received bytes, every 5 s since the start
		keys     time.Duration
		alive    bool
	}{
		{"a tunnel that brings data", []int64{10, 20, 30}, time.Minute, true},
		{"an idle tunnel, between two keepalives", []int64{10, 42, 42, 42, 42, 42}, time.Minute, true},
		{"a tunnel to a host that was powered off, though its keys look fresh", []int64{10, 42, 42, 42, 42, 42, 42, 42, 42, 42, 42}, time.Minute, false},
		{"a tunnel that this agent has just seen for the first time", []int64{42}, time.Minute, true},
		{"a tunnel whose keys are too old", []int64{42}, time.Hour, false},
		{"a tunnel that never worked", []int64{0, 0, 0}, 24 * time.Hour, false},
		{"a tunnel that was made again, and counts from zero", []int64{100, 0, 0, 0, 0, 0, 0, 0, 0}, time.Minute, false},
		{"none", nil, time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := New(Config{})
			now := start
			for i, n := range tt.received {
				now = start.Add(time.Duration(i) * period)
				p.listen(now, wg.Observed{Peers: map[[32]byte]wg.Peer{key: {Received: n, Handshake: start.Add(-tt.keys)}}})
			}
			if ago, alive := p.ago(key, now); alive != tt.alive {
				t.Errorf("a packet %v ago proves that the peer is alive: %v", ago, alive)
			}
		})
	}
	p := New(Config{})
	p.listen(start, wg.Observed{Peers: map[[32]byte]wg.Peer{key: {Received: 1, Handshake: start}}})
	p.listen(start.Add(time.Second), wg.Observed{})
	if _, alive := p.ago(key, start.Add(time.Second)); alive {
		t.Error("a tunnel that no longer exists proves that its peer lives, want no proof")
	}
}

// A peer whose tunnel carries traffic must not be removed: the request is refused with the reason,
// until nothing has arrived for a while.
func TestHeardProvesThatAPeerLivesUntilItsTunnelTrafficStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own, other := agenttest.Record(1), agenttest.Record(2)
		seen := &live.Value[*view.View]{}
		ends := time.Now().Add(time.Minute) // at that time the other host is switched off
		p := New(Config{
			View: seen, Expected: func() []mesh.Target { return nil },
			Observe: func() (wg.Observed, error) {
				now := time.Now()
				received := min(now.Unix(), ends.Unix())
				return wg.Observed{Peers: map[[32]byte]wg.Peer{other.WireGuard: {Received: received, Handshake: ends}}}, nil
			},
		})
		if got := p.Heard(other.ID()); got != "" {
			t.Errorf("before the first view, Heard returned %s, want nothing", got)
		}
		seen.Set(agenttest.ViewOf(own, []mesh.Peer{{Record: own}, {Record: other}}, own.ID()))
		agenttest.Run(t, p.Run)
		time.Sleep(time.Minute + time.Second)
		if got := p.Heard(other.ID()); !strings.Contains(got, "brought data 1 s ago") || !strings.Contains(got, "Open TCP and UDP 6783") {
			t.Errorf("the peer still counts as alive: %q", got)
		}
		if got := p.Heard(peer.ID{9}); got != "" {
			t.Errorf("of an unknown peer, Heard returned %s, want nothing", got)
		}
		time.Sleep(heardFor)
		if got := p.Heard(other.ID()); got != "" {
			t.Errorf("after the host was switched off, Heard returned %s, want nothing", got)
		}
	})
}
