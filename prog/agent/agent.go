package agent

import (
	"crypto/rand"
	"net/netip"
	"path/filepath"
	"time"

	"weft/ipam"
	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/attach"
	"weft/prog/agent/bundle"
	"weft/prog/agent/check"
	"weft/prog/agent/control"
	"weft/prog/agent/datapath"
	"weft/prog/agent/dryrun"
	"weft/prog/agent/enforce"
	"weft/prog/agent/explain"
	"weft/prog/agent/flowview"
	"weft/prog/agent/founding"
	"weft/prog/agent/links"
	"weft/prog/agent/matrix"
	"weft/prog/agent/measure"
	"weft/prog/agent/membership"
	"weft/prog/agent/names"
	"weft/prog/agent/network"
	"weft/prog/agent/nodeaddr"
	"weft/prog/agent/pairs"
	"weft/prog/agent/paths"
	"weft/prog/agent/plan"
	"weft/prog/agent/policyview"
	"weft/prog/agent/publish"
	"weft/prog/agent/relays"
	"weft/prog/agent/resolver"
	"weft/prog/agent/settings"
	"weft/prog/agent/statedir"
	"weft/prog/agent/status"
	"weft/prog/agent/trace"
	"weft/prog/agent/unattached"
	"weft/prog/agent/underlay"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/cni/install"
	"weft/router"
	"weft/router/link"
	"weft/router/probe"
	"weft/router/wg"
)

// parts are the components of a running agent.
type parts struct {
	founding   founding.Founding
	settings   *settings.Settings
	underlay   *underlay.Underlay
	membership *membership.Membership
	mesh       *mesh.Mesh
	directory  *mesh.Directory
	documents  *mesh.Documents
	pairs      *pairs.Pairs
	ipam       *ipam.Allocator
	view       *view.Watcher
	nodeaddr   *nodeaddr.Claimer
	router     *router.Router
	attached   *attach.Attachments
	unattached *unattached.Containers
	rules      rules
	enforce    *enforce.Enforcer
	publish    *publish.Publisher
	measure    *measure.Measure
	relays     *relays.Relays
	links      *links.Links
	datapath   *datapath.Datapath
	paths      *paths.Paths
	resolver   resolver.Resolver
	names      *names.Service
	drops      *explain.Drops
	flows      *flowview.View
	explain    *explain.Explainer
	policies   *policyview.View
	cni        *install.Installer
	status     *status.Reporter
	network    *network.Overview
	check      *check.Checker
	matrix     *matrix.Matrix
	trace      *trace.Tracer
	bundle     *bundle.Collector
	control    *control.Server
}

// wire makes the components, each from those above it. The picture of the agent in
// site/docs/architecture.md shows which component uses which: each arrow is a field of a Config here.
// Only the callbacks of the network (Changed, Owns, Best, Relays, Inside, Tunnels, Heard) use components that are made later.
func (r *run) wire(h host) (*parts, error) {
	p := &parts{founding: r.founding, settings: r.settings}
	if err := r.wireNetwork(h, p); err != nil {
		return nil, err
	}
	if err := r.wireKernel(h, p); err != nil {
		return nil, err
	}
	r.wireQueries(h, p)
	return p, nil
}

