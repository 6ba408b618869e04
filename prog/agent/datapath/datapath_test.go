package datapath

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/attach"
	"weft/prog/agent/live"
	"weft/prog/agent/measure"
	"weft/prog/agent/settings"
	"weft/prog/agent/underlay"
	"weft/prog/agent/view"
	"weft/router"
	"weft/router/endpoint"
	"weft/router/link"
)

// kernel records the applied configurations.
type kernel struct {
	mu        sync.Mutex
	applied   []router.Config
	unplugged []endpoint.Endpoint
	fail      error
}

func (k *kernel) Apply(_ context.Context, c router.Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	k.applied = append(k.applied, c)
	return nil
}

func (k *kernel) Unplug(_ context.Context, list ...endpoint.Endpoint) error {
	k.unplugged = append(k.unplugged, list...)
	return nil
}

func (*kernel) Protected() bool                          { return true }
func (*kernel) GuardDropped() (map[string]uint64, error) { return nil, nil }
func (*kernel) Observe() (router.Observed, error)        { return router.Observed{}, errors.New("no device") }

func (k *kernel) turns() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.applied)
}

type network struct{ overlap error }

func (n *network) Overlap(slot.Universe) error { return n.overlap }
func (*network) Routes() (func(netip.Addr) int, func(), error) {
	return func(netip.Addr) int { return 1500 }, func() {}, nil
}

type fixture struct {
	*Datapath
	view     live.Value[*view.View]
	host     live.Value[underlay.Host]
	node     live.Value[slot.Slot]
	attached live.Value[[]attach.Endpoint]
	settings live.Value[settings.Values]
	kernel   kernel
	network  network
	empty    error
	order    []string // the calls, in order
	isolate  error
	served   []netip.Addr
}

func newFixture() *fixture {
	f := &fixture{}
	f.view.Set(agenttest.View())
	f.node.Set(1)
	f.host.Set(underlay.Host{MTUs: []uint32{1500}})
	f.Datapath = New(Config{
		View: &f.view, Host: &f.host, NodeAddr: &f.node, Attached: &f.attached, Settings: &f.settings, Paths: &live.Value[measure.Paths]{}, Relayed: &live.Value[measure.Relayed]{}, Underlay: &f.network, Router: &f.kernel,
		PresharedKey: func(peer.ID) [32]byte { return [32]byte{1} }, Empty: func() error { return f.empty }, Log: slog.New(slog.DiscardHandler),
		Isolate: func() error { f.order = append(f.order, "isolate"); return f.isolate }, Tried: func() {},
		Applied: func(addrs []netip.Addr) { f.order, f.served = append(f.order, "applied"), addrs },
	})
	return f
}

// Policies are in the kernel before the first packet can pass.
func TestPoliciesComeBeforeThePlan(t *testing.T) {
	f := newFixture()
	if f.Check() == nil {
		t.Error("Check returned no error before the first plan, want one")
	}
	if err := f.step(t.Context()); err != nil || len(f.order) != 2 || f.order[0] != "isolate" || len(f.served) != 1 {
		t.Errorf("error %v, calls %v, node addresses %v; want isolate first, then the plan, then the addresses", err, f.order, f.served)
	}
	f.failed.Set(nil)
	if err := f.Check(); err != nil || f.MTU() == 0 {
		t.Errorf("Check returned %v with MTU %d; want no error, and an MTU", err, f.MTU())
	}
	f = newFixture()
	if f.isolate = errors.New("no nf_tables"); f.step(t.Context()) == nil || f.kernel.turns() != 0 {
		t.Errorf("plans %+v were applied without policies, want none", f.kernel.applied)
	}
}

