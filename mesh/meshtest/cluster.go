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

// Gossip simulates the network of a whole cluster at the level of what a mesh promises its users.
// Deltas spread, some late, twice or never; full states are exchanged at random; a change of
// reachability is noticed after a while. It has none of memberlist's packets, so that an hour of a
// cluster takes little time.
//
// It is made for testing/synctest, and deterministic. What happens to a message depends only on the
// seed, its sender and receiver, and the number of messages before it. No two events happen in the
// same nanosecond.
//
// It is safe for concurrent use, and calls replicas and handlers without holding a lock.
type Gossip struct {
	mu         sync.Mutex
	seed       uint64
	conditions Conditions
	nodes      []*Node // all runs that ever started, by their number
	peers      map[peer.ID][]*Node
	epochs     []epoch
	counts     map[stream]uint64
	busy       map[int64]bool // instants at which an event is scheduled
	closed     bool
}

// Conditions are network conditions: loss, duplication and delay.
type Conditions struct {
	Loss      float64       // share of lost deltas; for requests and full states, half of it
	Duplicate float64       // share of duplicated deltas
	Delay     time.Duration // the longest delay; most messages are much faster
}

// Replica is mesh.Replica. It is declared here again because the mesh's own tests import this
// package.
type Replica interface {
	Name() string
	Full() []byte
	Merge(data []byte) (news []byte, err error)
}

// Handler is mesh.Handler.
type Handler = func(ctx context.Context, from peer.ID, payload []byte) ([]byte, error)

// epoch is a period in which the network did not change. side is the partition of each run, by its
// number, or down.
type epoch struct {
	at   time.Time
	side []int
}

const down = -1

// stream identifies a sequence of messages. Each kind of message has its own, so that the order of
// goroutines that send at the same instant does not matter.
type stream struct {
	from, to int
	kind     string
}

// How late changes are noticed, similar to memberlist's defaults for a LAN.
const (
	joinLag   = 2 * time.Second  // until a peer counts as reachable
	failLag   = 6 * time.Second  // until it counts as unreachable, at most
	leastFail = time.Second      // the same, at least
	twinLag   = time.Second      // until another run with the same identity is noticed
	pullEvery = 12 * time.Second // between two push/pulls of a peer, about
	serveFor  = 10 * time.Second // the time limit of a request's handler
	someNodes = 3                // the number of peers to which news are passed on
)

// NewGossip returns a network without nodes, loss or long delays.
func NewGossip(seed uint64) *Gossip {
	return &Gossip{seed: seed, conditions: Conditions{Delay: 10 * time.Millisecond}, peers: map[peer.ID][]*Node{}, counts: map[stream]uint64{}, busy: map[int64]bool{}}
}

// SetConditions changes the network conditions for messages sent from now on.
func (g *Gossip) SetConditions(w Conditions) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conditions = w
}

// Close ends all exchange, so that the synctest bubble can end.
func (g *Gossip) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// Partition assigns every running node to a side. Only nodes on the same side reach each other.
// Nodes that start later choose their side.
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

// changed starts an epoch, and schedules its consequences: nodes that newly reach each other
// exchange their states, and Twin of the later of two runs with one identity is called.
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

// linked reports whether two nodes reach each other now.
func (g *Gossip) linked(a, b *Node) bool { return g.together(len(g.epochs)-1, a, b) }

// sees reports whether b counts as reachable for a. Changes are noticed late.
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

// mix returns a pseudo-random hash of all its arguments.
func mix(parts ...uint64) (h uint64) {
	for _, p := range parts { // SplitMix64 over the sum so far
		h += p + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

// notice calls Twin of the later of two runs with the same identity, if they still reach each
// other.
func (g *Gossip) notice(a, b *Node) {
	g.mu.Lock()
	twins := g.linked(a, b) && !g.closed
	g.mu.Unlock()
	if twins {
		b.cfg.Twin()
	}
}

// dice returns the random source for the next event of a stream.
func (g *Gossip) dice(kind string, from, to *Node) *rand.Rand {
	s := stream{from.run, to.run, kind}
	g.counts[s]++
	h := mix(uint64(from.run), uint64(to.run), g.counts[s])
	for _, c := range []byte(kind) {
		h = mix(h, uint64(c))
	}
	return rand.New(rand.NewPCG(g.seed, h))
}

// after calls f within a duration, at an instant with no other event. The caller holds the lock; f
// is called without it.
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

// delay draws the longest delay of a message: usually a twentieth of the configured one.
func (g *Gossip) delay(r *rand.Rand) time.Duration {
	longest := max(g.conditions.Delay, time.Millisecond)
	if r.IntN(8) > 0 {
		return max(longest/20, time.Millisecond)
	}
	return longest
}

// send delivers a message, unless it is lost. It still arrives if its sender stops meanwhile, but
// not across a partition.
func (g *Gossip) send(kind string, from, to *Node, deliver func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.dice(kind, from, to)
	loss, copies := g.conditions.Loss/2, 1
	if kind == kindDelta {
		loss *= 2
		if r.Float64() < g.conditions.Duplicate {
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
				to.known.hear(from.id, Status{from.run, Running})
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

// exchange is one push/pull of full states between two nodes.
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

// around returns the nodes that n reaches and that count as reachable. The caller holds the lock.
func (g *Gossip) around(n *Node) []*Node {
	var out []*Node
	for _, o := range g.nodes {
		if g.linked(n, o) && g.sees(n, o) {
			out = append(out, o)
		}
	}
	return out
}

// ErrUnreachable reports that no run of a peer counts as reachable.
var ErrUnreachable = errors.New("the peer cannot be reached by gossip at present")

// find returns the run of a peer that a message from n goes to, or nil. Of two with the same
// identity it chooses one at random.
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
	slices.SortStableFunc(runs, func(a, b *Node) int { // prefer one that answers
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
