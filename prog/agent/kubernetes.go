package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/kube"
	"weft/prog/state"
	"weft/router/link"
)

// KubernetesOptions say where the API server is, if this host is a Node of a cluster: then
// policies, namespaces, pods and peers are what that says, and a Secret there founds the ring.
type KubernetesOptions struct {
	On        bool
	Config    string // a kubeconfig file; empty: as for a pod, from its service account
	Node      string // the name of this host's Node object
	Namespace string // of the Secret; empty: the pod's own, else kube.DefaultNamespace
}

// kubeCluster is what an agent has of its Kubernetes cluster.
type kubeCluster struct {
	client    *kube.Client
	report    *kube.Reporter
	node      string
	namespace string
	founding  kube.Founding // kept from when this host made its ring; zero if it joined in another way
	noded     chan struct{} // Nodes may have changed

	mu       sync.Mutex
	own      kube.Node // as it was seen last, also while it is deleted
	warnings []warning // that stand until they are taken back
}

// makeKube makes what follows the API server, under Kubernetes.
func (a *Agent) makeKube() error {
	o := a.opts.Kubernetes
	if !o.On {
		return nil
	}
	config, err := kube.Connect(o.Config)
	if err != nil {
		return err
	}
	known, err := a.store.Kubernetes()
	if err != nil {
		return err
	}
	c := &kubeCluster{node: nodeName(o.Node), namespace: kube.Namespace(o.Namespace), noded: make(chan struct{}, 1)}
	if c.client, err = kube.NewClient(config); err != nil {
		return err
	}
	c.report = kube.NewReporter(c.client, c.node, a.log)
	if a.settings.Founding != nil {
		c.founding = *a.settings.Founding
	}
	a.cluster = c
	a.kube, err = kube.New(kube.Config{
		API: config, Node: c.node, Kept: known, Log: a.log,
		Save: func(data []byte) error { return a.store.SaveKubernetes(data) }, // newIdentity replaces the store
		Changed: func() {
			a.policiesChanged()
			a.rename() // labels of pods here
			select {
			case c.noded <- struct{}{}:
			default:
			}
		},
	})
	return err
}

// nodeName is the name of this host's Node object, unless it was given.
func nodeName(given string) string {
	if given != "" {
		return given
	}
	if name := os.Getenv("NODE_NAME"); name != "" {
		return name
	}
	name, _ := os.Hostname() // empty: then no pod is found, which is said
	return strings.ToLower(name)
}

// ownNode is this host's Node as it was seen last; the zero one before that. While it is
// deleted it is the last one that there was, which others know this peer by.
func (a *Agent) ownNode() kube.Node {
	if a.cluster == nil {
		return kube.Node{}
	}
	a.cluster.mu.Lock()
	defer a.cluster.mu.Unlock()
	if st := a.kube.State(); st != nil && st.Nodes[a.cluster.node].UID != "" {
		a.cluster.own = st.Nodes[a.cluster.node]
	}
	return a.cluster.own
}

// nickname is what people call this host.
func (a *Agent) nickname() string {
	if a.cluster == nil {
		return a.opts.Nickname
	}
	return a.cluster.node[:min(len(a.cluster.node), peer.MaxNickname)]
}

// bootstrap gives this host the cluster's secret and ring, if it has none. With a ring it
// needs neither the API server nor the Secret to start.
func (a *Agent) bootstrap(ctx context.Context) error {
	if a.cluster == nil {
		return nil
	}
	st, err := a.store.Load()
	if err != nil {
		return err
	}
	if len(st.Ring) == 0 {
		if err := a.joinCluster(ctx); err != nil {
			return err
		}
		if st, err = a.store.Load(); err != nil {
			return err
		}
	}
	r, err := ring.Restore(st.Ring)
	if err != nil {
		return fmt.Errorf("agent: stored ring: %w", err)
	}
	// It was decided when the ring was founded.
	if asked := a.opts.Universe.asked(); asked.V4.IsValid() && asked.V4 != r.Universe.V4 || asked.V6.IsValid() && asked.V6 != r.Universe.V6 {
		a.warn(kube.ReasonUniverseFixed, fmt.Sprintf("the network's addresses are %v since it was founded, and WEFT_IPALLOC_RANGE (--ipalloc-range) has no effect any more: take it back, or remove Weft from all nodes (`weft reset`) and found it anew", r.Universe))
	}
	a.opts.Universe = Ranges{V4: r.Universe.V4, V6: r.Universe.V6}
	return nil
}

