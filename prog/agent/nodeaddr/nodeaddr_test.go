package nodeaddr

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
)

// ipam allocates the next slot to the node's key whenever it has none, and can refuse for a while.
type ipam struct {
	mu           sync.Mutex
	last, given  slot.Slot
	freed        int
	noSpaceUntil time.Time
	noFreeUntil  time.Time
}

func (i *ipam) Allocate(_ context.Context, key string, _ []byte) (slot.Slot, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if key != settings.NodeKey || time.Now().Before(i.noSpaceUntil) {
		return 0, errors.New("no space")
	}
	if i.given == 0 {
		i.last++
		i.given = i.last
	}
	return i.given, nil
}

func (i *ipam) Free(_ context.Context, key string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if key != settings.NodeKey || time.Now().Before(i.noFreeUntil) {
		return errors.New("it cannot be freed")
	}
	i.given, i.freed = 0, i.freed+1
	return nil
}

// frees returns how often the node address was freed.
func (i *ipam) frees() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.freed
}

// lostView returns a view in which another peer owns the slot of this host's node address; 0: none.
func lostView(s slot.Slot) *view.View {
	v := agenttest.View()
	if s != 0 {
		v.Lost[settings.NodeKey] = s
	}
	return v
}

type fixture struct {
	*Claimer
	ipam *ipam
	view *live.Value[*view.View]
}

// claim runs a claimer, which ends with the test.
func claim(t *testing.T, stored slot.Slot, from *ipam) fixture {
	f := fixture{ipam: from, view: &live.Value[*view.View]{}}
	f.Claimer = New(Config{Stored: stored, IPAM: from, View: f.view, Log: slog.New(slog.DiscardHandler)})
	if f.Get() != stored {
		t.Errorf("the claimer publishes slot %d before it runs, want the stored %d", f.Get(), stored)
	}
	agenttest.Run(t, f.Run)
	return f
}

func TestANodeAddressIsClaimedAsSoonAsThereIsSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := claim(t, 0, &ipam{noSpaceUntil: time.Now().Add(10 * time.Second)})
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if f.Get() != 0 {
			t.Errorf("slot %d is claimed although the host owns no free slot, want no claim", f.Get())
		}
		time.Sleep(2 * retry)
		synctest.Wait()
		if f.Get() != 1 {
			t.Errorf("slot %d is claimed, want 1", f.Get())
		}
	})
}

func TestTheNodeAddressIsKeptOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := claim(t, 5, &ipam{given: 5})
		version := f.Version()
		f.view.Set(lostView(0))
		time.Sleep(time.Hour)
		synctest.Wait()
		if f.Get() != 5 || f.Version() != version || f.ipam.frees() != 0 {
			t.Errorf("slot %d, published %d times, freed %d times; want 5, never published again, never freed", f.Get(), f.Version()-version, f.ipam.frees())
		}
	})
}

func TestANodeAddressThatAnotherPeerHasIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := claim(t, 0, &ipam{})
		f.view.Set(lostView(0))
		synctest.Wait()
		for lost := slot.Slot(1); lost < 4; lost++ {
			if f.Get() != lost {
				t.Fatalf("claimed %d, want %d", f.Get(), lost)
			}
			f.view.Set(lostView(lost))
			synctest.Wait()
		}
		if f.Get() != 4 || f.ipam.frees() != 3 {
			t.Errorf("slot %d is claimed, and %d were freed; want 4, 3", f.Get(), f.ipam.frees())
		}
		// The view still reports that the previous slot is lost.
		f.view.Set(lostView(3))
		time.Sleep(time.Hour)
		synctest.Wait()
		if f.Get() != 4 || f.ipam.frees() != 3 {
			t.Errorf("after a view older than the claim, slot %d is claimed, and %d were freed; want 4, 3", f.Get(), f.ipam.frees())
		}
	})
}

// The allocator returns the lost slot again until the claimer has freed it.
func TestReleasingALostNodeAddressIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := claim(t, 0, &ipam{noFreeUntil: time.Now().Add(time.Minute)})
		synctest.Wait()
		f.view.Set(lostView(1))
		time.Sleep(time.Minute + 2*retry)
		synctest.Wait()
		if f.Get() != 2 || f.ipam.frees() != 1 {
			t.Errorf("slot %d is claimed, and %d were freed; want 2, 1", f.Get(), f.ipam.frees())
		}
	})
}
