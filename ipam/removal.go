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

// removal is our promise to one peer: for now only that peer may take over a dead peer's slots.
type removal struct {
	by    peer.ID
	until time.Time
}

// promiseLife is how long a peer that confirmed a removal refuses to confirm that removal to
// another peer.
const promiseLife = 3 * time.Second

// removeTimeout limits how long RemovePeer waits for other peers that are removing the same peer.
const removeTimeout = 10 * time.Second

// RemovalError reports why a peer was not removed.
type RemovalError struct {
	Peer    peer.ID
	Why     string
	Nothing bool // the peer owns no slots that could be taken over
}

func (e *RemovalError) Error() string {
	return fmt.Sprintf("ipam: cannot remove peer %v: %s", e.Peer, e.Why)
}

// errRival reports that another peer is removing the same peer. Its text is part of the protocol:
// peers of other versions compare it, so it must not change.
var errRival = errors.New("another peer is removing it at this moment")

// RemovePeer takes over the slots of a dead peer, and returns their number. All reachable peers
// must confirm that it is dead, and send its last grants. Without a majority of all peers it needs
// force: this side of a partition cannot know whether the peer is alive on the other side.
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
		a.giveUp(ctx, dead)             // two peers that both keep their promises would block each other
		sleep(ctx, rand.N(promiseLife)) // the random pause lets one of the two try again before the other
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
		a.cfg.Log.Warn("took over the addresses of a dead peer", "peer", a.cfg.Mesh.Name(dead), "slots", slots, "generation", next.Generation())
		reply, err := a.publish(next, delta)
		return reply, errors.Join(err, a.handOutLast(listed))
	})
	if errors.Is(err, ring.ErrNothing) {
		return 0, &RemovalError{Peer: dead, Why: "it owns no addresses", Nothing: true}
	}
	return slots, err
}

// lastFor is how long the used slots of a removed peer stay in quarantine. Its containers may still
// run, and other hosts may still send to them.
const lastFor = 24 * time.Hour

// listed returns the slots that a peer owns and is known to use.
func (a *Allocator) listed(id peer.ID) []slot.Slot {
	if a.cfg.Listed == nil {
		return nil
	}
	return slices.DeleteFunc(a.cfg.Listed(id), func(s slot.Slot) bool {
		owner, ok := a.ring.Owner(s)
		return !ok || owner != id
	})
}

// handOutLast puts slots that we took over into a long quarantine.
func (a *Allocator) handOutLast(slots []slot.Slot) error {
	if len(slots) == 0 {
		return nil
	}
	var quarantined []space.Quarantined
	until := time.Now().Add(lastFor).Unix()
	for _, s := range slots {
		quarantined = append(quarantined, space.Quarantined{Slot: s, Until: until})
		a.space.Quarantine(space.Quarantined{Slot: s, Until: until})
	}
	if err := a.cfg.Store.Update(Change{Quarantined: quarantined}); err != nil {
		return fmt.Errorf("ipam: storing the quarantined addresses: %w", err)
	}
	return nil
}

// refused returns the reason of a peer that refused a request; empty if the peer did not answer.
func refused(err error) string {
	var no interface{ Refused() string }
	if errors.As(err, &no) {
		return no.Refused()
	}
	return ""
}

// confirm asks every reachable peer to confirm that a peer is dead.
func (a *Allocator) confirm(ctx context.Context, dead peer.ID, force bool) (err error) {
	if dead == a.cfg.Self {
		return &RemovalError{Peer: dead, Why: "it is this host: run `weft reset` to leave the mesh"}
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
			refusals = append(refusals, fmt.Sprintf("%s refuses: %s", a.cfg.Mesh.Name(id), why))
		}
	})
	all := len(voters) + 2 // count this peer and the dead one, so that only one side of a partition has a majority
	switch {
	case len(refusals) > 0:
		slices.Sort(refusals)
		err = &RemovalError{Peer: dead, Why: strings.Join(refusals, "; ")}
	case rival:
		err = fmt.Errorf("ipam: cannot remove peer %v: %w", dead, errRival)
	case a.cfg.Mesh.Stopped(dead) && !force:
		err = &RemovalError{Peer: dead, Why: "its agent was stopped on purpose, and its containers may still run: run `weft reset` on that host; if it is gone for good, add --force"}
	case confirmed <= all/2 && !force:
		err = &RemovalError{Peer: dead, Why: fmt.Sprintf("only %d of %d peers can be reached and confirm that it is dead, which is no majority: it may be alive behind a partition; "+
			"if it is gone for good, add --force", confirmed, all)}
	}
	return err
}

