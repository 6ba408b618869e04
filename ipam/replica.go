package ipam

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// Name is the ring's name as a replicated state.
func (a *Allocator) Name() string { return ReplicaName }

// Full is the whole ring, for push/pull; nil while there is none.
func (a *Allocator) Full() []byte {
	var data []byte
	_ = a.do(context.Background(), func() {
		if !a.ring.IsZero() {
			data = a.ring.Encode()
		}
	})
	return data
}

// Merge takes in a ring, whole or in part, as another peer sent it. It returns
// what was news, to be passed on. What cannot be merged is kept as a conflict for
// status; it never ends the connection, so an error is for the log only.
func (a *Allocator) Merge(data []byte) (news []byte, err error) {
	theirs, err := ring.Decode(data)
	if err != nil {
		return nil, err
	}
	if e := a.do(context.Background(), func() { news, err = a.merge(theirs) }); e != nil {
		return nil, e
	}
	return news, err
}

func (a *Allocator) merge(theirs ring.Ring) ([]byte, error) {
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
	a.ring = r
	a.resize()
	a.cfg.Changed()
	a.serve()
	return nil
}

// ask requests space from the other owners, the largest first, in the background;
// one round at a time.
func (a *Allocator) ask() {
	if a.asking {
		return
	}
	a.asking = true
	donors := a.donors()
	ctx := a.ctx
	a.asks.Go(func() {
		got := a.askEach(ctx, donors)
		_ = a.do(ctx, func() {
			a.asking = false
			if got {
				a.serve()
			}
		})
	})
}

// askEach asks one donor after the other until one gives. It runs outside the actor.
func (a *Allocator) askEach(ctx context.Context, donors []peer.ID) bool {
	for _, id := range donors {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		data, err := a.cfg.Mesh.Request(ask, id, RequestSpace, nil)
		cancel()
		if err != nil {
			a.cfg.Log.Info("no space from peer", "peer", id, "err", err)
			continue
		}
		if _, err := a.Merge(data); err != nil { // no news: gossip was faster than the reply
			a.cfg.Log.Warn("unusable grant of space", "peer", id, "err", err)
			continue
		}
		return true
	}
	return false
}

// donors are the other owners that can be reached, the one who owns most first.
func (a *Allocator) donors() []peer.ID {
	sizes := map[peer.ID]uint64{}
	for id, ranges := range a.ring.Owned() {
		if id == a.cfg.Self || !a.cfg.Mesh.Reachable(id) {
			continue
		}
		for _, r := range ranges {
			sizes[id] += r.Len()
		}
	}
	return slices.SortedFunc(maps.Keys(sizes), func(x, y peer.ID) int {
		return cmp.Or(cmp.Compare(sizes[y], sizes[x]), bytes.Compare(x[:], y[:]))
	})
}

// ServeSpace answers another peer's request for space: half of our largest free
// block, as a delta of the ring that makes it theirs.
func (a *Allocator) ServeSpace(ctx context.Context, from peer.ID, _ []byte) (reply []byte, err error) {
	if e := a.do(ctx, func() { reply, err = a.donate(from) }); e != nil {
		return nil, e
	}
	return reply, err
}

var errNothingFree = errors.New("nothing is free here")

func (a *Allocator) donate(to peer.ID) ([]byte, error) {
	if to == a.cfg.Self {
		return nil, errors.New("a peer gives no space to itself")
	}
	gift, ok := a.space.Donate()
	if !ok {
		return nil, errNothingFree
	}
	next, delta, err := a.ring.Grant(a.cfg.Self, to, gift)
	if err == nil {
		err = a.adopt(next)
	}
	if err != nil {
		a.resize() // the gift is free again
		return nil, err
	}
	a.cfg.Log.Info("gave space to peer", "peer", to, "slots", gift.Len())
	data := delta.Encode()
	a.cfg.Mesh.Broadcast(ReplicaName, data)
	return data, nil
}
