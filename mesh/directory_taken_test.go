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
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// knows reports whether a host maps a slot to an endpoint of owner.
func (r *dirHost) knows(owner int, s slot.Slot) bool {
	return slices.Contains(r.Listed(idOf(owner)), s)
}

// freed waits until a slot is not taken any more, and returns how long that took.
func (w *dirCluster) freed(r *dirHost, s slot.Slot, within time.Duration) time.Duration {
	w.t.Helper()
	return eventually.True(w.t, within, fmt.Sprintf("slot %d is free", s), func() bool { return !r.Taken(s) })
}

// A freed slot stays taken until every reachable peer has dropped its old endpoint.
func TestSlotIsNotReusedBeforeAllPeersDropIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.publish(h[1])
		if !h[1].Taken(1) || h[1].Taken(2) {
			t.Error("slot 1 is free or slot 2 is taken; want only slot 1 taken")
		}
		if took := w.freed(h[1], 1, 2*time.Second); took < 5*time.Millisecond {
			t.Errorf("slot 1 was free after %v; want it taken until the peer has confirmed", took)
		}
		// One host misses the change, and the endpoint's owner is slow to answer when that host
		// fetches the set.
		w.publish(h[1], at("again", 1))
		w.agree(time.Second, "slot 1 is used again")
		w.SetConditions(meshtest.Conditions{Loss: 1})
		w.publish(h[1])
		time.Sleep(20 * time.Millisecond)
		w.SetConditions(meshtest.Conditions{})
		h[1].Slow(2 * time.Second)
		took := w.freed(h[1], 1, 20*time.Second)
		for n := 2; n <= 5; n++ {
			if h[n].knows(1, 1) {
				t.Errorf("after %v the slot is free, but host %d still maps it; want it taken until no host does", took, n)
			}
		}
		w.end()
	})
}

// A peer has dropped an endpoint, but not yet applied the change of its policies. Until then the
// owner does not allocate the endpoint's slot again.
func TestSlotIsNotReusedBeforePeersApplyPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		h[2].behind.Store(true)
		w.publish(h[1])
		time.Sleep(time.Minute)
		if _, _, why := h[1].Stuck(); h[2].knows(1, 1) || !h[1].Taken(1) || why == nil || !strings.Contains(why.Error(), "the kernel is behind") {
			t.Errorf("the slot is free, or Stuck returned the reason %v; want it taken because the kernel is behind", why)
		}
		h[2].behind.Store(false)
		w.freed(h[1], 1, 10*time.Second)
		w.end()
	})
}

// A freed slot stays taken while a reachable host does not answer. An unreachable host does not
// delay the slot's reuse, unless it becomes reachable again before all other hosts have answered.
func TestSlotIsNotReusedBeforeReachablePeersConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		h[3].Slow(time.Hour)
		w.publish(h[1])
		time.Sleep(time.Minute)
		if !h[1].Taken(1) {
			t.Error("the slot is free, but a reachable host has not confirmed; want it taken")
		}
		slots, since, why := h[1].Stuck()
		if slots != 1 || time.Since(since) < 30*time.Second || why == nil || !strings.Contains(why.Error(), idOf(3).String()) {
			t.Errorf("Stuck reports %d slots since %v, reason %v; want one slot for 30 s, and the host that has not confirmed", slots, since, why)
		}
		w.Isolate(h[3].Host)
		w.freed(h[1], 1, 10*time.Second)
		if _, _, why := h[1].Stuck(); why != nil {
			t.Errorf("after the last slot is free, Stuck reports %v; want nothing", why)
		}
		h[3].Slow(0)

		// Host 4 is partitioned while it maps the slot, and returns before all other hosts have
		// answered.
		w.Heal()
		time.Sleep(10 * time.Second)
		w.publish(h[1], at("again", 1))
		w.agree(time.Second, "slot 1 is used again")
		h[5].Slow(20 * time.Second)
		w.Isolate(h[4].Host)
		w.publish(h[1])
		time.Sleep(10 * time.Second)
		w.SetConditions(meshtest.Conditions{Loss: 1}) // host 4 receives no gossip
		w.Heal()
		time.Sleep(3 * time.Second)
		if !h[1].Reachable(idOf(4)) || !h[4].knows(1, 1) || !h[1].Taken(1) {
			t.Fatal("host 4 is not reachable with the old endpoint, or the slot is free; want host 4 back, and the slot taken")
		}
		h[5].Slow(0)
		w.SetConditions(meshtest.Conditions{})
		w.freed(h[1], 1, time.Minute)
		if h[4].knows(1, 1) {
			t.Error("the slot is free, but host 4 still maps it; want it taken until host 4 has dropped it")
		}
		w.end()
	})
}

