package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Connect returns the API server's address and credentials, from a kubeconfig file, or from the pod's
// environment if none is given. It sends no request.
func Connect(kubeconfig string) (config *rest.Config, err error) {
	if kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if errors.Is(err, rest.ErrNotInCluster) {
		err = errors.New("this process does not run in a pod: give a kubeconfig file with --kubeconfig")
	}
	if err != nil {
		return nil, fmt.Errorf("the Kubernetes API server: %w", err)
	}
	config.UserAgent = "weft"
	return config, nil
}

// kinds are the types that are requested. client-go's own clientset knows all types, and would double
// the size of the program.
var kinds, params = func() (*runtime.Scheme, runtime.ParameterCodec) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, networking.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // the types are constant, so registering them cannot fail
		}
	}
	meta.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s, runtime.NewParameterCodec(s)
}()

// Client sends requests to the API server. It is safe for concurrent use.
type Client struct {
	config           *rest.Config
	core, networking rest.Interface
}

// NewClient makes a client. It sends no request.
func NewClient(config *rest.Config) (*Client, error) {
	c := &Client{config: config}
	var err, err2 error
	c.core, err = restClient(config, core.SchemeGroupVersion)
	c.networking, err2 = restClient(config, networking.SchemeGroupVersion)
	return c, errors.Join(err, err2)
}

// Server returns the API server's address.
func (c *Client) Server() string { return c.config.Host }

func restClient(config *rest.Config, version schema.GroupVersion) (rest.Interface, error) {
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
	return client, nil
}

// askTimeout limits one request: a server behind a dead link counts as down.
const askTimeout = 10 * time.Second

// do sends one request, and decodes the answer into an object, unless into is nil. Its error explains
// the failure to users. what names the request, as in "read the Secret weft/weft".
func (c *Client) do(ctx context.Context, what string, request *rest.Request, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	result := request.MaxRetries(0).Do(ctx) // callers report the failure and retry
	err := result.Error()
	if err == nil && into != nil {
		err = result.Into(into)
	}
	return explained(c.Server(), what, err)
}

// raw is like do, for an object of a type that is not in kinds.
func (c *Client) raw(ctx context.Context, what string, request *rest.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	data, err := request.MaxRetries(0).Do(ctx).Raw()
	return data, explained(c.Server(), what, err)
}

// explained turns the error of a request into an error that users understand; nil stays nil.
func explained(server, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err) && !apierrors.HasStatusCause(err, core.NamespaceTerminatingCause):
		return fmt.Errorf("the API server %s forbids this host to %s: apply Weft's manifest again, which grants the right (see `kubectl auth can-i --list --as system:serviceaccount:weft:weft`): %w", server, what, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server %s does not accept this host's credentials: restart the agent's pod, or check --kubeconfig: %w", server, err)
	case apierrors.ReasonForError(err) == meta.StatusReasonUnknown:
		return fmt.Errorf("the API server %s does not answer (%s): check that it runs and that this host can reach it: %w", server, what, err)
	}
	return fmt.Errorf("the API server %s: %s: %w", server, what, err)
}

// refused reports whether the API server answers, but denies a request.
func refused(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }
