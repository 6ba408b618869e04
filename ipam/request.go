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

// These are the kinds of requests between allocators. If a reply changes the ring, it holds the
// changed part.
const (
	requestRing    = "ring"    // the whole ring
	requestUsage   = "usage"   // how much the peer uses and has free: Usage
	requestSpace   = "space"   // a block of free slots; the payload is the requester's ring, the reply a grant
	requestPressed = "pressed" // like space, but also a slot in quarantine, since no peer has a free slot
	requestClaim   = "claim"   // one given slot; the reply is a grant
	requestRemoval = "removal" // confirm that a peer is dead; the reply is the whole ring
	requestInherit = "inherit" // take over the slots of the leaving sender
)

// These are the time limits and pauses of requests.
const (
	askTimeout   = 3 * time.Second        // the time limit of one peer's answer
	usageTimeout = time.Second            // the time limit of an answer that this peer can do without
	askAgain     = 500 * time.Millisecond // the pause between two rounds in which no peer had space
	aloneFor     = 3 * time.Second        // how long a starting peer waits for the first other peer
	soonAfter    = 500 * time.Millisecond // how long a starting peer then waits for further peers
)

// mostAsked limits how many peers are asked for their usage at once. silentAtOnce limits how many of those that did not
// answer are asked for space at once: each of them may give some.
const (
	mostAsked    = 16
	silentAtOnce = 4
)

// Handlers returns the handlers of other peers' requests, by kind.
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

// answer runs f on the actor's goroutine and returns its result.
func (a *Allocator) answer(ctx context.Context, f func() ([]byte, error)) (reply []byte, err error) {
	if e := a.do(ctx, func() { reply, err = f() }); e != nil {
		return nil, e
	}
	return reply, err
}

// Usage is one peer's use of its slots.
type Usage struct {
	Active  uint64 `cbor:"1,keyasint"` // allocated slots
	Free    uint64 `cbor:"2,keyasint"` // slots that can be allocated
	Resting uint64 `cbor:"3,keyasint"` // released slots in quarantine
}

func (a *Allocator) serveUsage(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
	return a.answer(ctx, func() ([]byte, error) {
		return cbor.Marshal(Usage{uint64(len(a.allocations)), a.space.Free(), uint64(len(a.space.Quarantined()))})
	})
}

// Usage asks peers for their usage. Peers that do not answer within usageTimeout are left out.
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

// askAll asks peers in parallel, and calls got for each answer, on several goroutines.
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

// catchUp fetches the current ring from the other peers. This peer's stored state may be older than
// the state that it last sent. If no peer can be reached for a while, this peer continues alone.
func (a *Allocator) catchUp(ctx context.Context) {
	ask, cancel := context.WithTimeout(ctx, aloneFor+askTimeout)
	defer cancel()
	a.askAll(ask, a.gathered(ctx), requestRing, nil, func(id peer.ID, reply []byte, err error) {
		if err == nil && len(reply) > 0 {
			_, err = a.Merge(reply)
		}
		if err != nil {
			a.cfg.Log.Info("could not fetch the current ring from a peer: continuing without it", "peer", a.cfg.Mesh.Name(id), "err", err)
		}
	})
	_ = a.do(ctx, func() {
		a.behind = false
		a.serve()
		a.cfg.Changed()
	})
}

// gathered waits after a start for the other peers, and returns the reachable ones. It waits for
// all other peers, but not long after the first is reachable.
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

// reachable returns the other peers that can be asked.
func (a *Allocator) reachable() []peer.ID {
	return slices.DeleteFunc(a.cfg.Mesh.Others(), func(id peer.ID) bool { return !a.cfg.Mesh.Reachable(id) })
}

// ask requests space from the other owners, in the background, one round at a time.
func (a *Allocator) ask() {
	if a.asking {
		return
	}
	donors, refusals := a.donors()
	a.asking = true
	ctx := a.ctx
	a.asks.Go(func() {
		got, more := a.askEach(ctx, donors, requestSpace)
		if !got && a.pressed(ctx) {
			got, _ = a.askEach(ctx, donors, requestPressed)
		}
		_ = a.do(ctx, func() {
			a.asking, a.refusals = false, slices.Concat(refusals, more)
			if got {
				a.refusals = nil
				a.serve() // this starts another round if requests still wait
			}
		})
	})
}

// pressed allocates slots in quarantine to waiting requests, since no slot is free. It reports
// whether requests still wait.
func (a *Allocator) pressed(ctx context.Context) (still bool) {
	_ = a.do(ctx, func() { still = errors.Is(a.serveFrom((*space.Space).TakeQuarantined), ErrNoSpace) })
	return still
}

