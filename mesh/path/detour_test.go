package path

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/mesh/peer"
)

// relayWorld makes hosts with an address each, of which the others are relays, and cuts the link between the first two
// while cut is set.
func relayWorld(t *testing.T, hosts int, cut *bool) *world {
	w := newWorld(t, hosts, 1)
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		a, b := w.byAddr[from], w.byAddr[to]
		both := a == w.hosts[0] && b == w.hosts[1] || a == w.hosts[1] && b == w.hosts[0]
		return !both || !*cut, time.Millisecond
	}
	w.allRelay()
	w.configure(false)
	w.hosts[0].busy[w.hosts[1].id], w.hosts[1].busy[w.hosts[0].id] = true, true
	w.run(20 * time.Second)
	return w
}

// allRelay lets each host choose the first other host as a relay.
func (w *world) allRelay() {
	for _, h := range w.hosts {
		h.cfg.Relays = func(to peer.ID, avoid func(peer.ID) bool) []peer.ID {
			for _, o := range w.hosts {
				if o.id != to && o != h && (avoid == nil || !avoid(o.id)) {
					return []peer.ID{o.id}
				}
			}
			return nil
		}
	}
}

// uses returns the relay that two hosts use both ways; -1: none.
func (w *world) uses(i, k int) int {
	a, b := w.path(i, k), w.path(k, i)
	for n, h := range w.hosts {
		if h.id == a.Via.first() && a.Via == b.Via && a.State == Direct && b.State == Direct {
			return n
		}
	}
	return -1
}

// until runs the world until a condition holds, and returns how long that took.
func (w *world) until(limit time.Duration, what string, is func() bool) time.Duration {
	w.t.Helper()
	start := w.now
	for !is() {
		if w.now.Sub(start) > limit {
			w.t.Fatalf("not within %v: %s; the paths are %+v and %+v", limit, what, w.path(0, 1), w.path(1, 0))
		}
		w.run(10 * time.Millisecond)
	}
	return w.now.Sub(start)
}

// A link is cut under traffic: the hosts use a relay soon, and go back once the link works again.
func TestARelayReplacesACutLink(t *testing.T) {
	for phase := range 10 {
		cut := false
		w := relayWorld(t, 3, &cut)
		w.run(time.Duration(phase) * 77 * time.Millisecond)
		for range 3 {
			cut = true
			took := w.until(1700*time.Millisecond, "both hosts use the relay", func() bool { return w.uses(0, 1) == 2 })
			w.run(3 * time.Minute)
			if w.uses(0, 1) != 2 {
				t.Errorf("the tunnel left the relay though the link is cut: %+v", w.path(0, 1))
			}
			if n := len(w.hosts[2].Pairs()); n != 1 {
				t.Errorf("the relay has %d pairs, want 1", n)
			}
			cut = false
			back := w.until(20*time.Second, "both hosts use the link again", func() bool {
				return w.path(0, 1).Via.IsZero() && w.path(1, 0).Via.IsZero()
			})
			t.Logf("phase %d: the relay is used after %v, the link again after %v", phase, took, back)
			w.run(2 * time.Minute)
			if n := len(w.hosts[2].Pairs()) + len(w.hosts[0].Ways()) + len(w.hosts[1].Ways()); n != 0 {
				t.Errorf("two minutes later %d ways are left, want none", n)
			}
		}
	}
}

// However a link under traffic is cut, both ways or in one direction, and whenever that is: a relay takes over within
// 2 s, also if rules load slowly. While counters are read every 200 ms, half a second of it is left for busy hosts.
func TestARelayTakesOverInTime(t *testing.T) {
	for look, limit := range map[time.Duration]time.Duration{200 * time.Millisecond: 1500 * time.Millisecond, 500 * time.Millisecond: 2 * time.Second} {
		for name, lost := range map[string]func(from, to int) bool{
			"both ways":     func(int, int) bool { return true },
			"to the first":  func(_, to int) bool { return to == 0 },
			"to the second": func(_, to int) bool { return to == 1 },
		} {
			var worst time.Duration
			for phase := time.Duration(0); phase < 4*time.Second; phase += 170 * time.Millisecond {
				cut := false
				w := relayWorld(t, 3, &cut)
				w.look, w.slow = look, 100*time.Millisecond
				w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
					a, b := slices.Index(w.hosts, w.byAddr[from]), slices.Index(w.hosts, w.byAddr[to])
					return !cut || a+b != 1 || !lost(a, b), 5 * time.Millisecond
				}
				w.run(10*time.Second + phase)
				cut = true
				worst = max(worst, w.until(4*time.Second, "both hosts use the relay", func() bool { return w.uses(0, 1) == 2 }))
			}
			t.Logf("cut %s, counters read every %v: a relay is used after %v at most", name, look, worst)
			if worst > limit {
				t.Errorf("cut %s, counters read every %v: a relay was used after %v, want %v at most", name, look, worst, limit)
			}
		}
	}
}

