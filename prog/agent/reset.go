package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"weft/prog/state"
	"weft/router"
)

// Reset removes from this host everything that Weft made: the CNI configuration
// first, so that no more containers come, then the data path, then state and
// secret. A state file that cannot be read is set aside, not deleted. The agent
// must not be running.
func Reset(ctx context.Context, opts Options) error {
	if err := RemoveCNI(opts); err != nil {
		return err
	}
	s, err := state.Open(opts.StateDir)
	switch unusable, ok := errors.AsType[*state.UnusableError](err); {
	case ok:
		aside := unusable.Path + ".aside-" + time.Now().UTC().Format("20060102T150405")
		if err := os.Rename(unusable.Path, aside); err != nil {
			return fmt.Errorf("reset: set the state aside: %w", err)
		}
	case err != nil:
		return fmt.Errorf("reset: %w", err)
	default:
		s.Close()
	}
	if err := router.Remove(ctx); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	for _, name := range []string{state.File, SecretFile, ReleaseDir, "agent.log", "datapath.log"} {
		if err := os.RemoveAll(filepath.Join(opts.StateDir, name)); err != nil {
			return fmt.Errorf("reset: %w", err)
		}
	}
	if err := os.RemoveAll(opts.socket()); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if !opts.Kubernetes.On {
		return nil
	}
	report, err := reporter(opts)
	if err == nil {
		err = report.TakeBack(ctx)
	}
	if err != nil {
		return fmt.Errorf("reset: this host is clean, but its Node still says that Weft is up, so that no new network is founded: run it again once that is mended: %w", err)
	}
	return nil
}
