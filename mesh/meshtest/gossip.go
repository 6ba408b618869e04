package meshtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
)

// Gossip is a network for the simulation of whole clusters, at the level of what a
// mesh promises its users: states spread, some of them late, twice or never; full
// states are exchanged at random; who answers is noticed late, and who does not, later
// still. It has none of memberlist's packets, so that an hour of a cluster takes a
// moment.
//
// It is made for testing/synctest. The fate of each message follows from the seed, its
// sender, its receiver and how many there were before it, and no two things happen in
// the same nanosecond, so that a seed tells the same story again.
//
// Its methods may be called at any time. It calls replicas and handlers with no lock held.
type Gossip struct {
	mu      sync.Mutex
	seed    uint64
	weather Weather
	nodes   []*Node // all runs that ever started, by number
	peers   map[peer.ID][]*Node
	epochs  []epoch
	counts  map[stream]uint64
	busy    map[int64]bool // instants at which something happens
	closed  bool
}

// Weather is how bad the network is.
type Weather struct {
	Loss      float64       // share of deltas that are lost; of requests and full states, half of it
	Duplicate float64       // share of deltas that come twice
	Delay     time.Duration // the longest; most messages are much faster
}

// Replica is one replicated state, as mesh.Replica. It is said again here because the mesh's
// own tests import this package.
type Replica interface {
	Name() string
	Full() []byte
	Merge(data []byte) (news []byte, err error)
}

// Handler answers a request, as mesh.Handler.
type Handler = func(ctx context.Context, from peer.ID, payload []byte) ([]byte, error)

// epoch is a time in which the network did not change: the side that each run was on, by
// its number; down for those that did not run.
type epoch struct {
	at   time.Time
	side []int
}

const down = -1

// stream is what messages are counted in. Each kind has its own, so that the order in
// which goroutines of one instant send does not matter.
type stream struct {
	from, to int
	kind     string
}

// How slowly things are noticed, as with memberlist's defaults for a LAN.
const (
	joinLag   = 2 * time.Second  // that a peer answers
	failLag   = 6 * time.Second  // that it does not any more, but for
	leastFail = time.Second      // at least
	twinLag   = time.Second      // that another has our identity
	pullEvery = 12 * time.Second // between a peer's exchanges of full states, about
	serveFor  = 10 * time.Second // how long a request is worked on
	someNodes = 3                // how many a peer tells what it heard
)

// NewGossip makes a network without nodes, in fine weather.
func NewGossip(seed uint64) *Gossip {
	return &Gossip{seed: seed, weather: Weather{Delay: 10 * time.Millisecond}, peers: map[peer.ID][]*Node{}, counts: map[stream]uint64{}, busy: map[int64]bool{}}
}

// SetWeather changes how messages fare from now on.
func (g *Gossip) SetWeather(w Weather) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.weather = w
}

// Close ends all exchange, so that the bubble can end.
func (g *Gossip) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// Partition puts every running node on a side; only those on one side reach each other.
// Nodes that start later are on side 0 unless they are moved.
func (g *Gossip) Partition(side func(*Node) int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.nodes {
		n.side = side(n)
	}
	g.changed()
}

// Heal ends all partitions.
func (g *Gossip) Heal() { g.Partition(func(*Node) int { return 0 }) }

// changed begins an epoch, and sees to what comes of it: those who meet anew exchange
// their states, and of twins who meet one ends.
func (g *Gossip) changed() {
	e := epoch{time.Now(), make([]int, len(g.nodes))}
	for i, n := range g.nodes {
		if e.side[i] = down; n.up {
			e.side[i] = n.side
		}
	}
	g.epochs = append(g.epochs, e)
	last := len(g.epochs) - 1
	for _, a := range g.nodes {
		if !a.up {
			continue
		}
		var met []*Node
		for _, b := range g.nodes {
			if !g.together(last, a, b) {
				continue
			}
			if !g.together(last-1, a, b) {
				met = append(met, b)
			}
			if a.id == b.id && a.run < b.run {
				g.after(g.dice("twin", a, b), twinLag, func() { g.notice(a, b) })
			}
		}
		for range min(2, len(met)) {
			r := g.dice("meet", a, a)
			b := met[r.IntN(len(met))]
			g.after(r, joinLag, func() { g.exchange(a, b) })
		}
	}
}

// together reports whether two nodes reached each other in an epoch.
func (g *Gossip) together(e int, a, b *Node) bool {
	if e < 0 || a == b {
		return false
	}
	side := g.epochs[e].side
	return a.run != down && b.run != down && a.run < len(side) && b.run < len(side) && side[a.run] != down && side[a.run] == side[b.run]
}

// linked is together, now.
func (g *Gossip) linked(a, b *Node) bool { return g.together(len(g.epochs)-1, a, b) }

