package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft/prog/agent/statedir"
	"weft/prog/api"
)

// waitReady waits until the agent is ready, and shows what it waits for. If the agent ends, it
// returns the reason.
func (a *app) waitReady(ctx context.Context, client *api.Client, f *launchFlags, ended <-chan error) error {
	if f.wait == 0 {
		return a.waitStarted(ctx, client, ended)
	}
	progress := newProgress(a.err)
	defer progress.done()
	start := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	why := errors.New("the agent is starting")
	for time.Since(start) < f.wait {
		select {
		case <-ctx.Done():
			return &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("interrupted: the agent keeps running (`weft status`, `weft stop`), but is not ready: %v", why)}
		case err := <-ended:
			return err
		case <-tick.C:
		}
		err := client.Ready(ctx)
		if err == nil {
			progress.line("ready after %.1f s", time.Since(start).Seconds())
			return nil
		}
		if _, down := errors.AsType[*api.NotRunningError](err); !down {
			why = err
		}
		progress.line("%4.1f s  %v", time.Since(start).Seconds(), a.waitingFor(ctx, client, why))
	}
	return &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("the agent runs, but is not ready after %v: %v", f.wait, a.waitingFor(ctx, client, why))}
}

// waitStarted waits until an agent answers, ready or not. So launch --wait 0 reports an agent that ends
// at once.
func (a *app) waitStarted(ctx context.Context, client *api.Client, ended <-chan error) error {
	for start := time.Now(); time.Since(start) < 5*time.Second; {
		select {
		case <-ctx.Done():
			return &api.Error{Code: api.CodeNotReady, Message: "interrupted: the agent keeps running (`weft status`, `weft stop`)"}
		case err := <-ended:
			return err
		case <-time.After(20 * time.Millisecond):
		}
		if r, err := client.Report(ctx); err == nil && !r.Waiting {
			return nil
		}
	}
	return nil
}

// endedError is the last error in the agent's log. It wraps the sentinel error of its kind.
type endedError struct {
	error
	kind error
}

func (e endedError) Unwrap() error { return e.kind }

// waitingFor returns why the agent is not ready, with the errors of its targets.
func (a *app) waitingFor(ctx context.Context, client *api.Client, why error) string {
	text := why.Error()
	r, err := client.Report(ctx)
	if err != nil {
		return text
	}
	for _, t := range r.Router.Targets {
		if t.Error != "" {
			text += "; target " + t.Host + ": " + t.Error
		}
	}
	return text
}

// lastError returns the last error in the agent's log. It skips the first before bytes, which earlier
// agents wrote.
func lastError(stateDir string, before int64) string {
	path := filepath.Join(stateDir, agentLog)
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if int64(len(data)) >= before { // a log shorter than before was rotated meanwhile
		data = data[before:]
	}
	if last := lastWord(string(data)); last != "" {
		return last
	}
	if err := statedir.CheckDisk(stateDir); err != nil { // on a full disk the agent cannot log its error
		return err.Error()
	}
	return "the agent logged no error; see " + path
}

// lastWord returns the last error in a log.
func lastWord(log string) (last string) {
	for line := range strings.Lines(log) {
		if text, ok := strings.CutPrefix(line, "weft: "); ok {
			last = strings.TrimSpace(text)
		}
	}
	return last
}

// progress shows one line. A terminal overwrites it; elsewhere each new text is written once.
type progress struct {
	w        io.Writer
	terminal bool
	last     string
}

func newProgress(w io.Writer) *progress { return &progress{w: w, terminal: isTerminal(w)} }

func (p *progress) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", text)
		p.last = text
		return
	}
	// Ignore the leading time, so that the same text is not repeated in a log.
	_, what, _ := strings.Cut(text, "  ")
	if what == "" {
		what = text
	}
	if what != p.last {
		fmt.Fprintln(p.w, what)
		p.last = what
	}
}

func (p *progress) done() {
	if p.terminal && p.last != "" {
		fmt.Fprintln(p.w)
	}
}
