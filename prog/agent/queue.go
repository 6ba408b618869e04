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

// releaseQueued does the queued releases. A file that cannot be read is kept, for people.
func (a *Agent) releaseQueued(ctx context.Context) {
	files, _ := filepath.Glob(filepath.Join(string(a.releaseQueue()), "*.json")) // the pattern is constant
	for _, file := range files {
		var ref api.EndpointRef
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, &ref)
		}
		if err == nil {
			err = a.Detach(ctx, ref)
		}
		if err == nil {
			err = os.Remove(file)
		}
		if err != nil {
			a.log.Warn("queued release not done, it is kept", "file", file, "err", err)
		}
	}
}
