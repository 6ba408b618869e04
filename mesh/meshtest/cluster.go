package meshtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"weft/mesh/peer"
)

// Cluster simulates hosts and their network at the level of what a mesh promises its users.
// Deltas spread, some late, twice or never; full states are exchanged at random; a change of
// reachability is noticed after a while. A Cluster has none of memberlist's packets, so that an
// hour of a cluster takes little time.
//
// A Cluster is made for testing/synctest, and deterministic. What happens to a message depends only
// on the seed, its sender and receiver, and the number of messages before it. No two events happen
// in the same nanosecond.
//
// A Cluster is safe for concurrent use, and calls replicas and handlers without holding a lock.
type Cluster struct {
	mu         sync.Mutex
	seed       uint64
	conditions Conditions
	hosts      []*Host // all runs that ever started, by their number
	peers      map[peer.ID][]*Host
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

// epoch is a period in which the network did not change. side[i] is the partition in which host i
// was, or the constant down: host i did not run.
type epoch struct {
	at   time.Time
	side []int
}

const down = -1

// stream identifies a sequence of messages. Each kind of message has its own sequence, so that the
// order of goroutines that send at the same instant does not matter.
type stream struct {
	from, to int
	kind     string
}

// These are the delays until a change is noticed, similar to memberlist's defaults for a LAN.
const (
	joinLag   = 2 * time.Second  // after this time a new peer counts as reachable
	failLag   = 6 * time.Second  // after at most this time a lost peer counts as unreachable
	leastFail = time.Second      // after at least this time a lost peer counts as unreachable
	twinLag   = time.Second      // after this time a run with the same identity is noticed
	pullEvery = 12 * time.Second // the time between two push/pulls of a peer, about
	serveFor  = 10 * time.Second // the time limit of a request's handler
	someHosts = 3                // the number of peers to which news are passed on
)

// NewCluster returns a network without hosts, loss or long delays.
func NewCluster(seed uint64) *Cluster {
	return &Cluster{seed: seed, conditions: Conditions{Delay: 10 * time.Millisecond}, peers: map[peer.ID][]*Host{}, counts: map[stream]uint64{}, busy: map[int64]bool{}}
}

// SetConditions changes the network conditions for messages sent from now on.
func (c *Cluster) SetConditions(w Conditions) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conditions = w
}

// Close ends all exchange of messages, so that the synctest bubble can end.
func (c *Cluster) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

// Stop stops all hosts, closes the cluster and waits until everything in the synctest bubble has
// ended. It returns the errors of the hosts.
func (c *Cluster) Stop() (err error) {
	for _, h := range c.running() {
		err = errors.Join(err, h.Stop())
	}
	c.Close()
	time.Sleep(time.Minute)
	synctest.Wait()
	return err
}

func (c *Cluster) running() []*Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.hosts), func(h *Host) bool { return !h.up })
}

// Requests counts the requests that the running hosts made: the requests of one kind, or all if
// kind is "".
func (c *Cluster) Requests(kind string) (n int) {
	for _, h := range c.running() {
		n += h.Requests(kind)
	}
	return n
}

// Partition assigns every running host to a side. Only hosts on the same side reach each other.
// Hosts that start later choose their side.
func (c *Cluster) Partition(side func(*Host) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		h.side = side(h)
	}
	c.changed()
}

// Isolate puts the given hosts on a side of their own, and all other hosts on the other side.
func (c *Cluster) Isolate(hosts ...*Host) {
	c.Partition(func(h *Host) int {
		if slices.Contains(hosts, h) {
			return 1
		}
		return 0
	})
}

// Heal ends all partitions.
func (c *Cluster) Heal() { c.Partition(func(*Host) int { return 0 }) }

// changed starts an epoch, and schedules its consequences: hosts that could not reach each other
// before exchange their states. If two runs have one identity, Twin of the later run is called.
func (c *Cluster) changed() {
	e := epoch{time.Now(), make([]int, len(c.hosts))}
	for i, h := range c.hosts {
		if e.side[i] = down; h.up {
			e.side[i] = h.side
		}
	}
	c.epochs = append(c.epochs, e)
	last := len(c.epochs) - 1
	for _, a := range c.hosts {
		if !a.up {
			continue
		}
		var met []*Host
		for _, b := range c.hosts {
			if !c.together(last, a, b) {
				continue
			}
			if !c.together(last-1, a, b) {
				met = append(met, b)
			}
			if a.id == b.id && a.run < b.run {
				c.after(c.dice("twin", a, b), twinLag, func() { c.notice(a, b) })
			}
		}
		for range min(2, len(met)) {
			r := c.dice("meet", a, a)
			b := met[r.IntN(len(met))]
			c.after(r, joinLag, func() { c.exchange(a, b) })
		}
	}
}

// together reports whether two hosts reached each other in an epoch.
func (c *Cluster) together(e int, a, b *Host) bool {
	if e < 0 || a == b {
		return false
	}
	side := c.epochs[e].side
	return a.run != down && b.run != down && a.run < len(side) && b.run < len(side) && side[a.run] != down && side[a.run] == side[b.run]
}

