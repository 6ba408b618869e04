package path

import (
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"weft/mesh/peer"
)

// A switch splits hosts into halves; some hosts reach both.
func TestASplitOfManyHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	hosts, relays := 72, 4
	if s := os.Getenv("HOSTS"); s != "" {
		hosts, _ = strconv.Atoi(s)
		relays, _ = strconv.Atoi(os.Getenv("RELAYS"))
	}
	cut := false
	w := newWorld(t, hosts, 1)
	half := map[netip.Addr]int{}
	for i, h := range w.hosts {
		if i >= relays {
			half[h.addrs[0]] = 1 + i%2
		}
	}
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		a, b := half[from], half[to]
		return !cut || a == 0 || b == 0 || a == b, time.Millisecond
	}
	w.slow = 200 * time.Millisecond
	for _, h := range w.hosts {
		h.cfg.Relays = func(to peer.ID, avoid func(peer.ID) bool) []peer.ID {
			best, least := -1, byte(0)
			for i, o := range w.hosts[:relays] {
				if tie := h.id[0] ^ to[0] ^ byte(i*57); o != h && (avoid == nil || !avoid(o.id)) && (best < 0 || tie < least) {
					best, least = i, tie
				}
			}
			if best < 0 {
				return nil
			}
			return []peer.ID{w.hosts[best].id}
		}
	}
	w.configure(false)
	w.run(30 * time.Second)
	cut = true
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	pairs := 0
	working := func() (n int) {
		pairs = 0
		for i := relays; i < hosts; i++ {
			for k := i + 1; k < hosts; k++ {
				if half[w.hosts[i].addrs[0]] != half[w.hosts[k].addrs[0]] {
					pairs++
					if a, b := w.path(i, k), w.path(k, i); a.State == Direct && b.State == Direct && !a.Via.IsZero() && !b.Via.IsZero() {
						n++
					}
				}
			}
		}
		return n
	}
	for step, d := range []time.Duration{2 * time.Second, 8 * time.Second, 10 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute} {
		versions, relay := w.hosts[hosts-1].Version(), w.hosts[0].Version()
		sent := w.sent
		w.run(d)
		var after runtime.MemStats
		runtime.ReadMemStats(&after)
		legs := 0
		for _, h := range w.hosts[:relays] {
			legs += len(h.legs)
		}
		t.Logf("step %d, %v more: %d of %d pairs work, %d legs; an end made %.1f versions/s, a relay %.1f; %d kB/s of all; real %v, %d MB allocated", step, d, working(), pairs, legs,
			float64(w.hosts[hosts-1].Version()-versions)/d.Seconds(), float64(w.hosts[0].Version()-relay)/d.Seconds(), (w.sent-sent)/1000/int(d.Seconds()), time.Since(start).Round(time.Millisecond), (after.TotalAlloc-before.TotalAlloc)>>20)
		if room := pairs*2 < maxLegs*relays*3/4; room && step >= 2 && (working() < pairs || legs > pairs*5/2) {
			t.Errorf("step %d: %d of %d pairs work by %d registrations, want all, by about two each", step, working(), pairs, legs)
		}
	}
}
