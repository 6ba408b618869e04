package path

import (
	"net/netip"
	"testing"
	"time"
)

// between cuts or changes the packets from one network address to another.
func netOf(a netip.Addr) byte { return a.As4()[1] }

func TestPathsAreMeasured(t *testing.T) {
	w := newWorld(t, 3, 1)
	w.link = func(_, _ netip.Addr, size int) (bool, time.Duration) { return size <= 1450, 20 * time.Millisecond }
	w.configure(false)
	w.run(20 * time.Second)
	for i := range w.hosts {
		for j := range w.hosts {
			if i == j {
				continue
			}
			p := w.path(i, j)
			if p.State != Direct || p.Endpoint != netip.AddrPortFrom(w.hosts[j].addrs[0], port) || !p.Measured || p.RTT < 40*time.Millisecond || p.RTT > 41*time.Millisecond || p.Loss != 0 || p.MTU < 1447 || p.MTU > 1450 {
				t.Errorf("host %d measured the path to host %d as %+v; want direct, 40 ms, no loss, an MTU of 1450", i, j, p)
			}
		}
	}
}

// A cut shows within 3 s under traffic and within 20 s at rest, on both sides, and its end within 5 s.
func TestCutsShowInTime(t *testing.T) {
	for _, busy := range []bool{true, false} {
		for _, way := range []string{"both", "to 1", "to 0", "wall of 0"} {
			w := newWorld(t, 2, 1)
			cut := false
			w.link = func(_, to netip.Addr, _ int) (bool, time.Duration) {
				return !cut || way == "wall of 0" || way == "to 1" && to != w.hosts[1].addrs[0] || way == "to 0" && to != w.hosts[0].addrs[0], 5 * time.Millisecond
			}
			w.configure(false)
			for i, h := range w.hosts {
				h.busy[w.hosts[1-i].id] = busy
			}
			for round := range 5 {
				cut = false
				w.run(60*time.Second + time.Duration(round)*1700*time.Millisecond)
				cut = true
				w.hosts[0].walled = way == "wall of 0"
				limit := 20 * time.Second
				if busy {
					limit = 3 * time.Second
				}
				w.run(limit)
				deaf := 0
				for i := range 2 {
					p := w.path(i, 1-i)
					if p.State == Direct || p.State == Unknown {
						t.Errorf("traffic %v, cut %s: %v after the cut host %d says %+v; want that nothing passes", busy, way, limit, i, p)
					}
					if p.State == Deaf {
						deaf++
					}
				}
				if want := map[string]int{"both": 2, "to 1": 1, "to 0": 1, "wall of 0": 1}[way]; way == "both" && deaf != want {
					t.Errorf("traffic %v, cut %s: %d hosts say that they hear nothing; want %d: %+v %+v", busy, way, deaf, want, w.path(0, 1), w.path(1, 0))
				}
				if p := w.path(0, 1); p.Refused != (way == "wall of 0") {
					t.Errorf("traffic %v, cut %s: refused by the own firewall: %v; want the opposite", busy, way, p.Refused)
				}
				w.run(5 * time.Second)
				for i, hears := range map[int]bool{0: way == "to 1" || way == "wall of 0", 1: way == "to 0"} {
					if p := w.path(i, 1-i); hears != (p.State == Unheard) {
						t.Errorf("traffic %v, cut %s: host %d says %+v; want that it is unheard: %v", busy, way, i, p, hears)
					}
				}
				w.run(10 * time.Second)
				cut, w.hosts[0].walled = false, false
				w.run(5 * time.Second)
				for i := range 2 {
					if p := w.path(i, 1-i); p.State != Direct {
						t.Errorf("traffic %v, cut %s: 5 s after its end host %d says %+v; want direct", busy, way, i, p)
					}
				}
			}
		}
	}
}

