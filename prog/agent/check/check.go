// Package check says whether a host works, and how to mend it: with PASS, WARN or FAIL for each area. It reads the
// host's report, and tests what a report cannot know: echo requests through each tunnel in both families and of full
// size, a query to the name server, the sysctls and the disk.
//
// A Checker owns only its last result for peers. It is safe for concurrent use, sends packets only when asked, and never changes
// the host.
package check

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/words"
)

// requestCheck asks a peer for its own checks: → api.HostCheck as JSON.
const requestCheck = "check/run"

const (
	// fresh is how long a result is used again for peers: they cannot make a host send many packets.
	fresh = 2 * time.Second
	// forPeers bounds how long a host checks itself for a peer, which waits no longer than ask.Timeout.
	forPeers = 4 * time.Second
	// timeout bounds how long all hosts together may take.
	timeout = 10 * time.Second
)

// unknownRequest is what agents of earlier versions answer to a request that they do not know.
const unknownRequest = "does not know"

// Bounds of what a peer sends.
const (
	mostChecks = 200
	mostText   = 2000 // characters of one text
)

// Config configures a Checker.
type Config struct {
	Self peer.ID
	Mesh ask.Mesh
	View live.Reader[*view.View]
	// Report describes this host.
	Report   func(context.Context) (api.Report, error)
	StateDir string
	// Containers tests whether containers of all hosts reach each other.
	Containers func(context.Context) []api.Check
}

// Checker checks this host and, through the mesh, others.
type Checker struct {
	cfg  Config
	last live.Recent[api.HostCheck]
}

// New makes a checker.
func New(cfg Config) *Checker { return &Checker{cfg: cfg} }

// own checks this host.
func (c *Checker) own(ctx context.Context) (api.HostCheck, error) {
	r, err := c.cfg.Report(ctx)
	if err != nil {
		return api.HostCheck{}, err
	}
	return api.HostCheck{Peer: r.Router.ID, Nickname: r.Router.Nickname, Version: r.Version, Checks: evaluate(r, c.measure(ctx, r))}, nil
}

// Checks checks this host, or all.
func (c *Checker) Checks(whole context.Context, req api.CheckRequest) (out api.CheckReply, err error) {
	req.AllHosts = req.AllHosts || req.Containers
	ctx, cancel := context.WithTimeout(whole, timeout)
	defer cancel()
	out.Taken = time.Now()
	answers := make(chan []api.HostCheck, 1)
	if req.AllHosts {
		go func() { answers <- c.others(ctx) }()
	} else {
		answers <- nil
	}
	own, err := c.own(ctx)
	if err != nil {
		return out, err
	}
	out.Hosts = append([]api.HostCheck{own}, <-answers...)
	if req.AllHosts {
		out.Between = between(out.Hosts)
	}
	if req.Containers {
		out.Between = append(out.Between, c.cfg.Containers(whole)...)
	}
	out.Result = api.CheckPass
	for _, h := range out.Hosts {
		for _, one := range h.Checks {
			out.Result = worse(out.Result, one.Result)
		}
	}
	for _, one := range out.Between {
		out.Result = worse(out.Result, one.Result)
	}
	return out, nil
}

// others asks all other hosts that run for their checks.
func (c *Checker) others(ctx context.Context) (out []api.HostCheck) {
	v := c.cfg.View.Get()
	if v == nil {
		return nil
	}
	ask.All(ctx, c.cfg.Mesh, requestCheck, nil, func(id peer.ID, answer []byte, err error) {
		rec, known := v.Records[id]
		if !known || rec.State != peer.Running {
			return // it was stopped, or has left
		}
		var h api.HostCheck
		if err == nil {
			err = json.Unmarshal(answer, &h)
		}
		if err == nil && h.Error == "" && len(h.Checks) == 0 {
			err = errors.New("its answer has no checks")
		}
		if err != nil {
			h = api.HostCheck{Error: words.Printable(words.Cause(err), mostText)}
		}
		bound(&h)
		h.Peer, h.Nickname = id.String(), rec.Nickname
		out = append(out, h)
	})
	slices.SortFunc(out, func(a, b api.HostCheck) int {
		return cmp.Or(strings.Compare(a.Nickname, b.Nickname), strings.Compare(a.Peer, b.Peer))
	})
	return out
}

// bound keeps what a peer sent within bounds, and its texts printable.
func bound(h *api.HostCheck) {
	h.Checks = append([]api.Check{}, h.Checks[:min(len(h.Checks), mostChecks)]...)
	for i := range h.Checks {
		one := &h.Checks[i]
		one.Result = known(one.Result)
		for _, text := range []*string{&one.Area, &one.What, &one.Effect, &one.Fix} {
			*text = words.Printable(*text, mostText)
		}
	}
	h.Version, h.Error = words.Printable(h.Version, mostText), words.Printable(h.Error, mostText)
}

// Handlers answer other peers, by the kind of request.
func (c *Checker) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		requestCheck: func(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
			h, err := c.last.Get(func() (api.HostCheck, time.Duration, error) {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forPeers) // several peers wait for the same result
				defer cancel()
				h, err := c.own(ctx)
				return h, fresh, err
			})
			if err != nil {
				return nil, err
			}
			return json.Marshal(h)
		},
	}
}

// between compares the hosts.
func between(hosts []api.HostCheck) (out []api.Check) {
	var silent, older []string
	versions := map[string][]string{}
	for _, h := range hosts {
		name := h.Peer + "(" + h.Nickname + ")"
		if strings.Contains(h.Error, unknownRequest) {
			older = append(older, name)
			continue
		}
		if h.Error != "" {
			silent = append(silent, name+": "+h.Error)
			continue
		}
		versions[h.Version] = append(versions[h.Version], name)
	}
	if len(silent) > 0 {
		out = append(out, api.Check{
			Area: api.AreaHosts, Result: api.CheckFail, What: fmt.Sprintf("%s not answer (%s)", doNot(len(silent)), strings.Join(silent, "; ")),
			Effect: "they are not checked", Fix: "make sure that the agent runs there, and open TCP and UDP 6783 between the hosts",
		})
	} else {
		out = append(out, api.Check{Area: api.AreaHosts, Result: api.CheckPass, What: words.Count(len(hosts), "host") + " answered"})
	}
	if len(older) > 0 {
		out = append(out, api.Check{
			Area: api.AreaVersions, Result: api.CheckWarn, What: "a version before `weft check` runs on " + strings.Join(older, ", "),
			Effect: "they are not checked", Fix: "upgrade them",
		})
	}
	if len(versions) < 2 {
		return out
	}
	var parts []string
	for _, v := range slices.Sorted(maps.Keys(versions)) {
		slices.Sort(versions[v])
		parts = append(parts, v+" on "+strings.Join(versions[v], ", "))
	}
	return append(out, api.Check{
		Area: api.AreaVersions, Result: api.CheckWarn, What: "the hosts run different versions: " + strings.Join(parts, "; "),
		Effect: "what only the newer one can do does not work on all hosts", Fix: "upgrade the others",
	})
}

func doNot(n int) string {
	if n == 1 {
		return "1 host does"
	}
	return words.Count(n, "host") + " do"
}

// worse returns the worse one of two results.
func worse(a, b string) string {
	for _, r := range []string{api.CheckFail, api.CheckWarn} {
		if a == r || b == r {
			return r
		}
	}
	return api.CheckPass
}

// known returns a result of a peer; one that is none of ours counts as failed.
func known(result string) string {
	if result == api.CheckPass || result == api.CheckWarn {
		return result
	}
	return api.CheckFail
}
