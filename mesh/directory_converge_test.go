package mesh

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/meshtest"
)

// The directory converges in spite of loss, partitions, restarts, restored disks and removals.
func TestDirectoryConverges(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { faults(t, seed) })
		})
	}
}

func faults(t *testing.T, seed uint64) {
	w, r := newDirCluster(t, seed), rand.New(rand.NewPCG(seed, 1))
	w.SetConditions(meshtest.Conditions{Loss: 0.2, Duplicate: 0.1, Delay: time.Second})
	disks, removed := map[int]*meshtest.Disk{}, map[int]bool{}
	backups := map[int][]*meshtest.Disk{}
	for n := 1; n <= 6; n++ {
		w.start(n, 0, nil)
	}
	for range 60 {
		n := 1 + r.IntN(6)
		h := w.here[n]
		switch dice := r.IntN(20); {
		case h == nil && (dice < 10 || removed[n]): // start the host again: with its disk, an older copy, or an empty one
			disk := disks[n]
			if b := backups[n]; dice < 3 && len(b) > 0 {
				disk = b[r.IntN(len(b))].Copy()
			} else if removed[n] && dice < 8 {
				disk = nil
			}
			w.remove(idOf(n), false)
			removed[n] = false
			w.start(n, 0, disk)
		case h == nil && dice < 14:
			w.remove(idOf(n), true)
			removed[n] = true
		case h == nil:
		case dice < 10:
			var says []directory.Endpoint
			for i := range r.IntN(1 + 10*(dice/7)) {
				says = append(says, at(fmt.Sprintf("%d-%d", r.IntN(8)/7, i), slot.Slot(100*n+r.IntN(20))))
			}
			w.publish(h, says...)
		case dice < 12:
			backups[n] = append(backups[n], h.disk.Copy())
		case dice < 15 && len(w.here) > 2:
			disks[n] = h.disk
			w.kill(h)
		case dice < 17:
			w.Partition(func(*meshtest.Host) int { return r.IntN(2) })
		default:
			w.Heal()
		}
		time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
	}
	w.Heal()
	for _, h := range w.here {
		w.publish(h, append(h.says, at("last", slot.Slot(100*h.n+50)))...)
	}
	time.Sleep(10 * time.Second)
	w.agree(5*time.Minute, "all hosts have the same sets after the partition")
	time.Sleep(2 * time.Minute)
	w.agree(0, "all hosts still have the same sets")
	for _, h := range w.here {
		if sets, slots := h.waits(); sets+slots > 0 {
			t.Errorf("host %d still waits for %d sets and %d slots; want 0", h.n, sets, slots)
		}
	}
	w.end()
}
