// Package ipam decides which address: it owns this peer's view of the ring and
// its allocations, and asks other peers for space when its own runs out.
//
// The Allocator is an actor: one goroutine, in Run, holds all of its state, so
// there are no locks. Every change is persisted before it is answered. It never
// hands out a slot that it does not own, and never the same slot to two keys.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// Store keeps the allocator's state. Update is one transaction.
type Store interface {
	Load() (State, error)
	Update(Change) error
}

// State is what a Store holds.
type State struct {
	Ring        []byte               // as ring.Encode wrote it; empty: none yet
	Allocations map[string]slot.Slot // by key
}

// Change is what one step changes in a Store.
type Change struct {
	Ring   []byte // nil: as it was
	Key    string // "": no allocation changes
	Slot   slot.Slot
	Note   []byte // the asker's own, kept beside the slot
	Delete bool   // the allocation of Key goes
}

// Mesh is what the allocator needs of the other peers.
type Mesh interface {
	// Broadcast passes a delta on to all peers. It does not block.
	Broadcast(replica string, delta []byte)
	// Request asks one peer and waits for its answer.
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
	// Reachable reports whether a peer can be asked at all.
	Reachable(peer.ID) bool
}

// Config is what an Allocator is made of.
type Config struct {
	Self  peer.ID
	Store Store
	Mesh  Mesh
	Log   *slog.Logger
	// Found, if given, is the ring that this peer founds unless it has one already
	// or hears of one first.
	Found *ring.Ring
	// Cluster and Universe are what the ring must be of, as far as they are set.
	Cluster  [16]byte
	Universe slot.Universe
	// Changed is called after every change of the ring, and not of allocations: who
	// asked for one knows. It must not block.
	Changed func()
}

// Replica and request names, as they appear in gossip.
const (
	ReplicaName  = "ring"
	RequestSpace = "space"
)

// Timing of requests for space.
const (
	askTimeout = 3 * time.Second        // one peer's answer
	askAgain   = 500 * time.Millisecond // until the next round, when nobody had space
)

// conflictLife is how long a conflict is shown: gossip repeats one that goes on.
const conflictLife = 5 * time.Minute

// Errors of Allocate, beside the context's own.
var (
	ErrStopped = errors.New("ipam: the agent is stopping")
	ErrNoRing  = errors.New("ipam: there is no ring yet: this peer waits to hear of it from its targets (see `weft status targets`)")
	ErrNoSpace = errors.New("ipam: no free address is left in the mesh that can be reached (see `weft status ipam`)")
)

// Allocator hands out slots.
type Allocator struct {
	cfg     Config
	calls   chan func()
	stopped chan struct{}

	// What follows belongs to the goroutine of Run.
	ring        ring.Ring
	conflict    error // the last state that could not be merged, for people
	conflictAt  time.Time
	space       *space.Space
	allocations map[string]slot.Slot
	waiting     []waiter
	asking      bool
	asks        sync.WaitGroup
	ctx         context.Context
}

type waiter struct {
	key   string
	note  []byte
	reply chan result
}

type result struct {
	slot slot.Slot
	err  error
}

// New makes an allocator; Run starts it.
func New(cfg Config) *Allocator {
	return &Allocator{cfg: cfg, calls: make(chan func()), stopped: make(chan struct{})}
}

// Run loads the state and serves until ctx ends. Calls made before Run wait for it.
func (a *Allocator) Run(ctx context.Context) error {
	defer a.asks.Wait()
	defer close(a.stopped) // first: a request under way waits for it
	a.ctx = ctx
	if err := a.load(); err != nil {
		return err
	}
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			a.failAll(ErrStopped)
			return nil
		case call := <-a.calls:
			call()
		case <-again.C:
			a.serve()
		}
	}
}

func (a *Allocator) load() error {
	state, err := a.cfg.Store.Load()
	if err != nil {
		return fmt.Errorf("ipam: load: %w", err)
	}
	a.allocations = state.Allocations
	if a.allocations == nil {
		a.allocations = map[string]slot.Slot{}
	}
	a.space = space.New(nil, nil, nil)
	switch {
	case len(state.Ring) > 0:
		r, err := ring.Decode(state.Ring)
		if err != nil {
			return fmt.Errorf("ipam: stored state: %w", err)
		}
		if err := a.acceptable(r); err != nil {
			return err
		}
		a.ring = r
	case a.cfg.Found != nil:
		return a.adopt(*a.cfg.Found)
	}
	a.resize()
	a.cfg.Changed()
	return nil
}

