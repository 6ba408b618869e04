// Package ipam decides which address: it owns this peer's view of the ring and
// its allocations, and asks other peers for space when its own runs out.
//
// The Allocator is an actor: one goroutine, in Run, holds all of its state, so
// there are no locks. Every change is persisted before it is answered. It never
// hands out a slot that it does not own, and never the same slot to two keys.
//
// What can take slots away from a peer is a take-over, when it was given up for dead,
// or the mesh's word against its own older state. Allocations in such slots are lost:
// the peer is fenced, and says which. A peer that starts from stored state hears from
// the others what became of the ring before it writes.
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

// Store keeps the allocator's state. Update is one transaction.
type Store interface {
	Load() (State, error)
	Update(Change) error
}

// State is what a Store holds.
type State struct {
	Ring        []byte               // as ring.Encode wrote it; empty: none yet
	Vote        []byte               // as paxos.State.Encode wrote it; empty: none yet
	Allocations map[string]slot.Slot // by key
	Resting     []space.Resting
}

// Change is what one step changes in a Store.
type Change struct {
	Ring   []byte // nil: as it was
	Vote   []byte // nil: as it was
	Key    string // "": no allocation changes
	Slot   slot.Slot
	Note   []byte // the asker's own, kept beside the slot
	Delete bool   // the allocation of Key goes
	// Rest, of an allocation that goes, is until when its slot rests (Unix seconds). What
	// rested until Now need not be kept any longer.
	Rest, Now int64
	Resting   []space.Resting // further slots that rest from now on
}

// Mesh is what the allocator needs of the other peers.
type Mesh interface {
	// Broadcast passes a delta on to all peers. It does not block.
	Broadcast(replica string, delta []byte)
	// Request asks one peer and waits for its answer. An answer that says no is an error with a
	// method Refused() string.
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
	// Reachable reports whether a peer can be asked at all.
	Reachable(peer.ID) bool
	// Others lists all other peers that are known, reachable or not, but for those that have
	// left and those of another ring.
	Others() []peer.ID
	// Stopped reports whether a peer said that its agent was stopped; its containers run on.
	Stopped(peer.ID) bool
	// Name is what people call a peer.
	Name(peer.ID) string
}

// Config is what an Allocator is made of.
type Config struct {
	Self  peer.ID
	Store Store
	Mesh  Mesh
	Log   *slog.Logger
	// Found, if given, is the ring that this peer founds unless it has one already.
	Found *ring.Ring
	// Elect, if given, is how this peer takes part in founding one together with others.
	Elect *Election
	// Cluster and Universe are what the ring must be of, as far as they are set.
	Cluster  [16]byte
	Universe slot.Universe
	// Excluded is what is never handed out unless it is asked for by name.
	Excluded []netip.Prefix
	// Rest is how long a slot rests before it is used again; default DefaultRest.
	Rest time.Duration
	// Held, if given, reports whether a slot that was freed is still known to other peers as who
	// had it: it is not handed out, however scarce slots are. It must not block.
	Held func(slot.Slot) bool
	// Listed, if given, is which slots a peer was using, as far as is known. Those of a peer that
	// is removed are handed out last.
	Listed func(peer.ID) []slot.Slot
	// Heard, if given, says what shows that a peer lives which gossip does not reach, and what to
	// do then; empty if nothing does. It must not block.
	Heard func(peer.ID) string
	// Changed is called after every change of the ring, and not of allocations: who
	// asked for one knows. It must not block.
	Changed func()
}

// ReplicaName is the ring's, in gossip.
const ReplicaName = "ring"

// DefaultRest is how long a slot rests before it is used again.
const DefaultRest = time.Minute

// conflictLife is how long a conflict is shown: gossip repeats one that goes on.
const conflictLife = 5 * time.Minute

// Errors of Allocate, beside the context's own.
var (
	ErrStopped = errors.New("ipam: the agent is stopping")
	ErrNoRing  = errors.New("ipam: there is no ring yet: this peer waits to hear of it from its targets (see `weft status targets`)")
	ErrNoSpace = errors.New("ipam: no free address is left in the mesh that can be reached (see `weft status ipam`)")
	ErrBehind  = errors.New("ipam: this peer has just started and still hears from the others what became of the ring: try again")
	ErrLeaving = errors.New("ipam: this peer is leaving the mesh")
)