// A relay fails while it is used: another one takes over.
func TestAnotherRelayTakesOver(t *testing.T) {
	cut := true
	w := relayWorld(t, 4, &cut)
	if w.uses(0, 1) != 2 {
		t.Fatalf("the paths are %+v and %+v, want the first relay", w.path(0, 1), w.path(1, 0))
	}
	w.hosts[2].down, w.hosts[2].mute = true, true
	took := w.until(3*time.Second, "both hosts use the other relay", func() bool { return w.uses(0, 1) == 3 })
	t.Logf("after %v", took)
}

// A host that refuses to relay is not used.
func TestAHostMayRefuseToRelay(t *testing.T) {
	cut := true
	w := relayWorld(t, 3, &cut)
	w.hosts[2].cfg.Refuses = true
	w.run(2 * time.Minute)
	if p := w.path(0, 1); p.State != Deaf || !p.Via.IsZero() {
		t.Errorf("the path is %+v, want a failed one without a relay", p)
	}
	if n := len(w.hosts[2].Pairs()); n != 0 {
		t.Errorf("the relay has %d pairs, want none", n)
	}
}

// Hosts in a row reach only their neighbours. Both ends use all hosts between them, in whatever order their ids are.
func TestRelaysInARow(t *testing.T) {
	for hosts := 3; hosts <= 5; hosts++ {
		for _, reversed := range []bool{false, true} {
			w := newWorld(t, hosts, 1)
			row := slices.Clone(w.hosts)
			if reversed {
				slices.Reverse(row)
			}
			at := func(a netip.Addr) int { return slices.Index(row, w.byAddr[a]) }
			broken := -1
			w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
				a, b := at(from), at(to)
				return (a-b == 1 || b-a == 1) && min(a, b) != broken, time.Millisecond
			}
			var between []peer.ID
			for _, h := range row[1 : hosts-1] {
				between = append(between, h.id)
			}
			ends := [2]*host{row[0], row[hosts-1]}
			for i, h := range ends {
				h.cfg.Relays = func(to peer.ID, avoid func(peer.ID) bool) []peer.ID {
					over := slices.Clone(between)
					if i == 1 {
						slices.Reverse(over)
					}
					if to != ends[1-i].id || avoid != nil {
						return nil
					}
					return over
				}
				h.busy[ends[1-i].id] = true
			}
			w.configure(false)
			works := func() bool {
				a, _ := ends[0].Path(ends[1].id)
				b, _ := ends[1].Path(ends[0].id)
				return a.State == Direct && b.State == Direct && a.Via.len() == hosts-2 && b.Via.len() == hosts-2
			}
			took := w.until(10*time.Second, fmt.Sprintf("%d hosts in a row use %d relays", hosts, hosts-2), works)
			t.Logf("%d hosts: after %v", hosts, took)
			w.run(5 * time.Minute)
			for _, h := range row[1 : hosts-1] {
				if n := len(h.Pairs()); n != 1 {
					t.Errorf("a relay has %d pairs, want 1", n)
				}
			}
			if !works() {
				t.Errorf("after 5 minutes the relays are not used any more")
			}
			for _, h := range row[1 : hosts-1] { // their agents start anew
				pairs := h.Pairs()
				h.Prober = New(h.cfg)
				h.Restore(w.now, nil, pairs)
				h.Configure(w.now, w.remotes(h), false)
				h.next = w.now
				lost := 0
				w.each = func() {
					if len(h.Pairs()) == 0 {
						lost++
					}
				}
				w.run(time.Minute)
				if w.each = nil; lost > 0 || !works() {
					t.Errorf("a relay that starts anew forwarded nothing for %d steps, want none", lost)
				}
			}
		}
	}
}

