package ipam

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"weft/ipam/ring"
)

// Name returns the name of the ring as a replicated state.
func (a *Allocator) Name() string { return ReplicaName }

// Full returns the whole ring for push/pull; nil if there is none.
func (a *Allocator) Full() []byte {
	var data []byte
	_ = a.do(context.Background(), func() {
		if !a.ring.IsZero() {
			data = a.full()
		}
	})
	return data
}

// full returns the ring, or a part of it if the whole is too large for one message.
func (a *Allocator) full() []byte { return a.ring.Part(rand.Uint64()).Encode() }

// Merge merges a ring, or a part of one, that another peer sent. It returns the news to pass on. A
// state that cannot be merged is kept as a conflict for status. The error is only for the
// log, and closes no connection.
func (a *Allocator) Merge(data []byte) (news []byte, err error) {
	theirs, err := ring.Decode(data)
	if err != nil {
		return nil, err
	}
	_ = a.do(context.Background(), func() { news, err = a.merge(theirs) }) // do only fails while stopping, when news do not matter
	return news, err
}

func (a *Allocator) merge(theirs ring.Ring) ([]byte, error) {
	theirs, lie := theirs.Credible(time.Now().Unix())
	if lie != nil {
		a.conflict, a.conflictAt = lie, time.Now()
	}
	merged, news, err := a.ring.Merge(theirs)
	if refused := a.acceptable(theirs); refused != nil {
		err = refused
	}
	if err != nil {
		a.conflict, a.conflictAt = err, time.Now()
		return nil, err
	}
	if news.IsZero() {
		return nil, nil
	}
	if err := a.adopt(merged); err != nil {
		return nil, err
	}
	return news.Encode(), nil
}

// acceptable returns an error if the cluster or universe of r is not the configured one.
func (a *Allocator) acceptable(r ring.Ring) error {
	if a.cfg.Cluster != [16]byte{} && r.Cluster != a.cfg.Cluster {
		return fmt.Errorf("ipam: the ring belongs to cluster %x, this peer's token to %x: they cannot be combined; run `weft reset` to leave the old cluster", r.Cluster, a.cfg.Cluster)
	}
	asked := a.cfg.Universe
	if asked.V4.IsValid() && r.Universe.V4 != asked.V4 || asked.V6.IsValid() && r.Universe.V6 != asked.V6 {
		return fmt.Errorf("ipam: the mesh's address range is %v, this peer was launched with another one: launch it with --ipalloc-range %v, or without that flag",
			r.Universe, r.Universe)
	}
	return nil
}

// adopt persists r, makes it the current ring and serves waiting requests.
func (a *Allocator) adopt(r ring.Ring) error {
	if err := a.cfg.Store.Update(Change{Ring: r.Encode()}); err != nil {
		return fmt.Errorf("ipam: storing the ring: %w", err)
	}
	before := a.ring
	a.ring = r
	a.resize()
	a.warnOfLost(before)
	a.cfg.Changed()
	a.serve()
	return nil
}