// Allocator hands out slots.
type Allocator struct {
	cfg     Config
	calls   chan func()
	stopped chan struct{}
	grants  atomic.Int32 // asked for, and not answered

	// What follows belongs to the goroutine of Run.
	ring        ring.Ring
	conflict    error // the last state that could not be merged, for people
	conflictAt  time.Time
	space       *space.Space
	allocations map[string]slot.Slot
	waiting     []waiter
	asking      bool
	refusals    []string // why the last round of asking brought nothing, for people
	behind      bool     // until the others have said what became of the ring
	leaving     bool
	election    *election           // nil where this peer does not vote
	removals    map[peer.ID]removal // whom we confirmed to be dead, and to whom
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
	cfg.Rest = cmp.Or(cfg.Rest, DefaultRest)
	return &Allocator{cfg: cfg, calls: make(chan func()), stopped: make(chan struct{}), removals: map[peer.ID]removal{}}
}

// Run loads the state and serves until ctx ends. Calls made before Run wait for it.
func (a *Allocator) Run(ctx context.Context) error {
	defer a.asks.Wait()
	defer close(a.stopped) // first: a request under way waits for it
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
			a.space.Wake(time.Now().Unix())
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
	a.space.Hold(a.cfg.Held)
	switch {
	case len(state.Ring) > 0:
		r, err := ring.Restore(state.Ring)
		if err != nil {
			return fmt.Errorf("ipam: stored state: %w", err)
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
	for _, r := range state.Resting {
		a.space.Rest(r)
	}
	a.warnOfLost(ring.Ring{})
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

// Free takes back the slot of key; a key that has none is no error.
func (a *Allocator) Free(ctx context.Context, key string) error {
	var err error
	if e := a.do(ctx, func() {
		s, ok := a.allocations[key]
		if !ok {
			return
		}
		now := time.Now()
		rest := space.Resting{Slot: s, Until: now.Add(a.cfg.Rest).Unix()}
		change := Change{Key: key, Slot: s, Delete: true, Now: now.Unix()}
		ours := a.owns(s)
		if ours {
			change.Rest = rest.Until
		}
		if err = a.cfg.Store.Update(change); err != nil {
			err = fmt.Errorf("ipam: free %v: %w", s, err)
			return
		}
		delete(a.allocations, key)
		if ours {
			a.space.Give(s)
			a.space.Rest(rest)
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
	Lost        map[string]slot.Slot // of Allocations, those whose slot is another peer's now
	Free        uint64               // slots that this peer can hand out without asking
	Resting     int                  // slots that were freed a moment ago
	Waiting     int                  // requests that wait for space
	Behind      bool                 // this peer still hears from the others what became of the ring
	Vote        *Vote                // of a peer that takes part in founding a ring, while there is none
}

// Snapshot copies the state.
func (a *Allocator) Snapshot(ctx context.Context) (s Snapshot, err error) {
	err = a.do(ctx, func() {
		s = Snapshot{
			Ring: a.ring, Allocations: maps.Clone(a.allocations),
			Lost: a.lost(), Free: a.space.Free(), Resting: len(a.space.Resting()), Waiting: len(a.waiting), Behind: a.behind,
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

// serve meets the requests that wait, in order, and asks for space if one cannot be met.
func (a *Allocator) serve() {
	if errors.Is(a.serveFrom((*space.Space).Take), ErrNoSpace) {
		a.ask()
	}
}

// serveFrom meets the requests that wait, in order, until one has to go on waiting.
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

// meet gives a waiter a slot of our own space, persisted.
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

// keep persists an allocation of a slot that was taken from the space.
func (a *Allocator) keep(key string, s slot.Slot, note []byte) error {
	if err := a.cfg.Store.Update(Change{Key: key, Slot: s, Note: note}); err != nil {
		a.space.Give(s)
		return fmt.Errorf("ipam: allocate %v: %w", s, err)
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

// resize recomputes the free space from the ring and the allocations.
func (a *Allocator) resize() {
	owned := a.ring.Owned()[a.cfg.Self]
	a.space.Resize(a.usable(), owned, slices.Collect(maps.Values(a.allocations)))
}

// usable is the universe without what is excluded.
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

// fault is a bug to be found, set by the linker, by prog/soak's tests only:
// -ldflags '-X weft/ipam.fault=unfenced'.
var fault string

// lost are the allocations in slots that are another peer's now.
func (a *Allocator) lost() map[string]slot.Slot {
	var out map[string]slot.Slot
	if fault == "unfenced" { // whoever held a slot that was taken over goes on with it
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

// warnOfLost logs which allocations the change from an older ring took away.
func (a *Allocator) warnOfLost(before ring.Ring) {
	if a.ring.IsZero() {
		return
	}
	for key, s := range a.lost() {
		if owner, _ := before.Owner(s); before.IsZero() || owner == a.cfg.Self {
			now, _ := a.ring.Owner(s)
			a.cfg.Log.Warn("an address was taken over while this peer was away: what has it is cut off", "allocation", key,
				"address", a.ring.Universe.Addr4(s), "owner", a.cfg.Mesh.Name(now))
		}
	}
}
