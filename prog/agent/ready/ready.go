// Package ready owns the decision whether this host can take new containers. A Board asks every
// component for its condition, the most basic one first. The host is ready if all agree.
//
// A Board is safe for concurrent use. Its goroutine asks when a component announces a change of its
// condition, and every two seconds.
package ready

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"weft/prog/agent/metric"
	"weft/prog/api"
)

// period is the interval at which conditions are checked without any announced change.
const period = 2 * time.Second

// settling is the time after its start in which an agent logs no reason: in that time some reasons
// last only milliseconds.
const settling = time.Second

// Condition is one component's condition for new containers.
type Condition struct {
	Component string
	Effect    string // what would happen to a container that is attached nevertheless
	Check     func(context.Context) error
}

// Config configures a Board.
type Config struct {
	Log *slog.Logger
	// Notify reports the state of this host to the supervisor in one line.
	Notify  func(string)
	Started time.Time
}

// Board holds whether this host is ready, and the reason if it is not.
type Board struct {
	cfg        Config
	conditions []Condition
	wake       chan struct{}

	mu     sync.Mutex
	why    string // the reason why the host is not ready; empty once it is
	logged string // the last reason in the log
}

// New makes a board of a host that is not ready, for the given reason.
func New(cfg Config, why string) *Board {
	return &Board{cfg: cfg, wake: make(chan struct{}, 1), why: why, logged: why}
}

// Add adds conditions, before Run.
func (b *Board) Add(conditions ...Condition) { b.conditions = append(b.conditions, conditions...) }

// Await sets what the agent waits for before its components run.
func (b *Board) Await(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.why = why
}

// Wake asks for an evaluation. It never blocks.
func (b *Board) Wake() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Run evaluates until ctx ends.
func (b *Board) Run(ctx context.Context) error {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for ctx.Err() == nil {
		b.evaluate(ctx)
		select {
		case <-ctx.Done():
		case <-b.wake:
		case <-tick.C:
		}
	}
	return nil
}

// evaluate asks the components in order, until one of them returns a reason why the host is not
// ready.
func (b *Board) evaluate(ctx context.Context) {
	now, effect := "", ""
	for _, c := range b.conditions {
		if err := c.Check(ctx); err != nil {
			now, effect = err.Error(), c.Effect
			break
		}
	}
	if ctx.Err() != nil {
		return
	}
	b.mu.Lock()
	before := b.logged
	b.why = now
	quiet := now != "" && time.Since(b.cfg.Started) < settling
	if !quiet {
		b.logged = now
	}
	b.mu.Unlock()
	switch {
	case before == now || quiet:
	case now == "":
		b.cfg.Notify("ready")
		b.cfg.Log.Info("ready", "after", time.Since(b.cfg.Started).Round(time.Millisecond))
	default:
		b.cfg.Notify("not ready: " + now)
		b.cfg.Log.Warn("not ready", "why", now, "effect", effect)
	}
}

// Why returns why this host is not ready; empty if it is.
func (b *Board) Why() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

// Ready reports why this host cannot attach containers yet.
func (b *Board) Ready(context.Context) error {
	if why := b.Why(); why != "" {
		return &api.Error{Code: api.CodeNotReady, Message: "not ready: " + why}
	}
	return nil
}

var metricReady = metric.Desc("ready", "Whether this host can attach containers.")

// Metrics exports whether this host is ready.
func (b *Board) Metrics(out metric.Out) { out.Bool(metricReady, b.Why() == "") }
