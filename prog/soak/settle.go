package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// These rules hold for a cluster that is whole again: there is no partition, every host with a disk
// runs, and dead peers were removed.
//
//   - All peers have the same ring within minutes.
//   - Every slot is owned by a living peer.
//   - No slot has two live holders, without any excuse.
//   - All usable addresses can be allocated, once all are released and out of quarantine.

// settleWithin limits the time until all peers have the same ring.
const settleWithin = 3 * time.Minute

// settle makes the cluster whole, and checks the rules above.
func (w *world) settle() {
	w.note("the cluster is whole again")
	w.net.SetConditions(meshtest.Conditions{Delay: 100 * time.Millisecond})
	w.heal()
	w.locked(func() {
		for _, h := range w.hosts {
			h.disk.full = time.Time{}
		}
	})
	w.ops.Wait()
	for _, h := range w.all() {
		w.locked(func() { h.gone = h.gone || h.copied && h.run == nil && w.copies(h.id) > 1 })
		w.boot(h)
	}
	time.Sleep(20 * time.Second) // by then all peers have connected, and of two runs with one identity one has stopped
	if !w.foundedByNow() {
		return
	}
	w.removeTheDead()
	for began := time.Now(); !w.agree() && time.Since(began) < settleWithin; {
		time.Sleep(time.Second)
	}
	w.look()
	w.locked(w.wellNow)
}

// foundedByNow reports whether there is a ring, and checks that there is one if founding was
// possible.
func (w *world) foundedByNow() (founded bool) {
	time.Sleep(settleWithin / 3)
	w.locked(func() {
		missing := 0
		for _, h := range w.hosts {
			founded = founded || !h.gone && !h.disk.ring.IsZero()
			if h.voter && h.gone {
				missing++
			}
		}
		if !founded && w.voters-missing > w.voters/2 {
			w.broken("no ring was founded, although a quorum runs")
		}
	})
	return founded
}

// living returns the hosts that run.
func (w *world) living() []*host {
	return slices.DeleteFunc(w.all(), func(h *host) bool { return w.runOf(h) == nil })
}

// agree reports whether the disks of all peers have the same ring.
func (w *world) agree() (same bool) {
	living := w.living()
	w.locked(func() {
		same = !slices.ContainsFunc(living, func(h *host) bool { return !h.disk.ring.Equal(living[0].disk.ring) })
	})
	return same
}

// removeTheDead removes the peers that do not come back, so that others take over their slots.
func (w *world) removeTheDead() {
	const tries = 8
	var err error
	for range tries {
		time.Sleep(10 * time.Second)
		dead := w.deadOwners()
		if len(dead) == 0 {
			return
		}
		for _, id := range dead {
			if r := w.someRun(); r != nil {
				if err = w.removeBy(r, id, false); err != nil && strings.Contains(err.Error(), "--force") {
					err = w.removeBy(r, id, true) // by force, since the majority is dead
				}
			}
		}
	}
	w.locked(func() { w.broken("a dead peer cannot be removed: %v", err) })
}

// deadOwners returns the peers that own slots in any living host's ring, but do not run.
func (w *world) deadOwners() []peer.ID {
	living := w.living()
	dead := map[peer.ID]bool{}
	w.locked(func() {
		for _, h := range living {
			for id := range h.disk.ring.Owned() {
				dead[id] = true
			}
		}
	})
	for _, h := range living {
		delete(dead, h.id)
	}
	return sortedIDs(dead)
}

// wellNow checks the rules for a whole cluster.
func (w *world) wellNow() {
	clear(w.truth.excuses)
	var first *host
	covered, living := uint64(0), map[peer.ID]bool{}
	for _, h := range w.hosts {
		switch {
		case h.run == nil:
			continue
		case first == nil:
			first = h
		case !h.disk.ring.Equal(first.disk.ring):
			w.broken("%s and %s have different rings: %v", first.name, h.name, difference(first.disk.ring, h.disk.ring))
		}
		living[h.id] = true
		for s := range h.disk.slots {
			w.uncontested(h, s)
		}
	}
	if first == nil {
		return
	}
	for _, g := range first.disk.ring.Segments() {
		covered += g.Len()
		if !living[g.Owner] {
			w.broken("the slots %v are lost: their owner %v does not run", g.Range, g.Owner)
		}
	}
	if covered != w.universe.Range().Len() {
		w.broken("%d slots have no owner", w.universe.Range().Len()-covered)
	}
}

// difference describes where two rings differ.
func difference(a, b ring.Ring) string {
	_, ours, err := a.Merge(b)
	_, theirs, _ := b.Merge(a)
	return fmt.Sprintf("%v and %v, %v", theirs.Segments(), ours.Segments(), err)
}

// exhaust releases all addresses, and then allocates every address of the universe.
func (w *world) exhaust() {
	living := w.living()
	if w.failed() != nil || len(living) == 0 || living[0].disk.ring.IsZero() {
		return // all have left, or no ring was founded and none could be
	}
	for _, h := range living {
		var keys []string
		w.locked(func() { keys = slices.Sorted(maps.Keys(h.disk.state.Allocations)) })
		for _, key := range keys {
			w.free(w.runOf(h), key)
		}
	}
	time.Sleep(w.shape.rest + 2*time.Second)
	all := w.universe.Usable().Len()
	for _, p := range w.excluded {
		all -= w.universe.Cut(p).Intersect(w.universe.Usable()).Len()
	}
	for i := range all {
		r := w.someRun()
		ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
		_, err := r.alloc.Allocate(ctx, fmt.Sprintf("last%d", i), nil)
		cancel()
		if err != nil {
			w.locked(func() { w.broken("%v: cannot allocate address %d of %d: %v", r, i+1, all, err) })
			return
		}
	}
	ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
	defer cancel()
	if _, err := w.someRun().alloc.Allocate(ctx, "one more", nil); !errors.Is(err, ipam.ErrNoSpace) {
		w.locked(func() { w.broken("allocating one more than all addresses: got %v, want ErrNoSpace", err) })
	}
	w.look()
}
