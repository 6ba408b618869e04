package path

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/mesh/peer"
)

// 200 hosts, of which pairs exchange data, while links fail and work again at random. Each of these pairs has a path
// within 5 s, both ends agree on it, and tunnels move only because of a change.
func TestManyHostsUseRelays(t *testing.T) {
	if testing.Short() {
		t.Skip("simulates 40,000 paths: takes 10 s")
	}
	const n, partners, changes = 200, 4, 8
	w := newWorld(t, n, 1)
	random := rand.New(rand.NewPCG(7, 8))
	cut := map[[2]int]bool{}
	isCut := func(a, b int) bool { return cut[[2]int{min(a, b), max(a, b)}] }
	index, byAddr := map[peer.ID]int{}, map[netip.Addr]int{}
	for i, h := range w.hosts {
		index[h.id], byAddr[h.addrs[0]] = i, i
	}
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		return !isCut(byAddr[from], byAddr[to]), time.Millisecond
	}
	var pairs [][2]int
	for i, h := range w.hosts {
		h.cfg.Relays = func(to peer.ID, avoid func(peer.ID) bool) []peer.ID {
			k := index[to]
			for off := range n {
				x := (i*k + i + k + off) % n // the same for both ends
				if x != i && x != k && !isCut(i, x) && !isCut(x, k) && (avoid == nil || !avoid(w.hosts[x].id)) {
					return []peer.ID{w.hosts[x].id}
				}
			}
			return nil
		}
		for range partners / 2 {
			if o := random.IntN(n); o != i {
				h.busy[w.hosts[o].id], w.hosts[o].busy[h.id] = true, true
				pairs = append(pairs, [2]int{i, o})
			}
		}
	}
	w.configure(false)
	w.run(20 * time.Second)
	relayed := 0
	for round := range changes {
		for range 40 {
			p := pairs[random.IntN(len(pairs))]
			cut[[2]int{min(p[0], p[1]), max(p[0], p[1])}] = true
		}
		for key := range cut {
			if random.IntN(5) == 0 {
				delete(cut, key)
			}
		}
		w.run(5 * time.Second)
		for _, p := range pairs {
			a, b := w.path(p[0], p[1]), w.path(p[1], p[0])
			there, back := a.Via.List(), b.Via.List()
			slices.Reverse(back)
			if a.State != Direct || b.State != Direct || isCut(p[0], p[1]) != !a.Via.IsZero() && isCut(p[0], p[1]) {
				t.Errorf("round %d: 5 s after links have failed, hosts %v (cut: %v) have %+v and %+v", round, p, isCut(p[0], p[1]), a, b)
			}
			if isCut(p[0], p[1]) && !slices.Equal(there, back) {
				t.Errorf("round %d: hosts %v use the relays %v and %v, want the same", round, p, there, back)
			}
			if !a.Via.IsZero() {
				relayed++
			}
		}
		w.run(25 * time.Second)
		for _, p := range pairs {
			if a := w.path(p[0], p[1]); !isCut(p[0], p[1]) && !a.Via.IsZero() {
				t.Errorf("round %d: hosts %v still use a relay, though their link works: %+v", round, p, a)
			}
		}
	}
	moves := 0
	for _, p := range pairs {
		moves = max(moves, w.path(p[0], p[1]).Moves)
	}
	if relayed == 0 || moves > 2*changes+2 {
		t.Errorf("%d paths used relays, and a tunnel moved %d times in %d rounds; want some, and at most two moves each", relayed, moves, changes)
	}
	t.Logf("%d pairs; %d of %d paths used a relay; a tunnel moved %d times at most", len(pairs), relayed, changes*len(pairs), moves)
}
