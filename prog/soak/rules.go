package soak

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"weft/ipam"
	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// The rules, for every moment:
//
//   - No slot has two live holders. A holder is live if its host runs and the host's
//     ring says that the slot is its own. Two peers that have heard the same cannot both
//     be live holders of a slot, then; and two that have not, only where there is an
//     excuse: since all was well for the last time, somebody took the slot over, or its
//     owner went on from an older disk or with two copies of one.
//     In a calm cluster, where nobody is cut off and dead peers are dead, nothing excuses,
//     but that a peer that starts does not know at once.
//   - Who takes over has heard all that those know who confirmed it.
//   - What a peer hands out is its own, usable, and nobody else's on that peer.
//   - A peer never forgets what it heard of the ring, and there is one ring.
//   - What is told or answered is on disk.
//   - After each step, the allocator is what its disk says; allocations in slots that
//     are another's are reported as lost; no slot of its own is neither free, resting nor
//     allocated.
//   - Of two runs with one identity that meet, one stops.

// truth is what the world knows of the ring.
type truth struct {
	id         ring.ID
	generation map[slot.Slot]uint32 // the highest, where it is not the first
	excuses    map[slot.Slot]string // slots that can have two holders that have not met
	strict     bool                 // there are none
}

func newTruth() truth {
	return truth{generation: map[slot.Slot]uint32{}, excuses: map[slot.Slot]string{}}
}

func (t *truth) excuse(g slot.Range, why string) {
	for s := uint64(g.Start); s < g.End && !t.strict; s++ {
		t.excuses[slot.Slot(s)] = why
	}
}

// catchUp is how long a peer that starts may take to hear what became of its slots.
const catchUp = 8 * time.Second

// holds reports whether a host holds a slot and may. The caller holds the lock, as with
// all that follows up to look.
func (h *host) holds(s slot.Slot) bool {
	if _, holds := h.disk.slots[s]; !holds || h.run == nil {
		return false
	}
	owner, _ := h.disk.ring.Owner(s)
	return owner == h.id
}

// uncontested checks that a holder is the only one.
func (w *world) uncontested(h *host, s slot.Slot) {
	if _, excused := w.truth.excuses[s]; excused || !h.holds(s) {
		return
	}
	for _, o := range w.hosts {
		if o == h || !o.holds(s) || w.calm && time.Since(o.run.began) < catchUp {
			continue
		}
		w.broken("slot %d has two live holders: %s on %s and %s on %s", s, h.disk.slots[s], h.name, o.disk.slots[s], o.name)
	}
}

// mayAllocate checks what is about to be handed out.
func (w *world) mayAllocate(h *host, key string, s slot.Slot) {
	if owner, _ := h.disk.ring.Owner(s); owner != h.id {
		w.broken("%s hands out slot %d, which %v owns", h.name, s, owner)
	}
	if other, taken := h.disk.slots[s]; taken {
		w.broken("%s hands out slot %d to %s, and %s has it", h.name, s, key, other)
	}
	if _, has := h.disk.state.Allocations[key]; has {
		w.broken("%s gives %s a second slot, %d", h.name, key, s)
	}
	if !w.universe.Usable().Contains(s) {
		w.broken("%s hands out slot %d, which is none", h.name, s)
	}
}

// mayTurn checks a ring that a host has just written, and notes what it excuses.
func (w *world) mayTurn(r *run, before, after ring.Ring) {
	h := r.h
	if w.truth.id.IsZero() {
		w.truth.id = after.ID
	}
	if after.ID != w.truth.id {
		w.broken("%s founds a second ring", h.name)
		return
	}
	if _, news, err := after.Merge(before); err != nil || !news.IsZero() {
		w.broken("%s forgets %v of the ring: %v", h.name, news.Segments(), err)
	}
	twins := w.copies(h.id) > 1
	for _, g := range after.Segments() {
		for s := uint64(g.Start); g.Generation > 1 && s < g.End; s++ {
			one := slot.Range{Start: slot.Slot(s), End: s + 1}
			if g.Generation > max(1, w.truth.generation[one.Start]) {
				w.truth.generation[one.Start] = g.Generation
				w.truth.excuse(one, "taken over")
			}
		}
		if g.Generation > 1 && g.Version == 1 && g.Owner == h.id && claim(before, g.Start) != g.Claim {
			r.hasHeard(before, g)
		}
		if twins && g.Owner == h.id {
			w.truth.excuse(g.Range, "of a host with a copy")
		}
	}
	for s := range h.disk.slots {
		if owner, _ := before.Owner(s); owner != h.id {
			w.uncontested(h, s)
		}
	}
}