func TestCheckReportsWhyTheDataPathIsNotReady(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fixture)
		want   error
	}{
		"no view yet":                {func(f *fixture) { f.view.Set(nil) }, ipam.ErrNoRing},
		"no ring":                    {func(f *fixture) { f.view.Set(&view.View{}) }, ipam.ErrNoRing},
		"a ring that does not merge": {func(f *fixture) { f.view.Set(&view.View{Snapshot: ipam.Snapshot{Conflict: errConflict}}) }, errConflict},
		"no policies at all":         {func(f *fixture) { f.empty = errConflict }, errConflict},
		"the kernel refuses":         {func(f *fixture) { f.kernel.fail = errConflict }, errConflict},
		"an overlap that came later": {func(f *fixture) { f.network.overlap = errConflict }, errConflict},
		"an unconfirmed identity": {func(f *fixture) {
			v := *agenttest.View()
			v.Confirmed = false
			f.view.Set(&v)
		}, errUnconfirmed},
		"no node address": {func(f *fixture) { f.node.Set(0) }, nil},
	} {
		f := newFixture()
		c.change(f)
		f.failed.Set(f.step(t.Context()))
		if err := f.Check(); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

var errConflict = errors.New("a reason")

// If a host's network overlaps the universe, its agent ends, unless the data path is up already. Then
// attached containers keep working.
func TestAnOverlapStopsOnlyAStartingAgent(t *testing.T) {
	overlap := &link.OverlapError{}
	f := newFixture()
	f.network.overlap = overlap
	if err := f.Run(t.Context()); !errors.Is(err, overlap) || f.kernel.turns() != 0 {
		t.Errorf("at the start: error %v after %d plans; want the overlap, and no plan", err, f.kernel.turns())
	}
	f = newFixture()
	if err := f.step(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.network.overlap = overlap
	if err := f.step(t.Context()); !errors.Is(err, overlap) || f.kernel.turns() != 2 {
		t.Errorf("with a data path: error %v after %d plans; want the overlap, and a second plan", err, f.kernel.turns())
	}
}

func TestEndpointsWhoseAddressAnotherPeerOwnsAreCutOff(t *testing.T) {
	f := newFixture()
	e := attach.Endpoint{Slot: 10}
	e.ContainerID, e.Interface = "c1", "eth0"
	f.attached.Set([]attach.Endpoint{e})
	v := *agenttest.View()
	v.Lost = map[string]slot.Slot{"c1/eth0": 10}
	f.view.Set(&v)
	if err := f.step(t.Context()); err != nil || len(f.kernel.applied[0].Endpoints) != 0 || len(f.kernel.unplugged) != 1 {
		t.Errorf("error %v; applied %+v, unplugged %v; want the lost endpoint unplugged and in no plan", err, f.kernel.applied, f.kernel.unplugged)
	}
}

func TestEachInputIsApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		agenttest.Run(t, f.Run)
		for what, change := range map[string]func(){
			"view":     func() { f.view.Set(agenttest.View()) },
			"host":     func() { f.host.Set(underlay.Host{MTUs: []uint32{1400}}) },
			"node":     func() { f.node.Set(2) },
			"settings": func() { f.settings.Set(settings.Values{Exposed: true}) },
		} {
			synctest.Wait()
			before := f.kernel.turns()
			change()
			synctest.Wait()
			if f.kernel.turns() != before+1 {
				t.Errorf("%s: %d plans were applied, want 1", what, f.kernel.turns()-before)
			}
		}
		before := f.kernel.turns()
		f.attached.Set([]attach.Endpoint{{Slot: 10}})
		if synctest.Wait(); f.kernel.turns() != before {
			t.Error("an attached endpoint made a plan be applied, want none: attach changes the kernel itself")
		}
	})
}

// Alive fails once the last application of a plan began too long ago.
func TestAnAgentWhosePlanHangsIsNotAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		if err := f.Alive(); err != nil {
			t.Errorf("Alive before the first plan returned %v, want nil", err)
		}
		now := time.Now()
		f.begun.Store(&now)
		time.Sleep(stuck - time.Second)
		if err := f.Alive(); err != nil {
			t.Errorf("Alive after %v returned %v, want nil", stuck-time.Second, err)
		}
		time.Sleep(time.Second)
		if f.Alive() == nil {
			t.Errorf("Alive after %v returned nil, want an error", stuck)
		}
	})
}
