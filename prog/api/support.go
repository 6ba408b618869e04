package api

import "context"

// The paths of requests for support; Client documents each.
const (
	PathLogs   = "/v1/logs"
	PathBundle = "/v1/bundle"
)

// Logs returns the last lines of the agent's log.
func (c *Client) Logs(ctx context.Context, req LogsRequest) (r LogsReply, err error) {
	return r, c.call(ctx, PathLogs, req, &r)
}

// Bundle returns the files that describe one host for a report.
func (c *Client) Bundle(ctx context.Context, req HostRequest) (r BundleReply, err error) {
	return r, c.call(ctx, PathBundle, req, &r)
}

// LogsRequest selects lines of the log.
type LogsRequest struct {
	After uint64 `json:"after,omitempty"` // continues an earlier reply: its Next
	Most  int    `json:"most,omitempty"`  // the newest lines; 0: all that are remembered
}

// LogsReply has lines of the log, oldest first.
type LogsReply struct {
	Lines []string `json:"lines"`
	Next  uint64   `json:"next"`
}

// BundleReply has the files of one host, by their names.
type BundleReply struct {
	Files map[string]string `json:"files"`
}
