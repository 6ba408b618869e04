package ready

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/prog/agent/agenttest"
	"weft/prog/api"
)

// component is a component whose condition a test sets.
type component struct {
	mu    sync.Mutex
	err   error
	asked int
}

func (c *component) check(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	return c.err
}

func (c *component) say(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *component) times() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

// lines are lines of the log, or notifications of the supervisor.
type lines struct {
	mu   sync.Mutex
	list []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, line)
}

func (l *lines) Write(b []byte) (int, error) { l.add(string(b)); return len(b), nil }

// all returns the recorded lines, and forgets them.
func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

type fixture struct {
	*Board
	basic, other  component
	logged, noted lines
}

// run runs a board with two components; the conditions of both are met.
func run(t *testing.T) *fixture {
	f := &fixture{}
	f.Board = New(Config{Log: slog.New(slog.NewTextHandler(&f.logged, nil)), Notify: f.noted.add, Started: time.Now()}, "the agent is starting")
	f.Add(Condition{Component: "basic", Effect: "a container could not send", Check: f.basic.check})
	f.Add(Condition{Component: "other", Effect: "a container would not be isolated", Check: f.other.check})
	return f
}

// start runs the board until the test ends.
func (f *fixture) start(t *testing.T) {
	agenttest.Run(t, f.Run)
	synctest.Wait()
}

func TestAHostIsReadyOnceAllComponentsAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := run(t)
		refused := func(why string) {
			t.Helper()
			err := f.Ready(t.Context())
			if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeNotReady || e.Message != "not ready: "+why || f.Why() != why {
				t.Errorf("%v, want %s", err, why)
			}
		}
		refused("the agent is starting")
		f.Await("waiting for the node n1")
		refused("waiting for the node n1")
		f.basic.say(errors.New("no WireGuard"))
		f.other.say(errors.New("no policies"))
		f.start(t)
		refused("no WireGuard") // only the most basic fault is reported, and the conditions after it are not checked
		if f.other.times() != 0 {
			t.Error("the second component was asked although the first one refuses, want it not asked")
		}
		f.basic.say(nil)
		f.Wake()
		synctest.Wait()
		refused("no policies")
		f.other.say(nil)
		f.Wake()
		f.Wake() // Wake never blocks
		synctest.Wait()
		if err := f.Ready(t.Context()); err != nil || f.Why() != "" {
			t.Error(err)
		}
	})
}

func TestConditionsAreCheckedPeriodically(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := run(t)
		f.start(t)
		f.other.say(errors.New("the disk is full"))
		time.Sleep(period - time.Millisecond)
		synctest.Wait()
		if f.Why() != "" {
			t.Error("the condition was checked before the next period")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if f.Why() != "the disk is full" {
			t.Errorf("after %v, Why returned %q, want that the disk is full", period, f.Why())
		}
	})
}

func TestWhyAHostIsNotReadyIsLoggedOnceWithTheEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := run(t)
		told := func(when, log string, notes ...string) {
			t.Helper()
			synctest.Wait()
			logged, noted := f.logged.all(), f.noted.all()
			if (len(logged) == 1) != (log != "") || len(logged) == 1 && !strings.Contains(logged[0], log) || !slices.Equal(noted, notes) {
				t.Errorf("%s: logged %q, notified %q; want the step's lines", when, logged, noted)
			}
		}
		f.other.say(errors.New("no policies"))
		f.start(t)
		told("not ready, just started", "")
		time.Sleep(period + settling)
		told("still not ready", `why="no policies" effect="a container would not be isolated"`, "not ready: no policies")
		time.Sleep(time.Hour)
		told("the same for an hour", "")
		f.basic.say(errors.New("no WireGuard"))
		f.Wake()
		told("another reason", `why="no WireGuard" effect="a container could not send"`, "not ready: no WireGuard")
		f.basic.say(nil)
		f.other.say(nil)
		f.Wake()
		told("ready", "level=INFO msg=ready", "ready")
		time.Sleep(time.Hour)
		told("ready for an hour", "")
	})
}

// The error of a component that ends because the agent stops is not a reason.
func TestAStoppingAgentLogsNoReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := run(t)
		ctx, stop := context.WithCancel(t.Context())
		f.Add(Condition{Component: "ending", Check: func(context.Context) error { stop(); return ctx.Err() }})
		if err := f.Run(ctx); err != nil || f.Why() != "the agent is starting" || len(f.logged.all()) != 0 || len(f.noted.all()) != 0 {
			t.Errorf("Run returned %v, Why is %q; want nil, the first reason, and no lines", err, f.Why())
		}
	})
}
