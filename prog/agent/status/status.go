// Package status composes the report of this host from one view and the states of its components. It
// owns no state, has no goroutine, and is safe for concurrent use.
package status

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/config"
	"weft/prog/agent/metric"
	"weft/prog/agent/settings"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/link"
	"weft/router/problem"
)

// The parts of components that the report uses.
type (
	// View makes a view of the current ring and peers.
	View interface {
		Look(context.Context) (*view.View, error)
		Status(*view.View) api.IPAM
	}
	// Board returns why this host is not ready.
	Board interface{ Why() string }
	// Attached returns the endpoints of this host.
	Attached interface {
		Status(*view.View) []api.Endpoint
	}
	// Unattached returns containers that were restarted without their attachment.
	Unattached interface{ List() []api.Endpoint }
	// Paths returns the tunnels to other peers.
	Paths interface {
		Status(*view.View) (kind string, connections []api.Connection)
	}
	// Relays returns for whom this host is a relay.
	Relays interface{ Status(*view.View) []api.Relay }
	// Resolver returns the state of the name server.
	Resolver interface{ Status(*view.View) api.DNS }
	// Policies returns what this host enforces.
	Policies interface{ Status() api.PolicyReport }
	// CNI returns the configuration of the container runtime.
	CNI interface{ Status() *api.CNI }
	// Mesh returns the hosts to join, and the rejected hosts.
	Mesh interface {
		Targets() []mesh.Target
		Rejections() []mesh.Rejection
	}
	// Settings returns the operator's run-time settings.
	Settings interface{ Get() settings.Values }
	// Links returns what a peer tells of its links.
	Links interface {
		Told(peer.ID) topology.Links
	}
	// Datapath returns the MTU that was applied to the kernel.
	Datapath interface{ MTU() int }
)

// Config configures a Reporter.
type Config struct {
	Options    config.Options
	PublicKey  string // this host's WireGuard key
	IPv6       bool
	View       View
	Board      Board
	Attached   Attached
	Unattached Unattached
	Paths      Paths
	Relays     Relays
	Resolver   Resolver
	Policies   Policies
	CNI        CNI
	Mesh       Mesh
	Settings   Settings
	Datapath   Datapath
	Links      Links
	Sources    []Source
}

// Source is a component that reports problems.
type Source struct {
	Area string // one of the Area constants of the API
	Of   func(*view.View) []problem.Problem
}

// Reporter makes reports. It is safe for concurrent use.
type Reporter struct{ cfg Config }

// New makes a reporter.
func New(cfg Config) *Reporter { return &Reporter{cfg} }

// Report describes this host.
func (s *Reporter) Report(ctx context.Context) (api.Report, error) {
	v, err := s.cfg.View.Look(ctx)
	if err != nil {
		return api.Report{}, err
	}
	c, why, set := s.cfg, s.cfg.Board.Why(), s.cfg.Settings.Get()
	r := api.Report{
		Version: c.Options.Version, Ready: why == "", NotReady: why, Settings: c.Options.Settings,
		Router: s.router(v), IPAM: c.View.Status(v), Endpoints: c.Attached.Status(v), Unattached: c.Unattached.List(),
		DNS: c.Resolver.Status(v), Policy: c.Policies.Status(), CNI: c.CNI.Status(),
	}
	r.Router.Exposed, r.IPAM.Excluded = set.Exposed, set.Exclude
	for _, source := range c.Sources {
		for _, p := range source.Of(v) {
			r.Warnings = append(r.Warnings, p.String())
			r.Problems = append(r.Problems, api.Problem{Area: source.Area, Reason: p.Reason, What: p.What, Effect: p.Effect, Fix: p.Fix})
		}
	}
	for _, x := range c.Mesh.Rejections() { // the status shows rejected hosts in lines of their own
		r.Rejections = append(r.Rejections, api.Rejection(x))
	}
	return r, nil
}

// Any adapts a function that needs no view, so that it can be a Source.
func Any(problems func() []problem.Problem) func(*view.View) []problem.Problem {
	return func(*view.View) []problem.Problem { return problems() }
}

