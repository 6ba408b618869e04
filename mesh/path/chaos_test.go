package path

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"weft/mesh/peer"
)

// chaos is a network that breaks at random.
type chaos struct {
	*world
	cut  map[[2]int]bool // one way
	loss int
	jit  time.Duration
}

func newChaos(t *testing.T, hosts int, seed uint64) *chaos {
	c := &chaos{world: newWorld(t, hosts, 1), cut: map[[2]int]bool{}}
	c.random = rand.New(rand.NewPCG(seed, 9))
	c.slow = 300 * time.Millisecond
	c.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		a, b := slices.Index(c.hosts, c.byAddr[from]), slices.Index(c.hosts, c.byAddr[to])
		return !c.cut[[2]int{a, b}] && c.random.IntN(100) >= c.loss, time.Millisecond + time.Duration(c.random.Int64N(int64(c.jit)+1))
	}
	for i := range c.hosts {
		c.hosts[i].cfg.Relays = c.relays(i)
	}
	return c
}

func (c *chaos) up(i, k int) bool {
	return !c.cut[[2]int{i, k}] && !c.cut[[2]int{k, i}] && !c.hosts[i].mute && !c.hosts[k].mute
}

// relays is what the documents about links would lead to: the fewest relays, from the end with the lower id.
func (c *chaos) relays(self int) func(peer.ID, func(peer.ID) bool) []peer.ID {
	return func(to peer.ID, avoid func(peer.ID) bool) []peer.ID {
		other := slices.IndexFunc(c.hosts, func(h *host) bool { return h.id == to })
		a, b := self, other
		flip := !less(c.hosts[a].id, c.hosts[b].id)
		if flip {
			a, b = b, a
		}
		rows := [][]int{{a}}
		for range maxRelays {
			var next [][]int
			for _, row := range rows {
				for k := range c.hosts {
					if k == a || k == b || slices.Contains(row, k) || !c.up(row[len(row)-1], k) || avoid != nil && avoid(c.hosts[k].id) {
						continue
					}
					row := append(slices.Clone(row), k)
					if c.up(k, b) {
						var out []peer.ID
						for _, i := range row[1:] {
							out = append(out, c.hosts[i].id)
						}
						if flip {
							slices.Reverse(out)
						}
						return out
					}
					next = append(next, row)
				}
			}
			rows = next
		}
		return nil
	}
}

func (c *chaos) restart(i int, keep bool) {
	h := c.hosts[i]
	ways, pairs := h.Ways(), h.Pairs()
	h.Prober = New(h.cfg)
	h.loading = rules{}
	if keep {
		h.Restore(c.now, ways, pairs)
	}
	h.Configure(c.now, c.remotes(h), false)
	h.next = c.now
}

func (c *chaos) event() string {
	n := len(c.hosts)
	i, k := c.random.IntN(n), c.random.IntN(n)
	switch c.random.IntN(10) {
	case 0, 1, 2:
		if i != k {
			c.cut[[2]int{i, k}], c.cut[[2]int{k, i}] = true, true
		}
		return fmt.Sprint("cut ", i, k)
	case 3:
		if i != k {
			c.cut[[2]int{i, k}] = true
		}
		return fmt.Sprint("one-way ", i, k)
	case 4, 5, 6:
		delete(c.cut, [2]int{i, k})
		delete(c.cut, [2]int{k, i})
		return fmt.Sprint("heal ", i, k)
	case 7:
		c.restart(i, c.random.IntN(2) == 0)
		return fmt.Sprint("restart ", i)
	case 8:
		c.hosts[i].mute = !c.hosts[i].mute
		return fmt.Sprint("mute ", i, c.hosts[i].mute)
	default:
		h := c.hosts[i]
		h.Configure(c.now, c.remotes(h), true)
		h.next = c.now
		return fmt.Sprint("moved ", i)
	}
}