// joinCluster waits for the cluster's Secret, or makes it, and makes the ring that follows
// from it.
func (a *Agent) joinCluster(ctx context.Context) error {
	c := a.cluster
	f, mine, err := (&kube.Bootstrap{
		Client: c.client, Namespace: c.namespace, Node: c.node, Self: a.self(), Random: rand.Reader, Log: a.log,
		Universe: a.chooseUniverse, Answers: a.answers, Waiting: a.setWaiting,
	}).Run(ctx)
	if _, refused := errors.AsType[*kube.RefusedError](err); refused {
		a.lastWord(ctx, kube.ReasonInvalidSetting, err)
	}
	if err != nil {
		return err
	}
	kept, err := readSecret(filepath.Join(a.opts.StateDir, SecretFile))
	switch {
	case err == nil && kept != f.Token:
		err := fmt.Errorf("this host has the secret of another cluster already (%s): empty that folder, if it shall leave that one", a.opts.StateDir)
		a.lastWord(ctx, kube.ReasonSecret, err)
		return err
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if f.Founder == a.self() && !mine {
		// It said so in an earlier run, and ended before it had the ring on its disk. Others may
		// have taken over since what that founder owns: this host is a new peer.
		a.log.Warn("this host founded the ring and did not keep it: it joins as a new peer", "was", fmt.Sprintf("%v(%s)", a.self(), a.opts.Nickname))
		if err := a.newIdentity(); err != nil {
			return err
		}
	}
	if err := writeSecret(filepath.Join(a.opts.StateDir, SecretFile), f.Token); err != nil {
		return err
	}
	c.founding, a.settings.Founding = f, &f
	if err := a.store.SaveSettings(a.settings); err != nil {
		return err
	}
	a.token = f.Token
	r, err := seeded(f.Token.Cluster, f.Universe, []peer.ID{f.Founder})
	if err != nil {
		return err
	}
	a.log.Info("the cluster's ring", "ring", r.ID, "universe", f.Universe, "founder", f.Node, "mine", mine)
	if err := a.store.Update(ipam.Change{Ring: r.Encode()}); err != nil {
		return err
	}
	if c.own, err = c.client.Node(ctx, c.node); err != nil {
		a.log.Warn("cannot read this host's Node", "err", err) // the watch will tell
	}
	return nil
}

// chooseUniverse is what this host takes for the universe if it founds.
func (a *Agent) chooseUniverse(ctx context.Context, cluster secret.ClusterID) (slot.Universe, error) {
	u, err := a.cluster.client.Universe(ctx, a.opts.Universe.asked(), cluster)
	if err != nil {
		return u, err
	}
	if err := link.Overlap(u); err != nil {
		return u, &kube.RefusedError{Err: err}
	}
	return u, a.checkGossipPort()
}

// answers reports whether an agent has its gossip port open at an address: it waits in silence
// for who connects. A port that is closed at once is checkGossipPort's, of another host that
// is about to found.
func (a *Agent) answers(ctx context.Context, addr netip.Addr) bool {
	dialer := net.Dialer{Timeout: time.Second}
	c, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, uint16(a.opts.GossipPort)).String())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = c.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// checkGossipPort keeps a host from founding that nobody could then hear of: all others would
// wait for its addresses.
func (a *Agent) checkGossipPort() error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", a.opts.GossipPort))
	if err != nil {
		return fmt.Errorf("this host does not found the ring while its gossip port is taken: find the program with `ss -lntup sport = :%d`, or choose another port on all hosts with WEFT_PORT (--port): %w", a.opts.GossipPort, err)
	}
	return l.Close()
}

