package kube

import (
	"context"
	"fmt"
	"maps"
	"math"
	"sync"
	"time"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Pauses between attempts to reach the API server grow up to patience, with random jitter, so that
// its return is noticed soon. client-go alone would wait up to a minute.
const (
	firstPause = 800 * time.Millisecond
	patience   = 5 * time.Second
)

// mirror is a copy of the relevant parts of one resource's objects. It is the store of a
// cache.Reflector, which lists, watches and retries.
//
// Most updates change nothing relevant: for example, each kubelet renews its Node's status every few
// minutes. Such updates are not reported.
type mirror[V any] struct {
	contact
	read    func(runtime.Object) (V, bool) // returns the relevant parts; false if the object is not relevant
	same    func(a, b V) bool
	changed func() // called after a change, and once when all is known; it must not block

	mu      sync.Mutex
	values  map[string]V // the relevant parts of each object, by namespace/name
	version int          // number of changes; 0: not all is known yet
}

var _ cache.ReflectorStore = (*mirror[Pod])(nil)

// selection selects objects of a resource.
type selection struct {
	namespace string // the namespace to follow; empty: all namespaces
	fields    fields.Selector
}

// follow keeps the mirror up to date with a selection of objects until ctx ends.
func (m *mirror[V]) follow(ctx context.Context, config *rest.Config, version schema.GroupVersion, resource string, chosen selection, like, list runtime.Object) error {
	client, err := restClient(config, version)
	if err != nil {
		return err
	}
	choose := func(o *meta.ListOptions) { o.FieldSelector = chosen.fields.String() }
	cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			choose(&o)
			into := list.DeepCopyObject()
			err := client.Get().Namespace(chosen.namespace).Resource(resource).VersionedParams(&o, params).Do(ctx).Into(into)
			m.listed(ctx, explained(config.Host, "list the "+resource, err))
			return into, err
		},
		WatchFuncWithContext: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
			choose(&o)
			o.Watch = true
			w, err := client.Get().Namespace(chosen.namespace).Resource(resource).VersionedParams(&o, params).Watch(ctx)
			m.watched(ctx, explained(config.Host, "watch the "+resource, err))
			if err != nil {
				return nil, err
			}
			if o.SendInitialEvents != nil && *o.SendInitialEvents {
				m.listed(ctx, nil) // the watch begins with the content of a list
			}
			return watch.Filter(w, func(e watch.Event) (watch.Event, bool) { m.heard(); return e, true }), nil
		},
	}, like, m, cache.ReflectorOptions{Name: resource, Backoff: &wait.Backoff{
		Duration: firstPause, Cap: patience, Factor: 2, Jitter: 1, Steps: int(math.Ceil(float64(patience) / float64(firstPause))),
	}}).RunWithContext(ctx)
	return nil
}

// since returns all values by namespace/name, if the version is not the known one.
func (m *mirror[V]) since(known int) (values map[string]V, version int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.version == known {
		return nil, known
	}
	return maps.Clone(m.values), m.version
}

// Add is the same as Update.
func (m *mirror[V]) Add(object any) error { return m.Update(object) }

// Update stores the current version of an object.
func (m *mirror[V]) Update(object any) error {
	key, v, ok, err := m.convert(object)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, there := m.values[key]
	switch {
	case ok == there && (!ok || m.same(old, v)):
		return nil
	case ok:
		if m.values == nil {
			m.values = map[string]V{}
		}
		m.values[key] = v
	default:
		delete(m.values, key)
	}
	m.tell()
	return nil
}

// Delete removes an object.
func (m *mirror[V]) Delete(object any) error {
	key, _, _, err := m.convert(object)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, there := m.values[key]; there {
		delete(m.values, key)
		m.tell()
	}
	return nil
}

// Replace stores a whole list.
func (m *mirror[V]) Replace(objects []any, _ string) error {
	now := make(map[string]V, len(objects))
	for _, o := range objects {
		key, v, ok, err := m.convert(o)
		if err != nil {
			return err
		}
		if ok {
			now[key] = v
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.version == 0 || !maps.EqualFunc(m.values, now, m.same) {
		m.values = now
		m.version++
		m.changed()
	}
	return nil
}

// Resync does nothing.
func (m *mirror[V]) Resync() error { return nil }

func (m *mirror[V]) convert(object any) (key string, v V, ok bool, err error) {
	o, is := object.(interface {
		runtime.Object
		meta.Object
	})
	if !is {
		return "", v, false, fmt.Errorf("kube: the API server sent a %T", object)
	}
	v, ok = m.read(o)
	return o.GetNamespace() + "/" + o.GetName(), v, ok, nil
}

// tell reports a change, once all objects are known. The caller holds the lock.
func (m *mirror[V]) tell() {
	if m.version > 0 {
		m.version++
		m.changed()
	}
}