// linked reports whether two hosts reach each other now.
func (c *Cluster) linked(a, b *Host) bool { return c.together(len(c.epochs)-1, a, b) }

// sees reports whether b counts as reachable for a. Changes are noticed late.
func (c *Cluster) sees(a, b *Host) bool {
	now := time.Now()
	for e, epoch := range slices.Backward(c.epochs) {
		together, since := c.together(e, a, b), now.Sub(epoch.at)
		if since >= failLag {
			return together
		}
		least, most := time.Duration(0), joinLag
		if !together {
			least, most = leastFail, failLag
		}
		if since >= least+time.Duration(mix(c.seed, uint64(e), uint64(a.run), uint64(b.run))%uint64(most-least)) {
			return together
		}
	}
	return false
}

// mix returns a pseudo-random hash of all its arguments.
func mix(parts ...uint64) (h uint64) {
	for _, p := range parts { // apply SplitMix64 to the sum so far
		h += p + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

// notice calls Twin of the later of two runs with the same identity, if they still reach each
// other.
func (c *Cluster) notice(a, b *Host) {
	c.mu.Lock()
	twins := c.linked(a, b) && !c.closed
	c.mu.Unlock()
	if twins && b.cfg.Twin != nil {
		b.cfg.Twin()
	}
}

// dice returns the random source for the next event of a stream.
func (c *Cluster) dice(kind string, from, to *Host) *rand.Rand {
	s := stream{from.run, to.run, kind}
	c.counts[s]++
	h := mix(uint64(from.run), uint64(to.run), c.counts[s])
	for _, b := range []byte(kind) {
		h = mix(h, uint64(b))
	}
	return rand.New(rand.NewPCG(c.seed, h))
}

// after calls f within a duration, at an instant with no other event. The caller holds the lock; f
// is called without it.
func (c *Cluster) after(r *rand.Rand, within time.Duration, f func()) {
	now := time.Now()
	at := now.UnixNano() + 1 + r.Int64N(int64(within))
	for c.busy[at] {
		at++
	}
	c.busy[at] = true
	time.AfterFunc(time.Duration(at-now.UnixNano()), func() {
		c.mu.Lock()
		delete(c.busy, at)
		closed := c.closed
		c.mu.Unlock()
		if !closed {
			f()
		}
	})
}

// delay draws the longest delay of a message: usually a twentieth of the configured delay.
func (c *Cluster) delay(r *rand.Rand) time.Duration {
	longest := max(c.conditions.Delay, time.Millisecond)
	if r.IntN(8) > 0 {
		return max(longest/20, time.Millisecond)
	}
	return longest
}

// send delivers a message, unless it is lost. The message still arrives if its sender stops
// meanwhile, but not across a partition.
func (c *Cluster) send(kind string, from, to *Host, deliver func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.dice(kind, from, to)
	loss, copies := c.conditions.Loss/2, 1
	if kind == kindDelta {
		loss *= 2
		if r.Float64() < c.conditions.Duplicate {
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
		c.after(r, c.delay(r), func() {
			c.mu.Lock()
			arrives := to.up && to.side == from.side
			if arrives {
				to.known.hear(from.id, Status{from.run, Running})
			}
			c.mu.Unlock()
			if arrives {
				deliver()
			}
		})
	}
}

// These are the kinds of messages.
const (
	kindDelta   = "delta"
	kindFull    = "full"
	kindRequest = "request"
	kindReply   = "reply"
)

// exchange is one push/pull of full states between two hosts.
func (c *Cluster) exchange(a, b *Host) {
	push := func(from, to *Host, then func()) {
		states := from.full()
		c.mu.Lock()
		known := from.known.clone()
		c.mu.Unlock()
		c.send(kindFull, from, to, func() {
			c.mu.Lock()
			to.known.union(known)
			c.mu.Unlock()
			for _, s := range states {
				to.merge(s.replica, s.data)
			}
			then()
		})
	}
	push(a, b, func() { push(b, a, func() {}) })
}

// around returns the hosts that h reaches and that count as reachable. The caller holds the lock.
func (c *Cluster) around(h *Host) []*Host {
	var out []*Host
	for _, o := range c.hosts {
		if c.linked(h, o) && c.sees(h, o) {
			out = append(out, o)
		}
	}
	return out
}

// ErrUnreachable reports that no run of a peer counts as reachable.
var ErrUnreachable = errors.New("the peer cannot be reached by gossip at present")

// find returns the run of a peer that a message from h goes to, or nil. Of two runs with the same
// identity, find chooses one at random.
func (c *Cluster) find(h *Host, id peer.ID) *Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	var runs []*Host
	for _, o := range c.peers[id] {
		if o != h && c.sees(h, o) {
			runs = append(runs, o)
		}
	}
	if len(runs) == 0 {
		return nil
	}
	slices.SortStableFunc(runs, func(a, b *Host) int { // prefer a run that answers
		if x, y := c.linked(h, a), c.linked(h, b); x == y {
			return 0
		} else if x {
			return -1
		}
		return 1
	})
	if len(runs) > 1 && c.linked(h, runs[1]) {
		return runs[c.dice("find", h, h).IntN(2)]
	}
	return runs[0]
}
