// Package bundle collects what describes a host for a report of a fault: its own report, log, rules, routes, links and
// sysctls. It never reads keys, secrets or tokens. A Collector owns only its last answer to peers, and is safe for concurrent use.
package bundle

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime/pprof"
	"strings"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/live"
	"weft/prog/api"
	"weft/prog/words"
)

// requestBundle asks a peer for its files: → gzip of JSON, a map from name to text.
const requestBundle = "bundle/collect"

const (
	// fresh is how long a peer's answer is used again: peers cannot keep a host busy.
	fresh = 2 * time.Second
	// mostReply bounds a compressed reply, so that it also travels over other members.
	mostReply = 900 << 10
	// mostFiles and mostPlain bound what a peer sends, once it is not compressed.
	mostFiles = 64
	mostPlain = 32 << 20
)

// Config configures a Collector.
type Config struct {
	Self peer.ID
	Mesh ask.Mesh
	// Report describes this host.
	Report   func(context.Context) (api.Report, error)
	Logs     func(context.Context, api.LogsRequest) (api.LogsReply, error)
	Policies func(context.Context) ([]api.Policy, error)
	// Rules returns Weft's nftables rules.
	Rules func() string
	// Find finds a peer by its id or nickname.
	Find func(string) (peer.ID, error)
}

// Collector collects files of this host and, through the mesh, of others.
type Collector struct {
	cfg  Config
	last live.Recent[[]byte] // for peers
}

// New makes a collector.
func New(cfg Config) *Collector { return &Collector{cfg: cfg} }

// Bundle returns the files of one host.
func (c *Collector) Bundle(ctx context.Context, req api.HostRequest) (out api.BundleReply, err error) {
	id, err := c.cfg.Find(req.Peer)
	if err != nil {
		return out, err
	}
	if id == c.cfg.Self {
		out.Files = c.files(ctx)
		return out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, ask.Timeout)
	defer cancel()
	answer, err := c.cfg.Mesh.Request(ctx, id, requestBundle, nil)
	if err == nil {
		out.Files, err = unpack(answer)
	}
	if err != nil {
		return out, &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("%s does not answer: %s: run `weft bundle` there", req.Peer, words.Printable(words.Cause(err), 500))}
	}
	return out, nil
}

// files collects the files of this host. What cannot be read says why.
func (c *Collector) files(ctx context.Context) map[string]string {
	out := System()
	out["report.json"] = JSON(c.cfg.Report(ctx))
	out["policies.json"] = JSON(c.cfg.Policies(ctx))
	out["rules.nft"] = c.cfg.Rules()
	var stacks strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1) // a strings.Builder takes everything
	out["goroutines.txt"] = stacks.String()
	log, err := c.cfg.Logs(ctx, api.LogsRequest{})
	out["agent.log"] = strings.Join(log.Lines, "\n") + "\n"
	if err != nil {
		out["agent.log"] = err.Error() + "\n"
	}
	return out
}

// JSON returns a value as the content of a file, or why there is none.
func JSON(v any, err error) string {
	if err == nil {
		var data []byte
		if data, err = json.MarshalIndent(v, "", "  "); err == nil {
			return string(data) + "\n"
		}
	}
	return err.Error() + "\n"
}

// Handlers answer other peers, by the kind of request.
func (c *Collector) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		requestBundle: func(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
			return c.last.Get(func() ([]byte, time.Duration, error) {
				data, err := pack(c.files(context.WithoutCancel(ctx))) // several peers wait for the same files
				return data, fresh, err
			})
		},
	}
}

// pack compresses files. If they are too large, it leaves out the oldest half of the largest one, as often as needed.
func pack(files map[string]string) ([]byte, error) {
	for {
		plain, err := json.Marshal(files)
		if err != nil {
			return nil, err
		}
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		if _, err := z.Write(plain); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		if out.Len() <= mostReply {
			return out.Bytes(), nil
		}
		largest := ""
		for name, content := range files {
			if len(content) > len(files[largest]) {
				largest = name
			}
		}
		content := files[largest]
		files[largest] = "(the beginning was left out)\n" + content[len(content)/2+1:]
	}
}

// unpack reads what a peer packed.
func unpack(data []byte) (map[string]string, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(z, mostPlain+1))
	if err != nil {
		return nil, err
	}
	if len(plain) > mostPlain {
		return nil, fmt.Errorf("the answer has more than %d bytes", mostPlain)
	}
	var files map[string]string
	if err := json.Unmarshal(plain, &files); err != nil {
		return nil, err
	}
	if len(files) > mostFiles {
		return nil, fmt.Errorf("the answer has %d files", len(files))
	}
	for name := range files {
		if !fileName(name) {
			return nil, fmt.Errorf("the answer has a file with the name %q", name)
		}
	}
	return files, nil
}

// fileName reports whether a name is a plain file name, which leads to no other folder.
func fileName(name string) bool {
	return name != "" && len(name) <= 64 && !strings.HasPrefix(name, ".") && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}
