package path

import (
	"net/netip"
	"testing"
	"time"
)

// cutAfter cuts a link of two hosts, and returns how long each takes to show that. A host that does not show it within
// 40 s takes 40 s. The asker is the first host.
func cutAfter(t *testing.T, rtt time.Duration, load func(w *world, asker, other *host), after time.Duration, lost func(w *world, asker *host, to netip.Addr) bool) (took [2]time.Duration) {
	w := newWorld(t, 2, 1)
	asker, order := w.hosts[0], [2]int{0, 1}
	if !prober(w.hosts[0].id, w.hosts[1].id) {
		asker, order = w.hosts[1], [2]int{1, 0}
	}
	cut := false
	w.link = func(_, to netip.Addr, _ int) (bool, time.Duration) { return !cut || !lost(w, asker, to), rtt / 2 }
	w.configure(false)
	w.run(time.Minute)
	load(w, asker, w.hosts[order[1]])
	w.run(30*time.Second + after)
	cut = true
	at := w.now
	w.each = func() {
		for k := range 2 {
			if took[k] == 0 && w.path(order[k], order[1-k]).State != Direct {
				took[k] = w.now.Sub(at)
			}
		}
	}
	w.run(40 * time.Second)
	for k := range took {
		if took[k] == 0 {
			took[k] = 40 * time.Second
		}
	}
	return took
}

var roundTrips = []time.Duration{time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond, 800 * time.Millisecond}

func bothWays(*world, *host, netip.Addr) bool { return true }

// At rest both hosts notice within 20 s that a path is cut, near or far, in either direction or both.
func TestACutAtRestIsNoticed(t *testing.T) {
	for name, lost := range map[string]func(w *world, asker *host, to netip.Addr) bool{
		"both ways":               bothWays,
		"to the host that asks":   func(w *world, asker *host, to netip.Addr) bool { return w.byAddr[to] == asker },
		"from the host that asks": func(w *world, asker *host, to netip.Addr) bool { return w.byAddr[to] != asker },
	} {
		for _, rtt := range roundTrips {
			for after := time.Duration(0); after < 16*time.Second; after += 333 * time.Millisecond {
				for k, took := range cutAfter(t, rtt, func(*world, *host, *host) {}, after, lost) {
					if took > 20*time.Second {
						t.Errorf("cut %s at a round trip of %v, %v after the start: host %d noticed it after %v, want 20 s at most", name, rtt, after, k, took)
					}
				}
			}
		}
	}
}

// At rest the counters of WireGuard are read seldom. A handshake and a keepalive that came before a cut and are seen
// after it do not prove that the path works.
func TestDataFromBeforeACutProvesNothing(t *testing.T) {
	for after := time.Duration(0); after < 15*time.Second; after += 1300 * time.Millisecond {
		for seen := time.Second; seen <= 18*time.Second; seen += time.Second {
			w := newWorld(t, 2, 1)
			cut := false
			w.link = func(netip.Addr, netip.Addr, int) (bool, time.Duration) { return !cut, time.Millisecond }
			w.configure(false)
			for i, h := range w.hosts {
				h.count(w.hosts[1-i]).Handshake = w.now
			}
			w.run(time.Minute + after)
			for i, h := range w.hosts {
				mine := h.count(w.hosts[1-i])
				mine.Handshake, mine.Received, mine.Sent = w.now, mine.Received+92+keepalive, mine.Sent+148
			}
			cut, w.blind = true, true
			w.run(seen)
			w.blind = false
			var down [2]bool
			w.each = func() {
				for i := range down {
					p := w.path(i, 1-i)
					if down[i] && p.State != Deaf {
						t.Fatalf("data from before the cut was seen %v after it: host %d has %+v, want a deaf path", seen, i, p)
					}
					down[i] = p.State == Deaf
				}
			}
			w.run(20*time.Second - seen)
			if !down[0] || !down[1] {
				t.Errorf("data from before the cut was seen %v after it: 20 s after the cut the hosts have %+v and %+v, want deaf paths", seen, w.path(0, 1), w.path(1, 0))
			}
			w.run(20 * time.Second)
		}
	}
}

// Under traffic both hosts notice within 3 s that a path is cut, near or far. A host that only receives a stream takes
// longer if the other one is far: 7 s.
func TestACutUnderTrafficIsNoticed(t *testing.T) {
	little := func(w *world) { w.data, w.pause, w.look = 128, 125*time.Millisecond, 200*time.Millisecond }
	for name, load := range map[string]func(w *world, asker, other *host){
		"traffic both ways": func(w *world, asker, other *host) { asker.busy[other.id], other.busy[asker.id] = true, true },
		"the asker sends":   func(w *world, asker, other *host) { asker.busy[other.id] = true },
		"the other sends":   func(w *world, asker, other *host) { other.busy[asker.id] = true },
		"the asker sends little": func(w *world, asker, other *host) {
			asker.busy[other.id] = true
			little(w)
		},
		"the other sends little": func(w *world, asker, other *host) {
			other.busy[asker.id] = true
			little(w)
		},
	} {
		for _, rtt := range roundTrips {
			limit := 3 * time.Second
			if rtt > 300*time.Millisecond && name != "traffic both ways" {
				limit = 7 * time.Second
			}
			for after := time.Duration(0); after < 4*time.Second; after += 37 * time.Millisecond {
				for k, took := range cutAfter(t, rtt, load, after, bothWays) {
					if took > limit {
						t.Errorf("%s, cut at a round trip of %v, %v after the start: host %d noticed it after %v, want %v at most", name, rtt, after, k, took, limit)
					}
				}
			}
		}
	}
}