// A cut directly after the start of both hosts shows in time, too.
func TestACutAfterTheStartShows(t *testing.T) {
	for _, cut := range []time.Duration{0, 3 * time.Millisecond, 300 * time.Millisecond} {
		w := newWorld(t, 2, 1)
		start := w.now
		w.link = func(netip.Addr, netip.Addr, int) (bool, time.Duration) {
			return w.now.Sub(start) < cut, 5 * time.Millisecond
		}
		w.configure(false)
		for i, h := range w.hosts {
			h.busy[w.hosts[1-i].id] = true
		}
		w.run(cut + 5*time.Second)
		for i := range 2 {
			if p := w.path(i, 1-i); p.State != Deaf {
				t.Errorf("5 s after a cut that came %v after the start host %d says %+v; want that it hears nothing", cut, i, p)
			}
		}
	}
}

// When the network in use fails, the tunnel moves to the other one within 3 s, on both sides to the same
// pair of addresses.
func TestTheTunnelMovesToAnAddressThatWorks(t *testing.T) {
	w := newWorld(t, 2, 2)
	var dead byte = 99
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		return netOf(from) != dead && netOf(to) != dead, 2 * time.Millisecond
	}
	w.configure(false)
	for i, h := range w.hosts {
		h.busy[w.hosts[1-i].id] = true
	}
	w.run(30 * time.Second)
	for range 4 {
		dead = netOf(w.path(0, 1).Endpoint.Addr())
		w.run(3 * time.Second)
		for i := range 2 {
			if p := w.path(i, 1-i); p.State != Direct || netOf(p.Endpoint.Addr()) == dead {
				t.Fatalf("3 s after network %d failed host %d has %+v; want the other network", dead, i, p)
			}
		}
		dead = 99
		w.run(3 * time.Minute)
	}
}

// The nearest address wins, once it is clearly nearer; noise moves nothing.
func TestTheNearestAddressWins(t *testing.T) {
	w := newWorld(t, 2, 3)
	delays := []time.Duration{30 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond}
	noise := time.Duration(0)
	w.link = func(from, _ netip.Addr, _ int) (bool, time.Duration) {
		return true, delays[netOf(from)] + time.Duration(w.random.Int64N(int64(noise)+1))
	}
	w.configure(false)
	w.run(20 * time.Second)
	for i := range 2 {
		if p := w.path(i, 1-i); netOf(p.Endpoint.Addr()) != 1 {
			t.Errorf("host %d chose %v; want the address at 10 ms", i, p.Endpoint)
		}
	}
	delays = []time.Duration{time.Millisecond, 30 * time.Millisecond, 50 * time.Millisecond}
	left, span := 0, [2]time.Time{}
	w.each = func() {
		for i := range 2 {
			p := w.path(i, 1-i)
			if !p.Left.IsValid() {
				continue
			}
			left |= 1 << i
			span[1] = w.now
			if span[0].IsZero() {
				span[0] = w.now
			}
			if h := w.hosts[i]; p.Left.Addr() != w.hosts[1-i].addrs[1] || netOf(p.Endpoint.Addr()) != 0 || p.Own != h.addrs[0] {
				t.Fatalf("host %d moved: %+v; want packets from the second address to look like those from the first", i, p)
			}
		}
	}
	w.run(othersEvery + 10*time.Second)
	if took := span[1].Sub(span[0]); left != 1 && left != 2 || took < lateFor-time.Second || took > lateFor+time.Second {
		t.Errorf("late packets were expected by the hosts %b, for %v; want one, for %v", left, took, lateFor)
	}
	w.each = nil
	for i := range 2 {
		if p := w.path(i, 1-i); netOf(p.Endpoint.Addr()) != 0 {
			t.Errorf("host %d uses %v; want the address that has become the nearest, once the others were looked at", i, p.Endpoint)
		}
	}
	delays = []time.Duration{10 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond}
	noise = 2 * time.Millisecond
	moves := 0
	at := w.path(0, 1).Endpoint
	w.each = func() {
		if p := w.path(0, 1); p.Endpoint != at {
			at, moves = p.Endpoint, moves+1
		}
	}
	w.run(30 * time.Minute)
	if moves > 1 {
		t.Errorf("among equal addresses the tunnel moved %d times; want it to stay", moves)
	}
}

