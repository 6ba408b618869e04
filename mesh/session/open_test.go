package session

import (
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// A proven peer has a bounded number of streams at once; others still get in, and so does the peer once it
// has closed some.
func TestAProvenPeerHasABoundedNumberOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		var served []*Stream
		serve := make(chan *Stream, 2*maxOpen)
		a := start(t, n, 1, 1, func(c *Config) { c.Serve = func(s *Stream) { serve <- s } })
		b, c := start(t, n, 2, 1), start(t, n, 3, 1)
		for range maxOpen + 20 {
			if s, err := b.Ask(a.at(), Request, time.Second); err == nil {
				served = append(served, s)
			}
			synctest.Wait() // until the other end has taken the stream from its door, which bounds those that wait
		}
		if len(serve) != maxOpen {
			t.Errorf("%d streams of one peer are open, want %d", len(serve), maxOpen)
		}
		s, err := c.Ask(a.at(), Request, time.Second)
		if err != nil {
			t.Fatalf("another peer: %v, want it to get in", err)
		}
		served = append(served, s)
		synctest.Wait()
		if len(serve) != maxOpen+1 {
			t.Errorf("%d streams are open, want one more, of the other peer", len(serve))
		}
		for range 10 {
			(<-serve).Close()
		}
		s, err = b.Ask(a.at(), Request, time.Second)
		synctest.Wait()
		if err != nil || len(serve) != maxOpen-8 {
			t.Errorf("after 10 streams were closed, %d are open, error %v; want %d", len(serve), err, maxOpen-8)
		}
		served = append(served, s)
		for _, s := range served {
			s.Close()
		}
		for len(serve) > 0 {
			(<-serve).Close()
		}
		stop(t, a, b, c)
	})
}
