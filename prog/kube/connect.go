package kube

import (
	"context"
	"errors"
	"fmt"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Connect reads where the API server is from a kubeconfig file, or as a pod has it where
// there is no file. It asks nothing of the server yet.
func Connect(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if errors.Is(err, rest.ErrNotInCluster) || kubeconfig == "" && clientcmd.IsEmptyConfig(err) {
		err = errors.New("this is no pod: name a file with --kubeconfig")
	}
	if err != nil {
		return nil, fmt.Errorf("the Kubernetes API server: %w", err)
	}
	config.UserAgent = "weft"
	return config, nil
}

// kinds are the objects that are asked for: the library's own client knows all kinds there
// are, and would be half of the program.
var kinds, params = func() (*runtime.Scheme, runtime.ParameterCodec) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, networking.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // constant types
		}
	}
	meta.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s, runtime.NewParameterCodec(s)
}()

// informer follows the objects of a resource that a selector chooses.
func informer(config *rest.Config, version schema.GroupVersion, resource string, selector fields.Selector, like, list runtime.Object) (cache.SharedIndexInformer, error) {
	own := *config
	own.GroupVersion = &version
	own.NegotiatedSerializer = serializer.NewCodecFactory(kinds).WithoutConversion()
	if own.APIPath = "/apis"; version.Group == "" {
		own.APIPath = "/api"
	}
	client, err := rest.RESTClientFor(&own)
	if err != nil {
		return nil, fmt.Errorf("kube: %w", err)
	}
	choose := func(o *meta.ListOptions) { o.FieldSelector = selector.String() }
	i := cache.NewSharedIndexInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			choose(&o)
			into := list.DeepCopyObject()
			return into, client.Get().Resource(resource).VersionedParams(&o, params).Do(ctx).Into(into)
		},
		WatchFuncWithContext: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
			choose(&o)
			o.Watch = true
			return client.Get().Resource(resource).VersionedParams(&o, params).Watch(ctx)
		},
	}, like, 0, cache.Indexers{})
	return i, i.SetTransform(slim)
}
