// Package policyview lists and changes the policies of the network, and reports which peers enforce
// them.
//
// A View owns no state: the mesh owns the documents, and the enforcer the kernel's rules. It answers
// the control API and other peers, and is safe for concurrent use.
package policyview

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"weft/mesh"
	"weft/mesh/document"
	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/enforce"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/manifest"
	"weft/router/nft"
	"weft/router/policy"
)

// Documents are what operators write into the mesh.
type Documents interface {
	Get(kind, name string) *document.Document
	Write([]mesh.Change) error
	Synced() bool
}

// Policies returns what this host knows and enforces.
type Policies interface {
	Snapshot() enforce.Snapshot
	Policies() []policy.Policy
	InForce() enforce.InForce
	Settle() error
}

// Counters count the packets that policies dropped.
type Counters interface {
	Dropped(policy.Direction) (uint64, error)
}

// Effects computes the effects of changes.
type Effects interface {
	Effects(context.Context, []mesh.Change) (*api.Effects, error)
}

// Config configures a View.
type Config struct {
	Self      peer.ID
	Mesh      ask.Mesh
	Documents Documents
	Origin    Origin
	Policies  Policies
	Counters  Counters
	DryRun    Effects
	View      live.Reader[*view.View]
	Exempt    nft.Exempt
	Log       *slog.Logger
}

// View is the policies of the network.
type View struct{ cfg Config }

// New makes a view.
func New(cfg Config) *View { return &View{cfg} }

// change returns the change that writes a document, or deletes it if body is nil.
func change(r api.DocumentRef, body []byte) mesh.Change {
	c := mesh.Change{Kind: enforce.KindPolicy, Name: r.Namespace + "/" + r.Name, Body: body, Deleted: body == nil}
	if r.Kind == api.KindNamespace {
		c.Kind, c.Name = enforce.KindNamespace, r.Name
	}
	return c
}

// Policies lists all documents.
func (p *View) Policies(context.Context) ([]api.Policy, error) {
	k := p.cfg.Policies.Snapshot()
	out := []api.Policy{}
	for _, one := range p.cfg.Origin.List(k.Policies) {
		if one.Read != nil {
			one.Policy = describe(one.Policy, *one.Read, k.World)
		}
		out = append(out, one.Policy)
	}
	return out, nil
}

// describe adds a policy's properties, and the number of endpoints that it selects.
func describe(one api.Policy, p policy.Policy, w policy.World) api.Policy {
	one.Selector, one.Audit, one.Unread = p.Pods.String(), p.Audit, p.Unread
	for direction, word := range map[policy.Direction]string{policy.Ingress: "Ingress", policy.Egress: "Egress"} {
		if p.Isolates.Has(direction) {
			one.Types = append(one.Types, word)
		}
	}
	slices.Sort(one.Types)
	slices.Reverse(one.Types) // Ingress first, as users write it
	for _, e := range w.Endpoints {
		if p.Selects(e) {
			one.Endpoints++
		}
	}
	return one
}

// ApplyPolicy writes documents, all or none of them.
func (p *View) ApplyPolicy(ctx context.Context, req api.ApplyRequest) (api.ApplyReply, error) {
	if err := p.cfg.Origin.Refuse("apply -f FILE"); err != nil && !req.DryRun {
		return api.ApplyReply{}, err
	}
	docs, err := manifest.Parse([]byte(req.Manifest))
	if err != nil {
		return api.ApplyReply{}, &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	var reply api.ApplyReply
	var changes []mesh.Change
	for _, d := range docs {
		ref := api.DocumentRef{Kind: api.KindNamespace, Name: d.Namespace}
		if d.Kind == manifest.PolicyKind {
			ref = api.DocumentRef{Kind: api.KindPolicy, Namespace: d.Policy.Namespace, Name: d.Policy.Name}
		}
		c := change(ref, d.YAML)
		done := api.DocumentChange{DocumentRef: ref, Change: api.Created}
		switch old := p.cfg.Documents.Get(c.Kind, c.Name); {
		case old == nil:
		case old.Same(c.Body, false):
			done.Change = api.Unchanged
		default:
			done.Change = api.Configured
		}
		reply.Changes, changes = append(reply.Changes, done), append(changes, c)
	}
	return p.write(ctx, reply, changes, req.DryRun)
}

// DeletePolicy deletes documents, all or none of them.
func (p *View) DeletePolicy(ctx context.Context, req api.DeleteRequest) (api.ApplyReply, error) {
	if err := p.cfg.Origin.Refuse("delete networkpolicy NAME"); err != nil {
		return api.ApplyReply{}, err
	}
	refs := req.Refs
	if req.Manifest != "" {
		docs, err := manifest.Parse([]byte(req.Manifest))
		if err != nil {
			return api.ApplyReply{}, &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
		}
		for _, d := range docs {
			refs = append(refs, api.DocumentRef{Kind: d.Kind, Namespace: d.Policy.Namespace, Name: d.Policy.Name + d.Namespace})
		}
	}
	var reply api.ApplyReply
	var changes []mesh.Change
	for _, ref := range refs {
		c := change(ref, nil)
		if p.cfg.Documents.Get(c.Kind, c.Name) == nil {
			return reply, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no %s %v (see `weft policy list`): nothing was deleted", strings.ToLower(ref.Kind), ref)}
		}
		reply.Changes, changes = append(reply.Changes, api.DocumentChange{DocumentRef: ref, Change: api.Deleted}), append(changes, c)
	}
	if len(changes) == 0 {
		return reply, &api.Error{Code: api.CodeBadRequest, Message: "name the policies to delete"}
	}
	return p.write(ctx, reply, changes, req.DryRun)
}

// write makes changes, or returns their effects. When it returns, they are in force on this host, and
// are being sent to all others.
func (p *View) write(ctx context.Context, reply api.ApplyReply, changes []mesh.Change, dry bool) (_ api.ApplyReply, err error) {
	if dry {
		reply.Effects, err = p.cfg.DryRun.Effects(ctx, changes)
		reply.Generation = p.cfg.Origin.Generation()
		return reply, err
	}
	if !p.cfg.Documents.Synced() {
		return reply, &api.Error{Code: api.CodeNotReady, Message: "this host does not know the policies of the network yet: try again in a moment (see `weft status`)"}
	}
	err = p.cfg.Documents.Write(changes)
	if full, ok := errors.AsType[*document.FullError](err); ok {
		return reply, &api.Error{Code: api.CodeConflict, Message: full.Error()}
	}
	if err != nil {
		return reply, &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	err = p.cfg.Policies.Settle()
	reply.Generation = p.cfg.Origin.Generation()
	if err != nil {
		return reply, fmt.Errorf("the change is stored, but not yet in force on this host: %w", err)
	}
	return reply, nil
}
