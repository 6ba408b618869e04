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

// These rules hold at every moment:
//
//   - No slot has two live holders. A host is a live holder of an allocated slot if it runs and its
//     own ring shows it as the slot's owner. So two peers with the same ring cannot both be live
//     holders. Two peers with different rings can, but only with an excuse. There are two excuses
//     since the cluster was last whole: another peer took the slot over, or the owner started from
//     an older disk or from a copy of its disk. In a calm cluster there are no partitions, and only dead peers are
//     removed. Then the only excuse is that a peer that starts needs time to learn the ring.
//   - A peer that takes over has merged the rings of all peers that confirmed the removal.
//   - A peer allocates only usable slots that it owns, and never the same slot to two keys.
//   - A peer never loses parts of the ring that it learned, and there is only one ring.
//   - A peer writes its state to the disk before it sends or answers.
//   - After each step, the allocator's state equals its disk. It reports allocations in slots of
//     other peers as lost. Each of its own slots is free, in quarantine or allocated.
//   - If two runs with one identity meet, one of them stops.

// truth is the simulation's own knowledge of the ring.
type truth struct {
	id         ring.ID
	generation map[slot.Slot]uint32 // the highest generation of each slot, if it is not the first
	excuses    map[slot.Slot]string // slots that may have two holders until the two meet
	strict     bool                 // no excuses are allowed
}

func newTruth() truth {
	return truth{generation: map[slot.Slot]uint32{}, excuses: map[slot.Slot]string{}}
}

func (t *truth) excuse(g slot.Range, why string) {
	for s := uint64(g.Start); s < g.End && !t.strict; s++ {
		t.excuses[slot.Slot(s)] = why
	}
}

// catchUp is how long a starting peer may need until it knows the current ring.
const catchUp = 8 * time.Second

// holds reports whether a host is a live holder of a slot. The caller holds the lock, as it does
// for all functions between here and look.
func (h *host) holds(s slot.Slot) bool {
	if _, holds := h.disk.slots[s]; !holds || h.run == nil {
		return false
	}
	owner, _ := h.disk.ring.Owner(s)
	return owner == h.id
}

// uncontested checks that a host is the only live holder of a slot.
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

// mayAllocate checks an allocation before it is written.
func (w *world) mayAllocate(h *host, key string, s slot.Slot) {
	if owner, _ := h.disk.ring.Owner(s); owner != h.id {
		w.broken("%s allocates slot %d, which %v owns", h.name, s, owner)
	}
	if other, taken := h.disk.slots[s]; taken {
		w.broken("%s allocates slot %d to %s, but %s already has it", h.name, s, key, other)
	}
	if _, has := h.disk.state.Allocations[key]; has {
		w.broken("%s allocates to %s a second slot, %d", h.name, key, s)
	}
	if !w.universe.Usable().Contains(s) {
		w.broken("%s allocates slot %d, which is not usable", h.name, s)
	}
}

// mayTurn checks a ring that a host just wrote, and records which slots it excuses.
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
		w.broken("%s writes a ring without %v, which it knew: %v", h.name, news.Segments(), err)
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
			w.truth.excuse(g.Range, "owned by a host with a copied disk")
		}
	}
	for s := range h.disk.slots {
		if owner, _ := before.Owner(s); owner != h.id {
			w.uncontested(h, s)
		}
	}
}

// copies returns the number of disks with one identity.
func (w *world) copies(id peer.ID) (n int) {
	for _, h := range w.hosts {
		if h.id == id && !h.gone {
			n++
		}
	}
	return n
}

