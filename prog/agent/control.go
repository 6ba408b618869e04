package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"weft/ipam"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/api"
)

// Ready reports why this host cannot attach containers yet.
func (a *Agent) Ready(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.notReady != "" {
		return &api.Error{Code: api.CodeNotReady, Message: "not ready: " + a.notReady}
	}
	return nil
}

// Targets changes whom this peer joins.
func (a *Agent) Targets(_ context.Context, req api.TargetsRequest) error {
	if err := knownTargets(a.mesh.Targets(), req.Forget); err != nil {
		return err
	}
	if err := a.mesh.Forget(req.Forget); err != nil {
		return err
	}
	if len(req.Connect) == 0 && !req.Replace {
		return nil
	}
	if err := a.mesh.Connect(req.Connect, req.Replace); err != nil {
		return &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	return nil
}

// knownTargets refuses to forget what is no target, and then all that was asked with it.
func knownTargets(targets []mesh.Target, forget []string) error {
	for _, host := range forget {
		if !slices.ContainsFunc(targets, func(t mesh.Target) bool { return t.Host == host }) {
			return &api.Error{Code: api.CodeNotFound, Message: host + " is no target of this host: nothing is forgotten (`weft status targets` lists them)"}
		}
	}
	return nil
}

// Expose lets the underlay reach containers through this host, or stops that.
func (a *Agent) Expose(_ context.Context, req api.ExposeRequest) (err error) {
	name := ""
	if req.Name != "" {
		if name, err = a.relative(req.Name); err != nil {
			return err
		}
	}
	return a.change(func(s *settings) error {
		s.Exposed = req.On
		given := givenName{Name: name, Endpoint: nodeKey, Exposed: true}
		switch {
		case !req.On: // the name told how to get in
			s.Names = slices.DeleteFunc(s.Names, func(n givenName) bool { return n.Exposed })
		case name != "" && !slices.Contains(s.Names, given):
			s.Names = append(s.Names, given)
		}
		return nil
	})
}

// Stop ends the agent. The data path stays. A peer that leaves for good cuts off what is
// attached, and does not go before another one has its addresses.
func (a *Agent) Stop(ctx context.Context, req api.StopRequest) (r api.StopReply, err error) {
	if req.Leave {
		if err := a.detachWhere(ctx, func(*endpointRecord) bool { return true }); err != nil {
			return r, err
		}
		heir, err := a.ipam.Leave(ctx)
		if err != nil && !req.Force {
			return r, fmt.Errorf("%w. When one can be reached, try again; or use --force, and then run `weft rmpeer %v` on another host", err, a.self())
		}
		if !heir.IsZero() {
			r.Heir = a.mesh.Name(heir)
		}
		a.mesh.Farewell(peer.Left)
	}
	a.stop()
	return r, nil
}

// RemovePeer takes over the addresses of a peer that is gone for good.
func (a *Agent) RemovePeer(ctx context.Context, req api.RemovePeerRequest) (r api.RemovePeerReply, err error) {
	id, err := a.findPeer(req.Peer)
	if err != nil {
		return r, err
	}
	name := a.mesh.Name(id)
	slots, err := a.removePeer(ctx, id, req.Force)
	if refused, ok := errors.AsType[*ipam.RemovalError](err); ok {
		return r, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s is not removed: %s", name, refused.Why)}
	}
	return api.RemovePeerReply{Peer: name, Addresses: slots}, err
}

// removePeer takes over what a dead peer owns, and has all hosts forget it. One that owns
// nothing is forgotten all the same.
func (a *Agent) removePeer(ctx context.Context, id peer.ID, force bool) (uint64, error) {
	slots, err := a.ipam.RemovePeer(ctx, id, force)
	refused, ok := errors.AsType[*ipam.RemovalError](err)
	if known := a.mesh.Knows(id); err != nil && !(ok && refused.Nothing && known) {
		return 0, err
	}
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return slots, err
	}
	a.look(snap) // it owns nothing by now
	return slots, a.mesh.ForgetPeer(ctx, id)
}

// findPeer finds a peer by its id or its nickname.
func (a *Agent) findPeer(name string) (found peer.ID, err error) {
	if id, err := peer.ParseID(name); err == nil {
		return id, nil // also one whose record was lost
	}
	for _, p := range a.mesh.Peers() {
		if p.Record.Identity == nil || p.Record.Nickname != name || p.Record.State == peer.Left {
			continue
		}
		if !found.IsZero() {
			return found, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("several peers are called %s: give the id (`weft status peers`)", name)}
		}
		found = p.Record.ID()
	}
	if found.IsZero() {
		return found, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("no peer has the id or the nickname %s (`weft status peers` lists them)", name)}
	}
	return found, nil
}

// Usage asks all peers that own addresses how they use them.
func (a *Agent) Usage(ctx context.Context) (map[string]api.Usage, error) {
	snap, err := a.ipam.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	var ask []peer.ID
	for id := range snap.Ring.Owned() {
		if a.mesh.Reachable(id) {
			ask = append(ask, id)
		}
	}
	out := map[string]api.Usage{
		a.self().String(): {Active: uint64(len(snap.Allocations)), Free: snap.Free, Resting: uint64(snap.Resting)},
	}
	for id, u := range a.ipam.Usage(ctx, ask) {
		out[id.String()] = api.Usage(u)
	}
	return out, nil
}
