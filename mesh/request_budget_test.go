package mesh

import (
	"encoding/binary"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/session"
)

// An admitted peer sends the largest requests on as many streams as it may have. That takes bounded memory,
// and other peers are served.
func TestLargeRequestsOfOnePeerTakeBoundedMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(66)}
		a, b := s.start(1, nil, nil), s.start(2, nil, []string{"192.0.2.1"})
		eventually.True(t, 20*time.Second, "both hosts are connected", allReach([]*host{a, b}))
		l := s.liar()
		before := occupied()
		var streams sync.WaitGroup
		for range 64 {
			streams.Go(func() {
				c, err := l.Ask(memberlist.Address{Addr: address(1).String(), Name: a.name}, session.Request, time.Second)
				if err != nil {
					return
				}
				defer c.Close()
				flood(c, binary.BigEndian.AppendUint32(nil, maxStream))
			})
		}
		if worst := mostOccupied(before); worst > 80<<20 {
			t.Errorf("the requests take %d bytes; want at most 80 MiB", worst)
		}
		if err := b.ping(a); err != nil {
			t.Errorf("meanwhile another peer is not served: %v", err)
		}
		streams.Wait()
		holdsNothing(t, a)
		_ = l.list.Shutdown()
		s.end(a, b)
	})
}
