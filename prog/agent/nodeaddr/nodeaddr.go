// Package nodeaddr owns the node address: the slot that this host takes for itself. It publishes
// the slot, 0 while there is none, and claims another slot when a peer took over the first.
package nodeaddr

import (
	"context"
	"log/slog"
	"time"

	"weft/ipam/slot"
	"weft/prog/agent/live"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
)

// retry is the pause after a claim that failed.
const retry = time.Second

// Allocator gives slots to keys, and frees the slots.
type Allocator interface {
	Allocate(ctx context.Context, key string, note []byte) (slot.Slot, error)
	Free(ctx context.Context, key string) error
}

// Config configures a Claimer.
type Config struct {
	Stored slot.Slot // the node address of the previous agent; 0: none
	IPAM   Allocator
	View   live.Reader[*view.View]
	Log    *slog.Logger
}

// Claimer claims the node address, and publishes its slot.
type Claimer struct {
	live.Value[slot.Slot]
	cfg Config
}

// New makes a claimer that publishes the stored slot; Run starts it.
func New(cfg Config) *Claimer {
	c := &Claimer{cfg: cfg}
	c.Set(cfg.Stored)
	return c
}

// Run claims a slot as soon as there is a ring with space, and another slot whenever the slot is
// lost.
func (c *Claimer) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		s, err := c.cfg.IPAM.Allocate(ctx, settings.NodeKey, nil)
		if err != nil {
			if ctx.Err() == nil {
				c.cfg.Log.Warn("no node address yet", "err", err)
				live.Pause(ctx, retry)
			}
			continue
		}
		if s != c.Get() {
			c.Set(s)
		}
		c.awaitLoss(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.Set(0)
		if err := c.cfg.IPAM.Free(ctx, settings.NodeKey); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("cannot release the node address that another peer owns now", "err", err)
			live.Pause(ctx, retry)
		}
	}
	return nil
}

// awaitLoss waits until another peer owns the slot according to the ring.
func (c *Claimer) awaitLoss(ctx context.Context) {
	for {
		v, seen := c.cfg.View.Read()
		if v != nil {
			if s, lost := v.Lost[settings.NodeKey]; lost && s == c.Get() { // if another slot is lost, the view is older than the claim
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-c.cfg.View.Changed(seen):
		}
	}
}
