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
	"weft/mesh/member"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
	"weft/mesh/secret"
)

// voter is one of several hosts that start together: a Mesh over memberlist, and an Allocator.
type voter struct {
	meshtest.Disk
	state   ipam.State
	founded time.Time
	ipam    *ipam.Allocator
	mesh    *mesh.Mesh
	stop    func()
}

// SavePeers and SaveTargets take no time, unlike Update: the mesh holds its lock while it calls them.
// The time of a synctest bubble stands still while a goroutine waits for a lock.
func (v *voter) SavePeers(map[peer.ID][]byte) error { return nil }
func (v *voter) SaveTargets([]string) error         { return nil }

func (v *voter) Load() (s ipam.State, err error) {
	v.Read(func() { s = v.state.Clone() })
	return s, nil
}

func (v *voter) Update(c ipam.Change) error {
	return v.Write(func() {
		if v.state.Apply(c); c.Ring != nil && v.founded.IsZero() {
			v.founded = time.Now()
		}
	})
}

// newVoter starts host n of all, with the other hosts as targets.
func newVoter(t *testing.T, net *meshtest.Network, n, all int, sync time.Duration) *voter {
	t.Helper()
	var targets []int
	for other := 1; other <= all; other++ {
		if other != n {
			targets = append(targets, other)
		}
	}
	return newHost(t, net, n, &voter{Disk: meshtest.Disk{Delay: sync}}, targets, func(c *ipam.Config) {
		c.Elect = &ipam.Election{
			Terms:     paxos.Terms{Expect: all},
			Candidate: func() (ring.ID, [16]byte, slot.Universe) { return ring.ID{byte(n)}, [16]byte{1}, simulated },
			Elsewhere: func() bool { return false },
		}
	})
}

var simulated = slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()}

// newHost starts host n, with others as targets.
func newHost(t *testing.T, net *meshtest.Network, n int, v *voter, others []int, tune func(*ipam.Config)) *voter {
	t.Helper()
	var targets []string
	for _, other := range others {
		targets = append(targets, meshtest.Address(other).Addr().String())
	}
	var err error
	v.mesh, err = mesh.New(mesh.Config{
		Identity: meshtest.Identity(n),
		Record:   peer.Record{Nickname: fmt.Sprint("h", n), Underlay: []netip.Addr{meshtest.Address(n).Addr()}, Port: 6784, Gossip: mesh.Port},
		Root:     secret.Secret{1}.Root().Public().(ed25519.PublicKey), Targets: targets,
		Certificate: member.Certify(secret.Secret{1}.Root(), meshtest.Identity(n).Public().(ed25519.PublicKey), member.Holder).Encode(),
		Store:       v, Port: mesh.Port,
		Log: slog.New(slog.DiscardHandler), Changed: func() {}, Transport: net.Join(meshtest.Address(n)),
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := ipam.Config{Self: v.mesh.Self(), Store: v, Mesh: v.mesh, Log: slog.New(slog.DiscardHandler), Changed: func() {}}
	tune(&cfg)
	v.ipam = ipam.New(cfg)
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

// endAll stops all hosts at once.
func endAll(voters []*voter) {
	var all sync.WaitGroup
	for _, v := range voters {
		all.Go(v.stop)
	}
	all.Wait()
	time.Sleep(2 * time.Minute) // memberlist's Shutdown does not wait for its goroutines
	synctest.Wait()
}

// A host behind NAT gets an address within seconds. However often it repeats its request, it
// gets only one grant.
func TestHostBehindNATGetsOneGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := meshtest.New(1)
		net.HangDials()
		net.NAT(meshtest.Address(3).Addr())
		founder := newHost(t, net, 1, &voter{}, nil, func(c *ipam.Config) {
			r := ring.Found(ring.ID{1}, [16]byte{1}, simulated, c.Self)
			c.Found = &r
		})
		hosts := []*voter{founder}
		for n := 2; n <= 3; n++ {
			v := newHost(t, net, n, &voter{}, []int{1}, func(*ipam.Config) {})
			hosts = append(hosts, v)
			for i := range 6 {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				if _, err := v.ipam.Allocate(ctx, fmt.Sprint(i), nil); err != nil {
					t.Errorf("h%d: %v, want an address", n, err)
				}
				cancel()
			}
		}
		time.Sleep(45 * time.Second)
		snap, err := founder.ipam.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		whole := simulated.Range().Len()
		for id, ranges := range snap.Ring.Owned() {
			owned := uint64(0)
			for _, r := range ranges {
				owned += r.Len()
			}
			if owned < whole/4 || owned > whole/2 {
				t.Errorf("%v owns %d of %d slots, want one grant", founder.mesh.Name(id), owned, whole)
			}
		}
		endAll(hosts)
	})
}

// Hosts that start together soon agree on one ring, however many there are.
func TestHostsThatStartTogetherAgreeOnOneRing(t *testing.T) {
	for _, c := range []struct {
		hosts        int
		sync, within time.Duration
	}{
		{2, 0, time.Second},
		{2, 20 * time.Millisecond, time.Second},
		{20, 20 * time.Millisecond, 5 * time.Second},
		{50, 20 * time.Millisecond, 5 * time.Second},
		{10, time.Second, time.Minute}, // a failing disk
	} {
		if testing.Short() && c.hosts > 20 {
			continue // with the race detector, 50 hosts take minutes and show no other code than 20
		}
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
					v.Read(func() { last = max(last, v.founded.Sub(start)) })
					writes = max(writes, v.Writes())
				}
				if len(rings) != 1 || rings[ring.ID{}] > 0 {
					t.Errorf("after %v the number of hosts per ring is %v; want one ring on all hosts", c.within, rings)
				}
				t.Logf("the last host has the ring of %d owners after %v; %d writes at most", owners, last, writes)
				endAll(voters)
			})
		})
	}
}
