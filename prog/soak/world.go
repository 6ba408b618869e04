// Package soak shows by simulation that no address is handed out twice. Whole clusters of
// allocators live through random histories under virtual time, on mesh/meshtest's Cluster. Every
// write to every disk is checked against rules.
//
// The events follow from a seed. Hosts allocate, release and claim addresses. The network is
// partitioned. Hosts crash. Disks fill up, get lost, are copied, or are restored from an older
// backup. Peers leave or are removed, dead or alive, with or without force. rules.go has the rules
// for every moment, and settle.go those for a cluster that is whole again.
//
// Run must be called in a bubble of testing/synctest. It keeps no state between calls. The
// package is not part of any program.
package soak

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// shape is a cluster's configuration, as drawn from the seed.
type shape struct {
	universe   slot.Universe
	excluded   []netip.Prefix
	rest       time.Duration
	hosts      int
	voters     int // how many hosts found the ring together; 0: the first host founds it alone
	apart      bool
	calm       bool // a good network and no forced removals, so no excuses
	rounds     int  // rounds of steps; after each round the cluster is made whole
	steps      int  // the number of steps per round
	conditions meshtest.Conditions
}

// draw draws small clusters with even smaller universes, so that addresses are always scarce.
// One cluster in fifty is large.
func draw(r *rand.Rand) shape {
	s := shape{
		universe: slot.Universe{
			V4: netip.PrefixFrom(netip.MustParseAddr("10.32.0.0"), 26-r.IntN(3)),
			V6: netip.MustParsePrefix("fd00:1::/96"),
		},
		rest:   time.Duration(1+r.IntN(15)) * time.Second,
		hosts:  3 + r.IntN(6),
		rounds: 1 + r.IntN(2),
		steps:  20 + r.IntN(40),
		conditions: meshtest.Conditions{
			Loss:      []float64{0, 0.05, 0.3}[r.IntN(3)],
			Duplicate: []float64{0, 0.2}[r.IntN(2)],
			Delay:     []time.Duration{20 * time.Millisecond, 300 * time.Millisecond, 2 * time.Second}[r.IntN(3)],
		},
	}
	switch r.IntN(50) {
	case 0:
		s.hosts, s.rounds, s.steps = 100, 1, 25
		s.universe.V4 = netip.PrefixFrom(s.universe.V4.Addr(), 24)
	case 1, 2, 3, 4, 5:
		s.hosts = 9 + r.IntN(4)
	}
	if r.IntN(4) == 0 {
		s.voters = 1 + r.IntN(min(s.hosts, 7))
		s.apart = r.IntN(2) == 0
	}
	if r.IntN(6) == 0 {
		s.calm, s.apart, s.conditions = true, false, meshtest.Conditions{Delay: 20 * time.Millisecond}
	}
	if r.IntN(3) == 0 {
		s.excluded = []netip.Prefix{netip.PrefixFrom(s.universe.Addr4(slot.Slot(16*r.IntN(4))), 28)}
	}
	return s
}

// world is a cluster with its history.
type world struct {
	shape
	seed   uint64
	rand   *rand.Rand // the randomness of the driver
	net    *meshtest.Cluster
	ctx    context.Context
	cancel context.CancelFunc
	began  time.Time
	print  func(line string) // called with each line of the log, if set
	ops    sync.WaitGroup
	keys   int
	begun  int

	mu      sync.Mutex
	hosts   []*host
	byRun   map[*meshtest.Host]*host
	log     []string
	failure error
	truth   truth
	stirred time.Time // when a host last started, stopped or changed sides
	ids     int
}

// Failure is a rule that was broken, with the log until then.
type Failure struct {
	Seed uint64
	Err  error
	Log  []string
}

func (f *Failure) Error() string { return fmt.Sprintf("seed %d: %v", f.Seed, f.Err) }

// Run runs the history of a seed, and returns a *Failure if a rule was broken. It calls print,
// if set, for each line of the log.
func Run(seed uint64, print func(line string)) error {
	r := rand.New(rand.NewPCG(seed, 0))
	w := &world{
		shape: draw(r), seed: seed, rand: r, net: meshtest.NewCluster(seed), began: time.Now(), print: print,
		byRun: map[*meshtest.Host]*host{}, truth: newTruth(),
	}
	w.truth.strict = w.calm
	w.ctx, w.cancel = context.WithCancel(context.Background())
	defer w.end()
	w.note("%d hosts, %d voters (apart: %v), %v without %v, quarantine %v, calm: %v, %+v",
		w.shape.hosts, w.voters, w.apart, w.universe.V4, w.excluded, w.rest, w.calm, w.conditions)
	w.founding()
	for range w.rounds {
		w.net.SetConditions(w.conditions)
		for range w.steps {
			w.step()
			if !w.pause() {
				return w.failed()
			}
		}
		if w.settle(); w.failed() != nil {
			return w.failed()
		}
	}
	w.exhaust()
	return w.failed()
}