// Rules take some time to load, and packets get lost. A relay is used soon all the same.
func TestARelayIsUsedSoonThoughRulesLoadSlowly(t *testing.T) {
	for loss, limit := range map[int]time.Duration{0: 1900 * time.Millisecond, 5: 4 * time.Second} {
		var took []time.Duration
		for seed := range 300 {
			cut := false
			w := relayWorld(t, 3, &cut)
			w.random = rand.New(rand.NewPCG(uint64(seed), 3))
			w.slow = 400 * time.Millisecond
			link := w.link
			w.link = func(from, to netip.Addr, size int) (bool, time.Duration) {
				ok, delay := link(from, to, size)
				return ok && w.random.IntN(100) >= loss, delay
			}
			w.run(time.Duration(seed) * 7 * time.Millisecond)
			cut = true
			took = append(took, w.until(20*time.Second, "the relay is used", func() bool { return w.uses(0, 1) == 2 }))
		}
		slices.Sort(took)
		t.Logf("with a loss of %d %%: half after %v, nine of ten after %v, all after %v", loss, took[150], took[270], took[299])
		if took[297] > limit {
			t.Errorf("with a loss of %d %% a relay was used after %v, want within %v", loss, took[297], limit)
		}
	}
}

// A member that registers for everybody, from ever new addresses, and that invites a host to everything, makes that host
// change its rules seldom, and store little.
func TestALyingMemberUsesFewRelays(t *testing.T) {
	w := newWorld(t, 400, 1)
	a, liar := w.hosts[0], w.hosts[1]
	a.Configure(w.now, w.remotes(a), false)
	liar.Configure(w.now, w.remotes(liar)[:1], false)
	key := liar.peers[a.id].Key
	before, n := a.Version(), 0
	const seconds = 20
	for range seconds * 50 { // what the kernel lets pass of one source
		w.now = w.now.Add(time.Second / 50)
		n++
		other := w.hosts[2+n%398]
		at := Arrival{From: netip.AddrPortFrom(liar.addrs[0], uint16(20000+n%7000)), To: netip.AddrPortFrom(a.addrs[0], port), Size: 122}
		m := message{kind: register, id: uint64(n), stamp: w.now.UnixNano(), route: route{origin: liar.id, target: other.id}}
		m.cookie = a.cookie(legOf{liar.id, other.id, Relays{a.id}}, at.From)
		if n%2 == 0 {
			m.kind, m.route, at.From = invite, route{origin: other.id, target: a.id}, netip.AddrPortFrom(liar.addrs[0], port)
		}
		var err error
		if at.Payload, err = key.seal(m, reader{w.random}); err != nil {
			t.Fatal(err)
		}
		a.Receive(w.now, at)
		a.Due(w.now)
	}
	if n := a.Version() - before; n > 3*seconds*maxChanges {
		t.Errorf("the lies of %d s made %d versions, want at most %d", seconds, n, 3*seconds*maxChanges)
	}
	if len(a.legs) > maxLegsPerHost || len(a.Ways()) > maxWays || len(a.Pairs()) > 0 {
		t.Errorf("the lies made %d registrations, %d ways and %d pairs, want at most %d and %d, and no pair", len(a.legs), len(a.Ways()), len(a.Pairs()), maxLegsPerHost, maxWays)
	}
}

// between returns the fewest hosts in a row between two of n, without the direct link; the same from both ends. It stands
// for topology.Relays.
func between(n, a, b int, cut func(x, y int) bool, avoid func(int) bool) []int {
	if a > b {
		out := between(n, b, a, cut, avoid)
		slices.Reverse(out)
		return out
	}
	type row struct{ hosts []int }
	rows := []row{{[]int{a}}}
	for range maxRelays {
		var next []row
		for _, r := range rows {
			last := r.hosts[len(r.hosts)-1]
			for i := range n {
				if i == a || i == b || slices.Contains(r.hosts, i) || cut(last, i) || avoid(i) {
					continue
				}
				longer := append(slices.Clone(r.hosts), i)
				if !cut(i, b) {
					return longer[1:]
				}
				next = append(next, row{longer})
			}
		}
		rows = next
	}
	return nil
}

