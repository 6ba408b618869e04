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
// `weft launch` decides (then it returns true) or the agent is stopped.
func AwaitLaunch(ctx context.Context, opts Options) (bool, error) {
	a := New(opts)
	ctx, a.stop = context.WithCancel(ctx)
	defer a.stop()
	if err := CheckPrivileges(); err != nil {
		return false, err
	}
	path := filepath.Join(opts.StateDir, LaunchedFile)
	before, _ := os.Stat(path)
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