// wireNetwork makes the components that hold what other peers announce: the replicated states, and the
// view of them.
func (r *run) wireNetwork(h host, p *parts) (err error) {
	o, t, log, asked := r.opts, r.founding.Trust, r.opts.Log, r.founding.Universe.Asked()
	p.underlay = underlay.New(underlay.Config{
		Watch: r.watch, Last: r.stored.addrs, Universe: asked, Advertise: o.Advertise, MTU: o.MTU, Node: h.node,
	})
	if err := p.underlay.Look(); err != nil {
		return err
	}
	p.membership = membership.New(membership.Config{Trust: t, Random: rand.Reader, Log: log})
	p.mesh, err = mesh.New(mesh.Config{
		Identity: t.Keys.Identity, Record: r.record(p.underlay.Get(), h), Root: t.Root, Certificate: t.Certificate, GossipKey: t.GossipKey(),
		Universe: asked, Targets: r.founding.Targets, Peers: r.stored.peers, Store: r.store, Port: o.GossipPort, Log: log,
		Changed: func() { p.view.Wake() }, Owns: func(id peer.ID) bool { return r.owns(p.view.Get(), id) },
		Banned: p.membership.Banned, Admit: p.membership.Admitter(),
		NoDiscovery: o.NoDiscovery, NoRelay: o.NoRelay,
		Relays: func(id peer.ID) []peer.ID { return p.links.Relays(id, nil) },
		Best:   func(id peer.ID) netip.Addr { return p.measure.Best(id) },
		Inside: func(id peer.ID) []netip.Addr { return plan.Inside(p.view.Get(), p.datapath.Tunnels(), id, r.ipv6) },
	})
	if err != nil {
		return err
	}
	p.directory, err = mesh.NewDirectory(mesh.DirectoryConfig{
		Identity: t.Keys.Identity, Mesh: p.mesh, Store: r.store, Sets: r.stored.sets, Log: log,
		Wanted: func(id peer.ID) bool { return p.view.Get().Counts(id) }, Changed: func() { p.enforce.Wake() },
		Settle: func() error { return p.enforce.Settle() }, // a new endpoint must not inherit the permissions of an earlier endpoint with its address
	})
	if err != nil {
		return err
	}
	p.documents, err = mesh.NewDocuments(mesh.DocumentsConfig{
		Identity: t.Keys.Identity, Mesh: p.mesh, Store: r.store, Documents: r.stored.documents, Synced: r.stored.synced, Now: time.Now, Log: log,
		Changed: func() { p.rules.changed(); p.membership.Wake(); p.links.Wake() }, Refuse: p.membership.Refuse,
	})
	if err != nil {
		return err
	}
	p.membership.Documents, p.membership.Mesh = p.documents, p.mesh
	p.membership.Load()
	p.pairs, err = pairs.New(pairs.Config{
		Self: t.Self, Holds: t.Holds(), Shared: t.PresharedKey, Mesh: p.mesh, Store: r.store, Random: rand.Reader, Log: log, Changed: func() { p.view.Wake() },
	})
	if err != nil {
		return err
	}
	p.ipam = ipam.New(ipam.Config{
		Self: t.Self, Store: r.store, Mesh: p.mesh, Log: log, Found: r.founding.Ring, Elect: r.election(p.mesh), Cluster: t.Token.Cluster,
		Universe: asked, Excluded: p.settings.Get().Exclude, Rest: o.Rest, Held: p.directory.Taken, Listed: p.directory.Listed,
		Heard: func(id peer.ID) string { return p.paths.Heard(id) }, Changed: func() { p.view.Wake() },
	})
	p.view = view.New(view.Config{Self: t.Self, Ring: p.ipam, Mesh: p.mesh, Started: r.started, Rejoin: h.rejoin, Path: func(id peer.ID) (path.Path, bool) { return p.measure.Path(id) }})
	p.nodeaddr = nodeaddr.New(nodeaddr.Config{Stored: r.stored.node, IPAM: p.ipam, View: &p.view.Value, Log: log})
	return nil
}

