package soak

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"weft/ipam"
	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// host is a machine with its disk. The world's lock guards its fields.
type host struct {
	w       *world
	name    string
	id      peer.ID
	voter   bool
	founder bool
	copied  bool // its disk is a copy of another host's
	disk    *disk
	backups []*disk
	run     *run // nil while the host is down
	side    int
	gone    bool // the host is gone forever: it left, lost its disk, or was a copy
	ballots int
}

// disk is what survives a crash.
type disk struct {
	state ipam.State
	ring  ring.Ring            // state.Ring, decoded
	slots map[slot.Slot]string // state.Allocations, by slot
	known meshtest.Known
	full  time.Time // until this time the disk is full and writes fail
}

func newDisk() *disk {
	return &disk{state: ipam.State{Allocations: map[string]slot.Slot{}}, slots: map[slot.Slot]string{}, known: meshtest.Known{}}
}

func (d *disk) clone() *disk {
	c := *d
	c.state, c.slots, c.known = d.state.Clone(), maps.Clone(d.slots), maps.Clone(d.known)
	c.full = time.Time{}
	return &c
}

// write applies one transaction.
func (d *disk) write(c ipam.Change) {
	if c.Key != "" {
		delete(d.slots, d.state.Allocations[c.Key])
		if !c.Delete {
			d.slots[c.Slot] = c.Key
		}
	}
	d.state.Apply(c)
}

// run is the agent of a host between two starts. It is the store and the mesh of its allocator,
// and checks what passes through.
type run struct {
	*meshtest.Host
	w       *world
	h       *host
	alloc   *ipam.Allocator
	stopped bool
	began   time.Time
	heard   [][]byte // the rings in confirmations that a peer is dead
}

func (r *run) String() string { return r.h.name }

// add returns a new host; boot starts it.
func (w *world) add() *host {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &host{w: w, name: fmt.Sprintf("h%d", len(w.hosts)), id: w.newID(), disk: newDisk()}
	w.hosts = append(w.hosts, h)
	return h
}

func (w *world) runOf(h *host) *run {
	w.mu.Lock()
	defer w.mu.Unlock()
	return h.run
}

// boot starts the agent of a host, unless it runs already or is gone.
func (w *world) boot(h *host) {
	w.mu.Lock()
	if h.run != nil || h.gone {
		w.mu.Unlock()
		return
	}
	r := &run{w: w, h: h, Host: w.net.Host(h.id, h.disk.known), began: time.Now()}
	h.run, w.stirred = r, time.Now()
	w.byRun[r.Host] = h
	side := h.side
	w.mu.Unlock()

	cfg := ipam.Config{
		Self: h.id, Store: r, Mesh: r, Log: slog.New(slog.DiscardHandler), Found: w.founded(h),
		Excluded: w.excluded, Rest: w.rest, Changed: func() {},
	}
	replicas := []meshtest.Replica{ringReplica{r}}
	if h.voter {
		cfg.Elect = &ipam.Election{Terms: paxos.Terms{Expect: w.voters, V4: w.universe.V4}, Candidate: r.candidate, Elsewhere: r.elsewhere}
		replicas = append(replicas, votesReplica{r})
	}
	r.alloc = ipam.New(cfg)
	r.Start(side, meshtest.HostConfig{Replicas: replicas, Handlers: r.handlers(), Run: r.live, Twin: r.twin})
}

// live runs the allocator. If the allocator ends before the host does, a rule is broken.
func (r *run) live(ctx context.Context) error {
	if err := r.alloc.Run(ctx); err != nil && !errors.Is(err, errStopped) {
		r.w.locked(func() { r.w.broken("%v does not run: %v", r, err) })
	}
	return nil
}

// stop ends a run like a crash: from now on it writes and sends nothing. It reports whether the
// run was still active.
func (w *world) stop(r *run) bool {
	w.mu.Lock()
	if r.stopped {
		w.mu.Unlock()
		return false
	}
	r.stopped = true
	r.h.run, w.stirred = nil, time.Now()
	r.h.disk.known = r.Known()
	r.h.disk.full = time.Time{}
	w.mu.Unlock()
	_ = r.Host.Stop() // the error is always nil: live reports a failure itself
	return true
}

// twin is called when this run meets a run that has the same identity and started before it.
func (r *run) twin() {
	if r.w.stop(r) {
		r.w.locked(func() { r.h.gone = true })
		r.w.note("%v meets an older run with its identity, and stops", r)
	}
}

// candidate returns the ring that this peer would found: the ids of ring and cluster, and the
// universe.
func (r *run) candidate() (ring.ID, [16]byte, slot.Universe) {
	id := ring.ID{0: 2}
	copy(id[1:], r.h.id[:])
	r.w.locked(func() {
		r.h.ballots++
		id[15] = byte(r.h.ballots)
	})
	return id, [16]byte{1}, r.w.universe
}

// elsewhere reports whether any reachable peer announces a ring.
func (r *run) elsewhere() bool {
	for _, h := range r.w.all() {
		has := false
		r.w.locked(func() { has = h.run != nil && h.run != r && !h.disk.ring.IsZero() })
		if has && r.Reachable(h.id) {
			return true
		}
	}
	return false
}

var (
	errStopped = errors.New("the host is down")
	errFull    = errors.New("the disk is full")
)

// Load returns the state on the disk.
func (r *run) Load() (ipam.State, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return r.h.disk.clone().state, nil
}

// Update writes to the disk, and checks that the write is allowed.
func (r *run) Update(c ipam.Change) error {
	w, h := r.w, r.h
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case r.stopped:
		return errStopped
	case time.Now().Before(h.disk.full):
		return errFull
	}
	if c.Key != "" && !c.Delete {
		w.mayAllocate(h, c.Key, c.Slot)
	}
	h.disk.write(c)
	if c.Ring != nil {
		next, err := ring.Decode(c.Ring)
		if err != nil {
			w.broken("%s writes an unreadable ring: %v", h.name, err)
			return nil
		}
		before := h.disk.ring
		h.disk.ring = next
		w.mayTurn(r, before, next)
	}
	if c.Key != "" && !c.Delete {
		w.uncontested(h, c.Slot)
	}
	return nil
}
