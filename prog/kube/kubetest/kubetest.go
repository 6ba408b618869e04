// Package kubetest is as much of an API server as prog/kube asks: it lists and watches
// NetworkPolicies, Namespaces and Pods, by field selectors too.
package kubetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
)

// Server is an http.Handler. The zero value is not ready: use New.
type Server struct {
	mu     sync.Mutex
	more   *sync.Cond
	events []event // all that ever happened
	now    map[string]meta.Object
	closed bool
	Asked  []string // paths with their queries, in order
}

// event is a change of one object.
type event struct {
	path   string
	Type   string      `json:"type"`
	Object meta.Object `json:"object"`
}

// New makes a server without objects.
func New() *Server {
	s := &Server{now: map[string]meta.Object{}}
	s.more = sync.NewCond(&s.mu)
	return s
}

// pathOf is where objects of a kind are listed.
func pathOf(o meta.Object) string {
	switch o := o.(type) {
	case *core.Pod:
		o.TypeMeta = meta.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		return "/api/v1/pods"
	case *core.Namespace:
		o.TypeMeta = meta.TypeMeta{APIVersion: "v1", Kind: "Namespace"}
		return "/api/v1/namespaces"
	case *networking.NetworkPolicy:
		o.TypeMeta = meta.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		return "/apis/networking.k8s.io/v1/networkpolicies"
	}
	panic(fmt.Sprintf("kubetest: %T", o))
}

// Set creates an object, or updates it.
func (s *Server) Set(o meta.Object) { s.change(o, false) }

// Delete deletes an object.
func (s *Server) Delete(o meta.Object) { s.change(o, true) }

func (s *Server) change(o meta.Object, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := event{path: pathOf(o), Type: "ADDED", Object: o}
	key := e.path + " " + o.GetNamespace() + "/" + o.GetName()
	if s.now[key] != nil {
		e.Type = "MODIFIED"
	}
	o.SetResourceVersion(strconv.Itoa(len(s.events) + 1))
	if s.now[key] = o; gone {
		e.Type = "DELETED"
		delete(s.now, key)
	}
	s.events = append(s.events, e)
	s.more.Broadcast()
}

// HangUp ends all watches, as when a connection breaks. Those who watched come again.
func (s *Server) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.more.Broadcast()
}

// fits reports whether a field selector chooses an object.
func fits(selector fields.Selector, o meta.Object) bool {
	set := fields.Set{"metadata.name": o.GetName()}
	if p, ok := o.(*core.Pod); ok {
		set["spec.nodeName"] = p.Spec.NodeName
	}
	return selector.Matches(set)
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	selector, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil || q.Get("sendInitialEvents") != "" { // as servers that do not know it
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(meta.Status{
			TypeMeta: meta.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: meta.StatusFailure, Reason: meta.StatusReasonInvalid, Code: http.StatusUnprocessableEntity,
		})
		return
	}
	s.mu.Lock()
	s.Asked = append(s.Asked, r.URL.RequestURI())
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if q.Get("watch") == "" {
		s.list(w, r.URL.Path, selector)
		return
	}
	since, _ := strconv.Atoi(q.Get("resourceVersion"))
	s.watch(w, r, selector, since)
}

func (s *Server) list(w http.ResponseWriter, path string, selector fields.Selector) {
	s.mu.Lock()
	items := []meta.Object{}
	for key, o := range s.now {
		if strings.HasPrefix(key, path+" ") && fits(selector, o) {
			items = append(items, o)
		}
	}
	body, err := json.Marshal(map[string]any{
		"kind": "List", "apiVersion": "v1", "metadata": map[string]string{"resourceVersion": strconv.Itoa(len(s.events))}, "items": items,
	})
	s.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(body) // who is gone needs no answer
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, selector fields.Selector, since int) {
	w.(http.Flusher).Flush()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-r.Context().Done():
		case <-stop:
		}
		s.more.Broadcast()
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = false
	for r.Context().Err() == nil && !s.closed {
		for ; since < len(s.events); since++ {
			e := s.events[since]
			if e.path != r.URL.Path || !fits(selector, e.Object) {
				continue
			}
			data, err := json.Marshal(e)
			if err != nil {
				return
			}
			if _, err := w.Write(append(data, '\n')); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
		s.more.Wait()
	}
}

// Pod makes one of a node.
func Pod(node, namespace, name, uid string, labels map[string]string, ports ...core.ContainerPort) *core.Pod {
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), Labels: labels},
		Spec:       core.PodSpec{NodeName: node, Containers: []core.Container{{Name: "c", Ports: ports}}},
	}
}
