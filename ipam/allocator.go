// Package ipam allocates addresses. A slot is an offset into the mesh's address range, and the ring
// records which peer owns which slots. The Allocator holds this peer's copy of the ring and this
// peer's allocations. It asks other peers for slots when it has no free slot left.
//
// The Allocator is an actor: the goroutine of Run holds all of its state, so there are no locks.
// Every change is on disk before the caller gets an answer. The caller gives each allocation a key.
// The Allocator never allocates a slot that this peer does not own, and never the same slot to two
// keys.
//
// Other peers take over the slots of a peer that they removed as dead. Allocations in such slots
// are lost: when the removed peer returns, it no longer owns these slots, and reports the lost
// allocations. The same happens if a peer starts from an old copy of its state. So a peer with
// stored state fetches the current ring from the other peers before it changes the ring.
package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// Store persists the allocator's state. Update is one transaction.
type Store interface {
	Load() (State, error)
	Update(Change) error
}

// State is the content of a Store.
type State struct {
	Ring        []byte               // written by ring.Encode; empty if there is none yet
	Vote        []byte               // written by paxos.State.Encode; empty if there is none yet
	Allocations map[string]slot.Slot // key: the key that Allocate was called with
	Quarantined []space.Quarantined
}

// Change is one update of a Store.
type Change struct {
	Ring   []byte // nil: the ring does not change
	Vote   []byte // nil: the vote does not change
	Key    string // "": no allocation changes
	Slot   slot.Slot
	Note   []byte // the caller's data, stored with the slot
	Delete bool   // delete the allocation of Key
	// QuarantineUntil is the end of the quarantine of a deleted allocation's slot, in Unix
	// seconds. Entries whose quarantine ended at Now or earlier may be dropped.
	QuarantineUntil, Now int64
	Quarantined          []space.Quarantined // further slots whose quarantine starts now
}

// Mesh is the allocator's access to other peers.
type Mesh interface {
	// Broadcast sends a delta to all peers. It does not block.
	Broadcast(replica string, delta []byte)
	// Request sends a request to one peer and waits for its answer. If the peer refuses, the error
	// has a method Refused() string.
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
	// Reachable reports whether requests reach a peer at present.
	Reachable(peer.ID) bool
	// Others lists all other known peers, reachable or not, without peers that have left or belong
	// to another ring.
	Others() []peer.ID
	// Stopped reports whether a peer announced that its agent was stopped; its containers may still
	// run.
	Stopped(peer.ID) bool
	// Name returns a peer's name for messages.
	Name(peer.ID) string
}

// Config configures an Allocator.
type Config struct {
	Self  peer.ID
	Store Store
	Mesh  Mesh
	Log   *slog.Logger
	// Found, if set, is the ring that this peer founds, unless it has one already.
	Found *ring.Ring
	// Elect, if set, makes this peer agree with other peers on one ring to found.
	Elect *Election
	// Cluster and Universe, if set, are the cluster and universe that the ring must have.
	Cluster  [16]byte
	Universe slot.Universe
	// Excluded ranges are only allocated when requested by address.
	Excluded []netip.Prefix
	// Rest is how long a released slot stays in quarantine; default DefaultRest.
	Rest time.Duration
	// Held, if set, reports whether other peers still map a released slot to its former endpoint.
	// Such a slot is not allocated, even if no other slot is free. Held must not block.
	Held func(slot.Slot) bool
	// Listed, if set, returns the slots that a peer is known to use. After the removal of the peer
	// these slots are allocated last.
	Listed func(peer.ID) []slot.Slot
	// Heard, if set, returns how a peer that gossip does not reach has proved to be alive, and what
	// the operator can do; empty if there is no proof. Heard must not block.
	Heard func(peer.ID) string
	// Changed is called after every change of the ring, but not of allocations. It must not block.
	Changed func()
}

// ReplicaName is the name of the ring as a replicated state.
const ReplicaName = "ring"

// DefaultRest is the default quarantine of a released slot.
const DefaultRest = time.Minute

// conflictLife is how long a conflict is shown. If it persists, gossip reports it again.
const conflictLife = 5 * time.Minute

// These are the errors of Allocate, besides those of the context.
var (
	ErrStopped = errors.New("ipam: the agent is stopping")
	ErrNoRing  = errors.New("ipam: this peer has not received the address ring yet: no address can be allocated; check its connections in `weft status targets`")
	ErrNoSpace = errors.New("ipam: no reachable peer has a free address (see `weft status ipam`)")
	ErrBehind  = errors.New("ipam: this peer has just started and is fetching the current ring from the other peers; try again in a few seconds")
	ErrLeaving = errors.New("ipam: this peer is leaving the mesh")
)

