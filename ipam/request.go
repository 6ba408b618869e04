package ipam

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/ring"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// What one allocator asks of another. A reply that changes the ring is a part of it.
const (
	requestRing    = "ring"    // the whole ring
	requestUsage   = "usage"   // how much is free: Usage
	requestSpace   = "space"   // a block of free slots, for who knows this ring: a grant
	requestPressed = "pressed" // the same, but a slot also if it rests, since nobody has a free one
	requestClaim   = "claim"   // one slot: a grant
	requestRemoval = "removal" // whether a peer is dead: the whole ring
	requestInherit = "inherit" // to take what we leave behind
)

// Timing of requests.
const (
	askTimeout   = 3 * time.Second        // one peer's answer
	usageTimeout = time.Second            // the same, where the answer is no more than advice
	askAgain     = 500 * time.Millisecond // until the next round, when nobody had space
	aloneFor     = 3 * time.Second        // how long a peer that starts waits for another to appear
	soonAfter    = 500 * time.Millisecond // how long it then waits for the rest
)

// mostAsked bounds how many peers are asked at once how much they have free.
const mostAsked = 16

// Handlers answer what other peers' allocators ask, by name.
func (a *Allocator) Handlers() map[string]func(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		requestRing:  func(context.Context, peer.ID, []byte) ([]byte, error) { return a.Full(), nil },
		requestUsage: a.serveUsage,
		requestSpace: func(ctx context.Context, from peer.ID, known []byte) (reply []byte, err error) {
			return a.answer(ctx, func() ([]byte, error) { return a.donate(from, known, false) })
		},
		requestPressed: func(ctx context.Context, from peer.ID, known []byte) (reply []byte, err error) {
			return a.answer(ctx, func() ([]byte, error) { return a.donate(from, known, true) })
		},
		requestClaim:   a.serveClaim,
		requestRemoval: a.serveRemoval,
		requestInherit: a.serveInherit,
	}
}

// answer runs f on the actor's goroutine.
func (a *Allocator) answer(ctx context.Context, f func() ([]byte, error)) (reply []byte, err error) {
	if e := a.do(ctx, func() { reply, err = f() }); e != nil {
		return nil, e
	}
	return reply, err
}

// Usage is what a peer has of its own.
type Usage struct {
	Active  uint64 `cbor:"1,keyasint"` // allocations
	Free    uint64 `cbor:"2,keyasint"` // slots that can be handed out
	Resting uint64 `cbor:"3,keyasint"` // slots that were freed a moment ago
}

func (a *Allocator) serveUsage(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
	return a.answer(ctx, func() ([]byte, error) {
		return cbor.Marshal(Usage{uint64(len(a.allocations)), a.space.Free(), uint64(len(a.space.Resting()))})
	})
}

// Usage asks peers what they have free; who does not answer soon is left out.
func (a *Allocator) Usage(ctx context.Context, peers []peer.ID) map[peer.ID]Usage {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	var mu sync.Mutex
	out := map[peer.ID]Usage{}
	a.askAll(ctx, peers, requestUsage, nil, func(id peer.ID, reply []byte, err error) {
		var u Usage
		if err != nil || cbor.Unmarshal(reply, &u) != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		out[id] = u
	})
	return out
}

// askAll asks several peers at once, and calls got, on several goroutines, with each answer.
func (a *Allocator) askAll(ctx context.Context, peers []peer.ID, kind string, payload []byte, got func(id peer.ID, reply []byte, err error)) {
	var all sync.WaitGroup
	for _, id := range peers {
		all.Go(func() {
			reply, err := a.cfg.Mesh.Request(ctx, id, kind, payload)
			got(id, reply, err)
		})
	}
	all.Wait()
}

// catchUp hears from the others what became of the ring while this peer was away: its
// stored state may be older than what it said last. Where nobody can be reached, it goes
// on alone after a while.
func (a *Allocator) catchUp(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, aloneFor+askTimeout)
	defer cancel()
	a.askAll(ask, a.gathered(ctx), requestRing, nil, func(id peer.ID, reply []byte, err error) {
		if err == nil && len(reply) > 0 {
			_, err = a.Merge(reply)
		}
		if err != nil {
			a.cfg.Log.Info("a peer did not say what became of the ring", "peer", a.cfg.Mesh.Name(id), "err", err)
		}
	})
	_ = a.do(ctx, func() {
		a.behind = false
		a.serve()
		a.cfg.Changed()
	})
}

