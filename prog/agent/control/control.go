// Package control serves the agent's sockets: the control API, which the components answer, and the
// read-only status.
//
// A Server owns nothing but answers what concerns several components: which hosts to join, the end
// of this agent, and the end of another peer.
package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/ipam"
	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/attach"
	"weft/prog/agent/bundle"
	"weft/prog/agent/check"
	"weft/prog/agent/explain"
	"weft/prog/agent/flowview"
	"weft/prog/agent/live"
	"weft/prog/agent/logs"
	"weft/prog/agent/membership"
	"weft/prog/agent/metric"
	"weft/prog/agent/names"
	"weft/prog/agent/network"
	"weft/prog/agent/policyview"
	"weft/prog/agent/ready"
	"weft/prog/agent/status"
	"weft/prog/agent/trace"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/api/server"
)

// Mesh joins and forgets other hosts.
type Mesh interface {
	Targets() []mesh.Target
	Connect(hosts []string, replace bool) error
	Forget(hosts []string) error
	ForgetPeer(context.Context, peer.ID) error
	Knows(peer.ID) bool
	Reachable(peer.ID) bool
	Farewell(peer.State)
	Name(peer.ID) string
	Peers() []mesh.Peer
}

// IPAM hands addresses over.
type IPAM interface {
	Leave(context.Context) (heir peer.ID, err error)
	RemovePeer(ctx context.Context, dead peer.ID, force bool) (slots uint64, err error)
	Usage(context.Context, []peer.ID) map[peer.ID]ipam.Usage
}

// View makes a view of the current state: Look only returns the view, Refresh also publishes it.
type View interface {
	Look(context.Context) (*view.View, error)
	Refresh(context.Context) (*view.View, error)
}

// Config configures a Server.
type Config struct {
	Self peer.ID
	Mesh Mesh
	IPAM IPAM
	View View
	// Stop stops the agent.
	Stop func()
}

// Server answers the control API. Each component answers for itself.
type Server struct {
	*attach.Attachments
	*names.Service
	*policyview.View
	*explain.Explainer
	*status.Reporter
	*ready.Board
	*membership.Membership
	*network.Overview
	*check.Checker
	*logs.Recent
	*bundle.Collector
	*trace.Tracer
	FlowView *flowview.View

	cfg       Config
	durations metric.Durations
}

var _ server.Agent = (*Server)(nil)

// New makes a Server; the caller sets its components.
func New(cfg Config) *Server { return &Server{cfg: cfg, durations: newDurations()} }

// Flows lists connections.
func (s *Server) Flows(ctx context.Context, req api.FlowsRequest) (api.FlowsReply, error) {
	return s.FlowView.Flows(ctx, req)
}

