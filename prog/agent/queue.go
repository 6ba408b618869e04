package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"weft/prog/api"
)

// releaseQueue is the folder with the releases that weft-cni queued, one file
// each, while no agent answered.
type releaseQueue string

func (a *Agent) releaseQueue() releaseQueue {
	return releaseQueue(filepath.Join(a.opts.StateDir, ReleaseDir))
}

// check makes the folder, so that weft-cni finds it.
func (q releaseQueue) check() error {
	if err := os.MkdirAll(string(q), 0o700); err != nil {
		return fmt.Errorf("release queue: %w", err)
	}
	return nil
}

// releaseQueued does the queued releases. A file that cannot be read is set aside, for
// people. One call at a time: a release must not be done again after it is off the queue.
func (a *Agent) releaseQueued(ctx context.Context) {
	a.releasing.Lock()
	defer a.releasing.Unlock()
	files, _ := filepath.Glob(filepath.Join(string(a.releaseQueue()), "*.json")) // the pattern is constant
	for _, file := range files {
		if err := a.releaseFile(ctx, file); err != nil {
			a.log.Warn("queued release not done, it is kept", "file", file, "err", err)
		}
	}
}

func (a *Agent) releaseFile(ctx context.Context, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var ref api.EndpointRef
	if err := json.Unmarshal(data, &ref); err != nil {
		a.log.Warn("unreadable release set aside", "file", file+".unreadable", "err", err)
		return os.Rename(file, file+".unreadable")
	}
	if err := a.detachIdle(ctx, ref); err != nil {
		return err
	}
	return os.Remove(file)
}