// newIdentity replaces a state without a ring, which is worth nothing but its identity.
func (a *Agent) newIdentity() error {
	if err := a.store.Close(); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(a.opts.StateDir, state.File))
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if a.store, err = state.Open(a.opts.StateDir); err != nil {
		return err
	}
	return a.makeKeys()
}

// runCluster starts what an agent does in a Kubernetes cluster.
func (a *Agent) runCluster(ctx context.Context, group *errgroup.Group) {
	if a.cluster == nil {
		return
	}
	group.Go(func() error { return a.kube.Run(ctx) })
	group.Go(func() error { return a.cluster.report.Run(ctx) })
	group.Go(func() error { return a.tellWarnings(ctx) })
	group.Go(func() error { return a.followNodes(ctx) })
	group.Go(func() error { return a.keepSecret(ctx) })
	group.Go(func() error { return a.checkProxy(ctx) })
	group.Go(func() error { return a.sayAvailable(ctx) })
	group.Go(func() error { return a.reclaim(ctx) })
}

// nodeTargets are the addresses of the other Nodes, of the families that this one has.
func nodeTargets(nodes map[string]kube.Node, self string) (out []string) {
	own := nodes[self].Addrs
	for name, n := range nodes {
		for _, addr := range n.Addrs {
			same := func(o netip.Addr) bool { return o.Is4() == addr.Is4() }
			if name != self && !slices.Contains(own, addr) && (len(own) == 0 || slices.ContainsFunc(own, same)) {
				out = append(out, addr.String())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// followNodes joins the cluster's Nodes, as they come and go. While the API server is down
// they are those that were there last.
func (a *Agent) followNodes(ctx context.Context) error {
	var last []string
	for first := true; ; first = false {
		if st := a.kube.State(); st != nil && st.Live {
			if now := nodeTargets(st.Nodes, a.cluster.node); first || !slices.Equal(now, last) {
				if err := a.mesh.Connect(now, true); err != nil {
					a.log.Warn("cannot join the cluster's Nodes", "err", err)
				} else {
					last = now
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.cluster.noded:
		}
	}
}

// again tries until the API server has answered, ever more rarely.
func (a *Agent) again(ctx context.Context, what string, try func() error) error {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		err := try()
		if _, refused := errors.AsType[*kube.RefusedError](err); err == nil || refused {
			return err
		}
		if ctx.Err() == nil {
			a.log.Warn(what, "err", err)
		}
		sleep(ctx, wait)
	}
	return nil
}

// keepSecret keeps the cluster's Secret as the nodes need it that come later.
func (a *Agent) keepSecret(ctx context.Context) error {
	own := a.cluster.founding
	own.Token = a.token
	return (&kube.Keeper{
		Client: a.cluster.client, Namespace: a.cluster.namespace, Own: own, Supervised: a.opts.Kubernetes.Config == "", Log: a.log,
		Problem: a.oneWarning(kube.ReasonSecret),
		Restored: func(what string) {
			a.log.Warn(what)
			a.cluster.report.Tell(kube.ReasonSecretRestored, what)
		},
	}).Run(ctx)
}

// How often kube-proxy's configuration is read again: what was mended is out of the status soon, and all nodes together
// ask little of the API server.
const (
	proxyWrong = 15 * time.Second
	proxyRight = 5 * time.Minute
)

// checkProxy looks whether kube-proxy knows where pods are, for as long as the agent runs.
func (a *Agent) checkProxy(ctx context.Context) error {
	said, tell := "", a.oneWarning(kube.ReasonMismatch)
	for ctx.Err() == nil {
		why := said
		err := a.again(ctx, "cannot compare kube-proxy's clusterCIDR with the universe", func() error {
			p, err := a.cluster.client.Proxy(ctx)
			if err == nil {
				why = p.Mismatch(a.opts.Universe.asked(), a.ipv6)
			}
			return err
		})
		if err != nil {
			return err
		}
		tell(why)
		said = why
		wait := proxyRight
		if said != "" {
			wait = proxyWrong
		}
		sleep(ctx, wait)
	}
	return nil
}