// copies counts the disks with one identity.
func (w *world) copies(id peer.ID) (n int) {
	for _, h := range w.hosts {
		if h.id == id && !h.gone {
			n++
		}
	}
	return n
}

// wentBack notes what a host can do twice after its disk was replaced by an older one.
func (w *world) wentBack(h *host, latest, older ring.Ring) {
	for _, g := range older.Segments() {
		for s := uint64(g.Start); g.Owner == h.id && s < g.End; s++ {
			if claim(latest, slot.Slot(s)) != g.Claim {
				w.truth.excuse(slot.Range{Start: slot.Slot(s), End: s + 1}, "of an older disk")
			}
		}
	}
}

func claim(r ring.Ring, s slot.Slot) ring.Claim {
	i := slices.IndexFunc(r.Segments(), func(g ring.Segment) bool { return g.Contains(s) })
	if i < 0 {
		return ring.Claim{}
	}
	return r.Segments()[i].Claim
}

// inTouch is how long it takes at most until peers that can reach each other know, and a
// removal is over.
const inTouch = 20 * time.Second

// mayRemove checks that a peer that was removed does not answer who removed it, and that
// without force, those that this one reaches are more than half of those alive that it knows.
func (w *world) mayRemove(r *run, dead peer.ID, force bool) {
	others := r.Others()
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.stopped || time.Since(w.stirred) < inTouch {
		return
	}
	here, alive := map[peer.ID]bool{r.h.id: true}, map[peer.ID]bool{r.h.id: true}
	for _, h := range w.hosts {
		if h.run == nil || h.id == r.h.id {
			continue
		}
		if h.side == r.h.side {
			here[h.id] = true
		}
		if slices.Contains(others, h.id) && h.id != dead {
			alive[h.id] = true
		}
	}
	if here[dead] {
		w.broken("%v removed %v, which it reaches", r, dead)
	}
	if !force && 2*len(here) <= len(alive) {
		w.broken("%v removed %v, and reaches %d of %d peers", r, dead, len(here), len(alive))
	}
}

// look checks the allocators of all hosts that run, at one moment.
func (w *world) look() {
	met := map[peer.ID]*run{}
	for _, h := range w.all() {
		r := w.runOf(h)
		if r == nil {
			continue
		}
		snap, err := r.alloc.Snapshot(w.ctx)
		if err != nil {
			continue // it stopped
		}
		w.locked(func() {
			if !r.stopped {
				w.matches(h, snap)
			}
			for s := range h.disk.slots {
				w.uncontested(h, s)
			}
			if o := met[h.id]; o != nil && o.h.side == h.side && time.Since(w.stirred) > meshtest.TwinLag {
				w.broken("%s and %s have one identity and meet, and both go on", o.h.name, h.name)
			}
			met[h.id] = r
		})
	}
}

// matches checks that an allocator is what its disk says.
func (w *world) matches(h *host, snap ipam.Snapshot) {
	if !snap.Ring.Equal(h.disk.ring) {
		w.broken("%s has another ring than its disk", h.name)
	}
	if !maps.Equal(snap.Allocations, h.disk.state.Allocations) {
		w.broken("%s allocated %v, its disk says %v", h.name, snap.Allocations, h.disk.state.Allocations)
	}
	live := uint64(0)
	for key, s := range snap.Allocations {
		_, lost := snap.Lost[key]
		owner, _ := snap.Ring.Owner(s)
		if lost != (owner != h.id) {
			w.broken("%s does not stop %s at slot %d, which %v owns", h.name, key, s, owner)
		}
		if !lost {
			live++
		}
	}
	if len(w.excluded) > 0 {
		return // what rests need not be usable, and cannot be counted
	}
	owned := uint64(0)
	for _, g := range snap.Ring.Owned()[h.id] {
		owned += g.Intersect(w.universe.Usable()).Len()
	}
	if sum := snap.Free + uint64(snap.Resting) + live; sum != owned {
		w.broken("%s owns %d usable slots: %d are free, %d rest, %d are allocated", h.name, owned, snap.Free, snap.Resting, live)
	}
}

