package kubetest

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// place is the resource or object that a path names.
type place struct {
	resource
	namespace, name, sub string
}

// within returns the prefix of the keys of the objects in a namespace.
func (p place) within() string {
	if p.namespace == "" {
		return ""
	}
	return p.namespace + "/"
}

// parse splits a path: …/v1/[namespaces/NAMESPACE/]RESOURCE[/NAME[/SUBRESOURCE]].
func parse(path string) (p place, ok bool) {
	for _, r := range resources {
		prefix := strings.TrimSuffix(r.path(), r.plural)
		rest, ok := strings.CutPrefix(path, prefix)
		if !ok {
			continue
		}
		parts := strings.Split(rest, "/")
		p := place{resource: r}
		if len(parts) > 2 && parts[0] == "namespaces" {
			p.namespace, parts = parts[1], parts[2:]
		}
		if parts[0] != r.plural {
			continue
		}
		if len(parts) > 1 {
			p.name = parts[1]
		}
		if len(parts) > 2 {
			p.sub = parts[2]
		}
		return p, true
	}
	return p, false
}

// Results of the function given to Refuse, besides HTTP status codes.
const (
	Serve = 0
	Break = -1 // break the connection before the request is processed
	Lose  = -2 // process the request, then break the connection without an answer
)

// Refuse lets f decide which requests fail. A verb is get, list (also for watches), post, put, patch
// or delete. f may block.
func (s *Server) Refuse(f func(verb, resource string) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

func (s *Server) refused(w http.ResponseWriter, r *http.Request, verb string, at place) bool {
	s.mu.Lock()
	f := s.refuse
	s.mu.Unlock()
	if f == nil {
		return false
	}
	switch code := f(verb, at.plural); code {
	case Serve:
		return false
	case Lose:
		if at.name == "" && verb == "list" {
			panic(http.ErrAbortHandler)
		}
		s.one(httptest.NewRecorder(), r, at)
		panic(http.ErrAbortHandler)
	case Break:
		panic(http.ErrAbortHandler)
	case http.StatusForbidden:
		fail(w, code, meta.StatusReasonForbidden)
	case http.StatusNotFound:
		fail(w, code, meta.StatusReasonNotFound)
	default:
		fail(w, code, meta.StatusReasonInternalError)
	}
	return true
}

func fail(w http.ResponseWriter, code int, reason meta.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(meta.Status{ // ignored: it only fails if the client is gone
		TypeMeta: meta.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: meta.StatusFailure, Reason: reason, Code: int32(code), Message: string(reason),
	})
}

// one answers a request about one object.
func (s *Server) one(w http.ResponseWriter, r *http.Request, at place) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	given := at.empty()
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		if err := json.Unmarshal(body, given); err != nil {
			fail(w, http.StatusBadRequest, meta.StatusReasonBadRequest)
			return
		}
		at.name = given.GetName()
	}
	now := s.now[at.path()+" "+at.namespace+"/"+at.name]
	switch {
	case r.Method == http.MethodPost && now != nil:
		fail(w, http.StatusConflict, meta.StatusReasonAlreadyExists)
		return
	case r.Method != http.MethodPost && now == nil:
		fail(w, http.StatusNotFound, meta.StatusReasonNotFound)
		return
	case r.Method == http.MethodPut && given.GetResourceVersion() != now.GetResourceVersion():
		fail(w, http.StatusConflict, meta.StatusReasonConflict)
		return
	case r.Method == http.MethodGet:
		given = now
	case r.Method == http.MethodDelete:
		given = now
		s.changeLocked(now, true)
	case r.Method == http.MethodPatch:
		if given, err = patched(now, body, at); err != nil {
			fail(w, http.StatusBadRequest, meta.StatusReasonBadRequest)
			return
		}
		fallthrough
	default:
		s.changeLocked(given, false)
	}
	_ = json.NewEncoder(w).Encode(given) // ignored: it only fails if the client is gone
}

// patched applies a strategic merge patch to a Node's conditions, which merges them by type.
func patched(o meta.Object, patch []byte, at place) (meta.Object, error) {
	before, ok := o.(*core.Node)
	var change core.Node
	var deletes struct {
		Status struct {
			Conditions []struct {
				Patch string `json:"$patch"`
			}
		}
	}
	err := errors.Join(json.Unmarshal(patch, &change), json.Unmarshal(patch, &deletes))
	if !ok || at.sub != "status" || err != nil {
		return nil, errors.Join(errors.New("only patches of a Node's status are supported"), err)
	}
	out := before.DeepCopy()
	for i, c := range change.Status.Conditions {
		out.Status.Conditions = slices.DeleteFunc(out.Status.Conditions, func(old core.NodeCondition) bool { return old.Type == c.Type })
		if deletes.Status.Conditions[i].Patch != "delete" {
			out.Status.Conditions = append(out.Status.Conditions, c)
		}
	}
	return out, nil
}

// All returns the current objects of a kind, such as "secrets".
func (s *Server) All(plural string) (out []meta.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, o := range s.now {
		if path, _, _ := strings.Cut(key, " "); strings.HasSuffix(path, "/"+plural) {
			out = append(out, o)
		}
	}
	return out
}

// Node returns a Node with InternalIPs.
func Node(name, uid string, addrs ...string) *core.Node {
	n := &core.Node{ObjectMeta: meta.ObjectMeta{Name: name, UID: types.UID(uid)}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, core.NodeAddress{Type: core.NodeInternalIP, Address: a})
	}
	n.Status.Addresses = append(n.Status.Addresses, core.NodeAddress{Type: core.NodeHostName, Address: name})
	n.Status.Conditions = []core.NodeCondition{{Type: core.NodeReady, Status: core.ConditionTrue}}
	return n
}
