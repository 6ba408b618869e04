package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/words"
)

// The Secret, and what is written in it. An operator may make one beforehand with a token only.
const (
	SecretName       = "weft"
	DefaultNamespace = "weft"

	tokenKey = "token" // of its data: secret.Token, as Reveal writes it

	annotationFounder  = "weft.dev/founder"      // PeerID
	annotationNode     = "weft.dev/founder-node" // the Node's name, and
	annotationUID      = "weft.dev/founder-uid"  // its UID
	annotationUniverse = "weft.dev/universe"     // CIDR,CIDR6
	annotationFounded  = "weft.dev/founded"      // "true" for good, once the ring may be in use
)

// namespaceFile is where a pod finds the name of its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Namespace is where the Secret is, unless another one is given: in the pod's own namespace.
func Namespace(given string) string {
	if given != "" {
		return given
	}
	data, err := os.ReadFile(namespaceFile)
	if name := strings.TrimSpace(string(data)); err == nil && name != "" {
		return name
	}
	return DefaultNamespace // no pod
}

// Founding is what the Secret says, and all that a node needs: the ring is a function of it.
type Founding struct {
	Token    secret.Token `json:"-"`
	Universe slot.Universe
	Founder  peer.ID
	Node     string // the founder's, by name
	UID      string // and by UID
	Founded  bool   // final: it never changes any more
}

// RefusedError says that the cluster cannot be founded, or joined, like this; trying again
// does not help.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// Bootstrap makes all nodes of a cluster agree on one Founding, through the API server:
//
//	no Secret ──create──▶ founder named ──"founded" by the founder──▶ founded
//	   (or one with                │  ▲
//	    a token only)              └──┘ another founder, while this one's Node is
//	                                    gone, or its disk: it has another PeerID
//
// Every arrow is one request that the API server refuses to all but one: a create, or an
// update that names the version that was read. Before the last arrow nobody uses a ring, so
// that there is never a second one. No arrow is taken while a Node shows that the cluster has
// a network: then the Secret was deleted, or is older than the network, and the agents that
// are in it put it back (Keeper).
type Bootstrap struct {
	Client    *Client
	Namespace string
	Node      string  // this host's
	Self      peer.ID // this peer's
	Random    io.Reader
	// Universe decides the cluster's universe; only a founder asks for it.
	Universe func(context.Context, secret.ClusterID) (slot.Universe, error)
	// Answers reports whether an agent answers at an address: on the port of gossip, which an
	// agent has only once it has a ring.
	Answers func(context.Context, netip.Addr) bool
	Log     *slog.Logger
	// Waiting is told what is waited for, for people.
	Waiting func(ctx context.Context, why string)

	pause  time.Duration // for tests
	marked time.Time     // when "founded" was last asked for; the answer may have been lost
}

// trust bounds how long a founder whose "founded" was not answered may go on as one, once it
// reads that it was taken: shorter than the others wait before they take over from a peer
// that they never heard (prog/agent's silence).
const trust = 20 * time.Second

// errAgain says that something was written, here or by a faster node: it is read next.
var errAgain = errors.New("the Secret changes while it is read: does something else write it?")

// waitError says for whom a node waits.
type waitError struct{ node string }

func (e *waitError) Error() string {
	return fmt.Sprintf("waiting for the node %s, which founds the ring: see the log of its agent (if that node is gone for good, delete it: `kubectl delete node %s`)", e.node, e.node)
}

// existsError says who shows that there is a network, which the Secret does not tell of.
type existsError struct{ namespace, node, how string }

func (e *existsError) Error() string {
	return fmt.Sprintf("the Secret %s/%s does not tell of the network that the node %s is in (%s), so that this host cannot join it, and does not found another one: the agents of that network put the Secret back, see that they run. If the node has no agent and its network is gone for good: `kubectl delete node %s`, or `kubectl patch node %[3]s --subresource=status -p '%[6]s'`",
		e.namespace, SecretName, e.node, e.how, e.node, takenBack)
}