// A freed slot stays taken across a crash, and while it is not yet known which peers are reachable.
func TestFreedSlotStaysTakenAcrossCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		w.SetConditions(meshtest.Conditions{Loss: 1})
		w.publish(h[1], at("other", 11))
		disk := h[1].disk.Copy()
		w.kill(h[1])
		h[1] = w.start(1, 0, disk)
		if !h[1].Taken(1) {
			t.Error("after a crash of the owner the slot is free; want it taken")
		}
		w.publish(h[1], at("other", 11))
		time.Sleep(time.Second)
		w.SetConditions(meshtest.Conditions{})
		w.freed(h[1], 1, time.Minute)
		for n := 2; n <= 5; n++ {
			if h[n].knows(1, 1) {
				t.Errorf("the slot is free, but host %d still maps it; want it taken until no host does", n)
			}
		}
		time.Sleep(2 * time.Second)
		disk = h[1].disk.Copy()
		w.kill(h[1])
		if h[1] = w.start(1, 0, disk); h[1].Taken(1) || !h[1].Taken(11) {
			t.Error("after a restart slot 1 is taken or slot 11 is free; want only slot 11 taken")
		}
		w.end()
	})
}

// A confirmation is on disk: a crash of the confirming host does not restore the old endpoint.
func TestConfirmedRemovalOfEndpointSurvivesCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, h := five(t)
		h[3].disk.Fail(errors.New("disk full"))
		w.publish(h[1])
		time.Sleep(20 * time.Second)
		if h[3].knows(1, 1) || !h[1].Taken(1) {
			t.Error("host 3 cannot store the change: its memory still maps the slot, or the slot is free; want neither")
		}
		h[3].disk.Fail(nil)
		w.freed(h[1], 1, 10*time.Second)
		disk := h[3].disk.Copy()
		w.kill(h[3])
		if h[3] = w.start(3, 1, disk); h[3].knows(1, 1) {
			t.Error("after its restart host 3 has the dropped endpoint again; want it gone")
		}
		w.end()
	})
}

// A peer confirms nothing if its version is from before our state was restored, or if it has no set
// of ours.
func TestPeerWithoutCurrentEndpointsConfirmsNothing(t *testing.T) {
	own, _ := set(t, 1, nil, at("a", 1))
	later, _ := set(t, 1, own, at("a", 1), at("b", 2))
	later, _ = set(t, 1, later, at("b", 2))
	m := &meshtest.Solo{Reply: replying(func() []byte { return encode(later.Held()) })}
	d := quiet(t, 1, m)
	d.dir.Put(own)
	if err := d.confirmOne(t.Context(), idOf(2), own.Held()); err == nil || d.wanted[idOf(1)].from != idOf(2) {
		t.Errorf("a peer has a version of an earlier run: error %v, requested sets %v; want an error, and that set requested", err, d.wanted)
	}
	older := own.Held()
	older.Version--
	m.Reply = replying(func() []byte { return encode(older) })
	if err := d.confirmOne(t.Context(), idOf(2), own.Held()); err == nil {
		t.Error("an older version counted as a confirmation; want an error")
	}
	m.Reply = replying(func() []byte { return encode(own.Held()) })
	if err := d.confirmOne(t.Context(), idOf(2), own.Held()); err != nil {
		t.Error(err)
	}

	m = &meshtest.Solo{}
	d = quiet(t, 3, m)
	if _, err := d.serveHeld(t.Context(), idOf(1), encode(own.Held())); err == nil {
		t.Error("a peer without the set confirmed, but could still get an old one from a third peer; want an error")
	}
	m.Reply = replying(func() []byte { return encode([][]byte{}) })
	if _, err := d.serveHeld(t.Context(), idOf(1), encode(own.Held())); err == nil {
		t.Error("a peer confirmed, but its fetch returned no set; want an error")
	}
	m.Reply = replying(func() []byte { return encode([][]byte{own.Encode()}) })
	if answer, err := d.serveHeld(t.Context(), idOf(1), encode(own.Held())); err != nil || string(answer) != string(encode(own.Held())) {
		t.Errorf("the confirmation after a fetch is %x, error %v; want the owner's sets", answer, err)
	}
	d.cfg.Wanted = func(peer.ID) bool { return false }
	if answer, err := d.serveHeld(t.Context(), idOf(1), encode(later.Held())); err != nil || answer != nil || d.set(idOf(1)) != nil {
		t.Errorf("for an owner whose endpoints do not count here, the reply is %x, error %v, sets %v; want none", answer, err, d.Held())
	}
}

