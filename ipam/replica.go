package ipam

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"weft/ipam/ring"
)

// Name is the ring's name as a replicated state.
func (a *Allocator) Name() string { return ReplicaName }

// Full is the whole ring, for push/pull; nil while there is none.
func (a *Allocator) Full() []byte {
	var data []byte
	_ = a.do(context.Background(), func() {
		if !a.ring.IsZero() {
			data = a.full()
		}
	})
	return data
}

// full is the ring as others accept it: one that is above the bound goes in parts.
func (a *Allocator) full() []byte { return a.ring.Part(rand.Uint64()).Encode() }

// Merge takes in a ring, whole or in part, as another peer sent it. It returns
// what was news, to be passed on. What cannot be merged is kept as a conflict for
// status; it never ends the connection, so an error is for the log only.
func (a *Allocator) Merge(data []byte) (news []byte, err error) {
	theirs, err := ring.Decode(data)
	if err != nil {
		return nil, err
	}
	_ = a.do(context.Background(), func() { news, err = a.merge(theirs) }) // who is stopping needs no news
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

// acceptable refuses a ring of another cluster or universe than this peer was told of.
func (a *Allocator) acceptable(r ring.Ring) error {
	if a.cfg.Cluster != [16]byte{} && r.Cluster != a.cfg.Cluster {
		return fmt.Errorf("ipam: the ring is of cluster %x, this peer's token of %x; `weft reset` leaves the old cluster", r.Cluster, a.cfg.Cluster)
	}
	asked := a.cfg.Universe
	if asked.V4.IsValid() && r.Universe.V4 != asked.V4 || asked.V6.IsValid() && r.Universe.V6 != asked.V6 {
		return fmt.Errorf("ipam: the mesh's universe is %v, this peer was launched with another: launch it with --ipalloc-range %v, or without the flag",
			r.Universe, r.Universe)
	}
	return nil
}

// adopt persists a ring, makes it ours and serves what waited for it.
func (a *Allocator) adopt(r ring.Ring) error {
	if err := a.cfg.Store.Update(Change{Ring: r.Encode()}); err != nil {
		return fmt.Errorf("ipam: keep the ring: %w", err)
	}
	before := a.ring
	a.ring = r
	a.resize()
	a.warnOfLost(before)
	a.cfg.Changed()
	a.serve()
	return nil
}