// Allocator allocates slots to keys.
type Allocator struct {
	cfg     Config
	calls   chan func()
	stopped chan struct{}
	grants  atomic.Int32 // requests for slots that other peers have not answered yet

	// The fields below belong to the goroutine of Run.
	ring        ring.Ring
	conflict    error // why the last state could not be merged, for status
	conflictAt  time.Time
	space       *space.Space
	allocations map[string]slot.Slot
	waiting     []waiter
	asking      bool
	refusals    []string // why the last round of requests failed, for error messages
	behind      bool     // true until the others have sent the current ring
	leaving     bool
	election    *election           // nil if this peer does not vote
	removals    map[peer.ID]removal // the removals that we confirmed; key: the dead peer
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

// New returns an Allocator; Run starts it.
func New(cfg Config) *Allocator {
	cfg.Rest = cmp.Or(cfg.Rest, DefaultRest)
	return &Allocator{cfg: cfg, calls: make(chan func()), stopped: make(chan struct{}), removals: map[peer.ID]removal{}}
}

// Run loads the state and serves until ctx ends. Calls made before Run wait for it.
func (a *Allocator) Run(ctx context.Context) error {
	defer a.asks.Wait()
	defer close(a.stopped) // this runs before asks.Wait, since pending requests wait for it
	a.ctx = ctx
	if err := a.load(); err != nil {
		return err
	}
	if a.behind {
		a.asks.Go(func() { a.catchUp(ctx) })
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
		case <-a.voting():
			a.tick()
		case <-again.C:
			a.space.Release(time.Now().Unix())
			a.serve()
		}
	}
}

func (a *Allocator) load() error {
	state, err := a.cfg.Store.Load()
	if err != nil {
		return fmt.Errorf("ipam: loading the stored state: %w", err)
	}
	a.allocations = state.Allocations
	if a.allocations == nil {
		a.allocations = map[string]slot.Slot{}
	}
	a.space = space.New(nil, nil, nil)
	a.space.Hold(a.cfg.Held)
	switch {
	case len(state.Ring) > 0:
		r, err := ring.Restore(state.Ring)
		if err != nil {
			return fmt.Errorf("ipam: decoding the stored ring: %w", err)
		}
		if err := a.acceptable(r); err != nil {
			return err
		}
		a.ring, a.behind = r, len(a.cfg.Mesh.Others()) > 0
	case a.cfg.Found != nil:
		return a.adopt(*a.cfg.Found)
	case a.cfg.Elect != nil:
		if err := a.loadVotes(state.Vote); err != nil {
			return err
		}
	}
	a.resize()
	for _, r := range state.Quarantined {
		a.space.Quarantine(r)
	}
	a.warnOfLost(ring.Ring{})
	a.cfg.Changed()
	return nil
}

// do runs f on the goroutine of Run and waits for it.
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

// Allocate returns the slot of key, and allocates a slot if the key has none. If this peer has no
// free slot, it asks other peers until ctx ends. The store keeps note with the slot, in the same
// transaction.
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

// withdraw cancels a request that was not answered in time, and returns the reason. If it was
// answered in the meantime, withdraw returns that slot, so that no slot is lost.
func (a *Allocator) withdraw(ctx context.Context, reply chan result) (slot.Slot, error) {
	r := result{err: ErrStopped}
	_ = a.do(context.WithoutCancel(ctx), func() {
		a.waiting = slices.DeleteFunc(a.waiting, func(w waiter) bool { return w.reply == reply })
		switch {
		case a.ring.IsZero():
			r.err = ErrNoRing
		case a.behind:
			r.err = ErrBehind
		default:
			r.err = a.shortage()
		}
		select {
		case r = <-reply:
		default:
		}
	})
	return r.slot, r.err
}

// Free releases the slot of key. A key without a slot is no error.
func (a *Allocator) Free(ctx context.Context, key string) error {
	var err error
	if e := a.do(ctx, func() {
		s, ok := a.allocations[key]
		if !ok {
			return
		}
		now := time.Now()
		quarantine := space.Quarantined{Slot: s, Until: now.Add(a.cfg.Rest).Unix()}
		change := Change{Key: key, Slot: s, Delete: true, Now: now.Unix()}
		ours := a.owns(s)
		if ours {
			change.QuarantineUntil = quarantine.Until
		}
		if err = a.cfg.Store.Update(change); err != nil {
			err = fmt.Errorf("ipam: freeing slot %v: %w", s, err)
			return
		}
		delete(a.allocations, key)
		if ours {
			a.space.Give(s)
			a.space.Quarantine(quarantine)
		}
	}); e != nil {
		return e
	}
	return err
}

// Snapshot is the allocator's state at one moment.
type Snapshot struct {
	Ring        ring.Ring
	Conflict    error // why a recently received state could not be merged
	Allocations map[string]slot.Slot
	Lost        map[string]slot.Slot // the allocations whose slot another peer owns now
	Free        uint64               // slots that this peer can allocate without asking others
	Resting     int                  // released slots in quarantine
	Waiting     int                  // requests that wait for space
	Behind      bool                 // this peer is still fetching the current ring
	Vote        *Vote                // progress of the election; nil if this peer does not vote or there is a ring
}

