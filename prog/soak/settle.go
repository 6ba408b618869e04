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

// The rules for when all is well again (the network is whole, every host that has a disk
// runs, and who is dead was removed):
//
//   - All peers have the same ring, within minutes.
//   - Every slot belongs to a peer that lives.
//   - No slot has two live holders, and there are no excuses any more.
//   - All usable addresses can be allocated, to the last one, once all are released and rested.

// settleWithin bounds how long it takes until all have the same ring.
const settleWithin = 3 * time.Minute

// settle makes all well again, and checks that it is.
func (w *world) settle() {
	w.note("all is well again")
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
	time.Sleep(20 * time.Second) // until all see each other, and twins have stopped
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

// foundedByNow reports whether there is a ring, and checks that there is one if it can be.
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
			w.broken("no ring is founded")
		}
	})
	return founded
}

// living are the hosts that run.
func (w *world) living() []*host {
	return slices.DeleteFunc(w.all(), func(h *host) bool { return w.runOf(h) == nil })
}

// agree reports whether all have the same ring. It compares what the disks say.
func (w *world) agree() (same bool) {
	living := w.living()
	w.locked(func() {
		same = !slices.ContainsFunc(living, func(h *host) bool { return !h.disk.ring.Equal(living[0].disk.ring) })
	})
	return same
}

// removeTheDead takes over what belongs to hosts that do not come back.
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
					err = w.removeBy(r, id, true) // more are dead than alive
				}
			}
		}
	}
	w.locked(func() { w.broken("a dead peer cannot be removed: %v", err) })
}

// deadOwners are the peers that own slots and do not run, as far as anybody knows.
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

// wellNow checks what must hold now that all is well.
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
			w.broken("%v is lost: %v owns it", g.Range, g.Owner)
		}
	}
	if covered != w.universe.Range().Len() {
		w.broken("%d slots are lost", w.universe.Range().Len()-covered)
	}
}

// difference is where two rings differ, for people.
func difference(a, b ring.Ring) string {
	_, ours, err := a.Merge(b)
	_, theirs, _ := b.Merge(a)
	return fmt.Sprintf("%v and %v, %v", theirs.Segments(), ours.Segments(), err)
}

// exhaust releases everything, and allocates the universe to its last address.
func (w *world) exhaust() {
	living := w.living()
	if w.failed() != nil || len(living) == 0 || living[0].disk.ring.IsZero() {
		return // all have left, or nobody founded a ring and nobody could
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
			w.locked(func() { w.broken("%v: address %d of %d: %v", r, i+1, all, err) })
			return
		}
	}
	ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
	defer cancel()
	if _, err := w.someRun().alloc.Allocate(ctx, "one more", nil); !errors.Is(err, ipam.ErrNoSpace) {
		w.locked(func() { w.broken("all addresses are allocated, and there is one more: %v", err) })
	}
	w.look()
}
