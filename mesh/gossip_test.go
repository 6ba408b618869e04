package mesh

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
)

// slowStart is a network on which memberlist's start takes a while, as on a busy host. Meanwhile it accepts streams.
type slowStart struct{ *meshtest.Transport }

func (s slowStart) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	time.Sleep(200 * time.Millisecond)
	return s.Transport.FinalAdvertiseAddr(ip, port)
}

// Two hosts that do not reach each other join a third one that is still starting, or that has not yet been confirmed.
// The news of each other comes over the third one, long before the next push/pull.
func TestNewsThatComesDuringTheStartReachesAll(t *testing.T) {
	for _, returning := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &cluster{t, meshtest.New(1)}
			s.apart(2, 3)
			disk := &meshtest.Disk{}
			if returning {
				h1, h4 := s.start(1, disk, nil), s.start(4, nil, []string{"192.0.2.1"})
				eventually.True(t, 10*time.Second, "the host stored a peer", func() bool { return len(disk.Peers()) == 2 })
				s.end(h1, h4)
			}
			h1 := s.make(nil, 1, disk, nil, func(c *Config) { c.Transport = slowStart{c.Transport.(*meshtest.Transport)} })
			h1.run()
			h2, h3 := s.start(2, nil, []string{"192.0.2.1"}), s.start(3, nil, []string{"192.0.2.1"})
			eventually.True(t, 5*time.Second, "all hosts know each other", func() bool {
				return record(h2, h3).Identity != nil && record(h3, h2).Identity != nil
			})
			s.end(h1, h2, h3)
		})
	}
}
