package path

import (
	"net/netip"
	"testing"
	"time"
)

// Neither loss nor a link that fails again and again makes the MTU look smaller.
func TestLossIsNoSmallerMTU(t *testing.T) {
	for _, busy := range []bool{true, false} {
		for _, loss := range []float64{0, 0.02, 0.1, 0.3} {
			w := newWorld(t, 2, 1)
			cut := false
			w.link = func(_, _ netip.Addr, size int) (bool, time.Duration) {
				return !cut && size <= 1500 && w.random.Float64() >= loss, 5 * time.Millisecond
			}
			w.configure(false)
			for i, h := range w.hosts {
				h.busy[w.hosts[1-i].id] = busy
			}
			w.run(5 * time.Minute)
			var wrong time.Duration
			for end, next := w.now.Add(time.Hour), w.now; w.now.Before(end); w.run(100 * time.Millisecond) {
				if loss == 0 && !w.now.Before(next) { // instead, the link fails
					cut, next = !cut, w.now.Add(time.Second+time.Duration(w.random.Int64N(int64(5*time.Second))))
				}
				if mtu := w.path(0, 1).MTU; mtu < 1500-mtuStep || mtu > 1500 {
					wrong += 100 * time.Millisecond
				}
			}
			if wrong > 30*time.Second {
				t.Errorf("busy %v, loss %v: within an hour the MTU was wrong for %v, want at most 30 s", busy, loss, wrong)
			}
		}
	}
}