// Snapshot returns a copy of the state.
func (a *Allocator) Snapshot(ctx context.Context) (s Snapshot, err error) {
	err = a.do(ctx, func() {
		s = Snapshot{
			Ring: a.ring, Allocations: maps.Clone(a.allocations),
			Lost: a.lost(), Free: a.space.Free(), Resting: len(a.space.Quarantined()), Waiting: len(a.waiting), Behind: a.behind,
		}
		if s.Conflict = a.ring.Excess(); time.Since(a.conflictAt) < conflictLife {
			s.Conflict = a.conflict
		}
		if e := a.election; e != nil && a.ring.IsZero() {
			s.Vote = e.describe()
			if time.Since(e.errAt) < conflictLife {
				s.Conflict = e.err
			}
		}
	})
	return s, err
}

// serve answers waiting requests in order, and asks other peers for space if one cannot be met.
func (a *Allocator) serve() {
	if errors.Is(a.serveFrom((*space.Space).Take), ErrNoSpace) {
		a.ask()
	}
}

// serveFrom answers waiting requests in order, until one must keep waiting.
func (a *Allocator) serveFrom(take func(*space.Space) (slot.Slot, bool)) error {
	for !a.ring.IsZero() && len(a.waiting) > 0 {
		w := a.waiting[0]
		s, err := a.meet(w, take)
		if errors.Is(err, ErrNoSpace) || errors.Is(err, ErrBehind) {
			return err
		}
		a.waiting = a.waiting[1:]
		w.reply <- result{s, err}
	}
	return nil
}

// meet allocates and persists a slot of this peer's own space.
func (a *Allocator) meet(w waiter, take func(*space.Space) (slot.Slot, bool)) (slot.Slot, error) {
	if s, ok := a.allocations[w.key]; ok {
		return s, nil
	}
	switch {
	case a.leaving:
		return 0, ErrLeaving
	case a.behind:
		return 0, ErrBehind
	}
	s, ok := take(a.space)
	if !ok {
		return 0, ErrNoSpace
	}
	return s, a.keep(w.key, s, w.note)
}

// keep persists the allocation of a slot that was taken from the space.
func (a *Allocator) keep(key string, s slot.Slot, note []byte) error {
	if err := a.cfg.Store.Update(Change{Key: key, Slot: s, Note: note}); err != nil {
		a.space.Give(s)
		return fmt.Errorf("ipam: storing the allocation of slot %v: %w", s, err)
	}
	a.allocations[key] = s
	return nil
}

func (a *Allocator) failAll(err error) {
	for _, w := range a.waiting {
		w.reply <- result{err: err}
	}
	a.waiting = nil
}

// resize computes the free space anew from ring and allocations.
func (a *Allocator) resize() {
	owned := a.ring.Owned()[a.cfg.Self]
	a.space.Resize(a.usable(), owned, slices.Collect(maps.Values(a.allocations)))
}

// usable returns the universe without the excluded ranges.
func (a *Allocator) usable() []slot.Range {
	u := a.ring.Universe
	if u.IsZero() {
		return nil
	}
	out := []slot.Range{u.Usable()}
	for _, p := range a.cfg.Excluded {
		var rest []slot.Range
		for _, r := range out {
			rest = append(rest, r.Without(u.Cut(p))...)
		}
		out = rest
	}
	return out
}

func (a *Allocator) owns(s slot.Slot) bool {
	owner, ok := a.ring.Owner(s)
	return ok && owner == a.cfg.Self
}

// fault selects a deliberate bug, to prove that prog/soak's tests detect it. Only those tests set
// it: -ldflags '-X weft/ipam.fault=unfenced'.
var fault string

// lost returns the allocations whose slots another peer owns now.
func (a *Allocator) lost() map[string]slot.Slot {
	var out map[string]slot.Slot
	if fault == "unfenced" { // the former owner keeps using slots that were taken over
		return out
	}
	for key, s := range a.allocations {
		if !a.owns(s) {
			if out == nil {
				out = map[string]slot.Slot{}
			}
			out[key] = s
		}
	}
	return out
}

// warnOfLost logs the lost allocations whose slots this peer owned in before, the earlier ring; all of
// them if there was no earlier ring.
func (a *Allocator) warnOfLost(before ring.Ring) {
	if a.ring.IsZero() {
		return
	}
	for key, s := range a.lost() {
		if owner, _ := before.Owner(s); before.IsZero() || owner == a.cfg.Self {
			now, _ := a.ring.Owner(s)
			a.cfg.Log.Warn("an address of this host was taken over while it was away: its container is cut off; start the container anew", "allocation", key,
				"address", a.ring.Universe.Addr4(s), "owner", a.cfg.Mesh.Name(now))
		}
	}
}
