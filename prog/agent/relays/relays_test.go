package relays

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/measure"
	"weft/prog/agent/view"
	"weft/router/nft"
)

// A relay shows what it forwards. Drops are a problem for a minute.
func TestARelayShowsWhatItForwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := netip.MustParseAddrPort
		v := agenttest.View()
		pair := path.Pair{
			Peers: [2]peer.ID{{1}, {2}},
			Legs:  [2]path.Leg{{Host: at("192.0.2.1:20001"), Own: at("192.0.2.3:6784")}, {Host: at("192.0.2.2:20002"), Own: at("192.0.2.3:6784")}},
		}
		var relayed live.Value[measure.Relayed]
		relayed.Set(measure.Relayed{Pairs: []path.Pair{pair}})
		seen := &live.Value[*view.View]{}
		seen.Set(v)
		counters := [2]nft.Forwarded{{Passed: 1000}, {Passed: 2000}}
		var failed error
		r := New(Config{View: seen, Relayed: &relayed, Forwarded: func(p nft.Pair) ([2]nft.Forwarded, error) {
			if p[0].Host != pair.Legs[0].Host || p[1].Own != pair.Legs[1].Own {
				t.Errorf("the counters of %v are read, want those of %v", p, pair)
			}
			return counters, failed
		}})
		all := r.Status(v)
		if len(all) != 2 || all[0].Bytes != 1000 || all[1].Bytes != 2000 || all[0].To != all[1].From || len(r.Problems(v)) != 0 {
			t.Errorf("the status is %+v with problems %v, want 1000 and 2000 bytes, and no problem", all, r.Problems(v))
		}
		counters[1].Dropped = 5
		if list := r.Problems(v); len(list) != 1 || !strings.Contains(list[0].String(), "512 MiB per second") {
			t.Errorf("the problems are %v, want one with the limit", list)
		}
		time.Sleep(dropsLast)
		if list := r.Problems(v); len(list) != 0 {
			t.Errorf("a minute later the problems are %v, want none", list)
		}
		relayed.Set(measure.Relayed{Pairs: slices.Repeat([]path.Pair{pair}, path.ManyPairs)})
		if list := r.Problems(v); len(list) != 1 || !strings.Contains(list[0].String(), "480 pairs of hosts") {
			t.Errorf("the problems of a full relay are %v, want one with the number of its pairs", list)
		}
		relayed.Set(measure.Relayed{Pairs: []path.Pair{pair}})
		if failed = errors.New("no netlink"); len(r.Status(v)) != 0 {
			t.Errorf("the status is %v without counters, want nothing", r.Status(v))
		}
	})
}
