// Package agent composes the daemon of a host: it makes the components from the stored state,
// connects them, and runs them. It is the only package that may import all others.
//
// The agent is not in the data path. It may be stopped, killed or replaced at any time: tunnels,
// endpoints and the guard stay as they are, and the next agent takes them over.
package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh"
	"weft/prog/agent/admission"
	"weft/prog/agent/config"
	"weft/prog/agent/control"
	"weft/prog/agent/discover"
	"weft/prog/agent/founding"
	"weft/prog/agent/privilege"
	"weft/prog/agent/ready"
	"weft/prog/agent/settings"
	"weft/prog/agent/statedir"
	"weft/prog/agent/status"
	"weft/prog/agent/underlay"
	"weft/prog/api"
	"weft/prog/state"
	"weft/router/link"
)

// ErrMoved means that this host's address has changed and its agent must restart.
var ErrMoved = underlay.ErrMoved

// ErrTwin means that this host is a copy of another one, which keeps running. The agent must not be
// started again before an operator has fixed that.
var ErrTwin = mesh.ErrTwin

// starting is the reason that a new agent gives until its components report their own reasons.
const starting = "the agent is starting"

// run is one execution of an agent: what it has before its components are made.
type run struct {
	opts    config.Options
	started time.Time
	stop    context.CancelFunc
	board   *ready.Board
	// apiChanged is called when the API server's state changes.
	apiChanged func()

	store    *state.Store
	settings *settings.Settings
	discover *discover.Discover
	founding founding.Founding
	stored   stored
	watch    *link.Watch
	ipv6     bool
}

func newRun(opts config.Options, why string) *run {
	started := time.Now()
	notify := func(line string) { control.Notify("STATUS=" + line) }
	return &run{
		opts: opts, started: started, apiChanged: func() {},
		board: ready.New(ready.Config{Log: opts.Log, Notify: notify, Started: started}, why),
	}
}

// Run serves until ctx ends or the operator stops the agent, or returns ErrMoved. The data path
// stays.
func Run(ctx context.Context, opts config.Options) (err error) {
	r := newRun(opts, starting)
	ctx, r.stop = context.WithCancel(ctx)
	defer r.stop()
	if err := privilege.CheckAgent(); err != nil {
		return err
	}
	if opts.SysctlDir != "" {
		link.SetSysctlRoot(opts.SysctlDir)
	}
	if r.store, err = state.Open(opts.StateDir); err != nil {
		return err
	}
	defer func() { r.store.Close() }()
	front, group, ctx, err := r.listen(ctx, false)
	if err != nil {
		return err
	}
	control.Notify("READY=1", "STATUS=starting")
	r.discover = discover.New(discover.Config{Off: !opts.Discover, GossipPort: opts.GossipPort, Universe: opts.Universe.Asked(), Waiting: r.board.Await, Log: opts.Log})
	group.Go(func() error { return r.discover.Run(ctx) })
	p, h, err := r.prepare(ctx)
	if err != nil {
		r.stop()
		return cmp.Or(group.Wait(), unlessStopped(err))
	}
	defer r.watch.Close()
	defer p.router.Close()
	err = p.start(ctx, r, h, group, func() { front.Open(p.control, r.metrics(p), p.datapath.Alive) })
	if errors.Is(err, ErrTwin) {
		err = errors.Join(err, p.router.Disarm())
	}
	if err != nil {
		opts.Log.Info("agent ends", "err", err)
	} else {
		opts.Log.Info("agent ends")
	}
	return err
}

// listen answers on the sockets until ctx ends. Until the agent runs, the answer is what it waits
// for. If a socket cannot be opened, the start of the agent fails.
func (r *run) listen(ctx context.Context, launch bool) (*control.Front, *errgroup.Group, context.Context, error) {
	sockets, err := control.Listen(r.opts.Socket(), r.opts.StatusAddr, r.opts.MetricsAddr)
	if err != nil {
		return nil, nil, nil, err
	}
	front := control.NewFront(control.Starting{
		Why: r.board.Why, Stop: r.stop, Logs: r.opts.Recent,
		Report: func() api.Report { return status.Early(r.opts, r.board.Why(), launch) },
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return sockets.Serve(ctx, front) })
	return front, group, ctx, nil
}

// prepare reads the stored state, decides how to get a ring, and makes the components.
func (r *run) prepare(ctx context.Context) (p *parts, h host, err error) {
	if r.settings, err = settings.Load(r.store, r.opts.Exclude); err != nil {
		return nil, h, err
	}
	r.ipv6 = link.IPv6Enabled()
	if h, err = r.host(); err != nil {
		return nil, h, err
	}
	if err := r.join(ctx); err != nil {
		return nil, h, err
	}
	if r.founding, err = h.founder.Found(ctx); err != nil {
		return nil, h, err
	}
	if r.stored, err = load(r.store, r.founding.Trust.Self); err != nil {
		return nil, h, err
	}
	if err = r.discover.Start(r.founding.Trust, r.stored.ring != nil, r.founding.Ring != nil || r.founding.Election != nil); err != nil {
		return nil, h, err
	}
	if r.watch, err = link.OpenWatch(); err != nil {
		return nil, h, err
	}
	if p, err = r.wire(h); err != nil {
		r.watch.Close()
		return nil, h, err
	}
	if r.founding.Ring != nil { // this host's ring is the only one
		err = p.documents.MarkSynced()
	}
	return p, h, err
}

// join makes this host a member of its network, if it has a token for that.
func (r *run) join(ctx context.Context) error {
	keys, err := r.store.Keys(rand.Reader)
	if err != nil {
		return err
	}
	targets, err := statedir.AddTargets(r.store, r.opts.Targets)
	if err != nil {
		return err
	}
	token, err := statedir.Invitation(r.opts.StateDir)
	if err != nil {
		return err
	}
	r.discover.Invited(token)
	return admission.Join(ctx, admission.Config{
		Dir: r.opts.StateDir, Identity: keys.Identity, Nickname: r.opts.Nickname, Targets: func() ([]string, bool) { return slices.Concat(targets, r.discover.Get()), r.discover.Complete() }, Port: r.opts.GossipPort, Log: r.opts.Log,
		Waiting: r.board.Await,
	})
}

// unlessStopped returns an error, or nil if it means that the agent was stopped.
func unlessStopped(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