// askEach asks donors until one gives space: one after the other, the donor with the most free slots first; then those
// that did not say in time what they have free, several at once, so that slow peers do not add up. It runs outside the
// actor.
func (a *Allocator) askEach(ctx context.Context, donors []peer.ID, kind string) (got bool, refusals []string) {
	var silent []peer.ID
	for some := range slices.Chunk(donors, mostAsked) {
		usage := a.Usage(ctx, some)
		slices.SortStableFunc(some, func(x, y peer.ID) int { return cmp.Compare(usage[y].Free, usage[x].Free) })
		for _, id := range some {
			u, known := usage[id]
			switch {
			case !known:
				silent = append(silent, id)
			case u.Free == 0 && (kind == requestSpace || u.Resting == 0):
				refusals = append(refusals, a.cfg.Mesh.Name(id)+" has no free address")
			default:
				err := a.askFor(ctx, id, kind, a.Full())
				if err == nil {
					return true, nil
				}
				refusals = append(refusals, fmt.Sprintf("%s: %v", a.cfg.Mesh.Name(id), err))
			}
		}
	}
	for some := range slices.Chunk(silent, silentAtOnce) {
		var mu sync.Mutex
		var all sync.WaitGroup
		for _, id := range some {
			all.Go(func() {
				err := a.askFor(ctx, id, kind, a.Full())
				mu.Lock()
				defer mu.Unlock()
				if got = got || err == nil; err != nil {
					refusals = append(refusals, fmt.Sprintf("%s: %v", a.cfg.Mesh.Name(id), err))
				}
			})
		}
		if all.Wait(); got {
			return true, nil
		}
	}
	return false, refusals
}

// askFor requests slots from one peer and merges its grant.
func (a *Allocator) askFor(ctx context.Context, id peer.ID, kind string, payload []byte) error {
	a.grants.Add(1)
	defer a.grants.Add(-1)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	data, err := a.cfg.Mesh.Request(ctx, id, kind, payload)
	if err != nil {
		return err
	}
	_, err = a.Merge(data) // the result is empty if gossip was faster than the reply
	return err
}

// donors returns the reachable owners, the owner of the most slots first, and the reasons why the
// other owners cannot be asked.
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

// shortage returns the error for a request that found no address.
func (a *Allocator) shortage() error {
	const most = 5
	why := slices.Clone(a.refusals)
	if a.asking {
		why = append(why, "not all peers have answered yet")
	}
	if len(why) == 0 {
		return ErrNoSpace
	}
	if len(why) > most {
		why = append(why[:most], fmt.Sprintf("and %d more", len(why)-most))
	}
	return fmt.Errorf("%w: this host has no free address; %s", ErrNoSpace, strings.Join(why, "; "))
}

var errNothingFree = errors.New("it has no free address")

// writable returns an error if this peer may not change the ring now.
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

// donate gives about half of the free slots to a peer, and returns the grant. If there are none and
// pressed is set, donate gives the slot that leaves quarantine first. known is the requester's
// ring: if it lacks an earlier grant to the requester, the answer was lost. Then donate repeats
// that grant instead of giving more.
func (a *Allocator) donate(to peer.ID, known []byte, pressed bool) ([]byte, error) {
	if err := a.writable(); err != nil {
		return nil, err
	}
	if to == a.cfg.Self {
		return nil, errors.New("a peer cannot request space from itself")
	}
	if missing, err := a.missingGrant(to, known); err != nil || missing != nil {
		return missing, err
	}
	gift, ok := a.space.Donate()
	if !ok && pressed {
		gift, ok = a.space.DonateQuarantined()
	}
	if !ok {
		return nil, errNothingFree
	}
	next, delta, err := a.ring.Grant(a.cfg.Self, to, gift)
	if err != nil {
		a.resize() // frees the slots again, since they were not given away
		return nil, err
	}
	a.cfg.Log.Info("gave address space to a peer", "peer", a.cfg.Mesh.Name(to), "slots", gift.Len())
	return a.publish(next, delta)
}

// missingGrant returns the part of our ring that known, a peer's ring, lacks, if the peer owns
// usable slots in it. That part was granted to the peer in an answer that was lost. The peer does
// not know of those slots, so they are all free. Peers of older versions send no ring.
func (a *Allocator) missingGrant(to peer.ID, known []byte) ([]byte, error) {
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

// publish adopts a ring that this peer changed, and broadcasts the delta.
func (a *Allocator) publish(next, delta ring.Ring) ([]byte, error) {
	if err := a.adopt(next); err != nil {
		a.resize()
		return nil, err
	}
	data := delta.Encode()
	a.cfg.Mesh.Broadcast(ReplicaName, data)
	return data, nil
}
