package mesh

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// A peer that repeatedly answers probes by TCP only is reported as mute, until that stops.
// memberlist reports such answers only in its log.
func TestPeerThatAnswersProbesOnlyByTCPIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := still(t, 1)
		other := peer.IDOf(identity(2).Public().(ed25519.PublicKey))
		m.mu.Lock()
		m.peers[other] = &known{}
		m.mu.Unlock()
		mute := func() (is bool) {
			for _, p := range m.Peers() {
				is = is || p.Mute
			}
			return is
		}
		for i := range 3 {
			if mute() {
				t.Errorf("the peer is reported as mute after %d failed probes; want 3", i)
			}
			fmt.Fprintf(logWriter{m}, "[WARN] memberlist: Was able to connect to %s over TCP but UDP probes failed, network may be misconfigured\n", nodeName(other, time.Now()))
			time.Sleep(2 * time.Second)
		}
		if !mute() {
			t.Error("after 3 failed probes the peer is not reported as mute; want it reported")
		}
		time.Sleep(time.Minute)
		if mute() {
			t.Error("a minute after the last failed probe the peer is reported as mute; want no report")
		}
	})
}

// memberlist logs exactly these lines: with UDP blocked, a peer is mute but reachable.
func TestPeerIsReachableAndReportedWhileUDPIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(47)}
		a, b := s.start(1, nil, nil), s.start(2, nil, []string{address(1).Addr().String()})
		eventually.True(t, 10*time.Second, "host b reaches host a", func() bool { return b.Reachable(a.Self()) })
		mute := func() bool {
			return slices.ContainsFunc(b.Peers(), func(p Peer) bool { return p.Mute && p.Reachable && p.Record.ID() == a.Self() })
		}
		if mute() {
			t.Error("while UDP works the peer is reported as mute; want no report")
		}
		s.net.SetLoss(1)
		eventually.True(t, 30*time.Second, "host a is reported as mute", mute)
		s.net.SetLoss(0)
		eventually.True(t, time.Minute, "host a is no longer reported as mute", func() bool { return !mute() && b.Reachable(a.Self()) })
		s.end(a, b)
	})
}
