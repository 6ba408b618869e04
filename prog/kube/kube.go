// Package kube is what the Kubernetes API server says: policies, namespaces, Nodes, and the
// pods of this node (never those of others: the directory tells of them); how the first
// nodes agree on a ring through a Secret (Bootstrap); and what Weft says on the Node
// (Reporter).
//
// What a Source knew last is kept, so that a node whose API server is down starts and serves
// the pods that it knows. Everything here is safe for concurrent use, but for a Bootstrap.
package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"weft/router/policy"
)

// Config is what a Source is made of.
type Config struct {
	API  *rest.Config // see Connect
	Node string       // the name of this host's Node object
	Kept []byte       // as Save got it in the last run
	Save func([]byte) error
	Log  *slog.Logger
	// Changed is called after every change. It must not block.
	Changed func()
}

// Pod is a pod of this node, as far as the network is concerned.
type Pod struct {
	UID string
	// Mirrors is the UID that the runtime knows a static pod by, as the annotation of its mirror
	// claims it: whoever writes a pod can write that (see find).
	Mirrors   string `json:",omitempty"`
	Namespace string
	Name      string
	Labels    map[string]string  `json:",omitempty"`
	Ports     []policy.NamedPort `json:",omitempty"` // that have a name
}

// State is what is known at one moment. Nobody changes it.
type State struct {
	Policies   []policy.Policy
	Namespaces map[string]map[string]string // labels
	Pods       map[string]Pod               // by namespace/name
	Nodes      map[string]Node              // by name
	// Generation tells two states of policies and namespaces apart.
	Generation string
	// Live says that it is what the API server says now; else it is what it said before.
	Live bool
}

// Source follows the API server.
type Source struct {
	cfg       Config
	following *following

	mu      sync.Mutex
	state   *State // nil: nothing is known yet
	changed chan struct{}
	kick    chan struct{} // what is followed has changed
}

// New makes a source; Run starts it. What it knew in the last run is there at once.
func New(cfg Config) (*Source, error) {
	s := &Source{cfg: cfg, changed: make(chan struct{}), kick: make(chan struct{}, 1)}
	s.following = newFollowing(func() {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	})
	if cfg.Kept == nil {
		return s, nil
	}
	var err error
	if s.state, err = stateOf(cfg.Kept); err != nil {
		return nil, fmt.Errorf("kube: what was kept of the API server's objects: %w", err)
	}
	return s, nil
}

// Server is the API server's address, for people.
func (s *Source) Server() string { return s.cfg.API.Host }

// Trouble is why this host may not know what the API server has.
type Trouble struct {
	Err error
	// Refused says that the server answers, and does not let this host read what it has to:
	// who is new here would be without network, or without the policies of now.
	Refused bool
}

// Troubles are what keeps this host from knowing what the API server has.
func (s *Source) Troubles() []Trouble { return s.following.troubles() }

// State is what is known; nil while that is nothing.
func (s *Source) State() *State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// UnknownPodError says that the API server has not told of a pod.
type UnknownPodError struct {
	Pod, UID, Server string
	Nothing          bool  // nor of anything else
	Why              error // if it is known
}

func (e *UnknownPodError) Error() string {
	if e.Why != nil {
		return e.Why.Error()
	}
	if e.Nothing {
		return fmt.Sprintf("the API server %s has not told this host of any pods and policies yet: see that it can be reached from here (`weft status`)", e.Server)
	}
	return fmt.Sprintf("the API server %s has not told this host of the pod %s (UID %s) yet: it is tried again", e.Server, e.Pod, e.UID)
}

// Pod waits for a pod of this node, until ctx ends. An empty uid takes the pod of that name:
// runtimes before Kubernetes 1.20 do not name it.
func (s *Source) Pod(ctx context.Context, namespace, name, uid string) (Pod, error) {
	for {
		s.mu.Lock()
		state, changed := s.state, s.changed
		s.mu.Unlock()
		if state != nil {
			if p, ok := state.Pod(namespace, name, uid); ok {
				return p, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			e := &UnknownPodError{Pod: namespace + "/" + name, UID: uid, Server: s.cfg.API.Host, Nothing: state == nil}
			for _, t := range s.Troubles() {
				e.Why = t.Err
				break
			}
			return Pod{}, e
		}
	}
}

// Pod is the pod that the runtime knows by a namespace, a name and a UID, which decide
// together: one of the same name may be another, with other labels.
//
// The runtime knows a static pod by a UID that the API server has only in an annotation of
// the pod's mirror. An annotation proves nothing. It is followed within one namespace and
// name only, and never to the UID that the API server gave to a pod.
func (st *State) Pod(namespace, name, uid string) (Pod, bool) {
	p, ok := st.Pods[podKey(namespace, name)]
	switch {
	case !ok || uid == "" || p.UID == uid:
		return p, ok
	case p.Mirrors != uid:
		return Pod{}, false
	}
	for _, other := range st.Pods {
		if other.UID == uid {
			return Pod{}, false
		}
	}
	return p, true
}

func podKey(namespace, name string) string { return namespace + "/" + name }

// settle lets what changes at once be one change.
const settle = 5 * time.Millisecond

// Run follows until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	f := s.following
	group, ctx := errgroup.WithContext(ctx)
	f.start(ctx, group, s.cfg.API, s.cfg.Node)
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-s.kick:
			}
			select {
			case <-ctx.Done():
			case <-time.After(settle):
			}
			if err := s.take(f); err != nil {
				s.cfg.Log.Warn("what the API server says is in force, but cannot be kept", "err", err)
			}
		}
	})
	return group.Wait()
}

// take makes what the API server says now the state, keeps it and tells who waits.
func (s *Source) take(f *following) error {
	state := f.next()
	if state == nil {
		return nil
	}
	s.mu.Lock()
	s.state = state
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	s.cfg.Changed()
	data, err := f.keep()
	if err != nil {
		return err
	}
	return s.cfg.Save(data)
}
