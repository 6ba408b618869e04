package ipam

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// ClaimError reports why a requested address cannot be allocated.
type ClaimError struct {
	Slot  slot.Slot
	Why   string
	Later bool // whether trying again soon may succeed
	Held  bool // whether the only reason is that other peers still map the slot to its former endpoint
}

func (e *ClaimError) Error() string { return "ipam: the address cannot be allocated: " + e.Why }

// claimTries limits the attempts of a claim. Each attempt finds the slot's owner anew, since the
// owner may change between two attempts.
const claimTries = 3

// Claim allocates the slot want to key, if it is free anywhere in the mesh. If another peer owns
// it, that peer is asked to give it away.
func (a *Allocator) Claim(ctx context.Context, key string, want slot.Slot, note []byte) error {
	for range claimTries {
		owner, err := a.claimHere(ctx, key, want, note)
		if err != nil || owner == a.cfg.Self {
			return err
		}
		if !a.cfg.Mesh.Reachable(owner) {
			return &ClaimError{Slot: want, Why: fmt.Sprintf("its owner %s cannot be reached", a.cfg.Mesh.Name(owner)), Later: true}
		}
		payload := binary.BigEndian.AppendUint32(nil, uint32(want))
		if err := a.askFor(ctx, owner, requestClaim, payload); err != nil {
			held := refused(err) == whyHeld
			return &ClaimError{Slot: want, Why: fmt.Sprintf("its owner %s did not give it away: %v", a.cfg.Mesh.Name(owner), err), Later: held, Held: held}
		}
	}
	return &ClaimError{Slot: want, Why: "its owner changed several times during the request: try again", Later: true}
}

// claimHere allocates the slot to key if this peer owns it, and otherwise returns its owner.
func (a *Allocator) claimHere(ctx context.Context, key string, want slot.Slot, note []byte) (owner peer.ID, err error) {
	e := a.do(ctx, func() {
		have, allocated := a.allocations[key]
		switch {
		case allocated && have == want:
			owner = a.cfg.Self
			return
		case allocated:
			err = &ClaimError{Slot: want, Why: fmt.Sprintf("%s already has %v", key, a.ring.Universe.Addr4(have))}
			return
		}
		if err = a.writable(); err != nil {
			return
		}
		if !a.ring.Universe.Usable().Contains(want) {
			err = &ClaimError{Slot: want, Why: "it is outside " + a.ring.Universe.String() + ", or the first or the last address of it"}
			return
		}
		if owner, _ = a.ring.Owner(want); owner != a.cfg.Self {
			return
		}
		if refused := a.take(want); refused != nil {
			err = refused
			return
		}
		err = a.keep(key, want, note)
	})
	if e != nil {
		return owner, e
	}
	return owner, err
}

// take removes one slot from our free space, or returns the reason why it cannot be allocated.
func (a *Allocator) take(want slot.Slot) *ClaimError {
	if a.space.TakeExactly(want) {
		return nil
	}
	for key, s := range a.allocations {
		if s == want {
			return &ClaimError{Slot: want, Why: fmt.Sprintf("%s on %s holds it", key, a.cfg.Mesh.Name(a.cfg.Self))}
		}
	}
	if a.cfg.Held != nil && a.cfg.Held(want) {
		return &ClaimError{Slot: want, Why: whyHeld, Later: true, Held: true}
	}
	return &ClaimError{Slot: want, Why: "it is not free"}
}

// whyHeld is part of the protocol: peers of other versions compare it, so it must not change.
const whyHeld = "it was freed a moment ago, and other peers still know it as who had it: try again"

// serveClaim gives one slot to a peer that requests it by address.
func (a *Allocator) serveClaim(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	if len(payload) != 4 {
		return nil, fmt.Errorf("invalid claim: it has %d bytes, want 4", len(payload))
	}
	want := slot.Slot(binary.BigEndian.Uint32(payload))
	return a.answer(ctx, func() ([]byte, error) {
		if err := a.writable(); err != nil {
			return nil, err
		}
		if !a.owns(want) {
			return a.full(), nil // another peer owns the slot now, as our ring shows
		}
		if err := a.take(want); err != nil {
			return nil, errors.New(err.Why)
		}
		next, delta, err := a.ring.Grant(a.cfg.Self, from, slot.Range{Start: want, End: uint64(want) + 1})
		if err != nil {
			a.resize()
			return nil, err
		}
		return a.publish(next, delta)
	})
}