// Run returns what was founded. It tries for ever, until ctx ends, or until it is refused.
// mine says that this very call founded it, so that nobody else can have used what this
// peer owns.
func (b *Bootstrap) Run(ctx context.Context) (f Founding, mine bool, err error) {
	first := cmp.Or(b.pause, pause)
	said, saidAt, delay, again := "", time.Time{}, first, 0
	for {
		f, mine, err = b.step(ctx)
		if _, refused := errors.AsType[*RefusedError](err); err == nil || refused {
			return f, mine, err
		}
		if ctx.Err() != nil {
			return f, false, ctx.Err()
		}
		if again++; errors.Is(err, errAgain) && again%maxAgain != 0 {
			continue
		}
		if why := err.Error(); why != said || time.Since(saidAt) > time.Minute {
			b.Log.Warn("the cluster's Secret", "err", why)
			b.Waiting(ctx, why)
			said, saidAt = why, time.Now()
		}
		if _, waits := errors.AsType[*waitError](err); waits {
			delay = first
		}
		sleep(ctx, delay/2+rand.N(delay))
		delay = min(2*delay, 15*first)
	}
}

// maxAgain is how often what was written is read at once. If it is never what was written,
// somebody changes it on its way.
const maxAgain = 20

// pause is how long a request that failed waits for its repetition, about, and up to 15 times
// that later: all nodes of a large cluster may wait for one server.
const pause = time.Second

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// step reads the Secret and does the one thing that is to be done about it.
func (b *Bootstrap) step(ctx context.Context) (f Founding, mine bool, err error) {
	s, err := b.Client.secret(ctx, b.Namespace)
	if apierrors.IsNotFound(err) {
		return f, false, b.create(ctx)
	}
	if err != nil {
		return f, false, err
	}
	if f.Token, err = tokenOf(s); err != nil {
		return f, false, err
	}
	named, err := f.read(s.Annotations)
	switch {
	case err != nil:
		return f, false, fmt.Errorf("the Secret %s/%s: %w: remove its annotations weft.dev/*, or delete it, if no node has a ring yet", s.Namespace, s.Name, err)
	case f.Founded:
		return f, f.Founder == b.Self && !b.marked.IsZero() && time.Since(b.marked) < trust, nil
	case !named:
		return f, false, b.claim(ctx, s, f.Token.Cluster)
	}
	own, err := b.Client.Node(ctx, b.Node)
	if err != nil {
		return f, false, ownNodeError(b.Node, err)
	}
	switch {
	case f.Founder == b.Self && f.UID == own.UID:
		return f, false, b.mark(ctx, s)
	case f.Founder == b.Self || f.UID == own.UID: // this Node was made anew, or its disk was lost
		return f, false, b.claim(ctx, s, f.Token.Cluster)
	}
	switch founder, err := b.Client.Node(ctx, f.Node); {
	case apierrors.IsNotFound(err) || err == nil && founder.UID != f.UID:
		b.Log.Warn("the node that was to found the ring is gone: another one does", "node", f.Node, "uid", f.UID)
		return f, false, b.claim(ctx, s, f.Token.Cluster)
	case err != nil:
		return f, false, err
	}
	return f, false, &waitError{f.Node}
}

func ownNodeError(name string, err error) error {
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no Node %s, as which this host runs: the kubelet makes it; if it has another name, give that with NODE_NAME or --node-name: %w", name, err)
	}
	return err
}

