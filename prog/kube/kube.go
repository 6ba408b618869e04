// Package kube is what the Kubernetes API server says: policies, namespaces, Nodes, and the
// pods of this node (never those of others: the directory tells of them); how the first
// nodes agree on a ring through a Secret (Bootstrap); and what Weft says on the Node
// (Reporter).
//
// What a Source knew last is kept, so that a node whose API server is down starts and serves
// the pods that it knows. Everything here is safe for concurrent use, but for a Bootstrap.
package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"weft/prog/manifest"
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
	UID       string
	Namespace string
	Name      string
	Labels    map[string]string  `json:",omitempty"`
	Ports     []policy.NamedPort `json:",omitempty"` // that have a name
}

// State is what is known at one moment. Nobody changes it.
type State struct {
	Policies   []policy.Policy
	Unread     []string                     // policies that are not understood, and why
	Namespaces map[string]map[string]string // labels
	Pods       map[string]Pod               // by UID
	Nodes      map[string]Node              // by name
	// Generation tells two states of policies and namespaces apart.
	Generation string
	// Live says that it is what the API server says now; else it is what it said before.
	Live bool
}

// Source follows the API server.
type Source struct {
	cfg Config

	mu      sync.Mutex
	state   *State // nil: nothing is known yet
	changed chan struct{}
}

// kept is a state on disk.
type kept struct {
	Policies   []networking.NetworkPolicy
	Namespaces map[string]map[string]string
	Pods       map[string]Pod
	Nodes      map[string]Node
}

// New makes a source; Run starts it. What it knew in the last run is there at once.
func New(cfg Config) (*Source, error) {
	s := &Source{cfg: cfg, changed: make(chan struct{})}
	if cfg.Kept == nil {
		return s, nil
	}
	var k kept
	if err := json.Unmarshal(cfg.Kept, &k); err != nil {
		return nil, fmt.Errorf("kube: what was kept of the API server's objects: %w", err)
	}
	s.state = s.convert(k, false)
	return s, nil
}

// Server is the API server's address, for people.
func (s *Source) Server() string { return s.cfg.API.Host }

// State is what is known; nil while that is nothing.
func (s *Source) State() *State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// UnknownPodError says that the API server has not told of a pod.
type UnknownPodError struct {
	Pod, UID, Server string
	Nothing          bool // nor of anything else
}

func (e *UnknownPodError) Error() string {
	if e.Nothing {
		return fmt.Sprintf("the API server %s has not told this host of any pods and policies yet: see that it can be reached from here (`weft status`)", e.Server)
	}
	return fmt.Sprintf("the API server %s has not told this host of the pod %s (UID %s) yet: it is tried again", e.Server, e.Pod, e.UID)
}

