// Package network shows the whole network from one host: each host's summary of itself, all endpoints, and which
// endpoints may connect to which.
//
// An Overview asks all hosts on request, and remembers the answers for about a second: several pages and operators cost
// no more than one. What a host says is believed only about itself, and bounded. An Overview is safe for concurrent use.
package network

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/enforce"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/words"
)

// The kinds of requests to peers. Answers are JSON: those of the API.
const (
	requestSummary = "network/summary" // → api.Host
	requestReport  = "network/report"  // → api.Report
)

const (
	// Timeout bounds how long the others' summaries may take: a host that is cut off delays the picture by this.
	Timeout = 2 * time.Second
	// fresh is how long answers are used again; in a large network longer, by freshEach for each host.
	fresh     = time.Second
	freshEach = 10 * time.Millisecond
)

// Reporter describes this host.
type Reporter interface {
	Report(context.Context) (api.Report, error)
}

// Config configures an Overview.
type Config struct {
	Self     peer.ID
	Mesh     ask.Mesh
	View     live.Reader[*view.View]
	Reporter Reporter
	// Know returns the policies and endpoints that this host knows now.
	Know func() enforce.Snapshot
}

// Overview answers questions about all hosts.
type Overview struct {
	cfg Config

	summary live.Recent[api.Host]
	report  live.Recent[[]byte]
	all     live.Recent[api.Network]
}

// New makes an overview.
func New(cfg Config) *Overview { return &Overview{cfg: cfg} }

// Network asks all hosts for their summaries.
func (n *Overview) Network(ctx context.Context) (api.Network, error) {
	return n.all.Get(func() (api.Network, time.Duration, error) {
		out, err := n.collect(context.WithoutCancel(ctx)) // others wait for the same answer
		return out, fresh + time.Duration(len(out.Hosts))*freshEach, err
	})
}

func (n *Overview) collect(ctx context.Context) (out api.Network, err error) {
	r, err := n.cfg.Reporter.Report(ctx)
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	answers := map[string]api.Host{n.cfg.Self.String(): summarize(r)}
	ask.All(ctx, n.cfg.Mesh, requestSummary, nil, func(id peer.ID, answer []byte, err error) {
		var h api.Host
		if err == nil {
			err = json.Unmarshal(answer, &h)
		}
		if err != nil {
			h = api.Host{Error: words.Printable(words.Cause(err), mostText)}
		}
		answers[id.String()] = h
	})
	out = api.Network{Taken: time.Now(), Cluster: r.Router.Cluster, Ring: r.IPAM, Endpoints: n.version(), Hosts: []api.Host{}}
	for _, p := range r.Router.Peers {
		h, ok := answers[p.ID]
		if !ok {
			h.Error = "it is not asked: it is " + p.State
		}
		bound(&h)
		h.Peer, h.Nickname, h.Self, h.State, h.Underlay, h.Node = p.ID, p.Nickname, p.Self, p.State, p.Underlay, p.Node
		out.Hosts = append(out.Hosts, h)
	}
	return out, nil
}

// HostReport returns the report of any host, as that host makes it.
func (n *Overview) HostReport(ctx context.Context, req api.HostRequest) (r api.Report, err error) {
	id, err := n.Find(req.Peer)
	if err != nil {
		return r, err
	}
	if id == n.cfg.Self {
		return n.cfg.Reporter.Report(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, ask.Timeout)
	defer cancel()
	answer, err := n.cfg.Mesh.Request(ctx, id, requestReport, nil)
	if err == nil {
		err = json.Unmarshal(answer, &r)
	}
	if err != nil {
		return r, &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("%s does not answer: %s: see its connection with `weft status connections`", n.cfg.View.Get().Name(id), words.Printable(words.Cause(err), mostText))}
	}
	if r.Router.ID != id.String() {
		return r, &api.Error{Code: api.CodeInternal, Message: fmt.Sprintf("%s answers as another host", n.cfg.View.Get().Name(id))}
	}
	return r, nil
}

// Find finds a peer by its id or its nickname.
func (n *Overview) Find(word string) (found peer.ID, err error) {
	v := n.cfg.View.Get()
	if v == nil {
		return found, &api.Error{Code: api.CodeNotReady, Message: "the agent has just started and knows no other peer yet: try again in a moment"}
	}
	return view.FindPeer(v.Peers, word)
}

// Handlers answer other peers, by the kind of request.
func (n *Overview) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		requestSummary: func(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
			h, err := n.summary.Get(func() (api.Host, time.Duration, error) {
				r, err := n.cfg.Reporter.Report(context.WithoutCancel(ctx))
				return summarize(r), fresh, err
			})
			if err != nil {
				return nil, err
			}
			return json.Marshal(h)
		},
		requestReport: func(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
			return n.report.Get(func() ([]byte, time.Duration, error) {
				r, err := n.cfg.Reporter.Report(context.WithoutCancel(ctx)) // several peers wait for the same answer
				if err != nil {
					return nil, 0, err
				}
				data, err := json.Marshal(r)
				return data, fresh, err
			})
		},
	}
}