// wentBack excuses the slots that a host may use twice after its disk was replaced by an older
// one.
func (w *world) wentBack(h *host, latest, older ring.Ring) {
	for _, g := range older.Segments() {
		for s := uint64(g.Start); g.Owner == h.id && s < g.End; s++ {
			if claim(latest, slot.Slot(s)) != g.Claim {
				w.truth.excuse(slot.Range{Start: slot.Slot(s), End: s + 1}, "restored from an older disk")
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

// inTouch is the longest time until peers that can reach each other have connected, and until a
// removal ends.
const inTouch = 20 * time.Second

// mayRemove checks that the removed peer is unreachable for the remover. Without force, the
// remover must reach more than half of the peers alive that it knows.
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
		w.broken("%v removed %v, although it reaches that peer", r, dead)
	}
	if !force && 2*len(here) <= len(alive) {
		w.broken("%v removed %v without force, but reaches only %d of %d peers", r, dead, len(here), len(alive))
	}
}

// look checks the allocators of all running hosts at one moment.
func (w *world) look() {
	met := map[peer.ID]*run{}
	for _, h := range w.all() {
		r := w.runOf(h)
		if r == nil {
			continue
		}
		snap, err := r.alloc.Snapshot(w.ctx)
		if err != nil {
			continue // the run stopped meanwhile
		}
		w.locked(func() {
			if !r.stopped {
				w.matches(h, snap)
			}
			for s := range h.disk.slots {
				w.uncontested(h, s)
			}
			if o := met[h.id]; o != nil && o.h.side == h.side && time.Since(w.stirred) > meshtest.TwinLag {
				w.broken("%s and %s have one identity and reach each other, but neither stops", o.h.name, h.name)
			}
			met[h.id] = r
		})
	}
}

// matches checks that an allocator's state equals its disk.
func (w *world) matches(h *host, snap ipam.Snapshot) {
	if !snap.Ring.Equal(h.disk.ring) {
		w.broken("the ring of %s differs from its disk", h.name)
	}
	if !maps.Equal(snap.Allocations, h.disk.state.Allocations) {
		w.broken("%s allocated %v, but its disk contains %v", h.name, snap.Allocations, h.disk.state.Allocations)
	}
	live := uint64(0)
	for key, s := range snap.Allocations {
		_, lost := snap.Lost[key]
		owner, _ := snap.Ring.Owner(s)
		if lost != (owner != h.id) {
			w.broken("%s does not report %s as lost: its slot %d is owned by %v", h.name, key, s, owner)
		}
		if !lost {
			live++
		}
	}
	if len(w.excluded) > 0 {
		return // slots in quarantine may be unusable, so they cannot be counted
	}
	owned := uint64(0)
	for _, g := range snap.Ring.Owned()[h.id] {
		owned += g.Intersect(w.universe.Usable()).Len()
	}
	if sum := snap.Free + uint64(snap.Resting) + live; sum != owned {
		w.broken("%s owns %d usable slots: %d are free, %d in quarantine, %d allocated", h.name, owned, snap.Free, snap.Resting, live)
	}
}

// told checks that a ring is on a peer's disk before the peer sends it.
func (r *run) told(data []byte) {
	said, err := ring.Decode(data)
	r.w.locked(func() {
		if r.stopped {
			return
		}
		if err != nil {
			r.w.broken("%v sends an unreadable ring: %v", r, err)
		} else if _, news, err := r.h.disk.ring.Merge(said); err != nil || !news.IsZero() {
			r.w.broken("%v sends parts of the ring that are not on its disk: %v, %v", r, news.Segments(), err)
		}
	})
}

// voted checks that a voter's promises are on its disk before it sends them.
func (r *run) voted(data []byte) {
	said, err := paxos.Decode(data)
	r.w.locked(func() {
		if r.stopped {
			return
		}
		var kept paxos.State // the zero value: a voter that promised nothing
		if disk := r.h.disk.state.Vote; len(disk) > 0 {
			var diskErr error
			kept, diskErr = paxos.Decode(disk)
			err = errors.Join(err, diskErr)
		}
		switch {
		case err != nil:
			r.w.broken("%v sends unreadable votes: %v", r, err)
		case said.Binds(kept):
			r.w.broken("%v sends votes that are not on its disk", r)
		}
	})
}

// Broadcast checks and sends what the allocator broadcasts.
func (r *run) Broadcast(replica string, delta []byte) {
	if replica == ipam.ReplicaName {
		r.told(delta)
	} else {
		r.voted(delta)
	}
	r.Host.Broadcast(replica, delta)
}

// Request sends a request, and keeps the rings in confirmations that a peer is dead.
func (r *run) Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error) {
	reply, err := r.Host.Request(ctx, to, kind, payload)
	if err == nil && kind == "removal" {
		r.w.locked(func() { r.heard = append(r.heard, reply) })
	}
	return reply, err
}

// hasHeard checks that a ring with a newly taken-over segment includes all rings that were
// received with the confirmations. A segment that this peer took over itself before, and had
// forgotten, does not count.
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
			r.w.broken("%v takes over, but its ring lacks what the confirmations contained: %v", r, news.Segments())
		}
	}
}

// handlers returns the allocator's request handlers.
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

// ringReplica replicates the ring, and checks that merged data is on disk.
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

// votesReplica replicates the founders' votes.
type votesReplica struct{ *run }

func (votesReplica) Name() string                        { return ipam.VotesName }
func (r votesReplica) Full() []byte                      { return r.alloc.Votes().Full() }
func (r votesReplica) Merge(data []byte) ([]byte, error) { return r.alloc.Votes().Merge(data) }