// Pod waits for a pod of this node, until ctx ends. An empty uid takes any pod of that name:
// runtimes before Kubernetes 1.20 do not name it.
func (s *Source) Pod(ctx context.Context, namespace, name, uid string) (Pod, error) {
	for {
		s.mu.Lock()
		state, changed := s.state, s.changed
		s.mu.Unlock()
		if state != nil {
			if p, ok := state.find(namespace, name, uid); ok {
				return p, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Pod{}, &UnknownPodError{Pod: namespace + "/" + name, UID: uid, Server: s.cfg.API.Host, Nothing: state == nil}
		}
	}
}

// find is the pod with a UID: one of the same name may be another, with other labels.
func (st *State) find(namespace, name, uid string) (Pod, bool) {
	if uid != "" {
		p, ok := st.Pods[uid]
		return p, ok && p.Namespace == namespace && p.Name == name
	}
	for _, p := range st.Pods {
		if p.Namespace == namespace && p.Name == name {
			return p, true
		}
	}
	return Pod{}, false
}

// settle lets what changes at once be one change.
const settle = 5 * time.Millisecond

// Run follows until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	all, own := fields.Everything(), fields.OneTermEqualSelector("spec.nodeName", s.cfg.Node)
	policies, err := informer(s.cfg.API, networking.SchemeGroupVersion, "networkpolicies", all, &networking.NetworkPolicy{}, &networking.NetworkPolicyList{})
	namespaces, err2 := informer(s.cfg.API, core.SchemeGroupVersion, "namespaces", all, &core.Namespace{}, &core.NamespaceList{})
	pods, err3 := informer(s.cfg.API, core.SchemeGroupVersion, "pods", own, &core.Pod{}, &core.PodList{})
	nodes, err4 := informer(s.cfg.API, core.SchemeGroupVersion, "nodes", all, &core.Node{}, &core.NodeList{})
	if err := errors.Join(err, err2, err3, err4); err != nil {
		return err
	}
	kick := make(chan struct{}, 1)
	again := func() {
		select {
		case kick <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { again() }, DeleteFunc: func(any) { again() },
		UpdateFunc: func(old, now any) {
			if !alike(old, now) {
				again()
			}
		},
	}
	var group sync.WaitGroup
	defer group.Wait()
	var synced []cache.InformerSynced
	for _, i := range []cache.SharedIndexInformer{policies, namespaces, pods, nodes} {
		if _, err := i.AddEventHandler(handler); err != nil {
			return fmt.Errorf("kube: %w", err)
		}
		synced = append(synced, i.HasSynced)
		group.Go(func() { i.RunWithContext(ctx) })
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return nil // ctx has ended
	}
	for {
		if err := s.take(policies.GetStore(), namespaces.GetStore(), pods.GetStore(), nodes.GetStore()); err != nil {
			s.cfg.Log.Warn("what the API server says is in force, but cannot be kept", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-kick:
		}
		select {
		case <-ctx.Done():
		case <-time.After(settle):
		}
	}
}

// slim forgets what nobody here reads: of a thousand pods that is most of the memory.
func slim(object any) (any, error) {
	switch o := object.(type) {
	case *core.Pod:
		pod := &core.Pod{ObjectMeta: slimMeta(o.ObjectMeta), Spec: core.PodSpec{HostNetwork: o.Spec.HostNetwork, NodeName: o.Spec.NodeName}}
		for _, c := range slices.Concat(o.Spec.InitContainers, o.Spec.Containers) {
			if len(c.Ports) > 0 {
				pod.Spec.Containers = append(pod.Spec.Containers, core.Container{Ports: c.Ports})
			}
		}
		return pod, nil
	case *core.Namespace:
		return &core.Namespace{ObjectMeta: slimMeta(o.ObjectMeta)}, nil
	case *core.Node:
		return slimNode(o), nil
	case *networking.NetworkPolicy:
		return &networking.NetworkPolicy{ObjectMeta: slimMeta(o.ObjectMeta), Spec: o.Spec}, nil
	}
	return object, nil
}

// staticUID is where the mirror of a static pod names the UID that the runtime knows it by.
const staticUID = "kubernetes.io/config.hash"

func slimMeta(m meta.ObjectMeta) meta.ObjectMeta {
	out := meta.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Labels: m.Labels}
	for _, key := range []string{manifest.AuditAnnotation, staticUID} {
		if v, ok := m.Annotations[key]; ok {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[key] = v
		}
	}
	return out
}

// alike reports whether of an object nothing changed that is read here. Of most updates that
// is so: each kubelet says every few minutes, or more often, that its Node is well, and then
// not all policies have to be read anew.
func alike(old, now any) bool {
	a, b := old.(runtime.Object).DeepCopyObject(), now.(runtime.Object).DeepCopyObject()
	for _, o := range []runtime.Object{a, b} {
		o.(meta.Object).SetResourceVersion("")
	}
	return equality.Semantic.DeepEqual(a, b)
}

// take makes a state of what is there, keeps it and tells who waits, if it is another one.
func (s *Source) take(policies, namespaces, pods, nodes cache.Store) error {
	k := kept{Namespaces: map[string]map[string]string{}, Pods: map[string]Pod{}, Nodes: map[string]Node{}}
	for _, o := range policies.List() {
		k.Policies = append(k.Policies, *o.(*networking.NetworkPolicy))
	}
	slices.SortFunc(k.Policies, func(a, b networking.NetworkPolicy) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	for _, o := range namespaces.List() {
		n := o.(*core.Namespace)
		k.Namespaces[n.Name] = n.Labels
	}
	for _, o := range pods.List() {
		if p := o.(*core.Pod); !p.Spec.HostNetwork {
			pod := podOf(p)
			k.Pods[pod.UID] = pod
		}
	}
	for _, o := range nodes.List() {
		n := nodeOf(o.(*core.Node))
		k.Nodes[n.Name] = n
	}
	state := s.convert(k, true)
	s.mu.Lock()
	old := s.state
	same := old != nil && old.Live && old.Generation == state.Generation && maps.EqualFunc(old.Pods, state.Pods, samePod) &&
		maps.EqualFunc(old.Nodes, state.Nodes, sameNode)
	if !same {
		s.state = state
		close(s.changed)
		s.changed = make(chan struct{})
	}
	s.mu.Unlock()
	if same {
		return nil
	}
	s.cfg.Changed()
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return s.cfg.Save(data)
}

func podOf(p *core.Pod) Pod {
	out := Pod{UID: cmp.Or(p.Annotations[staticUID], string(p.UID)), Namespace: p.Namespace, Name: p.Name, Labels: p.Labels}
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if proto := manifest.Protocol(port.Protocol); port.Name != "" && proto != 0 {
				out.Ports = append(out.Ports, policy.NamedPort{Name: port.Name, Protocol: proto, Number: uint16(port.ContainerPort)})
			}
		}
	}
	return out
}

func samePod(a, b Pod) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Ports, b.Ports)
}

// convert reads the policies. Of one that is not understood nothing is allowed, and it is said.
func (s *Source) convert(k kept, live bool) *State {
	st := &State{Namespaces: k.Namespaces, Pods: k.Pods, Nodes: k.Nodes, Live: live}
	if st.Namespaces == nil {
		st.Namespaces = map[string]map[string]string{}
	}
	for _, np := range k.Policies {
		p, err := manifest.Convert(np)
		if err != nil {
			st.Unread = append(st.Unread, fmt.Sprintf("NetworkPolicy %s/%s is not understood here, so that it allows nothing: %v", np.Namespace, np.Name, err))
			p = manifest.Closed(np)
		}
		st.Policies = append(st.Policies, p)
	}
	st.Generation = generation(k)
	return st
}
