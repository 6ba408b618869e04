package soak

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"weft/ipam/slot"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// steps are the events and how often they occur; calm marks those that also occur in calm
// clusters.
var steps = []struct {
	weight int
	calm   bool
	do     func(*world)
}{
	{24, true, (*world).allocate},
	{10, true, (*world).release},
	{8, true, (*world).claim},
	{6, false, (*world).partition},
	{4, false, (*world).heal},
	{6, false, (*world).crash},
	{9, false, (*world).restart},
	{5, true, (*world).backup},
	{3, true, (*world).restore},
	{2, true, (*world).loseDisk},
	{2, false, (*world).fillDisk},
	{7, true, (*world).remove},
	{2, true, (*world).leave},
	{2, false, (*world).copyDisk},
	{2, true, (*world).join},
	{2, true, (*world).sleep},
}

func (w *world) step() {
	sum := 0
	for _, s := range steps {
		if s.calm || !w.calm {
			sum += s.weight
		}
	}
	n := w.rand.IntN(sum)
	for _, s := range steps {
		if !s.calm && w.calm {
			continue
		}
		if n -= s.weight; n < 0 {
			s.do(w)
			return
		}
	}
}

// quiet waits in a calm cluster. No host starts before the last messages of stopped hosts have
// arrived, and no event occurs until all peers know of the event before it.
func (w *world) quiet(d time.Duration) {
	if w.calm {
		time.Sleep(d)
	}
}

// allocate requests one or many addresses on one host.
func (w *world) allocate() {
	r := w.someRun()
	if r == nil {
		return
	}
	count := 1
	if w.rand.IntN(3) == 0 {
		count += w.rand.IntN(int(w.universe.Range().End / 6))
	}
	within := 200*time.Millisecond + time.Duration(w.rand.Int64N(int64(6*time.Second)))
	for range count {
		w.keys++
		w.ask(r, fmt.Sprintf("c%d", w.keys), within)
	}
}

// ask allocates an address in the background.
func (w *world) ask(r *run, key string, within time.Duration) {
	w.async(func() {
		ctx, cancel := context.WithTimeout(w.ctx, within)
		defer cancel()
		s, err := r.alloc.Allocate(ctx, key, nil)
		w.note("%v: allocate %s: %v, %v", r, key, s, brief(err))
		if err != nil {
			return
		}
		w.locked(func() {
			if have, ok := r.h.disk.state.Allocations[key]; !r.stopped && (!ok || have != s) {
				w.broken("%v answers that %s has slot %d, but its disk does not have that allocation", r, key, s)
			}
		})
	})
}

// brief returns the beginning of an error's text.
func brief(err error) string {
	if err == nil {
		return "done"
	}
	text := err.Error()
	return text[:min(len(text), 140)]
}

// held picks a running host that has allocations, and returns the host with the key and slot of one of
// them.
func (w *world) held() (*run, string, slot.Slot) {
	h := w.some(func(h *host) bool { return h.run != nil && len(h.disk.slots) > 0 })
	if h == nil {
		return nil, "", 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := slices.Sorted(maps.Keys(h.disk.state.Allocations))
	key := keys[w.rand.IntN(len(keys))]
	return h.run, key, h.disk.state.Allocations[key]
}

// release frees an address, or requests it once more.
func (w *world) release() {
	r, key, s := w.held()
	switch {
	case r == nil:
	case w.rand.IntN(8) == 0:
		again, err := r.alloc.Allocate(w.ctx, key, nil)
		if err == nil && again != s {
			w.locked(func() { w.broken("%v allocated to %s slot %d first, and then %d", r, key, s, again) })
		}
	default:
		w.free(r, key)
	}
}

func (w *world) free(r *run, key string) {
	err := r.alloc.Free(w.ctx, key)
	w.note("%v: free %s: %v", r, key, brief(err))
	w.locked(func() {
		if _, has := r.h.disk.state.Allocations[key]; err == nil && has && !r.stopped {
			w.broken("%v answers that %s is freed, but the allocation is still on its disk", r, key)
		}
	})
}

// claim requests one given address: a random one, or one that is allocated.
func (w *world) claim() {
	r := w.someRun()
	if r == nil {
		return
	}
	want := slot.Slot(w.rand.Uint64N(w.universe.Range().End))
	if _, _, s := w.held(); s != 0 && w.rand.IntN(3) == 0 {
		want = s
	}
	w.keys++
	key := fmt.Sprintf("c%d", w.keys)
	w.async(func() {
		ctx, cancel := context.WithTimeout(w.ctx, 8*time.Second)
		defer cancel()
		err := r.alloc.Claim(ctx, key, want, nil)
		w.note("%v: claim %d for %s: %v", r, want, key, brief(err))
		w.locked(func() {
			if err == nil && !r.stopped && r.h.disk.state.Allocations[key] != want {
				w.broken("%v answers that %s has slot %d, but its disk does not have that allocation", r, key, want)
			}
		})
	})
}

// partition divides the hosts into two or three sides that cannot reach each other.
func (w *world) partition() {
	sides := 2 + w.rand.IntN(2)
	w.sides(func(*host) int { return w.rand.IntN(sides) })
}

func (w *world) heal() { w.sides(func(*host) int { return 0 }) }

func (w *world) sides(side func(*host) int) {
	var text strings.Builder
	w.locked(func() {
		w.stirred = time.Now()
		for _, h := range w.hosts {
			if h.side = side(h); !h.gone {
				fmt.Fprintf(&text, " %s:%d", h.name, h.side)
			}
		}
	})
	w.net.Partition(func(n *meshtest.Host) int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.byRun[n].side
	})
	w.note("sides:%s", text.String())
}