// gathered waits for the other peers to appear after a start: for all of them, or for
// those that come soon after the first.
func (a *Allocator) gathered(ctx context.Context) (here []peer.ID) {
	until := time.Now().Add(aloneFor)
	for ctx.Err() == nil && time.Now().Before(until) {
		before := len(here)
		if here = a.reachable(); len(here) == len(a.cfg.Mesh.Others()) {
			break
		}
		if before == 0 && len(here) > 0 {
			until = time.Now().Add(soonAfter)
		}
		sleep(ctx, 50*time.Millisecond)
	}
	return here
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// reachable are the other peers that can be asked.
func (a *Allocator) reachable() []peer.ID {
	return slices.DeleteFunc(a.cfg.Mesh.Others(), func(id peer.ID) bool { return !a.cfg.Mesh.Reachable(id) })
}

// ask requests space from the other owners, in the background; one round at a time.
func (a *Allocator) ask() {
	if a.asking {
		return
	}
	a.asking = true
	donors, refusals := a.donors()
	ctx := a.ctx
	a.asks.Go(func() {
		got, more := a.askEach(ctx, donors, requestSpace)
		if !got && a.pressed(ctx) {
			got, _ = a.askEach(ctx, donors, requestPressed)
		}
		_ = a.do(ctx, func() {
			a.asking, a.refusals = false, slices.Concat(refusals, more)
			if got {
				a.serve() // who waits on is asked for again
			}
		})
	})
}

// pressed hands out what rests here, better too soon than never, and reports whether
// somebody waits still.
func (a *Allocator) pressed(ctx context.Context) (still bool) {
	_ = a.do(ctx, func() { still = errors.Is(a.serveFrom((*space.Space).TakeResting), ErrNoSpace) })
	return still
}

// askEach asks one donor after the other, who has most first, until one gives. It runs
// outside the actor.
func (a *Allocator) askEach(ctx context.Context, donors []peer.ID, kind string) (got bool, refusals []string) {
	usage := a.Usage(ctx, donors[:min(len(donors), mostAsked)])
	slices.SortStableFunc(donors, func(x, y peer.ID) int { return cmp.Compare(usage[y].Free, usage[x].Free) })
	for _, id := range donors {
		if u, known := usage[id]; known && u.Free == 0 && (kind == requestSpace || u.Resting == 0) {
			refusals = append(refusals, a.cfg.Mesh.Name(id)+" has nothing free")
			continue
		}
		err := a.askFor(ctx, id, kind, a.Full())
		if err == nil {
			return true, nil
		}
		refusals = append(refusals, fmt.Sprintf("%s: %v", a.cfg.Mesh.Name(id), err))
	}
	return false, refusals
}

// askFor asks one peer for slots and takes them.
func (a *Allocator) askFor(ctx context.Context, id peer.ID, kind string, payload []byte) error {
	a.grants.Add(1)
	defer a.grants.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	data, err := a.cfg.Mesh.Request(ctx, id, kind, payload)
	if err != nil {
		return err
	}
	_, err = a.Merge(data) // no news: gossip was faster than the reply
	return err
}

// donors are the other owners that can be reached, who owns most first, and why not the rest.
func (a *Allocator) donors() (donors []peer.ID, refusals []string) {
	sizes := map[peer.ID]uint64{}
	for id, ranges := range a.ring.Owned() {
		if id == a.cfg.Self {
			continue
		}
		if !a.cfg.Mesh.Reachable(id) {
			refusals = append(refusals, a.cfg.Mesh.Name(id)+" cannot be reached")
			continue
		}
		for _, r := range ranges {
			sizes[id] += r.Len()
		}
	}
	slices.Sort(refusals)
	return slices.SortedFunc(maps.Keys(sizes), func(x, y peer.ID) int {
		return cmp.Or(cmp.Compare(sizes[y], sizes[x]), bytes.Compare(x[:], y[:]))
	}), refusals
}

// shortage says why there is no address.
func (a *Allocator) shortage() error {
	const most = 5
	why := slices.Clone(a.refusals)
	if len(why) == 0 {
		return ErrNoSpace
	}
	if len(why) > most {
		why = append(why[:most], fmt.Sprintf("and %d more", len(why)-most))
	}
	return fmt.Errorf("%w: nothing is free here; %s", ErrNoSpace, strings.Join(why, "; "))
}

var errNothingFree = errors.New("it has nothing free")

// writable reports why this peer may not give away anything now.
func (a *Allocator) writable() error {
	switch {
	case a.ring.IsZero():
		return ErrNoRing
	case a.leaving:
		return ErrLeaving
	case a.behind:
		return ErrBehind
	}
	return nil
}

// donate gives away about half of what is free, as a part of the ring that makes it theirs;
// to one who is pressed, if nothing is, the slot that rests for longest. Who has not heard
// yet of what it was given before is told of that, and given no more: the answer to an
// earlier request was lost.
func (a *Allocator) donate(to peer.ID, known []byte, pressed bool) ([]byte, error) {
	if err := a.writable(); err != nil {
		return nil, err
	}
	if to == a.cfg.Self {
		return nil, errors.New("a peer gives no space to itself")
	}
	if given, err := a.given(to, known); err != nil || given != nil {
		return given, err
	}
	gift, ok := a.space.Donate()
	if !ok && pressed {
		gift, ok = a.space.DonateResting()
	}
	if !ok {
		return nil, errNothingFree
	}
	next, delta, err := a.ring.Grant(a.cfg.Self, to, gift)
	if err != nil {
		a.resize() // the gift is free again
		return nil, err
	}
	a.cfg.Log.Info("gave space to peer", "peer", a.cfg.Mesh.Name(to), "slots", gift.Len())
	return a.publish(next, delta)
}

// given is what a peer does not know of, if there is space of its own in that: it is free,
// since nothing can have been allocated in it. Older versions do not say what they know.
func (a *Allocator) given(to peer.ID, known []byte) ([]byte, error) {
	if len(known) == 0 {
		return nil, nil
	}
	theirs, err := ring.Decode(known)
	if err != nil {
		return nil, err
	}
	_, news, err := theirs.Merge(a.ring)
	if err != nil {
		return nil, err
	}
	for _, g := range news.Owned()[to] {
		for _, u := range a.usable() {
			if g.Intersect(u).Len() > 0 {
				return news.Encode(), nil
			}
		}
	}
	return nil, nil
}

// publish makes a ring ours that we changed, and tells the others.
func (a *Allocator) publish(next, delta ring.Ring) ([]byte, error) {
	if err := a.adopt(next); err != nil {
		a.resize()
		return nil, err
	}
	data := delta.Encode()
	a.cfg.Mesh.Broadcast(ReplicaName, data)
	return data, nil
}