// told checks that what others hear of the ring is on the disk of who says it.
func (r *run) told(data []byte) {
	said, err := ring.Decode(data)
	r.w.locked(func() {
		if r.stopped {
			return
		}
		if err != nil {
			r.w.broken("%v tells what cannot be read: %v", r, err)
		} else if _, news, err := r.h.disk.ring.Merge(said); err != nil || !news.IsZero() {
			r.w.broken("%v tells what is not on its disk: %v, %v", r, news.Segments(), err)
		}
	})
}

// voted checks that what a voter holds itself to is on its disk before others hear of it.
func (r *run) voted(data []byte) {
	said, err := paxos.Decode(data)
	r.w.locked(func() {
		if r.stopped {
			return
		}
		var kept paxos.State // of who was never bound to anything
		if disk := r.h.disk.state.Vote; len(disk) > 0 {
			var diskErr error
			kept, diskErr = paxos.Decode(disk)
			err = errors.Join(err, diskErr)
		}
		switch {
		case err != nil:
			r.w.broken("%v votes what cannot be read: %v", r, err)
		case said.Binds(kept):
			r.w.broken("%v votes what is not on its disk", r)
		}
	})
}

// Broadcast passes on what the allocator tells the others.
func (r *run) Broadcast(replica string, delta []byte) {
	if replica == ipam.ReplicaName {
		r.told(delta)
	} else {
		r.voted(delta)
	}
	r.Host.Broadcast(replica, delta)
}

// Request keeps what those say who confirm that a peer is dead.
func (r *run) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	reply, err := r.Host.Request(ctx, to, kind, payload)
	if err == nil && kind == "removal" {
		r.w.locked(func() { r.heard = append(r.heard, reply) })
	}
	return reply, err
}

// hasHeard checks that a ring, from which this peer takes a segment over, has all that it
// was told. A take-over of its own that it had forgotten, and is told of, is none.
func (r *run) hasHeard(before ring.Ring, taken ring.Segment) {
	heard := r.heard
	r.heard = nil
	for _, data := range heard {
		told, err := ring.Decode(data)
		if err != nil {
			continue
		}
		if claim(told, taken.Start) == taken.Claim {
			return
		}
		if _, news, err := before.Merge(told); err == nil && !news.IsZero() {
			r.w.broken("%v takes over without what it was told: %v", r, news.Segments())
		}
	}
}

// handlers are the allocator's.
func (r *run) handlers() map[string]meshtest.Handler {
	out := map[string]meshtest.Handler{}
	for kind, h := range r.alloc.Handlers() {
		out[kind] = func(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
			reply, err := h(ctx, from, payload)
			if err == nil && len(reply) > 0 && kind != "usage" {
				r.told(reply)
			}
			return reply, err
		}
	}
	return out
}

// ringReplica is the ring, and checks that what was merged is on disk.
type ringReplica struct{ *run }

func (ringReplica) Name() string   { return ipam.ReplicaName }
func (r ringReplica) Full() []byte { return r.alloc.Full() }

func (r ringReplica) Merge(data []byte) ([]byte, error) {
	news, err := r.alloc.Merge(data)
	if err == nil {
		r.told(data)
	}
	return news, err
}

// votesReplica is the founders' vote.
type votesReplica struct{ *run }

func (votesReplica) Name() string                        { return ipam.VotesName }
func (r votesReplica) Full() []byte                      { return r.alloc.Votes().Full() }
func (r votesReplica) Merge(data []byte) ([]byte, error) { return r.alloc.Votes().Merge(data) }
