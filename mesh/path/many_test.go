package path

import (
	"net/netip"
	"testing"
	"time"
)

// pair is the path from one host to another in one direction.
type pair struct{ from, to netip.Addr }

// Among 200 hosts with random failures of single directions, verdicts are right within 5 s under traffic
// and within 20 s at rest, and no verdict changes without a reason.
func TestVerdictsOf200HostsAreRight(t *testing.T) {
	if testing.Short() {
		t.Skip("simulates 40,000 paths: takes 15 s")
	}
	w := newWorld(t, 200, 1)
	cut := map[pair]bool{}
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		return !cut[pair{from, to}], 5 * time.Millisecond
	}
	w.configure(false)
	const busyPeers = 4
	for i, h := range w.hosts {
		for k := range busyPeers {
			o := w.hosts[(i+1+k)%len(w.hosts)]
			h.busy[o.id], o.busy[h.id] = true, true
		}
	}
	w.run(20 * time.Second)
	changed := map[[2]int]time.Time{} // when the link between two hosts last changed
	changes := 0
	for range 30 {
		for range 20 {
			i, j := w.random.IntN(200), w.random.IntN(200)
			if w.random.IntN(2) == 0 {
				j = (i + 1 + w.random.IntN(busyPeers)) % 200
			}
			if i == j {
				continue
			}
			p := pair{w.hosts[i].addrs[0], w.hosts[j].addrs[0]}
			cut[p] = !cut[p]
			changed[[2]int{i, j}], changed[[2]int{j, i}] = w.now, w.now
			changes++
		}
		w.run(time.Second)
		for i, h := range w.hosts {
			for j, o := range w.hosts {
				limit := 20 * time.Second
				if h.busy[o.id] {
					limit = 5 * time.Second
				}
				if i == j || w.now.Sub(changed[[2]int{i, j}]) < limit {
					continue
				}
				works := !cut[pair{h.addrs[0], o.addrs[0]}] && !cut[pair{o.addrs[0], h.addrs[0]}]
				if p := w.path(i, j); (p.State == Direct) != works {
					t.Errorf("%v: %v after the last change of the link, host %d says of host %d (works: %v, traffic: %v): %+v", w.now, w.now.Sub(changed[[2]int{i, j}]), i, j, works, h.busy[o.id], p)
				}
			}
		}
		if t.Failed() {
			return
		}
	}
	said := 0
	for _, h := range w.hosts {
		for _, r := range h.peers {
			said += len(r.changes)
		}
	}
	if said > 2*changes {
		t.Errorf("%d links changed, and hosts changed their verdicts %d times; want at most twice as often", changes, said)
	}
}

// At rest a host with 1,000 peers sends little, and never much at once, although all its tunnels began together.
func TestALargeMeshAtRestSendsLittle(t *testing.T) {
	const peers = 1000
	w := newWorld(t, 2, 1)
	h := w.hosts[0]
	var remotes []Remote
	key := w.key(h, w.hosts[1])
	for i := range peers {
		r := Remote{ID: w.hosts[1].id, Key: key, Addrs: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), port)}}
		r.ID[6], r.ID[7] = byte(i>>8), byte(i)
		r.Key.inMark[0], r.Key.inMark[1] = byte(i>>8), byte(i)
		remotes = append(remotes, r)
	}
	h.Configure(w.now, remotes, false)
	questions, most := 0, 0
	asks := 0
	for _, r := range h.peers {
		if r.first {
			asks++
		}
		r.current = r.addrs[0]
		r.calm(w.now)
		r.mtu.top, r.path.MTU, r.mtu.next = usualMTU, usualMTU, w.now.Add(time.Hour)
		r.current.answered = w.now
		h.wake(r)
	}
	end := w.now.Add(10 * time.Minute)
	for w.now.Before(end) {
		due := h.Due(w.now)
		if end.Sub(w.now) < 9*time.Minute { // after the beginning
			most = max(most, len(due))
		}
		for _, s := range due {
			questions++
			r := h.peers[s.peer]
			r.answered(w.now.Add(time.Millisecond), Arrival{From: s.To, Size: max(s.Size, 100)}, message{kind: answer, id: s.id})
			h.wake(r)
		}
		for _, r := range h.peers { // the other half asks this host
			if !r.first {
				r.path.Asked = w.now
				h.wake(r)
			}
		}
		w.now = w.now.Add(time.Second)
	}
	// Each question of this host stands for one of a peer that it answers.
	perSecond := float64(2*questions) / end.Sub(w.now.Add(-10*time.Minute)).Seconds() * peers / 2 / float64(asks)
	rate := perSecond * float64(messageSize+28)
	t.Logf("%d of %d peers are asked by this host; %.0f probes a second, %.1f kB/s sent", asks, peers, perSecond, rate/1000)
	if limit := asks * int(calmStep) / int(idleEvery) * 3 / 2; most > limit {
		t.Errorf("at rest %d questions go out at once; want them spread out, at most %d at once", most, limit)
	}
	if rate > 20_000 || asks < peers*4/10 || asks > peers*6/10 {
		t.Errorf("at rest %.1f kB/s are sent, and this host asks %d of %d peers; want at most 20 kB/s and half of the peers", rate/1000, asks, peers)
	}
}
