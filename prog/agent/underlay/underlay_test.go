package underlay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
)

var (
	first  = netip.MustParseAddr("192.0.2.1")
	second = netip.MustParseAddr("192.0.2.9")
)

// fakeMesh keeps this host's own record.
type fakeMesh struct {
	mu       sync.Mutex
	record   peer.Record
	universe slot.Universe
	fail     error
}

func (m *fakeMesh) Update(f func(*peer.Record)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		f(&m.record)
	}
	return m.fail
}

func (m *fakeMesh) SetHello(u slot.Universe) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.universe = u
}

func (m *fakeMesh) own() (peer.Record, slot.Universe) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record, m.universe
}

// host is an underlay with the addresses of a Node in Kubernetes.
type host struct {
	*Underlay
	mesh *fakeMesh
	in   Inputs
	node live.Value[Node]
}

// newHost makes a host, and reads its addresses for the first time. The MTU is given, so that no link
// is read.
func newHost(t *testing.T, cfg Config, addrs ...netip.Addr) *host {
	t.Helper()
	h := &host{mesh: &fakeMesh{}}
	h.node.Set(Node{UID: "uid-1", Addrs: addrs})
	cfg.Node, cfg.MTU = h.node.Get, 1300
	h.Underlay = New(cfg)
	if err := h.Look(); err != nil {
		t.Fatal(err)
	}
	h.in = Inputs{Mesh: h.mesh, NodeAddr: &live.Value[slot.Slot]{}, View: &live.Value[*view.View]{}}
	return h
}

// start runs the underlay, and publishes a view every two seconds.
func (h *host) start(t *testing.T) (ended <-chan error, stop func()) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			agenttest.Set(h.in.View, h.in.View.Get())
			live.Pause(ctx, 2*time.Second)
		}
	}()
	go func() { done <- h.Run(ctx, h.in) }()
	return done, stop
}

func TestAnAgentEndsWhenItsAddressStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, first)
		ended, stop := h.start(t)
		defer stop()
		runs := func(when string) {
			t.Helper()
			synctest.Wait()
			select {
			case err := <-ended:
				t.Fatalf("%s: Run ended with %v, want it to go on", when, err)
			default:
			}
		}
		time.Sleep(10 * time.Minute)
		runs("it has its address")
		h.node.Set(Node{Addrs: []netip.Addr{second}})
		time.Sleep(settle - 4*time.Second)
		runs("the address is gone for a moment")
		h.node.Set(Node{Addrs: []netip.Addr{second, first}})
		time.Sleep(10 * time.Minute)
		runs("the address is there again, after another address")
		if got := h.Get().Addrs; !slices.Contains(got, first) || !slices.Contains(got, second) {
			t.Errorf("published addresses %v, want both", got)
		}
		h.node.Set(Node{Addrs: []netip.Addr{second}})
		gone := time.Now()
		if err := <-ended; !errors.Is(err, ErrMoved) || time.Since(gone) < settle || time.Since(gone) > settle+4*time.Second {
			t.Errorf("Run returned %v after %v, want ErrMoved once the address was gone for settle", err, time.Since(gone))
		}
	})
}

func TestTheOwnRecordFollowsRingAndNodeAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, first)
		_, stop := h.start(t)
		defer stop()
		synctest.Wait()
		r, universe := h.mesh.own()
		if !slices.Equal(r.Underlay, []netip.Addr{first}) || !slices.Equal(r.MTUs, []uint32{1380}) || r.Host != "uid-1" || r.Ring != nil || r.Node != 0 || !universe.IsZero() {
			t.Errorf("the record without a ring is %+v, want the address, MTU and host only", r)
		}
		v := agenttest.View()
		agenttest.Set(h.in.View, v)
		agenttest.Set(h.in.NodeAddr, 7)
		synctest.Wait()
		if r, universe = h.mesh.own(); string(r.Ring) != string(v.Ring.ID[:]) || r.Node != 7 || universe != v.Ring.Universe {
			t.Errorf("once there is a ring, the host's record is %+v with universe %v; want it to name the ring, its universe and node address 7", r, universe)
		}
		lost := agenttest.View()
		lost.Lost[settings.NodeKey] = 7
		agenttest.Set(h.in.View, lost)
		synctest.Wait()
		if r, _ = h.mesh.own(); r.Node != 0 {
			t.Errorf("the record is %+v after another peer took over the node address, want no node address", r)
		}
		agenttest.Set(h.in.NodeAddr, 8) // the view is older than this claim
		synctest.Wait()
		if r, _ = h.mesh.own(); r.Node != 8 {
			t.Errorf("the record is %+v after a new claim, want node address 8", r)
		}
		h.node.Set(Node{Addrs: []netip.Addr{first}}) // Kubernetes has no such Node for a moment
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if r, _ = h.mesh.own(); r.Host != "uid-1" {
			t.Errorf("the record is %+v while Kubernetes has no such Node, want the host of before", r)
		}
	})
}

func TestAHostWhoseRecordCannotBeAnnouncedIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t, Config{}, first)
		h.mesh.fail = errors.New("the disk is full")
		_, stop := h.start(t)
		defer stop()
		synctest.Wait()
		if err := h.Check(); !errors.Is(err, h.mesh.fail) {
			t.Error(err)
		}
		h.mesh.mu.Lock()
		h.mesh.fail = nil
		h.mesh.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if err := h.Check(); err != nil {
			t.Error(err)
		}
	})
}

func TestAddressesThatOperatorsGaveComeFirst(t *testing.T) {
	h := newHost(t, Config{Advertise: []netip.Addr{second}}, first)
	if got := h.Get(); !slices.Equal(got.Addrs, []netip.Addr{second}) || h.advertised != second {
		t.Errorf("host %+v, want only the operator's address, advertised", got)
	}
	h = newHost(t, Config{Last: []netip.Addr{second, first}}, first, second)
	if got := h.Get(); !slices.Equal(got.Addrs, []netip.Addr{second, first}) {
		t.Errorf("host %+v, want the addresses in the order of the last record", got)
	}
}
