// Package logs remembers the agent's last log lines, so that commands show them whatever supervisor the agent has:
// systemd, Kubernetes or none. The log itself goes to standard error as before.
package logs

import (
	"bytes"
	"context"
	"sync"
	"time"

	"weft/prog/api"
)

const (
	// mostBytes bounds the remembered lines.
	mostBytes = 512 << 10
	// mostLine bounds one line.
	mostLine = 8 << 10
)

// Recent holds the last lines. It is safe for concurrent use; the zero value is empty, and so is nil.
type Recent struct {
	mu    sync.Mutex
	lines []string
	size  int
	next  uint64 // the position of the next line
}

// Write adds lines. slog's handlers write one whole line each time. It never fails.
func (r *Recent) Write(data []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == 0 { // positions of an agent that ran before are below all of this one
		r.next = uint64(time.Now().UnixMicro())
	}
	for line := range bytes.Lines(data) {
		line = bytes.TrimRight(line, "\n")
		one := string(line[:min(len(line), mostLine)])
		r.lines, r.size, r.next = append(r.lines, one), r.size+len(one), r.next+1
	}
	drop := 0
	for r.size > mostBytes {
		r.size -= len(r.lines[drop])
		drop++
	}
	if drop > 0 {
		r.lines = append([]string(nil), r.lines[drop:]...)
	}
	return len(data), nil
}

// Logs returns the lines after a position, the newest ones if a number is given.
func (r *Recent) Logs(_ context.Context, req api.LogsRequest) (api.LogsReply, error) {
	if r == nil {
		return api.LogsReply{Lines: []string{}}, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	first := r.next - uint64(len(r.lines))
	after := req.After
	if after > r.next { // the position of an agent that ran before
		after = 0
	}
	from := max(after, first)
	if req.Most > 0 && r.next-from > uint64(req.Most) {
		from = r.next - uint64(req.Most)
	}
	return api.LogsReply{Lines: append([]string{}, r.lines[from-first:]...), Next: r.next}, nil
}
