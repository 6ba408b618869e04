package paths

import (
	"strings"
	"testing"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
)

// unmeasured knows no path.
func unmeasured(peer.ID) (path.Path, bool) { return path.Path{}, false }

// A tunnel that fails again and again is a problem of its own.
func TestAnUnsteadyTunnelIsReported(t *testing.T) {
	own, other := agenttest.Record(1), agenttest.Record(2)
	v := agenttest.ViewOf(own, []mesh.Peer{{Record: own}, {Record: other}}, own.ID())
	for changes, want := range map[int]int{path.Flapping: 0, path.Flapping + 4: 1} {
		got := unsteady(v, func(peer.ID) (path.Path, bool) { return path.Path{State: path.Direct, Changes: changes}, true })
		if len(got) != want || want == 1 && !strings.Contains(got[0].String(), "worked again 7 times within ten minutes") {
			t.Errorf("after %d changes: problems %v, want %d", changes, got, want)
		}
	}
}

// A peer that is lost and found again and again is a problem with a cause. A peer that was lost now
// and then is no problem.
func TestARepeatedlyLostPeerIsReportedWithTheCause(t *testing.T) {
	record := agenttest.Record(2)
	for _, tt := range []struct {
		losses, runs int
		fresh        bool
		want         string
	}{
		{flapLosses - 1, 1, true, ""},
		{flapLosses, 1, true, "Open TCP and UDP 6783"},
		{flapLosses, 1, false, "two hosts have the address 192.0.2.2"},
		{flapLosses, flapLosses, true, "started 4 times"},
	} {
		p := mesh.Peer{Record: record, Losses: tt.losses, Runs: tt.runs}
		got := flapping([]mesh.Peer{p}, peer.ID{1}, func(peer.Record) bool { return tt.fresh })
		if (len(got) == 0) != (tt.want == "") || len(got) > 0 && !strings.Contains(got[0].String(), tt.want) {
			t.Errorf("%+v: problems %v, want the row's", tt, got)
		}
	}
	if got := flapping([]mesh.Peer{{Record: record, Losses: 16}}, record.ID(), nil); got != nil {
		t.Errorf("this host's own record: problems %v, want none", got)
	}
}
