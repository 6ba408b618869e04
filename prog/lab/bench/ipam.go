package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"weft/ipam"
	"weft/ipam/ipamtest"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/state"
)

const (
	ipamPeers  = 1000
	ipamPods   = 250 // containers of each peer
	ipamRounds = 50
)

// alone is a mesh without other peers. It counts the bytes that it would send to them.
type alone struct{ said int }

func (a *alone) Broadcast(_ string, delta []byte) { a.said += len(delta) }
func (*alone) Reachable(peer.ID) bool             { return false }
func (*alone) Stopped(peer.ID) bool               { return false }
func (*alone) Others() []peer.ID                  { return nil }
func (*alone) Name(id peer.ID) string             { return id.String() }
func (*alone) Request(context.Context, peer.ID, string, []byte) ([]byte, error) {
	return nil, context.Canceled
}

// ipamBench measures the address ring of a thousand peers: an allocation with its disk writes and its
// gossip, a merge of the whole ring, and the memory of a peer.
func ipamBench(ctx context.Context, b *bench) (err error) {
	before := heap()
	m, err := thousand()
	if err != nil {
		return err
	}
	founder, older := m.Peers[0], m.Ring
	m.Leave(ipamPeers / 2) // the change is news for peers with the older ring

	merge := figure{what: fmt.Sprintf("merge of a ring of %d peers, %d segments", ipamPeers, len(m.Ring.Segments())), atMost: 50}
	encoded := m.Ring.Encode()
	for range ipamRounds {
		start := time.Now()
		theirs, err := ring.Decode(encoded)
		if err == nil {
			_, _, err = older.Merge(theirs)
		}
		if err != nil {
			return err
		}
		merge.ours.add(time.Since(start).Seconds() * 1e3)
	}
	net := &alone{}
	allocate := figure{what: "one allocation, on disk"}
	grant := figure{what: "one block given away, on disk"}
	gossipGrant := figure{what: "one block given away: all bytes of gossip"}
	gossip := figure{what: "one allocation: all bytes of gossip"}
	held, err := serveRing(ctx, b, m.Ring, founder.ID, net, func(a *ipam.Allocator) error {
		for i := range ipamPods {
			said, start := net.said, time.Now()
			if _, err := a.Allocate(ctx, fmt.Sprintf("container-%d/eth0", i), []byte("{}")); err != nil {
				return err
			}
			allocate.ours.add(time.Since(start).Seconds() * 1e3)
			gossip.ours.add(float64(net.said - said))
		}
		for range 5 {
			said, start := net.said, time.Now()
			if _, err := a.Handlers()["space"](ctx, m.Peers[1].ID, nil); err != nil {
				return err
			}
			grant.ours.add(time.Since(start).Seconds() * 1e3)
			gossipGrant.ours.add(float64(net.said - said))
		}
		return nil
	})
	if err != nil {
		return err
	}
	printFigures(os.Stdout, "The address ring of a thousand peers: time", "ms", allocate, grant, merge)
	printFigures(os.Stdout, "The address ring: bytes sent", "bytes", gossip, gossipGrant, figure{what: "the whole ring, for push/pull", ours: samples{float64(len(encoded))}})
	printFigures(os.Stdout, "The address ring: memory", "MiB", figure{
		what: "ring and allocator of one peer with its 250 containers", atMost: 64, ours: samples{float64(held-before) / (1 << 20)},
	})
	runtime.KeepAlive(m)
	return nil
}

// thousand returns a mesh of a thousand peers whose containers all have an address.
func thousand() (*ipamtest.Mesh, error) {
	m := ipamtest.New(slot.Universe{V4: slot.DefaultV4, V6: secret.ClusterID{1}.V6()})
	for len(m.Peers) < ipamPeers {
		m.Join()
	}
	for range ipamPods {
		for _, p := range m.Peers {
			if !m.Allocate(p) {
				return nil, errors.New("the address range is too small for the containers of all peers")
			}
		}
	}
	return m, nil
}

// serveRing runs an allocator that starts from a ring on disk, and returns the heap size while it
// runs. The heap includes the model of all peers, so the memory of one peer is smaller.
func serveRing(ctx context.Context, b *bench, r ring.Ring, self peer.ID, net *alone, f func(*ipam.Allocator) error) (held uint64, err error) {
	store, err := state.Open(filepath.Join(b.tmp, "ring"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := store.Update(ipam.Change{Ring: r.Encode()}); err != nil {
		return 0, err
	}
	a := ipam.New(ipam.Config{Self: self, Store: store, Mesh: net, Log: slog.New(slog.DiscardHandler), Changed: func() {}})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	err = f(a)
	held = heap()
	cancel()
	return held, errors.Join(err, <-done)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
