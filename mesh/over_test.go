package mesh

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// Two hosts do not reach each other in any way. A third one passes their requests on, also those that prove that each is
// alive. If it is no relay, they have only news of each other.
func TestRequestsGoOverAnotherMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, refuses := range []bool{false, true} {
			s := &cluster{t, meshtest.New(1)}
			s.net.HangDials() // as behind a firewall that drops packets
			over := func(c *Config) {
				c.NoRelay = refuses
				c.Relays = func(peer.ID) []peer.ID { return []peer.ID{idOf(1)} }
			}
			s.apart(2, 3)
			h1 := s.start(1, nil, nil, over)
			h2, h3 := s.start(2, nil, []string{"192.0.2.1"}, over), s.start(3, nil, []string{"192.0.2.1"}, over)
			knows := func() bool { return record(h2, h3).Identity != nil && record(h3, h2).Identity != nil }
			eventually.True(t, 20*time.Second, "all hosts know each other", knows)
			if refuses {
				time.Sleep(20 * time.Second)
				if h2.Reachable(h3.self) || h3.Reachable(h2.self) {
					t.Error("over a host that is no relay two hosts reach each other, want that they do not")
				}
			} else {
				eventually.True(t, 20*time.Second, "gossip reaches all hosts", allReach([]*host{h1, h2, h3}))
				for _, ends := range [][2]*host{{h2, h3}, {h3, h2}} {
					if err := ends[0].ping(ends[1]); err != nil {
						t.Error(err)
					}
				}
			}
			s.end(h1, h2, h3)
		}
	})
}
