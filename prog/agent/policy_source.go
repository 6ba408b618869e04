package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"weft/mesh/directory"
	"weft/mesh/document"
	"weft/prog/api"
	"weft/prog/kube"
	"weft/prog/manifest"
)

// kubeState is what the API server said last; nil outside Kubernetes, and while that is nothing.
func (a *Agent) kubeState() *kube.State {
	if a.kube == nil {
		return nil
	}
	return a.kube.State()
}

// policiesKnown reports why a container cannot be attached yet: its policies are not known.
func (a *Agent) policiesKnown() error {
	if a.kube != nil {
		for _, t := range a.kube.Troubles() {
			if t.Refused || a.kube.State() == nil {
				return t.Err
			}
		}
	}
	switch {
	case a.kube != nil && a.kube.State() == nil:
		return &kube.UnknownPodError{Server: a.kube.Server(), Nothing: true}
	case a.kube == nil && !a.documents.Synced():
		return errors.New("waiting for the policies of the other peers (see `weft status peers`)")
	}
	return nil
}

// podTimeout bounds how long an attachment waits for the API server to tell of its pod.
const podTimeout = 8 * time.Second

// askPod makes the request of a pod say what the API server says of it: its labels, and no
// others, since policies are written for those. Who is no pod is as it says.
func (a *Agent) askPod(ctx context.Context, req *api.AttachRequest) error {
	if a.kube == nil || req.Source != SourceCNI || req.Name == "" || req.Namespace == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	pod, err := a.kube.Pod(ctx, req.Namespace, req.Name, req.PodUID)
	if err != nil {
		return &api.Error{Code: api.CodeNotReady, Message: err.Error()}
	}
	req.PodUID, req.Labels, req.Ports = cmp.Or(req.PodUID, pod.UID), pod.Labels, podPorts(pod)
	return nil
}

func podPorts(pod kube.Pod) (out []api.Port) {
	for _, p := range pod.Ports {
		out = append(out, api.Port{Name: p.Name, Protocol: strings.ToLower(p.Protocol.String()), Number: p.Number})
	}
	return out
}

// podEnded reports whether an endpoint is of a pod that the API server told of, and has no more.
func (a *Agent) podEnded(e *endpointRecord) bool {
	if a.kube == nil || e.PodUID == "" {
		return false
	}
	state := a.kube.State()
	if state == nil || !state.Live {
		return false
	}
	_, there := state.Pod(e.Namespace, e.Name, e.PodUID)
	return !there
}

// entry is an endpoint as it asked to be, or, of a pod, as the API server said last. The
// directory has what fits of it. The caller holds the lock.
func (a *Agent) entry(e *endpointRecord) directory.Endpoint {
	if a.kube != nil && e.PodUID != "" {
		if state := a.kube.State(); state != nil {
			if pod, ok := state.Pod(e.Namespace, e.Name, e.PodUID); ok { // else it ends: until then it is who it was
				e.Labels, e.Ports = pod.Labels, podPorts(pod)
			}
		}
	}
	return e.entry()
}

// inKubernetes refuses what the API server is for.
func (a *Agent) inKubernetes(instead string) error {
	if a.kube == nil {
		return nil
	}
	return &api.Error{Code: api.CodeConflict, Message: fmt.Sprintf(
		"the policies of this network come from the Kubernetes API server (%s): use `kubectl %s`", a.kube.Server(), instead)}
}

// source is where policies come from, for people.
func (a *Agent) source() string {
	switch {
	case a.kube == nil:
		return "documents of the network (weft policy apply)"
	case a.kube.State() == nil:
		return "the Kubernetes API server " + a.kube.Server() + ", which has not answered yet"
	case !a.kube.State().Live || len(a.kube.Troubles()) > 0:
		return "the Kubernetes API server " + a.kube.Server() + ", as it was before: it does not answer now"
	}
	return "the Kubernetes API server " + a.kube.Server()
}

// generation names a state of all policies and namespaces.
func (a *Agent) generation() string {
	if a.kube != nil {
		if state := a.kube.State(); state != nil {
			return state.Generation
		}
		return ""
	}
	sum := sha256.Sum256([]byte(a.documents.Generation(kindPolicy) + a.documents.Generation(kindNamespace)))
	return hex.EncodeToString(sum[:8])
}

// readPolicies gives the compiler the policies and namespaces of now. The caller holds the
// lock.
func (a *Agent) readPolicies() {
	p := &a.policies
	if !p.stale.Swap(false) {
		return
	}
	if a.kube != nil {
		state := a.kube.State()
		if state == nil || state.Generation == p.made {
			return // what is new is a pod or a Node
		}
		p.list, p.spaces, p.made = state.Policies, state.Namespaces, state.Generation
	} else {
		a.readDocuments()
	}
	p.compiler.SetPolicies(p.list, p.spaces)
	p.pending = true
}

// readDocuments reads those that changed. The caller holds the lock.
func (a *Agent) readDocuments() {
	p := &a.policies
	now := a.generation() // first: what comes meanwhile makes it stale again
	next := map[string]parsed{}
	p.list, p.spaces, p.unread = nil, map[string]map[string]string{}, nil
	for _, d := range slices.Concat(a.documents.List(kindPolicy), a.documents.List(kindNamespace)) {
		one := p.parsed[d.Key()]
		if one.digest != d.Digest {
			one = parseDocument(d)
		}
		next[d.Key()] = one
		switch {
		case one.err != nil:
			p.unread = append(p.unread, fmt.Sprintf("%s %s, written by %s, is not understood here and not enforced: %v. Update Weft on this host, or apply it again",
				d.Kind, d.Name, names{a}.PeerName(d.WriterID()), one.err))
		case d.Kind == kindPolicy:
			p.list = append(p.list, one.Policy)
		default:
			p.spaces[one.Namespace] = one.Labels
		}
	}
	p.parsed, p.made = next, now
}

// parseDocument reads what anybody in the mesh wrote.
func parseDocument(d *document.Document) parsed {
	out := parsed{digest: d.Digest}
	read, err := manifest.ParseStored(d.Body)
	switch {
	case err != nil:
		out.err = err
	case read.Name() != d.Name || documentKind(read) != d.Kind:
		out.err = fmt.Errorf("it is not the %s %s", d.Kind, d.Name)
	default:
		out.Document = read
	}
	return out
}

func documentKind(d manifest.Document) string { return strings.ToLower(d.Kind) }