// Targets changes which hosts this peer joins.
func (s *Server) Targets(_ context.Context, req api.TargetsRequest) error {
	if err := knownTargets(s.cfg.Mesh.Targets(), req.Forget); err != nil {
		return err
	}
	if err := s.cfg.Mesh.Forget(req.Forget); err != nil {
		return err
	}
	if len(req.Connect) == 0 && !req.Replace {
		return nil
	}
	if err := s.cfg.Mesh.Connect(req.Connect, req.Replace); err != nil {
		return &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	return nil
}

// knownTargets refuses a whole request if it forgets a host that is no target.
func knownTargets(targets []mesh.Target, forget []string) error {
	for _, host := range forget {
		if !slices.ContainsFunc(targets, func(t mesh.Target) bool { return t.Host == host }) {
			return &api.Error{Code: api.CodeNotFound, Message: host + " is no target of this host: nothing is forgotten (`weft status targets` lists them)"}
		}
	}
	return nil
}

// Stop stops the agent. The data path stays. A peer that leaves for good first hands its addresses to
// another one, and cuts off its containers.
func (s *Server) Stop(ctx context.Context, req api.StopRequest) (r api.StopReply, err error) {
	if req.Leave {
		if err := s.Attachments.DetachAll(ctx); err != nil {
			return r, err
		}
		heir, err := s.cfg.IPAM.Leave(ctx)
		if err != nil && !req.Force {
			return r, fmt.Errorf("%w. Try again when another peer is reachable; or use --force, then run `weft rmpeer %v` on another host", err, s.cfg.Self)
		}
		if !heir.IsZero() {
			r.Heir = s.cfg.Mesh.Name(heir)
		}
		s.cfg.Mesh.Farewell(peer.Left)
	}
	s.cfg.Stop()
	return r, nil
}

// RemovePeer takes over the addresses of a peer that is gone for good.
func (s *Server) RemovePeer(ctx context.Context, req api.RemovePeerRequest) (r api.RemovePeerReply, err error) {
	id, err := view.FindPeer(s.cfg.Mesh.Peers(), req.Peer)
	if err != nil {
		return r, err
	}
	name := s.cfg.Mesh.Name(id)
	if req.Ban {
		return s.ban(ctx, id, req)
	}
	slots, err := s.Remove(ctx, id, req.Force)
	if refused, ok := errors.AsType[*ipam.RemovalError](err); ok {
		return r, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s is not removed: %s", name, refused.Why)}
	}
	return api.RemovePeerReply{Peer: name, Addresses: slots}, err
}

// expelled is how long all hosts may take until none of them reaches a banned peer any more.
const expelled = 8 * time.Second

// ban bans a peer, and takes over its addresses once no other peer reaches it.
func (s *Server) ban(ctx context.Context, id peer.ID, req api.RemovePeerRequest) (r api.RemovePeerReply, err error) {
	if id == s.cfg.Self {
		return r, &api.Error{Code: api.CodeBadRequest, Message: "a host cannot ban itself: use `weft reset` to leave the network"}
	}
	r.Peer = s.cfg.Mesh.Name(id)
	if err := s.Membership.Ban(id, true, req.Reason); err != nil {
		return r, err
	}
	for end := time.Now().Add(expelled); ; {
		live.Pause(ctx, 250*time.Millisecond)
		if !s.cfg.Mesh.Knows(id) { // expelled here
			r.Addresses, err = s.Remove(ctx, id, req.Force)
			refused, ok := errors.AsType[*ipam.RemovalError](err)
			if !ok || refused.Nothing {
				if ok {
					err = nil
				}
				return r, err
			}
		}
		if !time.Now().Before(end) || ctx.Err() != nil {
			return r, &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf("%s is banned, but its addresses were not taken over: %v. Run `weft rmpeer %v` later", r.Peer, err, id)}
		}
	}
}

// Unban ends the ban of a peer, which was forgotten: it must be given by its id.
func (s *Server) Unban(_ context.Context, req api.UnbanRequest) error {
	id, err := peer.ParseID(req.Peer)
	if err != nil {
		return &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	return s.Membership.Ban(id, false, "")
}

// Remove takes over a dead peer's addresses, and makes all hosts forget it, also if it owns nothing.
func (s *Server) Remove(ctx context.Context, id peer.ID, force bool) (uint64, error) {
	slots, err := s.cfg.IPAM.RemovePeer(ctx, id, force)
	refused, ok := errors.AsType[*ipam.RemovalError](err)
	if known := s.cfg.Mesh.Knows(id); err != nil && !(ok && refused.Nothing && known) {
		return 0, err
	}
	if _, err := s.cfg.View.Refresh(ctx); err != nil { // the mesh asks the view what a peer owns: nothing now
		return slots, err
	}
	return slots, s.cfg.Mesh.ForgetPeer(ctx, id)
}

// Usage asks all peers that own addresses how many of the addresses they use.
func (s *Server) Usage(ctx context.Context) (map[string]api.Usage, error) {
	v, err := s.cfg.View.Look(ctx)
	if err != nil {
		return nil, err
	}
	var ask []peer.ID
	for id := range v.Owners {
		if s.cfg.Mesh.Reachable(id) {
			ask = append(ask, id)
		}
	}
	out := map[string]api.Usage{
		s.cfg.Self.String(): {Active: uint64(len(v.Allocations)), Free: v.Free, Resting: uint64(v.Resting)},
	}
	for id, u := range s.cfg.IPAM.Usage(ctx, ask) {
		out[id.String()] = api.Usage(u)
	}
	return out, nil
}