// sees reports whether a believes that it reaches b: changes are noticed late.
func (g *Gossip) sees(a, b *Node) bool {
	now := time.Now()
	for e, epoch := range slices.Backward(g.epochs) {
		together, since := g.together(e, a, b), now.Sub(epoch.at)
		if since >= failLag {
			return together
		}
		least, most := time.Duration(0), joinLag
		if !together {
			least, most = leastFail, failLag
		}
		if since >= least+time.Duration(mix(g.seed, uint64(e), uint64(a.run), uint64(b.run))%uint64(most-least)) {
			return together
		}
	}
	return false
}

// mix is a number that looks random and depends on all of its arguments.
func mix(parts ...uint64) (h uint64) {
	for _, p := range parts { // SplitMix64, over the sum so far
		h += p + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

// notice ends the later one of two that have one identity, if they still meet. The mesh
// itself leaves it to people which of them; a simulation needs a rule.
func (g *Gossip) notice(a, b *Node) {
	g.mu.Lock()
	twins := g.linked(a, b) && !g.closed
	g.mu.Unlock()
	if twins {
		b.cfg.Twin()
	}
}

// dice is the randomness of the next event of a stream.
func (g *Gossip) dice(kind string, from, to *Node) *rand.Rand {
	s := stream{from.run, to.run, kind}
	g.counts[s]++
	h := mix(uint64(from.run), uint64(to.run), g.counts[s])
	for _, c := range []byte(kind) {
		h = mix(h, uint64(c))
	}
	return rand.New(rand.NewPCG(g.seed, h))
}

// after calls f within a time, at an instant of its own. The caller holds the lock; f
// is called without.
func (g *Gossip) after(r *rand.Rand, within time.Duration, f func()) {
	now := time.Now()
	at := now.UnixNano() + 1 + r.Int64N(int64(within))
	for g.busy[at] {
		at++
	}
	g.busy[at] = true
	time.AfterFunc(time.Duration(at-now.UnixNano()), func() {
		g.mu.Lock()
		delete(g.busy, at)
		closed := g.closed
		g.mu.Unlock()
		if !closed {
			f()
		}
	})
}

// delay draws how long a message takes at most: mostly a twentieth of the longest.
func (g *Gossip) delay(r *rand.Rand) time.Duration {
	longest := max(g.weather.Delay, time.Millisecond)
	if r.IntN(8) > 0 {
		return max(longest/20, time.Millisecond)
	}
	return longest
}

// send carries a message over, if it arrives at all. What is under way when its sender
// ends still arrives; what meets a partition does not.
func (g *Gossip) send(kind string, from, to *Node, deliver func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.dice(kind, from, to)
	loss, copies := g.weather.Loss/2, 1
	if kind == kindDelta {
		loss *= 2
		if r.Float64() < g.weather.Duplicate {
			copies = 2
		}
	}
	if !from.up {
		return
	}
	for range copies {
		if r.Float64() < loss {
			continue
		}
		g.after(r, g.delay(r), func() {
			g.mu.Lock()
			arrives := to.up && to.side == from.side
			if arrives {
				to.known.hear(from.id, Word{from.run, Running})
			}
			g.mu.Unlock()
			if arrives {
				deliver()
			}
		})
	}
}

// Kinds of messages.
const (
	kindDelta   = "delta"
	kindFull    = "full"
	kindRequest = "request"
	kindReply   = "reply"
)

// exchange is a push and a pull of full states between two nodes.
func (g *Gossip) exchange(a, b *Node) {
	push := func(from, to *Node, then func()) {
		states := from.full()
		g.mu.Lock()
		known := from.known.clone()
		g.mu.Unlock()
		g.send(kindFull, from, to, func() {
			g.mu.Lock()
			to.known.union(known)
			g.mu.Unlock()
			for _, s := range states {
				to.merge(s.replica, s.data)
			}
			then()
		})
	}
	push(a, b, func() { push(b, a, func() {}) })
}

// around are the nodes that n tells things: it reaches them, and knows. The caller holds the lock.
func (g *Gossip) around(n *Node) []*Node {
	var out []*Node
	for _, o := range g.nodes {
		if g.linked(n, o) && g.sees(n, o) {
			out = append(out, o)
		}
	}
	return out
}

// ErrUnreachable says that no run of a peer answers, as far as the asker knows.
var ErrUnreachable = errors.New("the peer cannot be reached by gossip right now")

// find is the run of a peer that a message from n goes to: one of them, if there are twins.
func (g *Gossip) find(n *Node, id peer.ID) *Node {
	g.mu.Lock()
	defer g.mu.Unlock()
	var runs []*Node
	for _, o := range g.peers[id] {
		if o != n && g.sees(n, o) {
			runs = append(runs, o)
		}
	}
	if len(runs) == 0 {
		return nil
	}
	slices.SortStableFunc(runs, func(a, b *Node) int { // one that answers, if there is one
		if x, y := g.linked(n, a), g.linked(n, b); x == y {
			return 0
		} else if x {
			return -1
		}
		return 1
	})
	if len(runs) > 1 && g.linked(n, runs[1]) {
		return runs[g.dice("find", n, n).IntN(2)]
	}
	return runs[0]
}