// A peer that joins during a round of confirmations must confirm too.
func TestPeerThatJoinsMeanwhileMustConfirmFreedSlot(t *testing.T) {
	m := &meshtest.Solo{Peers: []peer.ID{idOf(2)}}
	d := quiet(t, 1, m)
	for _, says := range [][]directory.Endpoint{{at("a", 1)}, nil} {
		if err := d.Publish(says); err != nil {
			t.Fatal(err)
		}
	}
	m.Reply = replying(func() []byte {
		m.SetPeers(idOf(2), idOf(3))
		return encode(d.set(idOf(1)).Held())
	})
	if err := d.confirm(t.Context()); err == nil || !d.Taken(1) {
		t.Errorf("before host 3 has confirmed the slot is free, or error %v; want it taken, and an error", err)
	}
	if err := d.confirm(t.Context()); err != nil || d.Taken(1) {
		t.Errorf("both hosts have confirmed, but the slot is taken: error %v; want it free", err)
	}
}

// In random histories, no host that was running all the time maps a slot that is free.
func TestFreeSlotIsMappedOnNoHost(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { freeSlots(t, seed) })
		})
	}
}

func freeSlots(t *testing.T, seed uint64) {
	const hosts, slots = 5, 12
	w, r := newDirCluster(t, seed), rand.New(rand.NewPCG(seed, 2))
	w.SetConditions(meshtest.Conditions{Loss: 0.2, Duplicate: 0.1, Delay: 400 * time.Millisecond})
	began, used := map[int]time.Time{}, map[[2]int]time.Time{} // by owner and slot: when the slot was last in use
	for n := 1; n <= hosts; n++ {
		w.start(n, 0, nil)
		began[n] = time.Now()
	}
	time.Sleep(20 * time.Second)
	check := func() { w.checkFree(used, began) }
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
			w.publish(h, says...)
		default: // a crash, which loses what is not on disk
			disk := h.disk.Copy()
			w.kill(h)
			w.start(n, 0, disk)
			began[n] = time.Now()
			w.publish(w.here[n], h.says...)
		}
		for end := time.Now().Add(time.Duration(r.IntN(5000)) * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			check()
		}
	}
	w.SetConditions(meshtest.Conditions{})
	for range 6000 {
		check()
		time.Sleep(10 * time.Millisecond)
	}
	w.agree(0, "all hosts have the same sets without packet loss")
	for _, h := range w.here {
		if sets, slots := h.waits(); sets+slots > 0 {
			t.Errorf("host %d still waits for %d sets and %d slots; want 0", h.n, sets, slots)
		}
	}
	w.end()
}

// Endpoints are stored before they are announced, so a restart never reuses a version.
func TestEndpointsAreStoredBeforeAnnounced(t *testing.T) {
	m := &meshtest.Solo{}
	d := quiet(t, 1, m)
	disk := d.cfg.Store.(*meshtest.Disk)
	m.OnDelta = func([]byte) {
		again, err := NewDirectory(DirectoryConfig{Identity: identity(1), Mesh: m, Sets: [][]byte{disk.Sets()[idOf(1)]}, Log: d.cfg.Log})
		if err != nil || fmt.Sprint(again.Held()) != fmt.Sprint(d.Held()) || again.Taken(1) != d.Taken(1) {
			t.Errorf("at the time of the broadcast, a restart would restore %v, error %v; want the announced sets", again.Held(), err)
		}
	}
	for _, says := range [][]directory.Endpoint{{at("a", 1)}, {at("a", 1), at("b", 2)}, {at("b", 2)}} {
		if err := d.Publish(says); err != nil {
			t.Fatal(err)
		}
	}
	m.OnDelta = nil
	disk.Fail(errors.New("disk full"))
	if d.Publish(nil) == nil || d.set(idOf(1)).Len() != 0 {
		t.Error("Publish with a full disk returned no error, or did not announce the change; want an error, and the change announced")
	}
}

// An endpoint that cannot be published does not affect the other endpoints.
func TestInvalidEndpointIsLeftOut(t *testing.T) {
	d := quiet(t, 1, &meshtest.Solo{})
	if err := d.Publish([]directory.Endpoint{at("a", 1), {ID: "b", Name: "Not A Name"}, at("c", 3)}); err == nil || d.set(idOf(1)).Len() != 2 {
		t.Errorf("%d endpoints are published, error %v; want 2", d.set(idOf(1)).Len(), err)
	}
}

// checkFree checks that no other host maps a free slot, and drops the free slots from used.
func (w *dirCluster) checkFree(used map[[2]int]time.Time, began map[int]time.Time) {
	for key, until := range used {
		owner, s := w.here[key[0]], slot.Slot(key[1])
		if owner == nil || owner.Taken(s) {
			continue
		}
		for n, h := range w.here {
			if n != key[0] && began[n].Before(until) && h.knows(key[0], s) {
				w.t.Fatalf("slot %d of host %d is free, but host %d still maps it; want it taken until no host does", s, key[0], n)
			}
		}
		delete(used, key)
	}
}
