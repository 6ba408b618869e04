package path

import (
	"net/netip"
	"testing"
	"time"
)

// The nearest of several addresses is found soon after the start, also on busy hosts, where a round trip varies, and if
// data or the other host's questions come first.
func TestTheNearestAddressIsFoundAtTheStart(t *testing.T) {
	for seed := range 200 {
		w := newWorld(t, 2, 2)
		for range seed {
			w.random.Uint64()
		}
		w.link = func(from, to netip.Addr, size int) (bool, time.Duration) {
			delay := time.Millisecond/2 + time.Duration(w.random.Int64N(int64(20*time.Millisecond)))
			if to.As4()[1] == 0 {
				delay += 30 * time.Millisecond
			}
			return true, delay
		}
		first, second := w.hosts[seed%2], w.hosts[1-seed%2]
		first.Configure(w.now, w.remotes(first), false)
		first.next = w.now
		w.run(time.Duration(w.random.Int64N(int64(2 * time.Second))))
		second.Configure(w.now, w.remotes(second), false)
		second.next = w.now
		if seed%4 != 0 { // WireGuard has an endpoint before any answer comes, and later the one that is chosen
			first.count(second).Endpoint = netip.AddrPortFrom(second.addrs[0], port)
			second.count(first).Endpoint = netip.AddrPortFrom(first.addrs[0], port)
			w.each = func() {
				for i, h := range w.hosts {
					if p := w.path(i, 1-i); p.Endpoint.IsValid() {
						h.count(w.hosts[1-i]).Endpoint = p.Endpoint
					}
				}
			}
		}
		first.busy[second.id] = seed%3 == 0
		second.busy[first.id] = seed%5 == 0
		w.run(10 * time.Second)
		for i := range 2 {
			if p := w.path(i, 1-i); p.State != Direct || p.Endpoint.Addr().As4()[1] != 1 || p.RTT == 0 {
				t.Errorf("seed %d: after 10 s host %d has %+v; want the nearest address", seed, i, p)
			}
		}
	}
}
