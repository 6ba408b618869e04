package mesh

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// knows reports whether a host knows a slot as one of another's endpoints.
func (r *resident) knows(owner int, s slot.Slot) bool {
	return slices.Contains(r.Listed(idOf(owner)), s)
}

// freed waits until a slot can be used again, and returns how long that took.
func (w *town) freed(r *resident, s slot.Slot, within time.Duration) time.Duration {
	w.t.Helper()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if !r.Taken(s) {
			return time.Since(start)
		}
		if time.Since(start) > within {
			w.t.Fatalf("slot %d is taken after %v", s, within)
		}
	}
}

// alone puts one host on a side of its own.
func (w *town) alone(r *resident) {
	w.net.Partition(func(n *meshtest.Node) int {
		if n == r.Node {
			return 1
		}
		return 0
	})
}

// A slot is taken until the slowest of those who can be reached has dropped what it was.
func TestASlotIsTakenWhileItIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.say(h[1])
		if !h[1].Taken(1) || h[1].Taken(2) {
			t.Error("it is not taken, or more is")
		}
		if took := w.freed(h[1], 1, 2*time.Second); took < 5*time.Millisecond {
			t.Errorf("free after %v", took)
		}
		// One has missed the change, and is slow to fetch it.
		w.say(h[1], at("again", 1))
		w.eventually(time.Second, "it is used again")
		w.net.SetWeather(meshtest.Weather{Loss: 1})
		w.say(h[1])
		time.Sleep(20 * time.Millisecond)
		w.net.SetWeather(meshtest.Weather{})
		h[1].slow.Store(int64(2 * time.Second))
		took := w.freed(h[1], 1, 20*time.Second)
		for n := 2; n <= 5; n++ {
			if h[n].knows(1, 1) {
				t.Errorf("free after %v, host %d knows it still", took, n)
			}
		}
		w.end()
	})
}

// A host that has dropped an entry, but not yet what followed from it, holds the slot.
func TestASlotIsTakenUntilPoliciesAreInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		h[2].behind.Store(true)
		w.say(h[1])
		time.Sleep(time.Minute)
		if _, _, why := h[1].Stuck(); h[2].knows(1, 1) || !h[1].Taken(1) || why == nil || !strings.Contains(why.Error(), "the kernel is behind") {
			t.Errorf("free, or for another reason: %v", why)
		}
		h[2].behind.Store(false)
		w.freed(h[1], 1, 10*time.Second)
		w.end()
	})
}

// One that can be reached, and does not answer, holds it; one that cannot be reached does
// not, and one that comes back in time does again.
func TestWhoHoldsASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		h[3].slow.Store(int64(time.Hour))
		w.say(h[1])
		time.Sleep(time.Minute)
		if !h[1].Taken(1) {
			t.Error("free, though one of them never said that it has dropped it")
		}
		slots, since, why := h[1].Stuck()
		if slots != 1 || time.Since(since) < 30*time.Second || why == nil || !strings.Contains(why.Error(), idOf(3).String()) {
			t.Errorf("stuck: %d slots since %v, %v", slots, since, why)
		}
		w.alone(h[3])
		w.freed(h[1], 1, 10*time.Second)
		if _, _, why := h[1].Stuck(); why != nil {
			t.Errorf("still stuck: %v", why)
		}
		h[3].slow.Store(0)

		// Host 4 is cut off with the old entry, and back before the others have all answered.
		w.net.Heal()
		time.Sleep(10 * time.Second)
		w.say(h[1], at("again", 1))
		w.eventually(time.Second, "it is used again")
		h[5].slow.Store(int64(20 * time.Second))
		w.alone(h[4])
		w.say(h[1])
		time.Sleep(10 * time.Second)
		w.net.SetWeather(meshtest.Weather{Loss: 1}) // it hears nothing by itself
		w.net.Heal()
		time.Sleep(3 * time.Second)
		if !h[1].Reachable(idOf(4)) || !h[4].knows(1, 1) || !h[1].Taken(1) {
			t.Fatal("host 4 is not back with what it knew")
		}
		h[5].slow.Store(0)
		w.net.SetWeather(meshtest.Weather{})
		w.freed(h[1], 1, time.Minute)
		if h[4].knows(1, 1) {
			t.Error("free, host 4 knows it still")
		}
		w.end()
	})
}