// giveUp withdraws the request for confirmation from all peers.
func (a *Allocator) giveUp(ctx context.Context, dead peer.ID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), usageTimeout)
	defer cancel()
	a.askAll(ctx, a.reachable(), requestRemoval, removalGivenUp(dead), func(peer.ID, []byte, error) {})
	_ = a.do(ctx, func() { a.forget(a.cfg.Self, dead) })
}

// voters returns the other peers that count for the majority: all known peers, except peers that
// were removed with our confirmation. To leave out every unreachable peer without slots would be
// unsafe: then both sides of a partition could find a majority.
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

// removalAsked and removalGivenUp return the payload of a removal request: the dead peer's id,
// and then 1 if the request is withdrawn, else 0.
func removalAsked(dead peer.ID) []byte   { return append(dead[:], 0) }
func removalGivenUp(dead peer.ID) []byte { return append(dead[:], 1) }

// forget withdraws the promise made to the peer by.
func (a *Allocator) forget(by, dead peer.ID) {
	if a.removals[dead].by == by {
		delete(a.removals, dead)
	}
}

// promise confirms to the peer by that a peer is dead. It refuses if the dead peer is alive after
// all, or if another peer got this promise first. Silence in gossip is no proof of death while the
// tunnel works.
func (a *Allocator) promise(by, dead peer.ID) error {
	if dead == a.cfg.Self {
		return errors.New("that is this host, and it is alive")
	}
	if a.cfg.Mesh.Reachable(dead) {
		return fmt.Errorf("%s is alive: it answers %s; run `weft reset` on that host", a.cfg.Mesh.Name(dead), a.cfg.Mesh.Name(a.cfg.Self))
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
	if len(a.ring.Owned()[dead]) > 0 || slices.Contains(a.cfg.Mesh.Others(), dead) { // store known peers only, so that the map stays bounded
		a.removals[dead] = removal{by, now.Add(promiseLife)}
	}
	return nil
}

func (a *Allocator) serveRemoval(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	const size = len(peer.ID{})
	if len(payload) != size+1 {
		return nil, fmt.Errorf("invalid removal: it has %d bytes, want %d", len(payload), size+1)
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
			return nil, nil // without a ring there are no grants to send
		}
		return a.full(), nil
	})
}

// ErrNoHeir reports that no peer confirmed to take over this peer's slots.
var ErrNoHeir = errors.New("ipam: no reachable peer confirmed to take over this host's addresses: the host has not left; check `weft status connections` and try again")

// Leave gives all of this peer's slots to another peer, the heir, and waits until one peer has
// stored the changed ring. From then on this peer allocates nothing. The only peer of a mesh needs
// no heir.
func (a *Allocator) Leave(ctx context.Context) (heir peer.ID, err error) {
	here := a.reachable()
	usage := a.Usage(ctx, here[:min(len(here), mostAsked)])
	here = slices.DeleteFunc(here, func(id peer.ID) bool { _, answers := usage[id]; return !answers })
	slices.SortStableFunc(here, func(x, y peer.ID) int { return cmp.Compare(usage[x].Free, usage[y].Free) }) // the peer with the fewest free slots first
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
	handover, err := a.answer(ctx, func() ([]byte, error) {
		if err := a.bequeath(here[0]); err != nil {
			a.leaving = false
			return nil, err
		}
		return a.ring.Encode(), nil
	})
	if err != nil {
		return heir, err
	}
	for _, id := range here { // ask the heir first; another peer that stores the handover passes it on by gossip
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		_, err := a.cfg.Mesh.Request(ask, id, requestInherit, handover)
		cancel()
		if err == nil {
			return here[0], nil
		}
		a.cfg.Log.Warn("a peer did not confirm to take over this host's addresses: asking the next peer", "peer", a.cfg.Mesh.Name(id), "err", err)
	}
	return heir, errors.Join(ErrNoHeir, a.do(ctx, func() { a.leaving = false })) // this peer stays, and asks for space like a new one
}

func (a *Allocator) leave() {
	a.leaving = true
	a.failAll(ErrLeaving)
}

// awaitGrants waits for pending grants that this peer requested before it began to leave. A grant
// that arrives after it has left would be lost.
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

// serveInherit merges the ring of a leaving peer, and confirms once that ring is on disk.
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

// bequeath gives all of our slots to one peer.
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