// dump says all about the path between two hosts.
func (c *chaos) dump(i, k int) {
	for range 2 {
		h := c.hosts[i]
		r := h.peers[c.hosts[k].id]
		c.t.Logf("%d→%d first %v state %v alarm %v rounds %d quiet %v chosen %v", i, k, r.first, r.path.State, r.alarm.Sub(c.now), r.rounds, r.Quiet, c.names(h.cfg.Relays(r.ID, nil)))
		for _, a := range r.addrs {
			if d := a.detour; d != nil {
				c.t.Logf("   over %v port %d tries %d proven %v until %v answered %v current %v next %v tryUntil %v", c.names(d.relays.List()), d.port, d.tries, d.proven, d.until.Sub(c.now), c.now.Sub(a.answered), a == r.current, d.next.Sub(c.now), d.tryUntil.Sub(c.now))
			} else {
				c.t.Logf("   %v answered %v ago current %v", a.to, c.now.Sub(a.answered), a == r.current)
			}
		}
		for over, at := range r.avoided {
			c.t.Logf("   avoided %v %v ago", c.names(over.List()), c.now.Sub(at))
		}
		i, k = k, i
	}
	for n, h := range c.hosts {
		for of, l := range h.legs {
			ids := c.names(append([]peer.ID{of.origin, of.target}, of.row.List()...))
			c.t.Logf("   host %d leg %v seen %v on %v to %v", n, ids, c.now.Sub(l.seen), l.on != nil && l.on.proven, l.Leg)
		}
	}
}

func (c *chaos) names(ids []peer.ID) (out []int) {
	for _, id := range ids {
		out = append(out, slices.IndexFunc(c.hosts, func(h *host) bool { return h.id == id }))
	}
	return out
}

func (c *chaos) dumpBad(is func(p Path) bool) {
	for i := range c.hosts {
		for k := i + 1; k < len(c.hosts); k++ {
			if !is(c.path(i, k)) || !is(c.path(k, i)) {
				c.dump(i, k)
			}
		}
	}
}

func seeds() (from, to uint64) {
	from, to = 0, 60
	if s := os.Getenv("SEEDS"); s != "" {
		n, _ := strconv.Atoi(s)
		to = uint64(n)
	}
	if s := os.Getenv("SEED"); s != "" {
		n, _ := strconv.Atoi(s)
		from, to = uint64(n), uint64(n)+1
	}
	return
}

func (c *chaos) all(is func(p Path) bool) (bad string) {
	for i := range c.hosts {
		for k := range c.hosts {
			if i != k && !is(c.path(i, k)) {
				bad += fmt.Sprintf("\n%d→%d %+v", i, k, c.path(i, k))
			}
		}
	}
	return bad
}

