package agent

import (
	"context"

	"golang.org/x/sync/errgroup"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/attach"
	"weft/prog/agent/enforce"
	"weft/prog/agent/founding"
	"weft/prog/agent/policyview"
	"weft/prog/agent/underlay"
	"weft/prog/kube/node"
	"weft/prog/kube/reclaim"
	"weft/router/problem"
)

// host has the parts of an agent that differ between a plain host and a Node of a Kubernetes cluster.
type host struct {
	nickname string
	rejoin   string // the beginning of a sentence: how a host leaves its ring and joins another
	founder  founding.Founder
	node     func() underlay.Node // returns this host's Node in Kubernetes
	pods     attach.Pods
	// rules makes the source of policies.
	rules func(documents *mesh.Documents, name func(peer.ID) string, changed func()) rules
	// expected returns the targets that should answer.
	expected func([]mesh.Target) []mesh.Target
	problems func() []problem.Problem
	// run performs the duties of a cluster's agent until ctx ends.
	run func(context.Context, *parts) error
}

// rules has the source of policies.
type rules struct {
	source  enforce.Source
	origin  policyview.Origin
	changed func() // called when the documents may have changed
}

// host returns the parts that differ between plain hosts and Nodes.
func (r *run) host() (host, error) {
	if r.opts.Kubernetes.On {
		return r.onNode()
	}
	return host{
		nickname: r.opts.Nickname,
		rejoin:   "run `weft reset`, and then `weft launch --token - HOST` with HOST of the first ring,",
		founder:  founding.Plain{Options: r.opts, Store: r.store, Seek: r.discover.Seek},
		node:     func() underlay.Node { return underlay.Node{} },
		pods:     attach.NoPods{},
		rules: func(documents *mesh.Documents, name func(peer.ID) string, changed func()) rules {
			source := enforce.NewDocuments(documents, name)
			return rules{source, policyview.FromDocuments(source, documents, name), func() {
				source.Set(struct{}{})
				changed()
			}}
		},
		expected: func(all []mesh.Target) []mesh.Target { return all },
		problems: func() []problem.Problem { return nil },
		run:      func(ctx context.Context, _ *parts) error { <-ctx.Done(); return nil },
	}, nil
}

// onNode returns the parts for a host that is a Node.
func (r *run) onNode() (h host, err error) {
	o := r.opts.Kubernetes
	var source *enforce.Kubernetes
	n, err := node.New(node.Config{
		Kubeconfig: o.Config, Name: node.Name(o.Node), Namespace: o.Namespace, Store: r.store, Log: r.opts.Log,
		Changed: func() {
			r.apiChanged()
			source.Set(struct{}{})
			r.board.Wake()
		},
	})
	if err != nil {
		return h, err
	}
	source = enforce.NewKubernetes(n.Source, r.ipv6)
	return host{
		nickname: n.Nickname(),
		rejoin:   "empty /var/lib/weft and delete the agent's pod, which then joins the network that the Secret names,",
		founder: founding.Kubernetes{
			Options: r.opts, Store: r.store, Settings: r.settings, Node: n, Log: r.opts.Log,
			Waiting: func(ctx context.Context, why string) {
				r.board.Await(why)
				n.Waiting(ctx, why, r.started)
			},
		},
		node: func() underlay.Node {
			own := n.Own()
			return underlay.Node{UID: own.UID, Addrs: own.Addrs}
		},
		pods: n,
		rules: func(*mesh.Documents, func(peer.ID) string, func()) rules {
			return rules{source, policyview.FromKubernetes(source, n.Source.Server()), func() {}}
		},
		expected: n.Expected,
		problems: n.Problems,
		run:      func(ctx context.Context, p *parts) error { return r.runNode(ctx, n, p) },
	}, nil
}

// runNode does the duties of a Node's agent, until ctx ends.
func (r *run) runNode(ctx context.Context, n *node.Node, p *parts) error {
	f := p.founding.Kubernetes
	reclaimer := reclaim.New(reclaim.Config{
		Self: p.founding.Trust.Self, Mesh: p.mesh, Ring: p.ipam, Source: n.Source, Client: n.Client, Report: n.Report, Founding: f, Log: r.opts.Log,
		Remove: func(ctx context.Context, id peer.ID) (uint64, error) { return p.control.Remove(ctx, id, true) },
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return reclaimer.Run(ctx) })
	group.Go(func() error {
		return n.Run(ctx, node.Duties{
			Mesh: p.mesh, Founding: f, Universe: p.founding.Universe.Asked(), IPv6: r.ipv6, NotReady: r.board.Why, Problems: p.status.Problems,
		})
	})
	return group.Wait()
}
