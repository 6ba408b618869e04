package mesh

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
)

// side tells on which side of the cut a host is.
func side(a netip.Addr) bool { return a == address(2).Addr() || a == address(3).Addr() }

// Hosts are cut off from one another for a time, and declare each other dead. Afterwards they are connected
// again, and nobody is accused.
func TestNobodyIsAccusedAfterACut(t *testing.T) {
	for _, cut := range []time.Duration{3 * time.Second, 7 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute} {
		t.Run(cut.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &cluster{t, meshtest.New(65)}
				hosts := []*host{s.start(1, nil, nil)}
				for i := 2; i <= 5; i++ {
					hosts = append(hosts, s.start(i, nil, []string{"192.0.2.1"}))
				}
				eventually.True(t, 20*time.Second, "all hosts are connected", allReach(hosts))
				time.Sleep(10 * time.Second)
				s.net.Partition(func(a, b netip.Addr) bool { return side(a) != side(b) })
				time.Sleep(cut)
				s.net.Heal()
				eventually.True(t, 2*time.Minute, "all hosts are connected again", allReach(hosts))
				time.Sleep(time.Minute)
				for _, h := range hosts {
					for _, r := range h.Rejections() {
						t.Errorf("after a cut of %v, a host is accused: %+v; want none", cut, r)
					}
				}
				s.end(hosts...)
			})
		})
	}
}
