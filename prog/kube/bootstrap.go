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

// The Secret's name and keys. An operator may create it beforehand, with only a token.
const (
	SecretName       = "weft"
	DefaultNamespace = "weft"

	tokenKey = "token" // the key in the Secret's data: secret.Token in the format of Reveal

	annotationFounder  = "weft.dev/founder"      // the founder's PeerID
	annotationNode     = "weft.dev/founder-node" // the name of the founder's Node
	annotationUID      = "weft.dev/founder-uid"  // the UID of the founder's Node
	annotationUniverse = "weft.dev/universe"     // the universe: CIDR,CIDR6
	annotationFounded  = "weft.dev/founded"      // "true" forever, once the ring may be in use
)

// namespaceFile contains the namespace of a pod.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Namespace returns the namespace of the Secret: the given one, else the pod's own.
func Namespace(given string) string {
	if given != "" {
		return given
	}
	data, err := os.ReadFile(namespaceFile)
	if name := strings.TrimSpace(string(data)); err == nil && name != "" {
		return name
	}
	return DefaultNamespace // not in a pod
}

// Founding is the content of the Secret. A node derives its ring from it.
type Founding struct {
	Token    secret.Token `json:"-"`
	Universe slot.Universe
	Founder  peer.ID
	Node     string // name of the founder's Node
	UID      string // UID of the founder's Node
	Founded  bool   // true once the founder has founded: the content never changes again
}

// RefusedError means that the cluster cannot be founded or joined with these settings. Trying again
// does not help.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// Bootstrap makes all nodes of a cluster agree on one Founding through the API server:
//
//	no Secret ──create──▶ founder named ──"founded" by the founder──▶ founded
//	   (or one with                │  ▲
//	    a token only)              └──┘ another founder, if the named founder's Node
//	                                    is gone, or its disk: a new disk has a new peer id
//
// Each arrow is a request that the API server accepts from only one node: a create, or an update
// with the resourceVersion that was read. No node uses a ring before the last arrow, so there is
// never a second ring. No node takes an arrow while another Node shows that the cluster has a
// network. In that case the Secret was deleted or is older than the network, and the agents of that
// network restore the Secret (Keeper).
type Bootstrap struct {
	Client    *Client
	Namespace string
	Node      string  // name of this host's Node
	Self      peer.ID // id of this peer
	Random    io.Reader
	// Universe chooses the cluster's universe; only a founder calls it.
	Universe func(context.Context, secret.ClusterID) (slot.Universe, error)
	// Answers reports whether an agent accepts connections on the gossip port of an address. Agents
	// do so only once they have a ring.
	Answers func(context.Context, netip.Addr) bool
	Log     *slog.Logger
	// Waiting is called with a message about what Run waits for.
	Waiting func(ctx context.Context, why string)

	pause  time.Duration // shorter in tests
	marked time.Time     // time of the last request to set "founded", whose answer may be lost
}

// trust limits the time between a founder's request to set "founded" and its reading of "founded". After
// that time, Run does not return mine, since other peers may have taken over the founder's addresses:
// they wait longer for a peer that they never heard (silence in package reclaim).
const trust = 20 * time.Second

// errAgain means that the Secret was written, here or by a faster node, and must be read again.
var errAgain = errors.New("the Secret keeps changing: check which other program writes it")

// waitError names the node for which this node waits.
type waitError struct{ node string }

func (e *waitError) Error() string {
	return fmt.Sprintf("waiting for the node %s, which founds the ring: see the log of its agent; if that node is gone for good, run `kubectl delete node %s`", e.node, e.node)
}

// existsError names a Node that shows that there is a network, although the Secret does not.
type existsError struct{ namespace, node, how string }

func (e *existsError) Error() string {
	return fmt.Sprintf("the Secret %s/%s does not describe the network that the node %s is in (%s): this host cannot join it, and does not found another one. Make sure that the agents of that network run: they restore the Secret. If the node has no agent and its network is gone for good: `kubectl delete node %s`, or `kubectl patch node %[3]s --subresource=status -p '%[6]s'`",
		e.namespace, SecretName, e.node, e.how, e.node, takenBack)
}

// Run returns the founding. It retries until ctx ends or a RefusedError. If mine is true, this call
// founded the network, so no other peer can have used this peer's addresses.
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
		Sleep(ctx, delay/2+rand.N(delay))
		delay = min(2*delay, 15*first)
	}
}

// maxAgain is how often the Secret is read again at once. If it never contains what was written,
// another program changes it.
const maxAgain = 20

// pause is the approximate pause after a failed request. It grows up to 15-fold, since all nodes of a
// large cluster may wait for one server.
const pause = time.Second

// Sleep waits for d, or until ctx ends.
func Sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// step reads the Secret and takes the next step.
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
	case f.Founder == b.Self || f.UID == own.UID: // this host's Node was registered again, or the host's disk was lost
		return f, false, b.claim(ctx, s, f.Token.Cluster)
	}
	switch founder, err := b.Client.Node(ctx, f.Node); {
	case apierrors.IsNotFound(err) || err == nil && founder.UID != f.UID:
		b.Log.Warn("the node that should found the ring is gone: this node tries to found it", "node", f.Node, "uid", f.UID)
		return f, false, b.claim(ctx, s, f.Token.Cluster)
	case err != nil:
		return f, false, err
	}
	return f, false, &waitError{f.Node}
}

func ownNodeError(name string, err error) error {
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("there is no Node %s for this host: the kubelet registers it; if it has another name, set NODE_NAME or --node-name: %w", name, err)
	}
	return err
}

// alone returns an existsError if another Node shows that there is a network. This host's own Node
// can only have an outdated condition, which is removed. So a network can be founded again if the
// disks of all nodes are lost.
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
	group, ctx := errgroup.WithContext(ctx) // the first Node that answers cancels the other attempts
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

// answersAtOnce limits how many Nodes are tried at the same time.
const answersAtOnce = 64

// create creates the Secret with a new token and this node as founder.
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

// claim sets this node as the founder in a Secret that was read.
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

// mark sets "founded" in a Secret that was read without it. The Secret is read again afterwards,
// whatever the answer.
func (b *Bootstrap) mark(ctx context.Context, s *core.Secret) error {
	if err := b.alone(ctx); err != nil {
		return err
	}
	s.Annotations[annotationFounded] = "true"
	b.marked = time.Now()
	return b.Client.writeSecret(ctx, s)
}

// read parses annotations, and reports whether they name a founder.
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