// wireKernel makes the components that change this host: its endpoints, policies and data path.
func (r *run) wireKernel(h host, p *parts) (err error) {
	o, t, log, seen := r.opts, r.founding.Trust, r.opts.Log, &p.view.Value
	p.router = router.New(router.Options{Log: log, Watch: r.watch, Changing: r.store.SaveSysctl, StartDatapath: r.startDatapath})
	p.rules = h.rules(p.documents, p.mesh.Name, func() { r.board.Wake() })
	if p.resolver, err = resolver.New(resolver.Config{Self: t.Self, DNS: o.DNS, Names: p.inside(), IPv6: r.ipv6, Log: log}); err != nil {
		return err
	}
	p.unattached = &unattached.Containers{}
	p.attached, err = attach.New(attach.Config{
		Store: r.store, IPAM: p.ipam, Router: p.router, Pods: h.pods, Settings: p.settings, View: seen, Watch: r.watch,
		Log: log, IPv6: r.ipv6, Ready: r.board.Ready, Isolate: func() error { return p.enforce.Ensure() }, Resolver: p.resolver.Container,
		Short: func(name string) string { return p.names.Short(name) }, MTU: func() int { return p.datapath.MTU() }, Checked: r.board.Wake,
		Unattached: p.unattached, Releases: filepath.Join(o.StateDir, statedir.ReleaseDir),
	})
	if err != nil {
		return err
	}
	r.apiChanged = func() {
		p.attached.PodsChanged() // before the policies, which select pods by their new labels
		p.view.Wake()            // so that the next view has this host's Node as it is now
	}
	attached := &p.attached.Value
	p.enforce = enforce.New(enforce.Config{
		Self: t.Self, Source: p.rules.source, Directory: p.directory, Attached: attached, View: seen, Router: p.router, Exempt: o.Exempt, Log: log, IPv6: r.ipv6,
	})
	p.publish = publish.New(publish.Config{
		Directory: p.directory, Attached: attached, Settings: &p.settings.Value, NodeAddr: &p.nodeaddr.Value, View: seen, IPv6: r.ipv6, Log: log,
	})
	if err := r.wireMeasure(p); err != nil {
		return err
	}
	p.links = links.New(links.Config{
		Self: t.Self, Refuses: o.NoRelay, Documents: p.documents, Paths: &p.measure.Value, Relayed: &p.measure.Relayed, View: seen, Banned: p.membership.Expelled, Log: log,
	})
	p.datapath = datapath.New(datapath.Config{
		NoDiscovery: o.NoDiscovery, Targets: p.mesh.Targets,
		View: seen, Host: &p.underlay.Value, NodeAddr: &p.nodeaddr.Value, Attached: attached, Settings: &p.settings.Value, Paths: &p.measure.Value, Relayed: &p.measure.Relayed, Underlay: p.underlay,
		Router: p.router, PresharedKey: p.pairs.Key, Empty: p.rules.source.Empty, Isolate: p.enforce.Ensure, Applied: p.resolver.SetAddrs,
		Tried: r.board.Wake, Log: log, Fixed: plan.Fixed{
			PrivateKey: t.Keys.WireGuard, Port: o.Port, GossipPort: o.GossipPort, MTU: o.MTU, IPv6: r.ipv6, Resolver: !o.DNS.Off,
			StatusPort: o.PublicStatusPort(),
		},
	})
	p.paths = paths.New(paths.Config{
		View: seen, Started: r.started, Gossip: o.GossipPort, IPv6: r.ipv6, GivenMTU: o.MTU != 0, Tunnels: p.datapath.Tunnels, Measured: p.measure.Path, Rates: p.measure.Rates,
		Targets: p.mesh.Targets, Expected: func() []mesh.Target { return h.expected(p.mesh.Targets()) }, Observe: wg.Observe,
		Keyless: func(id peer.ID) bool { return p.pairs.Key(id) == [32]byte{} },
	})
	p.relays = relays.New(relays.Config{View: seen, Relayed: &p.measure.Relayed, Forwarded: p.router.Forwarded})
	return nil
}

// wireMeasure makes the component that measures tunnels. It begins with the relays of the last run.
func (r *run) wireMeasure(p *parts) (err error) {
	o, t, log := r.opts, r.founding.Trust, r.opts.Log
	var relayed measure.Relayed
	if err := r.store.Relays(&relayed); err != nil {
		return err
	}
	p.measure, err = measure.New(measure.Config{
		Self: t.Self, PrivateKey: t.Keys.WireGuard, Port: uint16(o.Port), View: &p.view.Value, Host: &p.underlay.Value, Tunnels: func() []topology.Tunnel { return p.datapath.Tunnels() },
		Open: func() (measure.Conn, error) { return probe.Open(probe.Config{Port: uint16(o.Port)}) }, Observe: wg.Observe, Bytes: link.TunnelBytes, Log: log,
		Relays: func(to peer.ID, avoid func(peer.ID) bool) []peer.ID { return p.links.Relays(to, avoid) }, Refuses: o.NoRelay,
		Restored: relayed, Save: func(now measure.Relayed) error { return r.store.SaveRelays(now) },
	})
	return err
}

// inside returns the directory, with the ring and the reachable peers of the last view.
func (p *parts) inside() resolver.Names {
	return resolver.Names{Directory: p.directory, View: &p.view.Value}
}

