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

// Connect reads where the API server is from a kubeconfig file, or as a pod has it where
// there is no file. It asks nothing of the server yet.
func Connect(kubeconfig string) (config *rest.Config, err error) {
	if kubeconfig == "" {
		config, err = rest.InClusterConfig()
	} else {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if errors.Is(err, rest.ErrNotInCluster) {
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

// Client asks the API server. It is safe for concurrent use.
type Client struct {
	config           *rest.Config
	core, networking rest.Interface
}

// NewClient makes a client. It asks nothing of the server yet.
func NewClient(config *rest.Config) (*Client, error) {
	c := &Client{config: config}
	var err, err2 error
	c.core, err = restClient(config, core.SchemeGroupVersion)
	c.networking, err2 = restClient(config, networking.SchemeGroupVersion)
	return c, errors.Join(err, err2)
}

// Server is the API server's address, for people.
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

// askTimeout bounds one request: a server that is behind a silent link is one that is down.
const askTimeout = 10 * time.Second

// do sends one request, reads the answer into an object (nil: nobody needs it), and makes its
// error one for people; what is what was asked, as in "read the Secret weft/weft".
func (c *Client) do(ctx context.Context, what string, request *rest.Request, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	result := request.MaxRetries(0).Do(ctx) // the caller says what it waits for, and tries again
	err := result.Error()
	if err == nil && into != nil {
		err = result.Into(into)
	}
	return explained(c.Server(), what, err)
}

// raw is do for an object of a kind that is not among kinds.
func (c *Client) raw(ctx context.Context, what string, request *rest.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	data, err := request.MaxRetries(0).Do(ctx).Raw()
	return data, explained(c.Server(), what, err)
}

// explained makes the error of a request one for people; nil stays nil.
func explained(server, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err) && !apierrors.HasStatusCause(err, core.NamespaceTerminatingCause):
		return fmt.Errorf("the API server %s does not let this host %s: apply Weft's manifest again, which grants it (see `kubectl auth can-i --list --as system:serviceaccount:weft:weft`): %w", server, what, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server %s does not know this host's credentials: start the agent's pod anew, or see --kubeconfig: %w", server, err)
	case apierrors.ReasonForError(err) == meta.StatusReasonUnknown:
		return fmt.Errorf("the API server %s does not answer (%s): see that it runs and can be reached from this host: %w", server, what, err)
	}
	return fmt.Errorf("the API server %s: %s: %w", server, what, err)
}

// refused reports whether the API server answers, and does not let this host do what it has to.
func refused(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }
