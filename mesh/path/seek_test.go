package path

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weft/mesh/peer"
)

// A host behind NAT is the relay that is chosen first. It is not asked to forward, since it may not hear ports that it has
// not sent to. If there is no other relay, it is tried.
func TestRelaysBehindNATAreTheLastChoice(t *testing.T) {
	for _, others := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d other relays", others), func(t *testing.T) {
			const a, b, hidden = 0, 1, 2
			w := newWorld(t, 3+others, 1)
			outer := netip.MustParseAddr("10.0.99.99")
			w.byAddr[outer] = w.hosts[hidden]
			w.hosts[hidden].source = func(netip.Addr) netip.Addr { return outer }
			w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
				between := w.byAddr[from] == w.hosts[a] && w.byAddr[to] == w.hosts[b] || w.byAddr[from] == w.hosts[b] && w.byAddr[to] == w.hosts[a]
				return !between && to != w.hosts[hidden].addrs[0], time.Millisecond
			}
			w.allRelay()
			w.configure(false)
			w.until(20*time.Second, "the hosts use a relay", func() bool { return w.uses(a, b) == hidden+others })
			if asked := len(w.hosts[hidden].legs); (asked == 0) != (others > 0) {
				t.Errorf("%d hosts asked the relay behind NAT, want none only if there is another relay", asked)
			}
		})
	}
}

// Two hosts behind NAT that gossip does not reach have just started: each reaches the relays a moment later than the
// other one. Soon they use the relay that is not behind NAT.
func TestHostsThatStartOneAfterTheOtherMeetAtTheBestRelay(t *testing.T) {
	const a, b, hidden, public = 0, 1, 2, 3
	for i := range 32 {
		last, late := i%2, time.Duration(i/2)*300*time.Millisecond
		t.Run(fmt.Sprintf("host %d %v later", last, late), func(t *testing.T) {
			w := newWorld(t, 4, 1)
			outer, start := netip.MustParseAddr("10.0.99.99"), w.now
			w.byAddr[outer], w.quiet = w.hosts[hidden], true
			w.hosts[hidden].source = func(netip.Addr) netip.Addr { return outer }
			w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
				of := func(h int) bool { return w.byAddr[from] == w.hosts[h] || w.byAddr[to] == w.hosts[h] }
				early := w.now.Sub(start) < late
				return !(of(a) && of(b)) && to != w.hosts[hidden].addrs[0] && !(of(last) && early), time.Millisecond
			}
			w.allRelay()
			w.configure(false)
			w.until(late+quietGap+time.Second, "the hosts use a relay", func() bool { return w.uses(a, b) >= hidden })
			w.until(hold+time.Second, "they use the relay that is not behind NAT", func() bool { return w.uses(a, b) == public })
		})
	}
}

// The relay that would be chosen did not reach the hosts when they needed one. Once it does, they go over it if it is
// nearer, and do not if it is as far.
func TestTunnelsMoveToNearerRelays(t *testing.T) {
	const a, b, taken, chosen = 0, 1, 2, 3
	for _, test := range []struct {
		delay time.Duration // between the chosen relay and the hosts
		want  int
	}{{2 * time.Millisecond, chosen}, {20 * time.Millisecond, taken}, {90 * time.Millisecond, taken}} {
		t.Run(test.delay.String(), func(t *testing.T) {
			w := newWorld(t, 4, 1)
			start := w.now
			w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
				of := func(h int) bool { return w.byAddr[from] == w.hosts[h] || w.byAddr[to] == w.hosts[h] }
				if of(chosen) {
					return w.now.Sub(start) > time.Minute, test.delay
				}
				return !(of(a) && of(b)), 20 * time.Millisecond
			}
			for _, h := range w.hosts {
				h.cfg.Relays = func(_ peer.ID, avoid func(peer.ID) bool) []peer.ID {
					for _, i := range []int{chosen, taken} {
						if id := w.hosts[i].id; avoid == nil || !avoid(id) {
							return []peer.ID{id}
						}
					}
					return nil
				}
			}
			w.configure(false)
			w.until(20*time.Second, "the hosts use the other relay", func() bool { return w.uses(a, b) == taken })
			changes, last := 0, w.path(a, b).Via
			w.each = func() {
				if via := w.path(a, b).Via; via != last {
					changes, last = changes+1, via
				}
				if there, back := w.path(a, b).State, w.path(b, a).State; there != Direct || back != Direct {
					t.Fatalf("the paths are %v and %v, want both always direct", there, back)
				}
			}
			w.run(time.Minute + betterEvery)
			if used := w.uses(a, b); used != test.want {
				t.Errorf("the hosts use host %d, want host %d", used, test.want)
			}
			w.run(time.Hour)
			if want := test.want - taken; changes != want {
				t.Errorf("the tunnel moved %d times, want %d", changes, want)
			}
		})
	}
}

// twoRelays makes two hosts without a link, which use host 2 as their relay. Host 3 is another one, with a delay of far.
func twoRelays(t *testing.T, far time.Duration) *world {
	w := newWorld(t, 4, 1)
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		of := func(h int) bool { return w.byAddr[from] == w.hosts[h] || w.byAddr[to] == w.hosts[h] }
		if of(3) {
			return true, far
		}
		return !(of(0) && of(1)), time.Millisecond
	}
	w.allRelay()
	w.configure(false)
	w.hosts[0].busy[w.hosts[1].id], w.hosts[1].busy[w.hosts[0].id] = true, true
	w.until(20*time.Second, "the hosts use the first relay", func() bool { return w.uses(0, 1) == 2 })
	w.run(time.Minute)
	return w
}

// The nearest relay answers, but swallows data. The hosts do not go back to it for a day.
func TestARelayThatSwallowsDataIsNoBetterOne(t *testing.T) {
	w := twoRelays(t, 20*time.Millisecond)
	w.hosts[2].swallow = true
	w.until(time.Minute, "the hosts use the other relay", func() bool { return w.uses(0, 1) == 3 })
	w.each = func() {
		if used := w.uses(0, 1); used != 3 {
			t.Fatalf("the hosts use host %d, want always host 3", used)
		}
	}
	w.run(3 * betterEvery)
}

// The agent of the relay in use is silent when better relays are looked for. That makes no other one better.
func TestASilentAgentMakesNoOtherRelayBetter(t *testing.T) {
	w := twoRelays(t, 150*time.Millisecond)
	w.each = func() {
		if used := w.uses(0, 1); used == 3 {
			t.Fatal("the hosts use the far relay, want that they stay")
		}
	}
	for range 3 {
		w.hosts[2].mute = true
		w.run(hold + quietGap)
		w.hosts[2].mute = false
		w.run(betterEvery - hold)
	}
}
