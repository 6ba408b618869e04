package soak

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// voter is one of several hosts that start together: a mesh over memberlist, and an allocator.
type voter struct {
	ipam.State
	sync   time.Duration
	writes int
	ipam   *ipam.Allocator
	mesh   *mesh.Mesh
	stop   func()

	mu      sync.Mutex
	founded time.Time
}

func (v *voter) Load() (ipam.State, error)          { return v.State, nil }
func (v *voter) SavePeers(map[peer.ID][]byte) error { return nil }
func (v *voter) SaveTargets([]string) error         { return nil }

func (v *voter) Update(c ipam.Change) error {
	time.Sleep(v.sync)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.writes++
	if c.Vote != nil {
		v.Vote = c.Vote
	}
	if c.Ring != nil {
		if v.Ring = c.Ring; v.founded.IsZero() {
			v.founded = time.Now()
		}
	}
	return nil
}

// voterAddr is where a voter is.
func voterAddr(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), mesh.Port)
}

// newVoter starts host n of all, with the others as targets.
func newVoter(t *testing.T, net *meshtest.Network, n, all int, sync time.Duration) *voter {
	t.Helper()
	v := &voter{sync: sync}
	u := slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}
	var targets []string
	for other := 1; other <= all; other++ {
		if other != n {
			targets = append(targets, voterAddr(other).Addr().String())
		}
	}
	var err error
	v.mesh, err = mesh.New(mesh.Config{
		Identity:  ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), byte(n))),
		Record:    peer.Record{Nickname: fmt.Sprint("h", n), Underlay: []netip.Addr{voterAddr(n).Addr()}, Port: 6784, Gossip: mesh.Port},
		GossipKey: secret.Secret{1}.GossipKey(), Targets: targets, Store: v, Port: mesh.Port,
		Log: slog.New(slog.DiscardHandler), Changed: func() {}, Transport: net.Join(voterAddr(n)),
	})
	if err != nil {
		t.Fatal(err)
	}
	v.ipam = ipam.New(ipam.Config{
		Self: v.mesh.Self(), Store: v, Mesh: v.mesh, Log: slog.New(slog.DiscardHandler), Changed: func() {},
		Elect: &ipam.Election{
			Terms:     paxos.Terms{Expect: all},
			Candidate: func() (ring.ID, [16]byte, slot.Universe) { return ring.ID{byte(n)}, [16]byte{1}, u },
			Elsewhere: func() bool { return false },
		},
	})
	v.mesh.Replicate(v.ipam)
	v.mesh.Replicate(v.ipam.Votes())
	for kind, h := range v.ipam.Handlers() {
		v.mesh.Handle(kind, h)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- v.ipam.Run(ctx) }()
	go func() { done <- v.mesh.Run(ctx) }()
	v.stop = func() {
		cancel()
		for range cap(done) {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	return v
}

// Hosts that start together found one ring, soon, however many there are.
func TestHostsThatStartTogetherFoundOneRing(t *testing.T) {
	for _, c := range []struct {
		hosts        int
		sync, within time.Duration
	}{
		{2, 0, time.Second},
		{2, 20 * time.Millisecond, time.Second},
		{20, 20 * time.Millisecond, 5 * time.Second},
		{50, 20 * time.Millisecond, 5 * time.Second},
		{10, time.Second, time.Minute}, // a disk that is nearly dead
	} {
		t.Run(fmt.Sprintf("%d hosts, %v for each write", c.hosts, c.sync), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net, start := meshtest.New(1), time.Now()
				net.SetDelay(time.Millisecond)
				var voters []*voter
				for n := 1; n <= c.hosts; n++ {
					voters = append(voters, newVoter(t, net, n, c.hosts, c.sync))
				}
				time.Sleep(c.within)
				rings := map[ring.ID]int{}
				var last time.Duration
				writes, owners := 0, 0
				for _, v := range voters {
					snap, err := v.ipam.Snapshot(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					rings[snap.Ring.ID]++
					owners = len(snap.Ring.Owned())
					v.mu.Lock()
					last, writes = max(last, v.founded.Sub(start)), max(writes, v.writes)
					v.mu.Unlock()
				}
				if len(rings) != 1 || rings[ring.ID{}] > 0 {
					t.Errorf("rings after %v: %v", c.within, rings)
				}
				t.Logf("the last host has the ring of %d owners after %v; %d writes at most", owners, last, writes)
				var all sync.WaitGroup
				for _, v := range voters {
					all.Go(v.stop)
				}
				all.Wait()
				time.Sleep(2 * time.Minute) // memberlist's Shutdown waits for nobody
				synctest.Wait()
			})
		})
	}
}