// Whichever links of four hosts are cut, each pair that has a path has one within 5 s, both ends agree on it, it has no
// loop, and it stays. Other pairs have none.
func TestAllCutPatternsOfFourHosts(t *testing.T) {
	const n = 4
	for pattern := range 1 << (n * (n - 1) / 2) {
		w := newWorld(t, n, 1)
		var cut [n][n]bool
		bit := 0
		for a := range n {
			for b := a + 1; b < n; b++ {
				cut[a][b] = pattern>>bit&1 != 0
				cut[b][a] = cut[a][b]
				bit++
			}
		}
		broken := false
		w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
			return !broken || !cut[slices.Index(w.hosts, w.byAddr[from])][slices.Index(w.hosts, w.byAddr[to])], time.Millisecond
		}
		index := map[peer.ID]int{}
		var all []peer.ID
		for a, h := range w.hosts {
			index[h.id], all = a, append(all, h.id)
		}
		for a, h := range w.hosts {
			h.cfg.Relays = func(to peer.ID, avoid func(peer.ID) bool) (out []peer.ID) {
				for _, i := range between(n, a, index[to], func(x, y int) bool { return cut[x][y] }, func(x int) bool { return avoid != nil && avoid(all[x]) }) {
					out = append(out, all[i])
				}
				return out
			}
			for _, o := range w.hosts {
				h.busy[o.id] = o != h
			}
		}
		w.configure(false)
		w.run(20 * time.Second)
		broken = true
		w.run(5 * time.Second)
		check := func(when string) (moves int) {
			for a := range n {
				for b := range n {
					if a == b {
						continue
					}
					p, back := w.path(a, b), w.path(b, a)
					over := w.hosts[a].cfg.Relays(all[b], nil)
					switch connected := !cut[a][b] || len(over) > 0; {
					case connected != (p.State == Direct):
						t.Errorf("pattern %06b, %s: the path of %d to %d is %+v; want that it works: %v", pattern, when, a, b, p, connected)
					case !cut[a][b] && !p.Via.IsZero():
						t.Errorf("pattern %06b, %s: the path of %d to %d has the relays %v, want none", pattern, when, a, b, p.Via)
					}
					there, here := p.Via.List(), back.Via.List()
					slices.Reverse(here)
					loop := slices.Clone(there)
					slices.SortFunc(loop, func(x, y peer.ID) int { return slices.Compare(x[:], y[:]) })
					if !slices.Equal(there, here) || len(slices.Compact(loop)) != len(there) || slices.Contains(there, all[a]) || slices.Contains(there, all[b]) {
						t.Errorf("pattern %06b, %s: between %d and %d are the relays %v and %v, want the same, each once", pattern, when, a, b, there, here)
					}
					moves += p.Moves
				}
			}
			return moves
		}
		before := check("after 5 s")
		w.run(2 * time.Minute)
		if after := check("after 2 minutes"); after > before {
			t.Errorf("pattern %06b: the tunnels moved %d times once all had a path, want none", pattern, after-before)
		}
	}
}

// Two hosts do not reach each other, and gossip reaches neither, as behind NAT. The relays that are chosen do not reach
// both. The hosts try one after the other, also those that failed before, and soon find one that does.
func TestHostsThatGossipDoesNotReachTryOtherRelays(t *testing.T) {
	for _, test := range []struct {
		name    string
		reaches []int         // the ends that hosts 2, 3, … reach: 1 for host 0, 2 for host 1
		after   time.Duration // when the last of them reaches both
		limit   time.Duration
	}{
		{"the first relay reaches neither", []int{0, 3}, 0, 15 * time.Second},
		{"some reach one end only", []int{1, 2, 1, 2, 3}, 0, 45 * time.Second},
		{"the only relay joins late", []int{0}, 20 * time.Second, 40 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, 2+len(test.reaches), 1)
			start := w.now
			w.quiet = true
			w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
				a, b := slices.Index(w.hosts, w.byAddr[from]), slices.Index(w.hosts, w.byAddr[to])
				a, b = min(a, b), max(a, b)
				ok := a > 1 || b > 1 && (test.reaches[b-2]>>a&1 == 1 || b == len(w.hosts)-1 && w.now.Sub(start) >= test.after && test.after > 0)
				return ok, time.Millisecond
			}
			w.allRelay()
			w.configure(false)
			took := w.until(test.limit, "the hosts find a relay", func() bool { return w.uses(0, 1) == len(w.hosts)-1 })
			t.Logf("they found it after %v", took)
		})
	}
}

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
