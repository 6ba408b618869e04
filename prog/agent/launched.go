package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/prog/state"
)

// LaunchedFile says, below StateDir, that `weft launch` decided which network this host belongs
// to: "found" or "join". An agent founds nothing by itself: one that is started again after
// `weft reset`, by a supervisor, waits for that word.
const LaunchedFile = "launched"

// belongsNowhere is why an agent waits that was not told to found.
const belongsNowhere = "this host belongs to no network: join one with `weft launch --token - HOST`, or found one with `weft launch` (a supervisor's agent: weft agent --found)"

// MarkLaunched keeps what `weft launch` decided.
func MarkLaunched(stateDir string, found bool) error {
	word := "join"
	if found {
		word = "found"
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if err := writeFile(filepath.Join(stateDir, LaunchedFile), []byte(word+"\n"), 0o600); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	return nil
}

// ToldToFound reports whether `weft launch` decided that this host founds a network.
func ToldToFound(stateDir string) bool {
	word, err := os.ReadFile(filepath.Join(stateDir, LaunchedFile))
	return err == nil && strings.TrimSpace(string(word)) == "found"
}

// BeforeLaunch remembers what launch is about to write on a host that belongs to no network.
// What it returns takes that back, for a launch that failed: else the next agent would found or
// join a network that nobody wants any more. A host that belongs to one by then keeps it.
func BeforeLaunch(stateDir string) (undo func() error, err error) {
	hosted := func(f func(*state.Store) error) error {
		if _, err := os.Lstat(filepath.Join(stateDir, state.File)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		s, err := state.Open(stateDir)
		if err != nil {
			return err
		}
		return errors.Join(f(s), s.Close())
	}
	var targets []string
	if err := hosted(func(s *state.Store) (err error) { targets, _, err = s.Targets(); return err }); err != nil {
		return nil, err
	}
	_, noSecret := os.Lstat(filepath.Join(stateDir, SecretFile))
	return func() error {
		belongs := false
		err := hosted(func(s *state.Store) error {
			st, err := s.Load()
			if belongs = len(st.Ring) > 0; belongs || err != nil {
				return err
			}
			return s.SaveTargets(targets)
		})
		if belongs || err != nil {
			return err
		}
		wrote := []string{LaunchedFile}
		if noSecret != nil {
			wrote = append(wrote, SecretFile)
		}
		for _, name := range wrote {
			if err := os.Remove(filepath.Join(stateDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}, nil
}

// KeepTargets adds the hosts to join to the state of an agent that does not run yet.
func KeepTargets(stateDir string, targets []string) error {
	s, err := state.Open(stateDir)
	if err != nil {
		return err
	}
	a := &Agent{opts: Options{Targets: targets}, store: s}
	_, err = a.targets()
	return errors.Join(err, s.Close())
}

// AwaitLaunch serves the sockets of an agent that belongs to no network, and says so there, until
// `weft launch` decides (then it returns true) or the agent is stopped. before is launch's word as
// it was when the agent found that it belongs to none.
func AwaitLaunch(ctx context.Context, opts Options, before os.FileInfo) (bool, error) {
	a := New(opts)
	ctx, a.stop = context.WithCancel(ctx)
	defer a.stop()
	if err := CheckPrivileges(); err != nil {
		return false, err
	}
	path := filepath.Join(opts.StateDir, LaunchedFile)
	a.notReady, a.waiting = belongsNowhere, true
	control, err := listenSocket(opts.socket())
	if err != nil {
		return false, err
	}
	defer control.Close()
	status, err := a.listenStatus()
	if err != nil {
		return false, err
	}
	group, ctx := errgroup.WithContext(ctx)
	front := newFront(a)
	group.Go(func() error { return serve(ctx, control, front.all) })
	if status != nil {
		group.Go(func() error { return serve(ctx, status, front.readOnly) })
	}
	a.log.Warn(belongsNowhere)
	notify("READY=1", "STATUS="+belongsNowhere)
	launched := false
	group.Go(func() error {
		for ctx.Err() == nil && !launched {
			launched = launchedSince(path, before)
			sleep(ctx, 100*time.Millisecond)
		}
		a.stop()
		return nil
	})
	err = group.Wait()
	return launched, err
}

// LaunchWord is launch's word as it is now; nil: there is none.
func LaunchWord(stateDir string) os.FileInfo {
	info, _ := os.Stat(filepath.Join(stateDir, LaunchedFile))
	return info
}

// launchedSince reports whether launch gave its word anew since a look at its file (nil: there was none).
func launchedSince(path string, before os.FileInfo) bool {
	now, err := os.Stat(path)
	return err == nil && (before == nil || !os.SameFile(before, now))
}

// forgetLaunched takes the word back once there is a ring: it was for the first start.
func (a *Agent) forgetLaunched() error {
	err := os.Remove(filepath.Join(a.opts.StateDir, LaunchedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
