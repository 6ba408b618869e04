package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"weft/mesh/secret"
)

// DaemonSetName is the DaemonSet of the agents, in the Secret's namespace.
const DaemonSetName = "weft"

func tokenOf(s *core.Secret) (secret.Token, error) {
	t, err := secret.Parse(string(s.Data[tokenKey]))
	switch {
	case err == nil && t.Cluster.IsZero():
		err = errors.New("it has no cluster id")
	case err == nil:
		return t, nil
	}
	return t, fmt.Errorf("the Secret %s/%s has no usable token in data.%s (create one with `weft token new`, or delete the Secret, if no node has a ring yet): %w", s.Namespace, s.Name, tokenKey, err)
}

// secret reads the Secret.
func (c *Client) secret(ctx context.Context, namespace string) (*core.Secret, error) {
	var s core.Secret
	err := c.do(ctx, "read the Secret "+namespace+"/"+SecretName, c.core.Get().Namespace(namespace).Resource("secrets").Name(SecretName), &s)
	return &s, err
}

// errWritten is errAgain after this node's own write.
var errWritten = fmt.Errorf("written: %w", errAgain)

// writeSecret creates the Secret, or updates it if it was read. It returns errAgain even after a
// success, since the caller must use what it reads next.
func (c *Client) writeSecret(ctx context.Context, s *core.Secret) error {
	what := " the Secret " + s.Namespace + "/" + s.Name
	var err error
	if s.ResourceVersion == "" {
		err = c.do(ctx, "create"+what, c.core.Post().Namespace(s.Namespace).Resource("secrets").Body(s), nil)
	} else {
		err = c.do(ctx, "update"+what, c.core.Put().Namespace(s.Namespace).Resource("secrets").Name(s.Name).Body(s), nil)
	}
	if err == nil {
		return errWritten
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) && s.ResourceVersion != "" {
		return errAgain
	}
	return err
}

// newSecret returns a Secret with a token and without a founder.
func newSecret(namespace string, t secret.Token) *core.Secret {
	return &core.Secret{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: SecretName, Labels: map[string]string{"app.kubernetes.io/name": "weft"}},
		Data:       map[string][]byte{tokenKey: []byte(t.Reveal())},
	}
}

// Keeper restores the Secret while the network exists. Without it, new nodes would found another
// network. Every agent of a network runs a Keeper, and all of them write the same.
type Keeper struct {
	Client    *Client
	Namespace string
	Own       Founding // stored when this host joined; includes its token
	// Supervised means that the DaemonSet runs this agent. Once the DaemonSet is deleted, Weft and
	// its Secret are being removed.
	Supervised bool
	Log        *slog.Logger
	// Problem is called with a problem of the Secret, and with "" when it is solved.
	Problem func(string)
	// Restored is called with the reason after the Secret was restored.
	Restored func(string)

	pause time.Duration // shorter in tests
}

// errLeft means that the Secret is not restored, since Weft is being removed.
var errLeft = errors.New("the Secret is not restored: Weft is being removed from this cluster")

// Intervals at which the Secret is read although no change was reported: long while it is correct,
// and short while it cannot be watched, is wrong, or was not restored.
const (
	lookRarely = 10 * time.Minute
	lookSoon   = 20 * time.Second
)

// Run keeps the Secret until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	kick := make(chan struct{}, 1)
	watched := &mirror[string]{
		read: func(o runtime.Object) (string, bool) { return o.(*core.Secret).ResourceVersion, true },
		same: func(a, b string) bool { return a == b },
		changed: func() {
			select {
			case kick <- struct{}{}:
			default:
			}
		},
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		one := selection{namespace: k.Namespace, fields: fields.OneTermEqualSelector("metadata.name", SecretName)}
		return watched.follow(ctx, k.Client.config, core.SchemeGroupVersion, "secrets", one, &core.Secret{}, &core.SecretList{})
	})
	group.Go(func() error {
		for ctx.Err() == nil {
			pause := lookRarely
			if unwatched := watched.trouble(); !k.keep(ctx, unwatched) || unwatched != nil {
				pause = lookSoon
			}
			select {
			case <-ctx.Done():
			case <-kick:
			case <-time.After(pause/2 + rand.N(pause)):
			}
		}
		return nil
	})
	return group.Wait()
}