// A host that has a new address is followed before any record says so.
func TestARenumberedHostIsFollowed(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.configure(false)
	for i, h := range w.hosts {
		h.busy[w.hosts[1-i].id] = true
	}
	w.run(20 * time.Second)
	h := w.hosts[1]
	old := h.addrs[0]
	delete(w.byAddr, old)
	h.addrs[0] = netip.AddrFrom4([4]byte{10, 0, 99, 99})
	w.byAddr[h.addrs[0]] = h
	remotes := w.remotes(h)
	h.Configure(w.now, remotes, true)
	h.next = w.now
	w.run(3 * time.Second)
	if p := w.path(0, 1); p.State != Direct || p.Endpoint.Addr() != h.addrs[0] {
		t.Errorf("3 s after the host was renumbered the path is %+v; want its new address", p)
	}
}

// A peer whose agent is down answers no probes, but its tunnel works: keepalives and data show that.
func TestATunnelWorksWithoutThePeersAgent(t *testing.T) {
	for _, busy := range []bool{false, true} {
		w := newWorld(t, 2, 1)
		w.configure(false)
		for i, h := range w.hosts {
			h.busy[w.hosts[1-i].id] = busy
		}
		w.run(30 * time.Second)
		w.hosts[1].mute, w.quiet = true, true
		w.configure(false)
		keepalives := func() {
			w.hosts[0].count(w.hosts[1]).Received += keepalive
			w.run(25 * time.Second)
		}
		w.run(20 * time.Second)
		keepalives() // the first one begins the count
		keepalives()
		changes := len(w.hosts[0].peers[w.hosts[1].id].changes)
		for range 6 {
			keepalives()
			if p := w.path(0, 1); p.State != Direct {
				t.Errorf("traffic %v: with a keepalive every 25 s the path is %+v; want direct", busy, p)
			}
		}
		if now := len(w.hosts[0].peers[w.hosts[1].id].changes); now != changes {
			t.Errorf("traffic %v: the state changed %d times meanwhile; want never", busy, now-changes)
		}
		if !busy {
			w.run(50 * time.Second)
			if p := w.path(0, 1); p.State != Deaf {
				t.Errorf("75 s after the last keepalive the path is %+v; want that nothing is heard", p)
			}
		}
	}
}

// A host whose clock was set back, as after a start without a battery, is believed again soon.
func TestAClockMayBeSetBack(t *testing.T) {
	w := newWorld(t, 2, 2)
	w.configure(false)
	w.run(30 * time.Second)
	for _, h := range w.hosts {
		h.last += int64(24 * time.Hour) // what it sends from now on is a day ahead
	}
	w.run(30 * time.Second)
	for _, h := range w.hosts {
		h.last = 0
	}
	w.run(40 * time.Second)
	for i := range 2 {
		if p := w.path(i, 1-i); p.State != Direct || w.now.Sub(p.Asked) > patience && !w.hosts[i].peers[w.hosts[1-i].id].first {
			t.Errorf("40 s after the clock was set back host %d has %+v; want that it hears the other's questions", i, p)
		}
	}
}

// The MTU that the smallest link allows is found, and its changes are noticed under traffic.
func TestTheMTUIsMeasured(t *testing.T) {
	w := newWorld(t, 2, 1)
	mtu, back, loss := 9000, 9000, 0.0
	w.link = func(from, _ netip.Addr, size int) (bool, time.Duration) {
		limit := mtu
		if from == w.hosts[1].addrs[0] {
			limit = back
		}
		return size <= limit && w.random.Float64() >= loss, time.Millisecond
	}
	w.configure(false)
	for i, h := range w.hosts {
		h.busy[w.hosts[1-i].id] = true
	}
	check := func(what string, want int) {
		t.Helper()
		for i := range 2 {
			if p := w.path(i, 1-i); p.MTU > want || p.MTU < want-mtuStep {
				t.Errorf("%s: host %d measured an MTU of %d; want %d", what, i, p.MTU, want)
			}
		}
	}
	w.run(5 * time.Second)
	check("jumbo everywhere", 9000)
	for _, m := range []int{1500, 1400, 1337, 1280} {
		mtu = m
		w.run(12 * time.Second)
		check("a router with a smaller MTU", m)
	}
	back = 1100
	w.run(12 * time.Second)
	check("a smaller MTU on the way back", 1100)
	for _, h := range w.hosts {
		clear(h.busy)
	}
	mtu, back = 9000, 9000
	w.run(21 * time.Minute)
	check("it grew again", 9000)
	loss = 0.1
	mtu = 1500
	for i, h := range w.hosts {
		h.busy[w.hosts[1-i].id] = true
	}
	w.run(40 * time.Second)
	check("with loss", 1500)
}

// Loss shows within 30 s under traffic, and is no cut.
func TestLossShowsUnderTraffic(t *testing.T) {
	for _, percent := range []int{10, 30} {
		w := newWorld(t, 2, 2)
		w.configure(false)
		for i, h := range w.hosts {
			h.busy[w.hosts[1-i].id] = true
		}
		w.run(10 * time.Second)
		w.link = func(netip.Addr, netip.Addr, int) (bool, time.Duration) {
			return w.random.IntN(100) >= percent, time.Millisecond
		}
		cuts := 0
		w.each = func() {
			for i := range 2 {
				if w.path(i, 1-i).State != Direct {
					cuts++
				}
			}
		}
		for span := 30 * time.Second; span < 10*time.Minute; span *= 2 {
			w.run(span)
			for i := range 2 {
				if p := w.path(i, 1-i); p.Loss <= 0 || p.Loss >= 1 {
					t.Errorf("with a loss of %d %% in each direction host %d says %+v; want a loss between 0 and 1", percent, i, p)
				}
			}
		}
		if cuts > 0 {
			t.Errorf("with a loss of %d %% a path was not direct at %d moments; want none", percent, cuts)
		}
	}
}

// A smaller MTU is noticed at rest, too, also if a larger one is due to be tried.
func TestASmallerMTUIsNoticedAtRest(t *testing.T) {
	w := newWorld(t, 2, 1)
	mtu := 1290
	w.link = func(_, _ netip.Addr, size int) (bool, time.Duration) { return size <= mtu, time.Millisecond }
	w.configure(false)
	w.run(10 * time.Second)
	mtu = 600
	w.run(verifyRest + 30*time.Second)
	for i := range 2 {
		if p := w.path(i, 1-i); p.MTU > mtu || p.MTU < mtu-mtuStep {
			t.Errorf("host %d measured an MTU of %d; want %d", i, p.MTU, mtu)
		}
	}
}

// A peer of a version that answers no probes is judged by what WireGuard receives.
func TestAPeerWithoutProbesIsJudgedByItsData(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.hosts[1].mute = true
	w.configure(false)
	w.hosts[0].count(w.hosts[1]).Handshake = w.now
	step := func(received bool) {
		if received {
			w.hosts[0].count(w.hosts[1]).Received += 32
		}
		w.run(25 * time.Second)
	}
	step(true)
	for range 5 {
		step(true)
		if p := w.path(0, 1); p.State != Direct {
			t.Fatalf("with a keepalive every 25 s the path is %+v; want direct", p)
		}
	}
	step(false)
	step(false)
	if p := w.path(0, 1); p.State != Deaf {
		t.Errorf("50 s without a keepalive the path is %+v; want that nothing is heard", p)
	}
}