// crash stops a host's agent, sometimes with a goodbye.
func (w *world) crash() {
	r := w.someRun()
	if r == nil {
		return
	}
	goodbye := w.rand.IntN(2) == 0
	if goodbye {
		r.Announce(meshtest.Stopped)
	}
	w.note("%v crashes (goodbye: %v)", r, goodbye)
	w.stop(r)
}

func (w *world) restart() {
	if h := w.some(func(h *host) bool { return h.run == nil }); h != nil {
		w.note("%s starts from its disk", h.name)
		w.boot(h)
	}
}

// backup copies a disk. It skips disks without a ring: a peer restored to before an election
// could vote twice, which no protocol can repair.
func (w *world) backup() {
	if h := w.some(func(h *host) bool { return !h.disk.ring.IsZero() }); h != nil {
		w.locked(func() { h.backups = append(h.backups, h.image()) })
		w.note("%s: its disk is backed up", h.name)
	}
}

// image returns a copy of the disk. The caller holds the lock.
func (h *host) image() *disk {
	d := h.disk.clone()
	if h.run != nil {
		d.known = h.run.Known()
	}
	return d
}

// restore starts a host from an older backup of its disk.
func (w *world) restore() {
	h := w.some(func(h *host) bool { return len(h.backups) > 0 })
	if h == nil {
		return
	}
	if r := w.runOf(h); r != nil {
		w.stop(r)
	}
	w.locked(func() {
		latest := h.disk
		h.disk = h.backups[w.rand.IntN(len(h.backups))].clone()
		w.wentBack(h, latest.ring, h.disk.ring)
	})
	w.quiet(time.Second)
	w.note("%s starts from an older backup", h.name)
	w.boot(h)
	for range w.rand.IntN(8) { // so that it does not grant slots again that it granted after the backup
		w.keys++
		w.ask(w.runOf(h), fmt.Sprintf("c%d", w.keys), 6*time.Second)
	}
	w.quiet(10 * time.Second)
}

// survives reports whether the ring can continue without a host.
func (w *world) survives(without *host) bool {
	for _, h := range w.hosts {
		if h != without && !h.gone && !h.copied && h.run != nil && !h.disk.ring.IsZero() {
			return true
		}
	}
	return false
}

// loseDisk makes a host return as another peer.
func (w *world) loseDisk() {
	h := w.some(func(h *host) bool { return !h.disk.ring.IsZero() && w.survives(h) && w.copies(h.id) == 1 })
	if h == nil {
		return
	}
	if r := w.runOf(h); r != nil {
		w.stop(r)
	}
	w.locked(func() { h.gone = true })
	w.quiet(time.Second)
	n := w.add()
	n.side = h.side
	w.note("%s lost its disk, and is %s now", h.name, n.name)
	w.boot(n)
	w.quiet(10 * time.Second)
}