// Whatever happened, a healthy network uses no relay soon, and keeps nothing of them.
func TestChaosEnds(t *testing.T) {
	from, to := seeds()
	for seed := from; seed < to; seed++ {
		c := newChaos(t, 5, seed)
		c.loss, c.jit = int(seed%3)*5, time.Duration(seed%4)*20*time.Millisecond
		c.configure(false)
		if seed%2 == 0 {
			c.hosts[0].busy[c.hosts[1].id], c.hosts[1].busy[c.hosts[0].id] = true, true
		}
		c.run(10 * time.Second)
		var log []string
		for range 30 {
			log = append(log, fmt.Sprint(c.now.Unix()%1000, " ", c.event()))
			c.run(time.Duration(c.random.Int64N(int64(8 * time.Second))))
		}
		c.cut = map[[2]int]bool{}
		c.loss = 0
		for _, h := range c.hosts {
			h.mute = false
			h.next = c.now
		}
		start := c.now
		direct := func(p Path) bool { return p.State == Direct && p.Via.IsZero() }
		for c.all(direct) != "" && c.now.Sub(start) < 3*time.Minute {
			c.run(time.Second)
		}
		if bad := c.all(direct); bad != "" {
			t.Errorf("seed %d: after 3 min not all direct: %s\n%v", seed, bad, log)
			continue
		}
		if d := c.now.Sub(start); d > 60*time.Second {
			t.Logf("seed %d: direct after %v", seed, d)
		}
		c.run(6 * time.Minute) // the registrations of relays in a row end one after the other
		for i, h := range c.hosts {
			if len(h.Ways())+len(h.Pairs())+len(h.legs) > 0 {
				t.Errorf("seed %d: host %d keeps %d ways, %d pairs, %d legs", seed, i, len(h.Ways()), len(h.Pairs()), len(h.legs))
				for of, l := range h.legs {
					t.Logf("leg %v seen %v ago %+v", of, c.now.Sub(l.seen), l)
				}
				for _, w := range h.Ways() {
					t.Logf("way %+v", w)
				}
			}
		}
		var versions []uint64
		for _, h := range c.hosts {
			versions = append(versions, h.Version())
		}
		steps := 0
		c.each = func() { steps++ }
		c.run(time.Minute)
		for i, h := range c.hosts {
			if n := h.Version() - versions[i]; n > 4 {
				t.Errorf("seed %d: host %d made %d versions in a healthy minute", seed, i, n)
			}
		}
		if steps > 8000 {
			t.Errorf("seed %d: %d steps in a healthy minute", seed, steps)
		}
	}
}

// In a network with cuts in which relays join all hosts, all pairs work soon and stay so.
func TestChaosIsRelayed(t *testing.T) {
	from, to := seeds()
	var worst time.Duration
	for seed := from; seed < to; seed++ {
		c := newChaos(t, 6, seed)
		c.jit = time.Duration(seed%4) * 10 * time.Millisecond
		c.configure(false)
		c.run(10 * time.Second)
		var log []string
		for range 15 {
			log = append(log, fmt.Sprint(c.now.Unix()%1000, " ", c.event()))
			c.run(time.Duration(c.random.Int64N(int64(8 * time.Second))))
		}
		for _, h := range c.hosts {
			h.mute = false
			h.next = c.now
		}
		connected := false
		for !connected { // make the graph connected
			connected = true
			for i := range c.hosts {
				for k := range c.hosts {
					if i != k && !c.up(i, k) && c.relays(i)(c.hosts[k].id, nil) == nil {
						connected = false
					}
				}
			}
			if !connected {
				i, k := c.random.IntN(6), c.random.IntN(6)
				delete(c.cut, [2]int{i, k})
				delete(c.cut, [2]int{k, i})
			}
		}
		start := c.now
		works := func(p Path) bool { return p.State == Direct }
		for c.all(works) != "" && c.now.Sub(start) < 5*time.Minute {
			c.run(time.Second)
		}
		cuts := fmt.Sprint(c.cut)
		if bad := c.all(works); bad != "" {
			c.dumpBad(works)
			t.Errorf("seed %d: after 5 min not all work: %s\n%v\n%v", seed, bad, log, cuts)
			continue
		}
		took := c.now.Sub(start)
		worst = max(worst, took)
		if took > time.Minute {
			t.Logf("seed %d: works after %v; %s", seed, took, cuts)
		}
		c.run(2 * time.Minute)
		bad, steps := 0, 0
		var versions []uint64
		for _, h := range c.hosts {
			versions = append(versions, h.Version())
		}
		c.each = func() {
			if steps++; steps%50 == 0 && c.all(works) != "" {
				bad++
			}
		}
		c.run(2 * time.Minute)
		if bad > 0 {
			c.dumpBad(works)
			t.Errorf("seed %d: %d of %d steps do not work in 2 calm minutes\n%v", seed, bad, steps/50, cuts)
		}
		for i, h := range c.hosts {
			if n := h.Version() - versions[i]; n > 10 {
				t.Errorf("seed %d: host %d made %d versions in 2 calm minutes; %s", seed, i, n, cuts)
			}
		}
	}
	t.Logf("all work after %v", worst)
}
