package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// removal is who may take over what a dead peer owned, by our word.
type removal struct {
	by    peer.ID
	until time.Time
}

// promiseLife is how long a peer that confirmed a removal confirms no other's.
const promiseLife = 3 * time.Second

// removeTimeout bounds how long rivals are waited for.
const removeTimeout = 10 * time.Second

// RemovalError says why a peer is not removed.
type RemovalError struct {
	Peer    peer.ID
	Why     string
	Nothing bool // it owns nothing that could be taken over
}

func (e *RemovalError) Error() string {
	return fmt.Sprintf("ipam: %v is not removed: %s", e.Peer, e.Why)
}

// errRival says that another peer removes the same one right now.
var errRival = errors.New("another peer is removing it at this moment")

// RemovePeer takes over what a dead peer owns, and says how many slots that were. All
// peers that can be reached confirm that it is dead, and tell what they know of its last
// grants. Without a majority of all peers it does so only by force: this side of a
// partition cannot know whether the peer is alive on the other.
func (a *Allocator) RemovePeer(ctx context.Context, dead peer.ID, force bool) (slots uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	defer func() {
		if err != nil {
			a.giveUp(ctx, dead)
		}
	}()
	for {
		err := a.confirm(ctx, dead, force)
		if err == nil {
			break
		}
		if !errors.Is(err, errRival) || ctx.Err() != nil {
			return 0, err
		}
		a.giveUp(ctx, dead)             // rivals that hold on to what they were promised would keep each other out
		sleep(ctx, rand.N(promiseLife)) // one of them comes back before the others
	}
	_, err = a.answer(ctx, func() ([]byte, error) {
		listed := a.listed(dead)
		next, delta, err := a.ring.TakeOver(dead, a.cfg.Self)
		if err != nil {
			return nil, err
		}
		for _, s := range delta.Segments() {
			slots += s.Len()
		}
		a.cfg.Log.Warn("took over what a dead peer owned", "peer", a.cfg.Mesh.Name(dead), "slots", slots, "generation", next.Generation())
		reply, err := a.publish(next, delta)
		return reply, errors.Join(err, a.handOutLast(listed))
	})
	if errors.Is(err, ring.ErrNothing) {
		return 0, &RemovalError{Peer: dead, Why: "it owns nothing, or nothing any more", Nothing: true}
	}
	return slots, err
}

// lastFor is how long what a removed peer had is handed out only where nothing else is
// left: its containers may run on, and somebody may still speak to them.
const lastFor = 24 * time.Hour

// listed is what a peer is known to use of what it owns.
func (a *Allocator) listed(id peer.ID) []slot.Slot {
	if a.cfg.Listed == nil {
		return nil
	}
	return slices.DeleteFunc(a.cfg.Listed(id), func(s slot.Slot) bool {
		owner, ok := a.ring.Owner(s)
		return !ok || owner != id
	})
}

// handOutLast lets slots that became ours rest for a long time.
func (a *Allocator) handOutLast(slots []slot.Slot) error {
	if len(slots) == 0 {
		return nil
	}
	var resting []space.Resting
	until := time.Now().Add(lastFor).Unix()
	for _, s := range slots {
		resting = append(resting, space.Resting{Slot: s, Until: until})
		a.space.Rest(space.Resting{Slot: s, Until: until})
	}
	if err := a.cfg.Store.Update(Change{Resting: resting}); err != nil {
		return fmt.Errorf("ipam: keep what rests: %w", err)
	}
	return nil
}

// refused is what a peer answered that does not do what was asked; empty if it did not answer.
func refused(err error) string {
	var no interface{ Refused() string }
	if errors.As(err, &no) {
		return no.Refused()
	}
	return ""
}

