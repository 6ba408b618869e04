package attach

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"weft/prog/api"
)

// queue is the folder with the releases that weft-cni queued, one file each, while no agent
// answered.
type queue struct {
	dir string
	mu  sync.Mutex // held while releases are done, so that none is done twice
}

// check makes the folder, so that weft-cni finds it.
func (q *queue) check() error {
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		return fmt.Errorf("release queue: %w", err)
	}
	return nil
}

// do performs the queued releases. It renames files that it cannot read, for inspection.
func (q *queue) do(ctx context.Context, log *slog.Logger, release func(context.Context, api.EndpointRef) error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	files, _ := filepath.Glob(filepath.Join(q.dir, "*.json")) // Glob only fails if the pattern is invalid
	for _, file := range files {
		data, err := os.ReadFile(file)
		var ref api.EndpointRef
		if err == nil {
			if bad := json.Unmarshal(data, &ref); bad != nil {
				log.Warn("unreadable release set aside", "file", file+".unreadable", "err", bad)
				err = os.Rename(file, file+".unreadable")
			} else if err = release(ctx, ref); err == nil {
				err = os.Remove(file)
			}
		}
		if err != nil {
			log.Warn("queued release not done, it is kept", "file", file, "err", err)
		}
	}
}