// problems lists the problems of all components.
func (s *Reporter) problems(v *view.View) (list []problem.Problem) {
	for _, source := range s.cfg.Sources {
		list = append(list, source.Of(v)...)
	}
	return list
}

// Problems lists all problems of this host, and the hosts that it rejected.
func (s *Reporter) Problems(ctx context.Context) ([]problem.Problem, error) {
	v, err := s.cfg.View.Look(ctx)
	if err != nil {
		return nil, err
	}
	list := s.problems(v)
	for _, x := range s.cfg.Mesh.Rejections() {
		list = append(list, problem.Problem{
			Reason: problem.TurnedAway, About: x.Reason, What: fmt.Sprintf("%s was turned away", x.Addr), Effect: x.Reason,
		})
	}
	return list, nil
}

// router describes this host as a peer.
func (s *Reporter) router(v *view.View) api.Router {
	c, o := s.cfg, s.cfg.Options
	r := api.Router{
		Protocol: mesh.Version, ID: v.Self.String(), Nickname: v.Own.Nickname, Device: link.Device, PublicKey: c.PublicKey,
		Port: o.Port, GossipPort: o.GossipPort, MTU: c.Datapath.MTU(), IPv6: c.IPv6, PID: os.Getpid(),
		Underlay: v.Own.Underlay, Node: v.NodeAddrs(v.Own.Node, c.IPv6), Targets: []api.Target{}, Relays: c.Relays.Status(v), Peers: v.StatusPeers(c.IPv6),
	}
	for i := range r.Peers {
		s.links(&r.Peers[i])
	}
	r.Datapath, r.Connections = c.Paths.Status(v)
	if !v.Ring.IsZero() {
		r.Cluster = fmt.Sprintf("%x", v.Ring.Cluster)
	}
	for _, t := range c.Mesh.Targets() {
		target := api.Target{Host: t.Host, State: "retrying", Discovered: t.Found}
		if t.Connected {
			target.State = "connected"
		} else if t.Err != nil {
			target.Error = t.Err.Error()
		}
		r.Targets = append(r.Targets, target)
	}
	return r
}

// links adds what a peer tells of its links.
func (s *Reporter) links(p *api.Peer) {
	id, err := peer.ParseID(p.ID)
	if err != nil {
		return
	}
	told := s.cfg.Links.Told(id)
	p.NoRelay = told.Refuses
	for other := range told.Cut {
		p.Cut = append(p.Cut, other.String())
	}
	slices.Sort(p.Cut)
}

// Early returns the report of an agent that waits for its network.
func Early(o config.Options, why string, launch bool) api.Report {
	return api.Report{
		Version: o.Version, NotReady: why, Endpoints: []api.Endpoint{}, Settings: o.Settings, Waiting: launch,
		Router: api.Router{
			Protocol: mesh.Version, ID: "-", Nickname: o.Nickname, Port: o.Port, GossipPort: o.GossipPort, PID: os.Getpid(),
			Targets: []api.Target{}, Connections: []api.Connection{}, Peers: []api.Peer{},
		},
		IPAM: api.IPAM{Status: "waiting: " + why, Owners: []api.Owner{}},
	}
}

// scrapeTimeout bounds how long a scrape waits for a view.
const scrapeTimeout = 5 * time.Second

var metricBuild = metric.Desc("build_info", "1, with the version of Weft and of Go.", "version", "goversion")

var metricWarnings = metric.Desc("warnings", "Problems of this host, as in weft status, by reason.", "reason")

// Metrics exports how many problems there are.
func (s *Reporter) Metrics(out metric.Out) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	list, _ := s.Problems(ctx) // the only error is that of an agent that stops
	reasons := map[string]float64{}
	for _, p := range list {
		reasons[p.Reason]++
	}
	out.Each(metricWarnings, reasons)
	out.Gauge(metricBuild, 1, s.cfg.Options.Version, runtime.Version())
}