// A stream in one direction that arrives costs few questions, and raises no alarm, though it never gets an answer. Only
// with a round trip of askAgain or more it does.
func TestAStreamWithoutAnswersCostsFewQuestions(t *testing.T) {
	for i := range 6 {
		k, rtt := i%2, roundTrips[i/2]
		w := newWorld(t, 2, 1)
		questions, alarmed := 0, 0
		w.link = func(from, _ netip.Addr, size int) (bool, time.Duration) {
			if size != int(w.data) && w.byAddr[from] == w.hosts[k] {
				questions++
			}
			return true, rtt / 2
		}
		w.configure(false)
		w.hosts[k].busy[w.hosts[1-k].id] = true
		w.look = 200 * time.Millisecond
		w.run(time.Minute)
		questions = 0
		w.each = func() {
			for n, h := range w.hosts {
				if !h.peers[w.hosts[1-n].id].alarm.IsZero() {
					alarmed++
				}
			}
		}
		w.run(time.Minute)
		if questions > 150 || alarmed > 0 {
			t.Errorf("a round trip of %v: host %d sent %d probes in a minute of a stream that arrives, with alarms in %d steps; want 150 at most, and no alarm", rtt, k, questions, alarmed)
		}
	}
}

// A probe that is lost meanwhile raises one alarm at most.
func TestALostProbeInAStreamRaisesOneAlarm(t *testing.T) {
	for k := range 2 {
		for after := time.Duration(0); after < 4*time.Second; after += 50 * time.Millisecond {
			w := newWorld(t, 2, 1)
			lose, alarms, doubt := false, 0, false
			w.link = func(_, _ netip.Addr, size int) (bool, time.Duration) {
				lost := lose && size != int(w.data)
				lose = lose && !lost
				return !lost, time.Millisecond
			}
			w.configure(false)
			w.hosts[k].busy[w.hosts[1-k].id] = true
			w.look = 200 * time.Millisecond
			w.run(time.Minute + after)
			lose = true
			w.each = func() {
				now := !w.hosts[k].peers[w.hosts[1-k].id].alarm.IsZero()
				if now && !doubt {
					alarms++
				}
				doubt = now
			}
			w.run(6 * time.Second)
			if lose || alarms > 1 {
				t.Errorf("a probe was lost (%v) %v after the start of a stream from host %d: %d alarms, want one at most", !lose, after, k, alarms)
			}
		}
	}
}

// When a cut of both directions ends, no host says that it is one-way.
func TestTheEndOfACutIsNotOneWay(t *testing.T) {
	for _, busy := range []bool{false, true} {
		for _, quiet := range []bool{false, true} {
			for k := range 60 {
				w := newWorld(t, 2, 1)
				cut := false
				w.link = func(netip.Addr, netip.Addr, int) (bool, time.Duration) { return !cut, 50 * time.Millisecond }
				w.configure(false)
				for i, h := range w.hosts {
					h.busy[w.hosts[1-i].id] = busy
				}
				w.run(time.Minute)
				cut = true
				w.run(30 * time.Second)
				w.quiet = quiet
				w.configure(false)
				w.run(time.Minute + time.Duration(k)*211*time.Millisecond)
				cut = false
				w.each = func() {
					for i := range 2 {
						if p := w.path(i, 1-i); p.State == Unheard {
							t.Errorf("busy %v, gossip lost %v, cut for %d times 211 ms more than a minute: host %d says one-way: %+v", busy, quiet, k, i, p)
							w.each = nil
						}
					}
				}
				w.run(20 * time.Second)
				for i := range 2 {
					if p := w.path(i, 1-i); p.State != Direct {
						t.Errorf("20 s after a cut host %d has %+v, want a direct path", i, p)
					}
				}
			}
		}
	}
}

// A path that changed often is calm again after ten minutes at rest, for both hosts.
func TestFlappingEnds(t *testing.T) {
	w := newWorld(t, 2, 1)
	cut := false
	w.link = func(netip.Addr, netip.Addr, int) (bool, time.Duration) { return !cut, 5 * time.Millisecond }
	w.configure(false)
	w.run(time.Minute)
	for range 7 {
		cut = true
		w.run(25 * time.Second)
		cut = false
		w.run(10 * time.Second)
	}
	w.run(flappingSpan)
	for i := range 2 {
		if p := w.path(i, 1-i); p.Changes != 0 || p.Moves != 0 || p.State != Direct {
			t.Errorf("ten minutes after the last change host %d has %+v, want no changes and a direct path", i, p)
		}
	}
}