// A crash does not free what others may still know, nor does the time in which it is not
// known yet who is there.
func TestSlotsStayTakenOverACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.net.SetWeather(meshtest.Weather{Loss: 1})
		w.say(h[1], at("other", 11))
		disk := h[1].disk.copy()
		w.kill(h[1])
		h[1] = w.start(1, 0, disk)
		if !h[1].Taken(1) {
			t.Error("free after a crash")
		}
		w.say(h[1], at("other", 11))
		time.Sleep(time.Second)
		w.net.SetWeather(meshtest.Weather{})
		w.freed(h[1], 1, time.Minute)
		for n := 2; n <= 5; n++ {
			if h[n].knows(1, 1) {
				t.Errorf("free, host %d knows it still", n)
			}
		}
		time.Sleep(2 * time.Second)
		disk = h[1].disk.copy()
		w.kill(h[1])
		if h[1] = w.start(1, 0, disk); h[1].Taken(1) || !h[1].Taken(11) {
			t.Error("the disk says otherwise")
		}
		w.end()
	})
}

// Who confirms has it on disk: its own crash does not bring back what it dropped.
func TestConfirmationsAreOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		h[3].disk.mu.Lock()
		h[3].disk.fail = errors.New("disk full")
		h[3].disk.mu.Unlock()
		w.say(h[1])
		time.Sleep(20 * time.Second)
		if h[3].knows(1, 1) || !h[1].Taken(1) {
			t.Error("free, though a restart of host 3 brings it back")
		}
		h[3].disk.mu.Lock()
		h[3].disk.fail = nil
		h[3].disk.mu.Unlock()
		w.freed(h[1], 1, 10*time.Second)
		disk := h[3].disk.copy()
		w.kill(h[3])
		if h[3] = w.start(3, 1, disk); h[3].knows(1, 1) {
			t.Error("it is back")
		}
		w.end()
	})
}

// What a peer has of us from before our state was restored is no confirmation; neither is
// that it has nothing yet.
func TestWhatIsNoConfirmation(t *testing.T) {
	own, _ := set(t, 1, nil, at("a", 1))
	later, _ := set(t, 1, own, at("a", 1), at("b", 2))
	later, _ = set(t, 1, later, at("b", 2))
	m := &stub{answer: func() []byte { return encode(later.Held()) }}
	d := quiet(t, 1, m)
	d.dir.Put(own)
	if err := d.confirmOne(t.Context(), idOf(2), own.Held()); err == nil || d.wanted[idOf(1)].from != idOf(2) {
		t.Errorf("%v, it asks for %v", err, d.wanted)
	}
	older := own.Held()
	older.Version--
	m.answer = func() []byte { return encode(older) }
	if err := d.confirmOne(t.Context(), idOf(2), own.Held()); err == nil {
		t.Error("an older version confirms")
	}
	m.answer = func() []byte { return encode(own.Held()) }
	if err := d.confirmOne(t.Context(), idOf(2), own.Held()); err != nil {
		t.Error(err)
	}

	m = &stub{}
	d = quiet(t, 3, m)
	if _, err := d.serveHeld(t.Context(), idOf(1), encode(own.Held())); err == nil {
		t.Error("who has nothing confirms; it could get the old set from a third")
	}
	m.answer = func() []byte { return encode([][]byte{}) }
	if _, err := d.serveHeld(t.Context(), idOf(1), encode(own.Held())); err == nil {
		t.Error("nor does it with nothing that came")
	}
	m.answer = func() []byte { return encode([][]byte{own.Encode()}) }
	if answer, err := d.serveHeld(t.Context(), idOf(1), encode(own.Held())); err != nil || string(answer) != string(encode(own.Held())) {
		t.Errorf("%x, %v", answer, err)
	}
	d.cfg.Wanted = func(peer.ID) bool { return false }
	if answer, err := d.serveHeld(t.Context(), idOf(1), encode(later.Held())); err != nil || answer != nil || d.set(idOf(1)) != nil {
		t.Errorf("where it is not wanted: %x, %v, it has %v", answer, err, d.Held())
	}
}

// Who comes while the others are asked is asked as well, before anything is free.
func TestWhoComesIsAskedToo(t *testing.T) {
	m := &stub{others: []peer.ID{idOf(2)}}
	d := quiet(t, 1, m)
	for _, says := range [][]directory.Endpoint{{at("a", 1)}, nil} {
		if err := d.Publish(says); err != nil {
			t.Fatal(err)
		}
	}
	m.answer = func() []byte {
		m.others = []peer.ID{idOf(2), idOf(3)}
		return encode(d.set(idOf(1)).Held())
	}
	if err := d.confirm(t.Context()); err == nil || !d.Taken(1) {
		t.Errorf("host 3 was not asked, %v", err)
	}
	if err := d.confirm(t.Context()); err != nil || d.Taken(1) {
		t.Errorf("both were asked, %v", err)
	}
}