// do runs f on the actor's goroutine and waits for it.
func (a *Allocator) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case a.calls <- func() { f(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-a.stopped:
		return ErrStopped
	}
}

// Allocate gives key a slot, the same one every time until it is freed. Where this
// peer has none free it asks the others, for as long as ctx allows. The note is the
// asker's own: the store keeps it with the slot, in the same transaction.
func (a *Allocator) Allocate(ctx context.Context, key string, note []byte) (slot.Slot, error) {
	reply := make(chan result, 1)
	err := a.do(ctx, func() {
		a.waiting = append(a.waiting, waiter{key: key, note: note, reply: reply})
		a.serve()
	})
	if err != nil {
		return 0, err
	}
	select {
	case r := <-reply:
		return r.slot, r.err
	case <-ctx.Done():
		return a.withdraw(ctx, reply)
	case <-a.stopped:
		return 0, ErrStopped
	}
}

// withdraw takes back a request that was not met in time, and explains why it was
// not. If it was met in the meantime, that counts: no slot is lost in between.
func (a *Allocator) withdraw(ctx context.Context, reply chan result) (slot.Slot, error) {
	r := result{err: ErrStopped}
	_ = a.do(context.WithoutCancel(ctx), func() {
		a.waiting = slices.DeleteFunc(a.waiting, func(w waiter) bool { return w.reply == reply })
		r.err = ErrNoSpace
		if a.ring.IsZero() {
			r.err = ErrNoRing
		}
		select {
		case r = <-reply:
		default:
		}
	})
	return r.slot, r.err
}

// Free takes back the slot of key; a key that has none is no error.
func (a *Allocator) Free(ctx context.Context, key string) error {
	var err error
	if e := a.do(ctx, func() {
		s, ok := a.allocations[key]
		if !ok {
			return
		}
		if err = a.cfg.Store.Update(Change{Key: key, Delete: true}); err != nil {
			err = fmt.Errorf("ipam: free %v: %w", s, err)
			return
		}
		delete(a.allocations, key)
		if owner, _ := a.ring.Owner(s); owner == a.cfg.Self {
			a.space.Give(s)
		}
	}); e != nil {
		return e
	}
	return err
}

// Snapshot is the allocator's state at one moment.
type Snapshot struct {
	Ring        ring.Ring
	Conflict    error // why a state that a peer sent of late could not be merged
	Allocations map[string]slot.Slot
	Free        uint64 // slots that this peer can hand out without asking
	Waiting     int    // requests that wait for space
}

// Snapshot copies the state.
func (a *Allocator) Snapshot(ctx context.Context) (s Snapshot, err error) {
	err = a.do(ctx, func() {
		s = Snapshot{
			Ring: a.ring, Allocations: maps.Clone(a.allocations),
			Free: a.space.Free(), Waiting: len(a.waiting),
		}
		if time.Since(a.conflictAt) < conflictLife {
			s.Conflict = a.conflict
		}
	})
	return s, err
}

// serve meets the requests that wait, in order, and asks for space if one cannot be met.
func (a *Allocator) serve() {
	if a.ring.IsZero() {
		return
	}
	for len(a.waiting) > 0 {
		w := a.waiting[0]
		s, err := a.take(w.key, w.note)
		if errors.Is(err, ErrNoSpace) {
			a.ask()
			return
		}
		a.waiting = a.waiting[1:]
		w.reply <- result{s, err}
	}
}

// take gives key a slot of our own space, persisted.
func (a *Allocator) take(key string, note []byte) (slot.Slot, error) {
	if s, ok := a.allocations[key]; ok {
		return s, nil
	}
	s, ok := a.space.Take()
	if !ok {
		return 0, ErrNoSpace
	}
	if err := a.cfg.Store.Update(Change{Key: key, Slot: s, Note: note}); err != nil {
		a.space.Give(s)
		return 0, fmt.Errorf("ipam: allocate %v: %w", s, err)
	}
	a.allocations[key] = s
	return s, nil
}

func (a *Allocator) failAll(err error) {
	for _, w := range a.waiting {
		w.reply <- result{err: err}
	}
	a.waiting = nil
}

// resize recomputes the free space from the ring and the allocations.
func (a *Allocator) resize() {
	owned := a.ring.Owned()[a.cfg.Self]
	a.space.Resize([]slot.Range{a.ring.Universe.Usable()}, owned, slices.Collect(maps.Values(a.allocations)))
}
