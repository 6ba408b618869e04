package paths

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
)

// A peer whose tunnel carries packets must not be removed: the request is refused with the reason,
// until nothing has arrived for a while.
func TestHeardProvesThatAPeerLivesUntilItsTunnelIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own, other := agenttest.Record(1), agenttest.Record(2)
		seen := &live.Value[*view.View]{}
		measured := path.Path{State: path.Direct, Received: time.Now().Add(-time.Minute), Answered: time.Now()}
		p := New(Config{View: seen, Measured: func(id peer.ID) (path.Path, bool) { return measured, id == other.ID() }})
		if got := p.Heard(other.ID()); got != "" {
			t.Errorf("before the first view, Heard returned %s, want nothing", got)
		}
		seen.Set(agenttest.ViewOf(own, []mesh.Peer{{Record: own}, {Record: other}}, own.ID()))
		time.Sleep(time.Second)
		if got := p.Heard(other.ID()); !strings.Contains(got, "brought data 1 s ago") || !strings.Contains(got, "Open TCP and UDP 6783") {
			t.Errorf("the peer still counts as alive: %q", got)
		}
		if got := p.Heard(peer.ID{9}); got != "" {
			t.Errorf("of an unknown peer, Heard returned %s, want nothing", got)
		}
		time.Sleep(path.ProofFor)
		if got := p.Heard(other.ID()); got != "" {
			t.Errorf("after the host was switched off, Heard returned %s, want nothing", got)
		}
	})
}