// keep repairs the Secret until it is correct or cannot be repaired now.
func (k *Keeper) keep(ctx context.Context, unwatched error) (done bool) {
	for range maxAgain {
		err := k.look(ctx)
		if errors.Is(err, errAgain) && ctx.Err() == nil {
			continue
		}
		_, wrong := errors.AsType[*wrongSecretError](err)
		switch {
		case ctx.Err() != nil:
		case wrong || refused(err):
			k.Problem(err.Error())
		case err != nil && !errors.Is(err, errLeft):
			k.Log.Warn("cannot check the cluster's Secret: it is tried again", "err", err)
		case refused(unwatched):
			k.Problem(unwatched.Error())
		default:
			k.Problem("")
		}
		return err == nil
	}
	k.Problem(errAgain.Error())
	return false
}

// wrongSecretError means that the Secret belongs to another network than this host.
type wrongSecretError struct{ what string }

func (e *wrongSecretError) Error() string {
	return e.what + ": new nodes do not join this host's network. Delete the Secret, and the agents of this network restore theirs; or, if this host should leave its network, empty its /var/lib/weft and delete its agent's pod"
}

// look compares the Secret with this host's stored copy, and takes the next step to repair it.
func (k *Keeper) look(ctx context.Context) error {
	s, err := k.Client.secret(ctx, k.Namespace)
	name := k.Namespace + "/" + SecretName
	switch {
	case apierrors.IsNotFound(err):
		return k.restore(ctx, newSecret(k.Namespace, k.Own.Token), "it was missing")
	case err != nil:
		return err
	case len(s.Data[tokenKey]) == 0:
		return k.restore(ctx, s, "it had no token")
	}
	t, err := tokenOf(s)
	if err != nil {
		return &wrongSecretError{err.Error()}
	}
	if t != k.Own.Token {
		return &wrongSecretError{fmt.Sprintf("the Secret %s is of another network than this host", name)}
	}
	var said Founding
	named, err := said.read(s.Annotations)
	switch {
	case k.Own.Founder.IsZero():
		return nil // this host joined without the Secret, and does not know its content
	case err != nil || !named || !said.Founded:
		return k.restore(ctx, s, "it did not say who founded the network")
	case said.Founder != k.Own.Founder || said.Universe != k.Own.Universe:
		return &wrongSecretError{fmt.Sprintf("according to the Secret %s, %s founded %v, but this host's network was founded by %s, with %v", name, said.Founder, said.Universe, k.Own.Founder, k.Own.Universe)}
	}
	return nil
}

// restore writes this host's stored copy into the Secret, unless Weft is being removed. It returns
// errAgain even after a success.
func (k *Keeper) restore(ctx context.Context, s *core.Secret, why string) error {
	if k.Own.Founder.IsZero() {
		return nil
	}
	pause := k.pause
	if pause == 0 {
		pause = 2 * time.Second
	}
	Sleep(ctx, rand.N(pause)) // all agents notice at once, but one write is enough
	switch now, err := k.Client.secret(ctx, k.Namespace); {
	case err != nil && !apierrors.IsNotFound(err):
		return err
	case err == nil && now.ResourceVersion != s.ResourceVersion, err != nil && s.ResourceVersion != "":
		return errAgain
	}
	if k.Supervised {
		leaving, err := k.Client.deleted(ctx, k.Namespace, DaemonSetName)
		if err != nil {
			return err
		}
		if leaving {
			return errLeft
		}
	}
	s.Data = map[string][]byte{tokenKey: []byte(k.Own.Token.Reveal())}
	f := k.Own
	f.Founded = true
	f.write(s)
	err := k.Client.writeSecret(ctx, s)
	switch {
	case apierrors.HasStatusCause(err, core.NamespaceTerminatingCause), apierrors.IsNotFound(err): // the namespace is being deleted, or gone
		return errLeft
	case errors.Is(err, errWritten):
		k.Restored(fmt.Sprintf("restored the Secret %s/%s, with which nodes join this network: %s", k.Namespace, SecretName, why))
	}
	return err
}

// deleted reports whether a DaemonSet is gone or being deleted.
func (c *Client) deleted(ctx context.Context, namespace, name string) (bool, error) {
	data, err := c.raw(ctx, "read the DaemonSet "+namespace+"/"+name, c.core.Get().AbsPath("/apis/apps/v1/namespaces/"+namespace+"/daemonsets/"+name))
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	var o meta.PartialObjectMetadata
	if err := json.Unmarshal(data, &o); err != nil {
		return false, fmt.Errorf("kube: the DaemonSet %s/%s: %w", namespace, name, err)
	}
	return o.DeletionTimestamp != nil, nil
}