// In random histories, nobody that was there all the time knows a slot that is free.
func TestFreeSlotsAreForgotten(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { freeSlots(t, seed) })
		})
	}
}

func freeSlots(t *testing.T, seed uint64) {
	const hosts, slots = 5, 12
	w, r := newTown(t, seed), rand.New(rand.NewPCG(seed, 2))
	w.net.SetWeather(meshtest.Weather{Loss: 0.2, Duplicate: 0.1, Delay: 400 * time.Millisecond})
	began, used := map[int]time.Time{}, map[[2]int]time.Time{} // until when a peer had a slot
	for n := 1; n <= hosts; n++ {
		w.start(n, 0, nil)
		began[n] = time.Now()
	}
	time.Sleep(20 * time.Second)
	check := func() { w.nobodyKnows(used, began) }
	for range 60 {
		n := 1 + r.IntN(hosts)
		switch h := w.here[n]; {
		case r.IntN(6) > 0:
			var says []directory.Endpoint
			for s := range slots {
				key := [2]int{n, s}
				_, before := used[key]
				if slices.Contains(h.Listed(idOf(n)), slot.Slot(s)) {
					used[key] = time.Now()
				}
				if r.IntN(4) == 0 && (!before || h.Taken(slot.Slot(s))) {
					says = append(says, at(fmt.Sprint("s", s), slot.Slot(s)))
				}
			}
			w.say(h, says...)
		default: // a crash: what is not on disk is lost
			disk := h.disk.copy()
			w.kill(h)
			w.start(n, 0, disk)
			began[n] = time.Now()
			w.say(w.here[n], h.says...)
		}
		for end := time.Now().Add(time.Duration(r.IntN(5000)) * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			check()
		}
	}
	w.net.SetWeather(meshtest.Weather{})
	for range 6000 {
		check()
		time.Sleep(10 * time.Millisecond)
	}
	w.eventually(0, "in fine weather")
	for _, h := range w.here {
		if sets, slots := h.waits(); sets+slots > 0 {
			t.Errorf("host %d still waits for %d sets and %d slots", h.n, sets, slots)
		}
	}
	w.end()
}

// What the mesh hears is on disk before: no restart gives the same version to something else.
func TestTheDiskComesFirst(t *testing.T) {
	m := &stub{}
	d := quiet(t, 1, m)
	disk := d.cfg.Store.(*setDisk)
	m.broadcast = func([]byte) {
		again, err := NewDirectory(DirectoryConfig{Identity: identity(1), Mesh: m, Sets: [][]byte{disk.sets[idOf(1)]}, Log: d.cfg.Log})
		if err != nil || fmt.Sprint(again.Held()) != fmt.Sprint(d.Held()) || again.Taken(1) != d.Taken(1) {
			t.Errorf("a restart would find %v, %v", again.Held(), err)
		}
	}
	for _, says := range [][]directory.Endpoint{{at("a", 1)}, {at("a", 1), at("b", 2)}, {at("b", 2)}} {
		if err := d.Publish(says); err != nil {
			t.Fatal(err)
		}
	}
	m.broadcast = nil
	if disk.fail = errors.New("disk full"); d.Publish(nil) == nil || d.set(idOf(1)).Len() != 0 {
		t.Error("it keeps silent about its disk, or from the mesh")
	}
}

// One endpoint that cannot be published does not hide the others.
func TestOneBadEndpoint(t *testing.T) {
	d := quiet(t, 1, &stub{})
	if err := d.Publish([]directory.Endpoint{at("a", 1), {ID: "b", Name: "Not A Name"}, at("c", 3)}); err == nil || d.set(idOf(1)).Len() != 2 {
		t.Errorf("%d are published, %v", d.set(idOf(1)).Len(), err)
	}
}

// nobodyKnows checks the slots that peers had until some time, and forgets those that are free.
func (w *town) nobodyKnows(used map[[2]int]time.Time, began map[int]time.Time) {
	for key, until := range used {
		owner, s := w.here[key[0]], slot.Slot(key[1])
		if owner == nil || owner.Taken(s) {
			continue
		}
		for n, h := range w.here {
			if n != key[0] && began[n].Before(until) && h.knows(key[0], s) {
				w.t.Fatalf("slot %d of host %d is free, host %d knows it still", s, key[0], n)
			}
		}
		delete(used, key)
	}
}