// wireQueries makes the components that answer operators, other peers and the container runtime.
func (r *run) wireQueries(h host, p *parts) {
	o, t, log, seen := r.opts, r.founding.Trust, r.opts.Log, &p.view.Value
	p.names = names.New(names.Config{
		Domain: o.DNS.Domain, Directory: p.directory, Resolver: p.inside(), Attached: p.attached, Settings: p.settings, NodeAddr: &p.nodeaddr.Value,
		View: seen, PeerName: p.mesh.Name,
	})
	p.drops = &explain.Drops{}
	p.explain = explain.New(explain.Config{
		Self: t.Self, Policies: p.enforce, Kernel: p.router, Mesh: p.mesh, View: seen, Drops: p.drops, Exempt: o.Exempt, Resolver: !o.DNS.Off,
		Short: p.names.Short,
	})
	p.flows = flowview.New(flowview.Config{
		Self: t.Self, Off: o.NoFlows, Policies: p.enforce, Mesh: p.mesh, View: seen, MarkOwnHost: p.explain.MarkOwnHost,
		Changing: r.store.SaveSysctl, Started: r.started, Log: log,
	})
	p.drops.Heard = p.flows.Dropped
	try := dryrun.New(dryrun.Config{Self: t.Self, Mesh: p.mesh, View: seen, Know: p.enforce.Snapshot, MarkOwnHost: p.explain.MarkOwnHost})
	p.policies = policyview.New(policyview.Config{
		Self: t.Self, Mesh: p.mesh, Documents: p.documents, Origin: p.rules.origin, Policies: p.enforce, Counters: p.router, DryRun: try,
		View: seen, Exempt: o.Exempt, Log: log,
	})
	p.cni = install.New(install.Config{ConfDir: o.CNIConfDir, BinDir: o.CNIBinDir, Chain: o.CNIChain, Plugin: r.pluginConfig()})
	p.status = status.New(status.Config{
		Options: o, PublicKey: t.Public.String(), IPv6: r.ipv6, View: p.view, Board: r.board, Attached: p.attached, Unattached: p.unattached,
		Paths: p.paths, Relays: p.relays, Resolver: p.resolver, Policies: p.policies, CNI: p.cni, Mesh: p.mesh, Settings: p.settings, Datapath: p.datapath, Links: p.links,
		Sources: p.sources(h),
	})
	p.network = network.New(network.Config{Self: t.Self, Mesh: p.mesh, View: seen, Reporter: p.status, Know: p.enforce.Snapshot})
	p.matrix = matrix.New(matrix.Config{Self: t.Self, Mesh: p.mesh, View: seen, Endpoints: p.attached, Log: log})
	p.check = check.New(check.Config{Self: t.Self, Mesh: p.mesh, View: seen, Report: p.status.Report, StateDir: o.StateDir, Containers: p.matrix.Test})
	p.trace = trace.New(trace.Config{Self: t.Self, Mesh: p.mesh, View: seen, Attached: &p.attached.Value, Explain: p.explain, Paths: p.paths.Status, Log: log})
	p.bundle = bundle.New(bundle.Config{
		Self: t.Self, Mesh: p.mesh, Report: p.status.Report, Logs: o.Recent.Logs, Policies: p.policies.Policies, Rules: p.router.Rules, Find: p.network.Find,
	})
	p.control = control.New(control.Config{Self: t.Self, Mesh: p.mesh, IPAM: p.ipam, View: p.view, Stop: r.stop})
	p.control.Attachments, p.control.Service, p.control.View = p.attached, p.names, p.policies
	p.control.Explainer, p.control.Reporter, p.control.Board = p.explain, p.status, r.board
	p.control.Membership, p.control.Overview, p.control.Checker, p.control.Collector, p.control.Recent = p.membership, p.network, p.check, p.bundle, o.Recent
	p.control.FlowView, p.control.Tracer = p.flows, p.trace
	r.board.Add(p.conditions(o.StateDir)...)
	p.replicate(try)
}

// sources lists the components that report problems.
func (p *parts) sources(h host) []status.Source {
	return []status.Source{
		{Area: api.AreaMembers, Of: status.Any(p.membership.Problems)},
		{Area: api.AreaFirewall, Of: status.Any(p.datapath.Problems)},
		{Area: api.AreaTunnels, Of: status.Any(p.measure.Problems)},
		{Area: api.AreaEndpoints, Of: status.Any(p.attached.Problems)},
		{Area: api.AreaEndpoints, Of: status.Any(p.unattached.Problems)},
		{Area: api.AreaDNS, Of: status.Any(p.names.Problems)},
		{Area: api.AreaPolicies, Of: status.Any(p.enforce.Problems)},
		{Area: api.AreaKubernetes, Of: status.Any(h.problems)},
		{Area: api.AreaTunnels, Of: p.paths.Problems},
		{Area: api.AreaTunnels, Of: p.relays.Problems},
		{Area: api.AreaAddresses, Of: p.view.Problems},
		{Area: api.AreaCNI, Of: status.Any(p.cni.Problems)},
		{Area: api.AreaFlows, Of: status.Any(p.flows.Problems)},
	}
}