// alone reports a network that another Node shows that there is. What this host's own Node
// shows is of an earlier life of it, and taken back: so, where the disks of all nodes are
// gone, a network can be founded again.
func (b *Bootstrap) alone(ctx context.Context) error {
	nodes, err := b.Client.Nodes(ctx)
	if err != nil {
		return err
	}
	own := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == b.Node })
	if own >= 0 && nodes[own].Up {
		if err := b.Client.takeBack(ctx, b.Node); err != nil {
			return err
		}
	}
	if own >= 0 {
		nodes = slices.Delete(nodes, own, own+1)
	}
	if i := slices.IndexFunc(nodes, func(n Node) bool { return n.Up }); i >= 0 {
		return &existsError{b.Namespace, nodes[i].Name, "its condition NetworkUnavailable says that Weft is up"}
	}
	group, ctx := errgroup.WithContext(ctx) // the first one that answers is enough
	group.SetLimit(answersAtOnce)
	for _, n := range nodes {
		for _, addr := range n.Addrs {
			group.Go(func() error {
				if ctx.Err() == nil && b.Answers(ctx, addr) {
					return &existsError{b.Namespace, n.Name, fmt.Sprintf("its agent answers at %v", addr)}
				}
				return nil
			})
		}
	}
	return group.Wait()
}

// answersAtOnce bounds how many Nodes are asked at the same time.
const answersAtOnce = 64

// create makes the Secret, with a new token and this node as the founder.
func (b *Bootstrap) create(ctx context.Context) error {
	t, err := secret.New(b.Random)
	if err != nil {
		return err
	}
	s := newSecret(b.Namespace, t)
	if err := b.name(ctx, s, t.Cluster); err != nil {
		return err
	}
	return b.Client.writeSecret(ctx, s)
}

// claim names this node as the founder in a Secret that was read.
func (b *Bootstrap) claim(ctx context.Context, s *core.Secret, cluster secret.ClusterID) error {
	if err := b.name(ctx, s, cluster); err != nil {
		return err
	}
	return b.Client.writeSecret(ctx, s)
}

func (b *Bootstrap) name(ctx context.Context, s *core.Secret, cluster secret.ClusterID) error {
	if err := b.alone(ctx); err != nil {
		return err
	}
	own, err := b.Client.Node(ctx, b.Node)
	if err != nil {
		return ownNodeError(b.Node, err)
	}
	u, err := b.Universe(ctx, cluster)
	if err != nil {
		return err
	}
	Founding{Universe: u, Founder: b.Self, Node: own.Name, UID: own.UID}.write(s)
	return nil
}

// mark says for good that the ring is founded, in a Secret that did not say so when it was
// read, nor does when it is written. Whatever the answer, it is read again.
func (b *Bootstrap) mark(ctx context.Context, s *core.Secret) error {
	if err := b.alone(ctx); err != nil {
		return err
	}
	s.Annotations[annotationFounded] = "true"
	b.marked = time.Now()
	return b.Client.writeSecret(ctx, s)
}

// read takes in annotations, and reports whether they name a founder.
func (f *Founding) read(a map[string]string) (named bool, err error) {
	if a[annotationFounder] == "" && a[annotationFounded] == "" {
		return false, nil
	}
	if f.Founder, err = peer.ParseID(a[annotationFounder]); err != nil {
		return true, fmt.Errorf("%s: %w", annotationFounder, err)
	}
	if f.Universe, err = parseUniverse(a[annotationUniverse]); err != nil {
		return true, fmt.Errorf("%s: %w", annotationUniverse, err)
	}
	f.Node, f.UID, f.Founded = a[annotationNode], a[annotationUID], a[annotationFounded] == "true"
	return true, nil
}

func (f Founding) write(s *core.Secret) {
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	maps.Copy(s.Annotations, map[string]string{
		annotationFounder: f.Founder.String(), annotationNode: f.Node, annotationUID: f.UID, annotationUniverse: f.Universe.String(),
	})
	if f.Founded {
		s.Annotations[annotationFounded] = "true"
	}
}

func parseUniverse(text string) (u slot.Universe, err error) {
	four, six, _ := strings.Cut(text, ",")
	if u.V4, err = words.Prefix(four); err != nil {
		return u, err
	}
	if u.V6, err = words.Prefix(six); err != nil {
		return u, err
	}
	return u, u.Validate()
}
