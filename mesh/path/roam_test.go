package path

import (
	"net/netip"
	"testing"
	"time"
)

// A host that sends to the other's first network from the address of its second one makes the other's
// WireGuard roam there. The endpoints settle, whichever of the two hosts probes the calm tunnel.
func TestEndpointsSettleIfRoutesAreAsymmetric(t *testing.T) {
	for odd := range 2 {
		w := newWorld(t, 2, 2)
		w.configure(false)
		w.run(20 * time.Second)
		h := w.hosts[odd]
		h.source = func(netip.Addr) netip.Addr { return h.addrs[1] }
		var device [2]netip.AddrPort // the endpoints in WireGuard
		changes := 0
		step := func(i int, planned bool) {
			h, o := w.hosts[i], w.hosts[1-i]
			if p := w.path(i, 1-i); planned && p.Endpoint.IsValid() && device[i] != p.Endpoint {
				device[i] = p.Endpoint
				changes++
			}
			if !device[i].IsValid() {
				return
			}
			mine := h.count(o)
			mine.Sent, mine.Endpoint = mine.Sent+1000, device[i]
			from := h.addrs[netOf(device[i].Addr())]
			if h.source != nil {
				from = h.source(device[i].Addr())
			}
			if at := netip.AddrPortFrom(from, port); device[1-i] != at {
				device[1-i] = at
				changes++
			}
			theirs := o.count(h)
			theirs.Received, theirs.Endpoint = theirs.Received+1000, device[1-i]
		}
		for n := range 600 { // 150 s; the plan is applied every 2 s
			if n == 120 {
				changes = 0
			}
			for i := range 2 {
				step(i, n%8 == 0)
			}
			w.run(250 * time.Millisecond)
		}
		if changes > 0 {
			t.Errorf("host %d sends from another address: the endpoints in WireGuard changed %d times within 120 s after half a minute, want none; now %v, planned %v and %v", odd, changes, device, w.path(0, 1).Endpoint, w.path(1, 0).Endpoint)
		}
	}
}

// A host is busy when its agent starts, so the first answers take longer. That moves no tunnel to another address that is
// as far: a move from one address family to the other loses packets.
func TestABusyStartMovesNoTunnel(t *testing.T) {
	for slow := range 3 {
		w := newWorld(t, 2, 2)
		began := w.now
		w.link = func(_, to netip.Addr, _ int) (bool, time.Duration) {
			if to.As4()[1] == 0 && w.now.Sub(began) < time.Duration(slow)*gapMin {
				return true, 6 * time.Millisecond
			}
			return true, 500 * time.Microsecond
		}
		w.configure(false)
		w.hosts[0].busy[w.hosts[1].id], w.hosts[1].busy[w.hosts[0].id] = true, true
		w.run(time.Minute)
		for i := range 2 {
			if p := w.path(i, 1-i); p.Endpoint.Addr().As4()[1] != 0 || p.Moves != 0 {
				t.Errorf("answers were slow for %d times 200 ms: host %d moved its tunnel to %v in %d moves, want the first address", slow, i, p.Endpoint, p.Moves)
			}
		}
	}
}
