// Package kube follows the Kubernetes API server: policies, namespaces, Nodes, and the pods of this
// node. Pods of other nodes come from the directory. It also makes the first nodes agree on a ring
// through a Secret (Bootstrap), and writes events on the Node (Reporter).
//
// A Source owns the last known objects and persists them, so that a node starts and serves its
// pods while the API server is down. All types are safe for concurrent use, except Bootstrap.
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

// Config configures a Source.
type Config struct {
	API  *rest.Config // the server's address and credentials (see Connect)
	Node string       // the name of this host's Node object
	Kept []byte       // the data that Save was called with last, in the previous run
	Save func([]byte) error
	Log  *slog.Logger
	// Changed is called after every change. It must not block.
	Changed func()
}

// Pod holds the parts of a pod of this node that matter for the network.
type Pod struct {
	UID string
	// Mirrors is the runtime's UID of a static pod, according to the annotation of its mirror pod.
	// Any author of a pod can write that annotation (see State.Pod).
	Mirrors   string `json:",omitempty"`
	Namespace string
	Name      string
	Labels    map[string]string  `json:",omitempty"`
	Ports     []policy.NamedPort `json:",omitempty"` // named ports
}

// State has the known objects of the API server at one moment. It is immutable.
type State struct {
	Policies   []policy.Policy
	Namespaces map[string]map[string]string // the labels of each namespace
	Pods       map[string]Pod               // the pods by namespace/name
	Nodes      map[string]Node              // the Nodes by name
	// Generation identifies the content of policies and namespaces.
	Generation string
	// Live reports whether it is the API server's current state, and not a stored one.
	Live bool
}

// Source follows the API server.
type Source struct {
	cfg       Config
	following *following

	mu      sync.Mutex
	state   *State // nil: nothing is known yet
	changed chan struct{}
	kick    chan struct{} // signals a change of followed objects
}

// New makes a Source with the stored state; Run starts it.
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
		return nil, fmt.Errorf("kube: this host's stored copy of the API server's objects is invalid: %w", err)
	}
	return s, nil
}

// Server returns the API server's address.
func (s *Source) Server() string { return s.cfg.API.Host }

// Trouble is why this host's state may be outdated.
type Trouble struct {
	Err error
	// Refused means that the server answers, but denies a request. Then new pods get no network, and
	// policies may be outdated.
	Refused bool
}

// Troubles returns the reasons why this host's state may be outdated.
func (s *Source) Troubles() []Trouble { return s.following.troubles() }

// State returns the current state; nil if nothing is known yet.
func (s *Source) State() *State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// UnknownPodError means that the API server has not reported a pod.
type UnknownPodError struct {
	Pod, UID, Server string
	Nothing          bool  // the API server has not reported any object yet
	Why              error // why the API server did not answer; nil if the reason is not known
}

func (e *UnknownPodError) Error() string {
	if e.Why != nil {
		return e.Why.Error()
	}
	if e.Nothing {
		return fmt.Sprintf("the API server %s has not sent this host any pods and policies yet: check that this host can reach it (`weft status`)", e.Server)
	}
	return fmt.Sprintf("the API server %s has not sent this host the pod %s (UID %s) yet: the runtime tries again", e.Server, e.Pod, e.UID)
}

// Pod waits until ctx ends for a pod of this node. An empty uid matches any pod of that name:
// runtimes before Kubernetes 1.20 do not pass it.
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

// Pod returns the pod that the runtime identifies by namespace, name and UID. All must match: another
// pod may have the same name, with other labels.
//
// The runtime's UID of a static pod is only in an annotation of its mirror pod, and anyone may write
// annotations. So the annotation only counts for the same namespace and name, and never for a UID
// that the API server gave to another pod.
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

// settle collects changes that arrive at the same time.
const settle = 5 * time.Millisecond

// Run follows the API server until ctx ends.
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
				s.cfg.Log.Warn("the API server's state is in force, but cannot be stored", "err", err)
			}
		}
	})
	return group.Wait()
}

// take publishes the API server's state, stores it, and wakes waiting calls.
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