// confirm asks every peer that can be reached whether another is dead.
func (a *Allocator) confirm(ctx context.Context, dead peer.ID, force bool) (err error) {
	if dead == a.cfg.Self {
		return &RemovalError{Peer: dead, Why: "it is this peer: `weft reset` leaves the mesh"}
	}
	switch _, err := a.answer(ctx, func() ([]byte, error) { return nil, a.promise(a.cfg.Self, dead) }); {
	case errors.Is(err, errRival):
		return err
	case err != nil:
		return &RemovalError{Peer: dead, Why: err.Error()}
	}
	voters, err := a.voters(ctx, dead)
	if err != nil {
		return err
	}
	asked := slices.DeleteFunc(slices.Clone(voters), func(id peer.ID) bool { return !a.cfg.Mesh.Reachable(id) })
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex
	var refusals []string
	confirmed, rival := 1, false
	a.askAll(ask, asked, requestRemoval, removalAsked(dead), func(id peer.ID, reply []byte, err error) {
		if err == nil && len(reply) > 0 {
			_, err = a.Merge(reply)
		}
		mu.Lock()
		defer mu.Unlock()
		switch why := refused(err); {
		case err == nil:
			confirmed++
		case why == errRival.Error():
			rival = true
		case why != "":
			refusals = append(refusals, fmt.Sprintf("%s says: %s", a.cfg.Mesh.Name(id), why))
		}
	})
	all := len(voters) + 2 // with this peer and the dead one: so that no two sides of a split have a majority
	switch {
	case len(refusals) > 0:
		slices.Sort(refusals)
		err = &RemovalError{Peer: dead, Why: strings.Join(refusals, "; ")}
	case rival:
		err = fmt.Errorf("ipam: %v is not removed: %w", dead, errRival)
	case a.cfg.Mesh.Stopped(dead) && !force:
		err = &RemovalError{Peer: dead, Why: "its agent was stopped on purpose, and its containers may run on. Run `weft reset` on it; if it is gone for good, add --force"}
	case confirmed <= all/2 && !force:
		err = &RemovalError{Peer: dead, Why: fmt.Sprintf("only %d of %d peers can be reached and confirm that it is dead, which is no majority; it may be alive with the rest. "+
			"If you know that it is gone for good, add --force", confirmed, all)}
	}
	return err
}

// giveUp takes back what was asked of everybody.
func (a *Allocator) giveUp(ctx context.Context, dead peer.ID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), usageTimeout)
	defer cancel()
	a.askAll(ctx, a.reachable(), requestRemoval, removalGivenUp(dead), func(peer.ID, []byte, error) {})
	_ = a.do(ctx, func() { a.forget(a.cfg.Self, dead) })
}

// voters are the other peers that count for a majority: all that are known, but for those
// that were removed with our confirmation. It is not enough that a peer owns nothing and
// cannot be reached: then each side of a split could leave out some of the other.
func (a *Allocator) voters(ctx context.Context, dead peer.ID) (voters []peer.ID, err error) {
	err = a.do(ctx, func() {
		owned := a.ring.Owned()
		voters = slices.DeleteFunc(a.cfg.Mesh.Others(), func(id peer.ID) bool {
			_, confirmed := a.removals[id]
			return id == dead || confirmed && len(owned[id]) == 0 && !a.cfg.Mesh.Reachable(id)
		})
	})
	return voters, err
}

// The payload of a removal: whom, and whether it is given up.
func removalAsked(dead peer.ID) []byte   { return append(dead[:], 0) }
func removalGivenUp(dead peer.ID) []byte { return append(dead[:], 1) }

// forget takes back what was promised.
func (a *Allocator) forget(by, dead peer.ID) {
	if a.removals[dead].by == by {
		delete(a.removals, dead)
	}
}

// promise confirms to one peer that another is dead, unless it is not, or unless another
// asked first. That gossip does not reach a peer proves nothing while its tunnel works.
func (a *Allocator) promise(by, dead peer.ID) error {
	if dead == a.cfg.Self {
		return errors.New("that is me, and I am alive")
	}
	if a.cfg.Mesh.Reachable(dead) {
		return fmt.Errorf("%s is alive: it answers %s. Run `weft reset` on it", a.cfg.Mesh.Name(dead), a.cfg.Mesh.Name(a.cfg.Self))
	}
	if a.cfg.Heard != nil {
		if what := a.cfg.Heard(dead); what != "" {
			return fmt.Errorf("%s is alive: %s", a.cfg.Mesh.Name(dead), what)
		}
	}
	now := time.Now()
	if p := a.removals[dead]; p.by != by && now.Before(p.until) {
		return errRival
	}
	if len(a.ring.Owned()[dead]) > 0 || slices.Contains(a.cfg.Mesh.Others(), dead) { // a stranger cannot make us hold any id
		a.removals[dead] = removal{by, now.Add(promiseLife)}
	}
	return nil
}

