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

// Pauses between two attempts to reach the API server grow, with as much again at random, up
// to patience: by then it is known again soon after it is back. client-go alone would wait up
// to a minute.
const (
	firstPause = 800 * time.Millisecond
	patience   = 5 * time.Second
)

// mirror is what the API server has of one resource, as far as it is read here. It is the
// store of a cache.Reflector, which lists, watches and comes again.
//
// Most updates of an object change nothing that is read here: each kubelet says every few
// minutes, or more often, that its Node is well. Those are not told.
type mirror[V any] struct {
	contact
	read    func(runtime.Object) (V, bool) // false: it is of no concern
	same    func(a, b V) bool
	changed func() // called when something is another one, and once when all is known; it must not block

	mu      sync.Mutex
	values  map[string]V // by namespace/name
	version int          // counts changes; 0: not all is known yet
}

var _ cache.ReflectorStore = (*mirror[Pod])(nil)

// selection is which objects of a resource are followed.
type selection struct {
	namespace string // empty: all
	fields    fields.Selector
}

// follow keeps a mirror of the objects of a selection, until ctx ends.
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
				m.listed(ctx, nil) // the watch begins with what a list would have
			}
			return watch.Filter(w, func(e watch.Event) (watch.Event, bool) { m.heard(); return e, true }), nil
		},
	}, like, m, cache.ReflectorOptions{Name: resource, Backoff: &wait.Backoff{
		Duration: firstPause, Cap: patience, Factor: 2, Jitter: 1, Steps: int(math.Ceil(float64(patience) / float64(firstPause))),
	}}).RunWithContext(ctx)
	return nil
}

// since is all that there is, by namespace/name, if that is another version than the one that
// is known.
func (m *mirror[V]) since(known int) (values map[string]V, version int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.version == known {
		return nil, known
	}
	return maps.Clone(m.values), m.version
}

// Add is Update.
func (m *mirror[V]) Add(object any) error { return m.Update(object) }

// Update takes an object as it is now.
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

// Delete forgets an object.
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

// Replace takes the whole list.
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

// Resync has nothing to do.
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

// tell says that something changed. Before all is known nobody is told. The caller holds the
// lock.
func (m *mirror[V]) tell() {
	if m.version > 0 {
		m.version++
		m.changed()
	}
}
