package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/mesh"
	"weft/mesh/document"
	"weft/prog/api"
	"weft/prog/manifest"
	"weft/router/policy"
)

// documentRef names a document as people do.
func documentRef(d *document.Document) api.DocumentRef {
	if d.Kind == kindNamespace {
		return api.DocumentRef{Kind: api.KindNamespace, Name: d.Name}
	}
	namespace, name, _ := strings.Cut(d.Name, "/")
	return api.DocumentRef{Kind: api.KindPolicy, Namespace: namespace, Name: name}
}

// change is what makes a document that is named another one, or none.
func change(r api.DocumentRef, body []byte) mesh.Change {
	c := mesh.Change{Kind: kindPolicy, Name: r.Namespace + "/" + r.Name, Body: body, Deleted: body == nil}
	if r.Kind == api.KindNamespace {
		c.Kind, c.Name = kindNamespace, r.Name
	}
	return c
}

// Policies lists all documents.
func (a *Agent) Policies(context.Context) ([]api.Policy, error) {
	p := &a.policies
	p.mu.Lock()
	defer p.mu.Unlock()
	a.learn()
	w := p.compiler.World()
	out := []api.Policy{}
	if a.kube != nil {
		for _, read := range p.list {
			one := api.Policy{
				DocumentRef: api.DocumentRef{Kind: api.KindPolicy, Namespace: read.Namespace, Name: read.Name},
				Manifest:    fmt.Sprintf("# kubectl --namespace %s get networkpolicy %s --output yaml\n", read.Namespace, read.Name),
			}
			out = append(out, describePolicy(one, read, w))
		}
		return out, nil
	}
	for _, d := range slices.Concat(a.documents.List(kindPolicy), a.documents.List(kindNamespace)) {
		one := api.Policy{
			DocumentRef: documentRef(d), Manifest: string(d.Body), Writer: names{a}.PeerName(d.WriterID()), Written: time.Unix(d.Written, 0).UTC(),
		}
		if read := p.parsed[d.Key()]; d.Kind == kindPolicy && read.err == nil {
			one = describePolicy(one, read.Policy, w)
		}
		out = append(out, one)
	}
	return out, nil
}

// describePolicy adds what a policy says, and of whom.
func describePolicy(one api.Policy, p policy.Policy, w policy.World) api.Policy {
	one.Selector, one.Audit, one.Unread = p.Pods.String(), p.Audit, p.Unread
	for direction, word := range map[policy.Direction]string{policy.Ingress: "Ingress", policy.Egress: "Egress"} {
		if p.Isolates.Has(direction) {
			one.Types = append(one.Types, word)
		}
	}
	slices.Sort(one.Types)
	slices.Reverse(one.Types) // Ingress first, as people write it
	one.Endpoints = len(selected(p, w.Endpoints))
	return one
}

// selected are the endpoints that a policy isolates.
func selected(p policy.Policy, endpoints []policy.Endpoint) (out []policy.Endpoint) {
	for _, e := range endpoints {
		if p.Selects(e) {
			out = append(out, e)
		}
	}
	return out
}

// ApplyPolicy takes documents in, all or none.
func (a *Agent) ApplyPolicy(ctx context.Context, req api.ApplyRequest) (api.ApplyReply, error) {
	if err := a.inKubernetes("apply -f FILE"); err != nil && !req.DryRun {
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
		switch old := a.documents.Get(c.Kind, c.Name); {
		case old == nil:
		case old.Same(c.Body, false):
			done.Change = api.Unchanged
		default:
			done.Change = api.Configured
		}
		reply.Changes, changes = append(reply.Changes, done), append(changes, c)
	}
	return a.write(ctx, reply, changes, req.DryRun)
}

// DeletePolicy deletes documents, all or none.
func (a *Agent) DeletePolicy(ctx context.Context, req api.DeleteRequest) (api.ApplyReply, error) {
	if err := a.inKubernetes("delete networkpolicy NAME"); err != nil {
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
		if a.documents.Get(c.Kind, c.Name) == nil {
			return reply, &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("there is no %s %v (`weft policy list` shows what there is): nothing was deleted", strings.ToLower(ref.Kind), ref)}
		}
		reply.Changes, changes = append(reply.Changes, api.DocumentChange{DocumentRef: ref, Change: api.Deleted}), append(changes, c)
	}
	if len(changes) == 0 {
		return reply, &api.Error{Code: api.CodeBadRequest, Message: "name what is to be deleted"}
	}
	return a.write(ctx, reply, changes, req.DryRun)
}

// write makes changes, or says what they would do. When it returns they are in force on this
// host, and on their way to all others.
func (a *Agent) write(ctx context.Context, reply api.ApplyReply, changes []mesh.Change, dry bool) (_ api.ApplyReply, err error) {
	if dry {
		reply.Effects, err = a.effects(ctx, changes)
		reply.Generation = a.generation()
		return reply, err
	}
	if !a.documents.Synced() {
		return reply, &api.Error{Code: api.CodeNotReady, Message: "this host does not know the policies of the network yet: try again in a moment (`weft status` says what it waits for)"}
	}
	err = a.documents.Write(changes)
	if full, ok := errors.AsType[*document.FullError](err); ok {
		return reply, &api.Error{Code: api.CodeConflict, Message: full.Error()}
	}
	if err != nil {
		return reply, &api.Error{Code: api.CodeBadRequest, Message: err.Error()}
	}
	err = a.settled()
	reply.Generation = a.generation()
	if err != nil {
		return reply, fmt.Errorf("it is written, but not yet in force on this host: %w", err)
	}
	return reply, nil
}