// pause lets a random time pass. It returns true if no rule was broken.
func (w *world) pause() bool {
	most := []time.Duration{200 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second, 12 * time.Second}[w.rand.IntN(4)]
	time.Sleep(time.Duration(w.rand.Int64N(int64(most))))
	synctest.Wait()
	w.look()
	return w.failed() == nil
}

// end stops all hosts, so that the bubble can end.
func (w *world) end() {
	w.net.Close()
	w.cancel()
	for _, h := range w.all() {
		if r := w.runOf(h); r != nil {
			w.stop(r)
		}
	}
	w.ops.Wait()
}

// note adds a line to the log.
func (w *world) note(format string, args ...any) {
	line := fmt.Sprintf("%9.3fs  ", time.Since(w.began).Seconds()) + fmt.Sprintf(format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, line)
	if w.print != nil {
		w.print(line)
	}
}

// broken records the first rule that was broken. The caller holds the lock.
func (w *world) broken(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("%9.3fs  "+format, append([]any{time.Since(w.began).Seconds()}, args...)...)
	}
}

func (w *world) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure == nil {
		return nil
	}
	return &Failure{w.seed, w.failure, slices.Clone(w.log)}
}

// async runs f beside the driver. Each f starts at an instant of its own, so that the order of
// goroutines does not matter.
func (w *world) async(f func()) {
	w.begun++
	at := w.begun % 1e6
	w.ops.Go(func() {
		time.Sleep(time.Duration(1 + at))
		f()
	})
}

// newID returns a random peer id, so that ids are not ordered by start. The caller holds the
// lock.
func (w *world) newID() (id peer.ID) {
	r := rand.New(rand.NewPCG(w.seed, uint64(1000+w.ids)))
	w.ids++
	for i := range id {
		id[i] = byte(1 + r.IntN(255))
	}
	return id
}

// founding starts the first hosts of the cluster.
func (w *world) founding() {
	w.net.SetConditions(w.conditions)
	for i := range w.shape.hosts {
		h := w.add()
		h.voter, h.founder = i < w.voters, w.voters == 0 && i == 0
		if w.apart {
			h.side = w.rand.IntN(2)
		}
		w.boot(h)
		time.Sleep(time.Duration(w.rand.Int64N(int64(300 * time.Millisecond))))
	}
	if w.voters > 0 && !w.calm {
		w.campaign()
	}
	time.Sleep(time.Duration(w.rand.Int64N(int64(5 * time.Second))))
	if w.voters > 0 && !w.apart || w.calm {
		time.Sleep(10 * time.Second)
	}
}

// campaign disturbs the founders during the election.
func (w *world) campaign() {
	for range w.rand.IntN(40) {
		switch w.rand.IntN(4) {
		case 0, 1:
			w.partition()
		case 2:
			w.crash()
		case 3:
			w.restart()
		}
		time.Sleep(time.Duration(w.rand.Int64N(int64(time.Second))))
	}
}

// founded returns the ring that the first host founds if it founds alone.
func (w *world) founded(h *host) *ring.Ring {
	if !h.founder {
		return nil
	}
	r := ring.Found(ring.ID(bytes.Repeat([]byte{1}, 16)), [16]byte{1}, w.universe, h.id)
	return &r
}

// all returns all hosts, including those that are gone.
func (w *world) all() []*host {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.hosts)
}

// some picks a host for which cond returns true. cond is called under the lock.
func (w *world) some(cond func(*host) bool) *host {
	w.mu.Lock()
	defer w.mu.Unlock()
	fit := slices.DeleteFunc(slices.Clone(w.hosts), func(h *host) bool { return h.gone || !cond(h) })
	if len(fit) == 0 {
		return nil
	}
	return fit[w.rand.IntN(len(fit))]
}

// someRun picks a host that runs, and returns its run.
func (w *world) someRun() *run { return w.someRunOf(func(*host) bool { return true }) }

func (w *world) someRunOf(cond func(*host) bool) *run {
	if h := w.some(func(h *host) bool { return h.run != nil && cond(h) }); h != nil {
		return w.runOf(h)
	}
	return nil
}
