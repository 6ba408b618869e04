package agent

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/agent/dryrun"
	"weft/prog/agent/metric"
	"weft/prog/agent/ready"
	"weft/prog/agent/statedir"
	"weft/prog/agent/underlay"
)

// conditions returns the conditions under which containers can be attached, the most basic one first.
func (p *parts) conditions(stateDir string) []ready.Condition {
	check := func(f func() error) func(context.Context) error {
		return func(context.Context) error { return f() }
	}
	return []ready.Condition{
		{Component: "membership", Effect: "a new container would reach no other host", Check: check(p.membership.Check)},
		{Component: "underlay", Effect: "other hosts would not find this host", Check: check(p.underlay.Check)},
		{Component: "datapath", Effect: "a new container could not send or receive", Check: check(p.datapath.Check)},
		{Component: "attach", Effect: "a new container could get an address that is in use", Check: check(p.attached.Check)},
		{Component: "policies", Effect: "a new container would not be isolated", Check: check(p.rules.source.Unknown)},
		{Component: "disk", Effect: "the address of a new container could not be kept", Check: check(func() error { return statedir.CheckDisk(stateDir) })},
		{Component: "paths", Effect: "a new container would reach no other host", Check: check(p.paths.Check)},
		{Component: "cni", Effect: "the container runtime would not call Weft", Check: p.cni.Install},
	}
}

// replicate gives the mesh the states that it replicates, and the handlers of other peers' requests.
func (p *parts) replicate(try *dryrun.DryRun) {
	p.mesh.Replicate(p.directory)
	p.mesh.Replicate(p.documents)
	p.mesh.Replicate(p.ipam)
	p.mesh.Replicate(p.ipam.Votes())
	for kind, h := range p.directory.Handlers() {
		p.mesh.Handle(kind, h)
	}
	for kind, h := range p.documents.Handlers() {
		p.mesh.Handle(kind, h)
	}
	for _, handlers := range []map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		p.ipam.Handlers(), p.pairs.Handlers(), p.policies.Handlers(), p.explain.Handlers(), p.flows.Handlers(), try.Handlers(), p.network.Handlers(), p.check.Handlers(), p.matrix.Handlers(), p.trace.Handlers(), p.bundle.Handlers(),
	} {
		for kind, h := range handlers {
			p.mesh.Handle(kind, mesh.Handler(h))
		}
	}
}

// start runs the components until ctx ends or one of them fails. The first view exists before any
// other component runs: the first plan is made of stored values, not of gossip.
func (p *parts) start(ctx context.Context, r *run, h host, group *errgroup.Group, open func()) error {
	group.Go(func() error { return p.ipam.Run(ctx) })
	if _, err := p.view.Refresh(ctx); err != nil {
		r.stop()
		return cmp.Or(group.Wait(), unlessStopped(err))
	}
	open() // from now on the agent serves a runtime's DEL
	run := func(parts ...func(context.Context) error) {
		for _, part := range parts {
			group.Go(func() error { return part(ctx) })
		}
	}
	in := underlay.Inputs{Mesh: p.mesh, NodeAddr: &p.nodeaddr.Value, View: &p.view.Value}
	run(
		p.mesh.Run, p.membership.Run, p.pairs.Run, p.directory.Run, p.documents.Run, p.view.Run, p.nodeaddr.Run,
		func(ctx context.Context) error { return p.underlay.Run(ctx, in) },
		r.board.Run,
	)
	p.attached.Look(ctx) // must come before the first plan changes the kernel
	run(
		p.attached.Run, p.unattached.Run, p.enforce.Run, p.publish.Run, p.datapath.Run, p.datapath.WatchTable, p.measure.Run, p.links.Run, p.paths.Run, p.matrix.Run,
		func(ctx context.Context) error { return p.drops.Run(ctx, r.opts.Log) }, p.flows.Run, p.trace.Run,
		func(ctx context.Context) error { return r.discover.Follow(ctx, p.mesh, &p.view.Value) },
		func(ctx context.Context) error { return h.run(ctx, p) },
	)
	// The name server keeps answering while the agent announces its stop, so that a restart only
	// causes a short gap.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() { served <- p.resolver.Run(serving) }()
	err := group.Wait()
	stopServing()
	if err := <-served; err != nil {
		r.opts.Log.Warn("the name server ended", "err", err)
	}
	return err
}

// metrics returns a handler that serves the metrics of all components in Prometheus' text format.
func (r *run) metrics(p *parts) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, of := range []metric.Collector{
		r.board.Metrics, p.status.Metrics, p.view.Metrics, p.attached.Metrics, p.paths.Metrics, p.relays.Metrics, p.policies.Metrics, p.flows.Metrics, p.resolver.Metrics, p.datapath.Metrics, p.control.Metrics,
	} {
		registry.MustRegister(of)
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(r.opts.Log.Handler(), slog.LevelWarn)})
}