// join adds a host.
func (w *world) join() {
	if len(w.all()) >= 2*w.shape.hosts {
		return
	}
	h := w.add()
	h.side = w.rand.IntN(2) * w.all()[0].side
	w.note("%s joins", h.name)
	w.boot(h)
	w.quiet(10 * time.Second)
}

// fillDisk makes the writes of a host fail for a while.
func (w *world) fillDisk() {
	if r := w.someRun(); r != nil {
		d := time.Duration(w.rand.Int64N(int64(5 * time.Second)))
		w.locked(func() { r.h.disk.full = time.Now().Add(d) })
		w.note("%v: the disk is full for %v", r, d)
	}
}

// remove removes a peer, usually a dead one, on one host or on two at once.
func (w *world) remove() {
	dead := w.some(func(*host) bool { return true })
	if h := w.absent(); h != nil && w.rand.IntN(4) > 0 {
		dead = h
	}
	if dead == nil {
		return
	}
	rivals := 1 + w.rand.IntN(2)
	force := w.rand.IntN(3) == 0 && !w.calm
	for side := range rivals { // the two are on different sides if there is a partition
		r := w.someRunOf(func(h *host) bool { return h != dead && (rivals == 1 || w.calm || h.side == side) })
		if r != nil {
			w.note("%v is told to remove %s", r, dead.name)
			w.async(func() { _ = w.removeBy(r, dead.id, force) })
		}
	}
}

// absent picks a host that is down or gone.
func (w *world) absent() *host {
	hosts := slices.DeleteFunc(w.all(), func(h *host) bool { return w.runOf(h) != nil })
	if len(hosts) == 0 {
		return nil
	}
	return hosts[w.rand.IntN(len(hosts))]
}

func (w *world) removeBy(r *run, dead peer.ID, force bool) error {
	slots, err := r.alloc.RemovePeer(w.ctx, dead, force)
	w.note("%v: remove %s (force: %v): %d, %v", r, w.nameOf(dead), force, slots, brief(err))
	if err == nil {
		w.mayRemove(r, dead, force)
	}
	return err
}

func (w *world) nameOf(id peer.ID) string {
	var names []string
	w.locked(func() {
		for _, h := range w.hosts {
			if h.id == id {
				names = append(names, h.name)
			}
		}
	})
	return strings.Join(names, "=")
}

// leave makes a host leave forever. If no peer inherits its slots it retries, and finally stays.
func (w *world) leave() {
	h := w.some(func(h *host) bool { return h.run != nil && w.survives(h) && w.copies(h.id) == 1 })
	if h == nil {
		return
	}
	r := w.runOf(h)
	w.async(func() {
		for range 3 {
			heir, err := r.alloc.Leave(w.ctx)
			w.note("%v leaves: heir %s, %v", r, w.nameOf(heir), brief(err))
			if err == nil {
				w.left(r, heir)
				return
			}
		}
		if w.stop(r) {
			w.note("%v could not leave, and starts again", r)
			w.boot(h)
		}
	})
}

// left stops a host that has left, and checks that it owns no slots. Under bad network
// conditions a grant can arrive after its requester gave up.
func (w *world) left(r *run, heir peer.ID) {
	r.Announce(meshtest.Left)
	if !w.stop(r) {
		return
	}
	w.locked(func() {
		r.h.gone = true
		if owned := r.h.disk.ring.Owned()[r.h.id]; w.calm && !heir.IsZero() && len(owned) > 0 {
			w.broken("%v has left, but still owns %v", r, owned)
		}
	})
}

// copyDisk starts another host from a copy of a host's disk. The original may still run.
func (w *world) copyDisk() {
	h := w.some(func(h *host) bool { return !h.disk.ring.IsZero() && w.copies(h.id) == 1 })
	if h == nil {
		return
	}
	n := w.add()
	w.locked(func() {
		n.id, n.disk, n.copied, n.side = h.id, h.image(), true, w.rand.IntN(2)
		for _, g := range h.disk.ring.Owned()[h.id] {
			w.truth.excuse(g, "owned by a host with a copied disk")
		}
	})
	w.note("%s starts from a copy of the disk of %s", n.name, h.name)
	w.boot(n)
}

// sleep waits until quarantine ends.
func (w *world) sleep() { time.Sleep(w.shape.rest) }

// sortedIDs returns the keys of a map of peers in order.
func sortedIDs[T any](m map[peer.ID]T) []peer.ID {
	return slices.SortedFunc(maps.Keys(m), func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
}
