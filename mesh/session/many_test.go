package session

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// Packets arrive in both directions after any number of streams were opened at once, by both ends.
func TestPacketsArriveAfterManyStreamsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := start(t, n, 1, 1), start(t, n, 2, 1)
		const rounds = 50
		for range rounds {
			var group sync.WaitGroup
			for i := range 24 {
				from, to := a, b
				if i%2 == 0 {
					from, to = b, a
				}
				group.Go(func() {
					s, err := from.Ask(to.at(), Keys, time.Second)
					if err != nil {
						t.Error(err)
						return
					}
					s.Close()
				})
			}
			group.Wait()
			synctest.Wait()
			a.send(b, "x")
			b.send(a, "x")
			time.Sleep(10 * time.Millisecond)
		}
		if to, from := len(b.got()), len(a.got()); to < rounds || from < rounds {
			t.Errorf("of %d packets in each direction, %d and %d arrived; want all", rounds, to, from)
		}
		stop(t, a, b)
	})
}