func (a *Allocator) serveRemoval(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	const size = len(peer.ID{})
	if len(payload) != size+1 {
		return nil, fmt.Errorf("a removal has %d bytes, want %d", len(payload), size+1)
	}
	dead, givenUp := peer.ID(payload[:size]), payload[size] != 0
	return a.answer(ctx, func() ([]byte, error) {
		if givenUp {
			a.forget(from, dead)
			return nil, nil
		}
		if err := a.promise(from, dead); err != nil {
			return nil, err
		}
		if a.ring.IsZero() {
			return nil, nil // it knows of no grants
		}
		return a.full(), nil
	})
}

// ErrNoHeir says that nobody confirmed to have taken what this peer leaves.
var ErrNoHeir = errors.New("ipam: no other peer that can be reached confirmed to take over this peer's addresses")

// Leave hands all that this peer owns to an heir, and waits until one peer has it on its
// disk. From then on nothing is allocated here. A peer that is alone has no heir, and needs none.
func (a *Allocator) Leave(ctx context.Context) (heir peer.ID, err error) {
	here := a.reachable()
	usage := a.Usage(ctx, here[:min(len(here), mostAsked)])
	here = slices.DeleteFunc(here, func(id peer.ID) bool { _, answers := usage[id]; return !answers })
	slices.SortStableFunc(here, func(x, y peer.ID) int { return cmp.Compare(usage[x].Free, usage[y].Free) }) // who needs it most
	alone := false
	if _, err := a.answer(ctx, func() ([]byte, error) {
		alone = a.ring.IsZero() || len(a.cfg.Mesh.Others()) == 0
		if !alone && len(here) == 0 {
			return nil, ErrNoHeir
		}
		a.leave()
		return nil, nil
	}); err != nil || alone {
		return heir, err
	}
	a.awaitGrants(ctx)
	testament, err := a.answer(ctx, func() ([]byte, error) {
		if err := a.bequeath(here[0]); err != nil {
			a.leaving = false
			return nil, err
		}
		return a.ring.Encode(), nil
	})
	if err != nil {
		return heir, err
	}
	for _, id := range here { // the heir first; but whoever has it on disk will tell it
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		_, err := a.cfg.Mesh.Request(ask, id, requestInherit, testament)
		cancel()
		if err == nil {
			return here[0], nil
		}
		a.cfg.Log.Warn("a peer did not take what this one leaves", "peer", a.cfg.Mesh.Name(id), "err", err)
	}
	return heir, errors.Join(ErrNoHeir, a.do(ctx, func() { a.leaving = false })) // it stays, and asks for space like a new one
}

func (a *Allocator) leave() {
	a.leaving = true
	a.failAll(ErrLeaving)
}

// awaitGrants waits for the answers to what this peer asked for before it began to leave:
// a grant that comes after it is gone would belong to nobody.
func (a *Allocator) awaitGrants(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	for {
		pending := false
		if err := a.do(ctx, func() { pending = a.asking || a.grants.Load() > 0 }); err != nil || !pending {
			return
		}
		sleep(ctx, 10*time.Millisecond)
	}
}

// serveInherit takes in what another peer leaves; it is on disk before that is confirmed.
func (a *Allocator) serveInherit(ctx context.Context, _ peer.ID, payload []byte) ([]byte, error) {
	theirs, err := ring.Decode(payload)
	if err != nil {
		return nil, err
	}
	return a.answer(ctx, func() ([]byte, error) {
		_, err := a.merge(theirs)
		return nil, err
	})
}

// bequeath gives all that is ours to one peer.
func (a *Allocator) bequeath(to peer.ID) error {
	next := a.ring
	var deltas []ring.Ring
	for _, g := range a.ring.Owned()[a.cfg.Self] {
		granted, delta, err := next.Grant(a.cfg.Self, to, g)
		if err != nil {
			return err
		}
		next, deltas = granted, append(deltas, delta)
	}
	if err := a.adopt(next); err != nil {
		return err
	}
	for _, d := range deltas {
		a.cfg.Mesh.Broadcast(ReplicaName, d.Encode())
	}
	return nil
}
