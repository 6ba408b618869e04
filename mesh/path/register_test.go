package path

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// registeredWorld makes two hosts without a link, and their relay, with two addresses each. It returns where the first
// host has registered. near are the delays of the networks.
func registeredWorld(t *testing.T, near *[2]time.Duration) (w *world, at func() netip.AddrPort) {
	w = newWorld(t, 3, 2)
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		direct := w.byAddr[from] != w.hosts[2] && w.byAddr[to] != w.hosts[2]
		delay := near[to.As4()[1]]
		return !direct && delay > 0, delay
	}
	w.allRelay()
	w.configure(false)
	w.hosts[0].busy[w.hosts[1].id], w.hosts[1].busy[w.hosts[0].id] = true, true
	w.until(5*time.Second, "the hosts use the relay", func() bool { return w.uses(0, 1) == 2 })
	return w, func() netip.AddrPort {
		ways := w.hosts[0].Ways()
		if len(ways) != 1 || !ways[0].Used {
			t.Fatalf("the ways are %+v, want one, which is used", ways)
		}
		return ways[0].To
	}
}

// The tunnel to a relay moves to a nearer address. What the relay forwards goes on as before: it would not know the
// packets that came to the nearer address.
func TestWaysStayWhenTheTunnelToTheRelayMoves(t *testing.T) {
	near := [2]time.Duration{20 * time.Millisecond, 30 * time.Millisecond}
	w, at := registeredWorld(t, &near)
	w.each = func() {
		if used := w.uses(0, 1); used != 2 {
			t.Fatalf("the hosts use %d, want always the relay", used)
		}
	}
	before := at()
	near[1] = time.Millisecond
	w.until(5*time.Minute, "the tunnel to the relay moves", func() bool { return w.path(0, 2).Endpoint != before })
	w.run(5 * time.Minute)
	if after := at(); after != before {
		t.Errorf("the host registers at %v, before at %v; want that it stays", after, before)
	}
}

// The agents of a relay and of a host stop. The relay's kernel goes on forwarding, so the other host must not leave, also
// when the agents are back and a nearer address of the relay answers first.
func TestWaysStayWhileTheAgentsOfTheRelayAndTheOtherHostRestart(t *testing.T) {
	for down := 100 * time.Millisecond; down < 30*time.Second; down = down * 3 / 2 {
		near := [2]time.Duration{20 * time.Millisecond, 30 * time.Millisecond}
		w, at := registeredWorld(t, &near)
		before := at()
		near[1] = time.Millisecond
		for range 3 {
			w.hosts[1].mute, w.hosts[2].mute = true, true
			w.run(down)
			w.hosts[1].mute, w.hosts[2].mute = false, false
			w.run(10 * time.Second)
			if after := at(); after != before || w.uses(0, 1) != 2 {
				t.Errorf("the agents were down for %v: the host registers at %v, before at %v; want that it stays", down, after, before)
			}
		}
	}
}

// A relay's address stops working, and another one works. The way moves there within seconds.
func TestWaysLeaveAnAddressThatStopsWorking(t *testing.T) {
	near := [2]time.Duration{time.Millisecond, 2 * time.Millisecond}
	w, at := registeredWorld(t, &near)
	before := at()
	near[0] = 0
	took := w.until(6*time.Second, "the host registers elsewhere, and uses the relay", func() bool {
		return len(w.hosts[0].Ways()) == 1 && w.hosts[0].Ways()[0].To != before && w.uses(0, 1) == 2 && w.path(0, 1).Answered.Add(time.Second).After(w.now)
	})
	t.Logf("after %v", took)
	at()
}

// Both hosts reach their relay by both families, then one of them by IPv6 only for a while, and later the other one by IPv4
// only. They meet again.
func TestAHostTriesALostFamilyAgain(t *testing.T) {
	w := newWorld(t, 3, 1)
	for i, h := range w.hosts {
		six := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i + 1)})
		h.addrs = append(h.addrs, six)
		w.byAddr[six] = h
		h.source = func(to netip.Addr) netip.Addr {
			if to.Is4() {
				return h.addrs[0]
			}
			return six
		}
	}
	type by struct {
		host int
		is4  bool
	}
	lost := map[by]bool{}
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		x, y := slices.Index(w.hosts, w.byAddr[from]), slices.Index(w.hosts, w.byAddr[to])
		return max(x, y) == 2 && !lost[by{x, from.Is4()}] && !lost[by{y, from.Is4()}], time.Millisecond
	}
	w.allRelay()
	w.configure(false)
	meet := func(what string) {
		w.until(time.Minute, what, func() bool { return w.uses(0, 1) == 2 })
	}
	meet("the hosts use the relay")
	w.run(time.Minute)
	lost[by{1, true}] = true
	w.run(time.Minute)
	meet("both use IPv6")
	delete(lost, by{1, true})
	w.run(2 * othersEvery)
	lost[by{0, false}] = true
	w.run(time.Minute)
	meet("both use IPv4")
}
