// Package kubetest simulates the parts of an API server that prog/kube uses: it lists and watches
// objects, also with field selectors, and gets, creates, updates (by resourceVersion), patches and
// deletes them. It can be down, refuse requests, and be slow. A Server is safe for concurrent use.
package kubetest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Server is an http.Handler. Use New: the zero value does not work.
type Server struct {
	mu     sync.Mutex
	more   *sync.Cond
	events []event // all events since the start
	now    map[string]meta.Object
	closed bool
	refuse func(verb, resource string) int
	asked  []string
	// Streams enables watches that begin with all objects (sendInitialEvents), as in servers from
	// 1.32 on. Set it before the first request.
	Streams bool
}

// event is a change of one object.
type event struct {
	path   string
	Type   string      `json:"type"`
	Object meta.Object `json:"object"`
}

// New returns a server without objects.
func New() *Server {
	s := &Server{now: map[string]meta.Object{}}
	s.more = sync.NewCond(&s.mu)
	return s
}

// resource is a kind of objects.
type resource struct {
	version, kind, plural string
	empty                 func() meta.Object
}

var resources = []resource{
	{"v1", "Pod", "pods", func() meta.Object { return &core.Pod{} }},
	{"v1", "Namespace", "namespaces", func() meta.Object { return &core.Namespace{} }},
	{"v1", "Node", "nodes", func() meta.Object { return &core.Node{} }},
	{"v1", "Secret", "secrets", func() meta.Object { return &core.Secret{} }},
	{"v1", "ConfigMap", "configmaps", func() meta.Object { return &core.ConfigMap{} }},
	{"v1", "Event", "events", func() meta.Object { return &core.Event{} }},
	{"apps/v1", "DaemonSet", "daemonsets", func() meta.Object { return &apps.DaemonSet{} }},
	{"networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", func() meta.Object { return &networking.NetworkPolicy{} }},
	{"networking.k8s.io/v1", "ServiceCIDR", "servicecidrs", func() meta.Object { return &networking.ServiceCIDR{} }},
}

// path returns the path of the list of a kind.
func (r resource) path() string {
	if r.version == "v1" {
		return "/api/v1/" + r.plural
	}
	return "/apis/" + r.version + "/" + r.plural
}

// pathOf returns the path of the list of an object's kind. It also sets the version and kind in the
// object.
func pathOf(o meta.Object) string {
	for _, r := range resources {
		if reflect.TypeOf(r.empty()) == reflect.TypeOf(o) {
			o.(runtime.Object).GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(r.version, r.kind))
			return r.path()
		}
	}
	panic(fmt.Sprintf("kubetest: %T", o))
}

// Serve listens on an address, calls ready, and serves.
func (s *Server) Serve(addr string, ready func()) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	ready()
	return http.Serve(l, s)
}

// Set creates an object, or updates it.
func (s *Server) Set(o meta.Object) { s.change(o, false) }

// Delete deletes an object.
func (s *Server) Delete(o meta.Object) { s.change(o, true) }

func (s *Server) change(o meta.Object, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changeLocked(o, gone)
}

func (s *Server) changeLocked(o meta.Object, gone bool) {
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

// Asked returns the paths of all requests, with their queries, in order.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// HangUp ends all watches, as when a connection breaks. Clients then watch again.
func (s *Server) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.more.Broadcast()
}

// fits reports whether a field selector selects an object.
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
	if err != nil || q.Get("sendInitialEvents") != "" && !s.Streams { // servers that do not support sendInitialEvents answer this
		fail(w, http.StatusUnprocessableEntity, meta.StatusReasonInvalid)
		return
	}
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.RequestURI())
	s.mu.Unlock()
	at, ok := parse(r.URL.Path)
	if !ok {
		fail(w, http.StatusNotFound, meta.StatusReasonNotFound)
		return
	}
	verb := strings.ToLower(r.Method)
	if verb == "get" && at.name == "" {
		verb = "list"
	}
	if s.refused(w, r, verb, at) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case verb == "list" && q.Get("watch") != "":
		since, _ := strconv.Atoi(q.Get("resourceVersion"))
		if q.Get("sendInitialEvents") != "" {
			since = s.stream(w, at, selector)
		}
		s.watch(w, r, at, selector, since)
	case verb == "list":
		s.list(w, at, selector)
	default:
		s.one(w, r, at)
	}
}

func (s *Server) list(w http.ResponseWriter, of place, selector fields.Selector) {
	s.mu.Lock()
	items := s.chosen(of, selector)
	body, err := json.Marshal(map[string]any{
		"kind": of.kind + "List", "apiVersion": of.version, "metadata": map[string]string{"resourceVersion": strconv.Itoa(len(s.events))}, "items": items,
	})
	s.mu.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(body) // ignored: it only fails if the client is gone
}

// chosen returns the objects that a selector selects. The caller holds the lock.
func (s *Server) chosen(of place, selector fields.Selector) []meta.Object {
	items := []meta.Object{}
	for key, o := range s.now {
		if strings.HasPrefix(key, of.path()+" "+of.within()) && fits(selector, o) {
			items = append(items, o)
		}
	}
	return items
}

// stream sends all objects, followed by a bookmark, at the beginning of a watch.
func (s *Server) stream(w http.ResponseWriter, of place, selector fields.Selector) (since int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := json.NewEncoder(w)
	for _, o := range s.chosen(of, selector) {
		_ = out.Encode(event{Type: "ADDED", Object: o}) // ignored: it only fails if the client is gone
	}
	end := of.empty()
	_ = pathOf(end) // pathOf sets the version and kind of the object
	end.SetResourceVersion(strconv.Itoa(len(s.events)))
	end.SetAnnotations(map[string]string{meta.InitialEventsAnnotationKey: "true"})
	_ = out.Encode(event{Type: "BOOKMARK", Object: end})
	return len(s.events)
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, of place, selector fields.Selector, since int) {
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
			if e.path != of.path() || !strings.HasPrefix(e.Object.GetNamespace()+"/", of.within()) || !fits(selector, e.Object) {
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

// Pod returns a pod of a node.
func Pod(node, namespace, name, uid string, labels map[string]string, ports ...core.ContainerPort) *core.Pod {
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), Labels: labels},
		Spec:       core.PodSpec{NodeName: node, Containers: []core.Container{{Name: "c", Ports: ports}}},
	}
}
