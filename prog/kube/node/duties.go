package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/ipam/slot"
	"weft/mesh"
	"weft/prog/kube"
	"weft/router/problem"
)

// Mesh connects to other hosts.
type Mesh interface {
	Connect(hosts []string, replace bool) error
	Targets() []mesh.Target
}

// Duties configures the agent's duties to its cluster, once it has a ring.
type Duties struct {
	Mesh     Mesh
	Founding kube.Founding // stored when this host made its ring; includes its token
	Universe slot.Universe
	IPv6     bool
	// NotReady returns why this host cannot attach pods; empty if it can.
	NotReady func() string
	// Problems returns the problems that affect users of this host.
	Problems func(context.Context) ([]problem.Problem, error)
}

// Run performs the duties until ctx ends.
func (n *Node) Run(ctx context.Context, d Duties) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.Source.Run(ctx) })
	group.Go(func() error { return n.Report.Run(ctx) })
	group.Go(func() error { return n.tellProblems(ctx, d) })
	group.Go(func() error { return n.followNodes(ctx, d.Mesh) })
	group.Go(func() error { return n.keepSecret(ctx, d.Founding) })
	group.Go(func() error { return n.checkProxy(ctx, d) })
	group.Go(func() error { return n.sayAvailable(ctx, d.NotReady) })
	return group.Wait()
}

// targets returns the addresses of the other Nodes, of the families that this one has.
func targets(nodes map[string]kube.Node, self string) (out []string) {
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

// followNodes connects to the cluster's Nodes. While the API server is down, it uses the last known
// Nodes.
func (n *Node) followNodes(ctx context.Context, m Mesh) error {
	var last []string
	for joined := false; ; { // connect even if there are no other Nodes: this replaces the last run's targets
		if st := n.Source.State(); st != nil && st.Live {
			if now := targets(st.Nodes, n.cfg.Name); !joined || !slices.Equal(now, last) {
				if err := m.Connect(now, true); err != nil {
					n.cfg.Log.Warn("cannot join the cluster's Nodes", "err", err)
				} else {
					last, joined = now, true
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.noded:
		}
	}
}

// Expected returns the targets that should answer: those of Nodes that are ready.
func (n *Node) Expected(targets []mesh.Target) []mesh.Target {
	state := n.Source.State()
	if state == nil {
		return targets
	}
	ready := map[string]bool{}
	for _, other := range state.Nodes {
		for _, addr := range other.Addrs {
			ready[addr.String()] = other.Ready
		}
	}
	return slices.DeleteFunc(targets, func(t mesh.Target) bool { return !ready[t.Host] })
}

// again repeats try until the API server answers or refuses, with growing pauses.
func (n *Node) again(ctx context.Context, what string, try func() error) error {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		err := try()
		if _, refused := errors.AsType[*kube.RefusedError](err); err == nil || refused {
			return err
		}
		if ctx.Err() == nil {
			n.cfg.Log.Warn("a request to the API server failed: it is repeated", "for", what, "err", err)
		}
		kube.Sleep(ctx, wait)
	}
	return nil
}

// keepSecret restores a missing or outdated Secret, with which new nodes join, and reports one of
// another network.
func (n *Node) keepSecret(ctx context.Context, own kube.Founding) error {
	tell := n.one()
	return (&kube.Keeper{
		Client: n.Client, Namespace: n.cfg.Namespace, Own: own, Supervised: n.cfg.Kubeconfig == "", Log: n.cfg.Log,
		Problem: func(text string) {
			p := problem.Problem{}
			if text != "" {
				p = problem.Problem{Reason: kube.ReasonSecret, What: text}
			}
			tell(p)
		},
		Restored: func(what string) {
			n.cfg.Log.Warn("the cluster's Secret was restored", "why", what)
			n.Report.Tell(kube.ReasonSecretRestored, what)
		},
	}).Run(ctx)
}

// Intervals at which kube-proxy's configuration is read again: short while there is a problem, so
// that its warning disappears soon, and otherwise long, to save the API server work.
const (
	proxyWrong = 15 * time.Second
	proxyRight = 5 * time.Minute
)

// checkProxy checks until ctx ends whether kube-proxy is configured with Weft's pod addresses.
func (n *Node) checkProxy(ctx context.Context, d Duties) error {
	var said problem.Problem
	tell := n.one()
	for ctx.Err() == nil {
		err := n.again(ctx, "kube-proxy's clusterCIDR", func() error {
			p, err := n.Client.Proxy(ctx)
			if err == nil {
				said = p.Mismatch(d.Universe, d.IPv6)
			}
			return err
		})
		if err != nil {
			return err
		}
		tell(said)
		wait := proxyRight
		if said != (problem.Problem{}) {
			wait = proxyWrong
		}
		kube.Sleep(ctx, wait)
	}
	return nil
}

// sayAvailable sets the Node's condition NetworkUnavailable to False once this host is ready, and
// again if another program changes it. That condition shows other nodes that there is a network.
func (n *Node) sayAvailable(ctx context.Context, notReady func() string) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			st, own := n.Source.State(), n.Own()
			if now.Before(next) || st == nil || !st.Live || own.Up || notReady() != "" {
				continue
			}
			next = now.Add(30 * time.Second) // the watch reports the change long before
			if own.Unavailable == "False" {
				next = now.Add(10 * time.Minute) // another program set it to False too, and may do so again
			}
			if err := n.Report.SetAvailable(ctx); err != nil && ctx.Err() == nil {
				n.cfg.Log.Warn("cannot clear the condition NetworkUnavailable of this Node", "err", err)
			}
		}
	}
}
