// Package matrix tests whether containers of all hosts reach each other: every host starts a test endpoint, each of
// these talks to all others in both families, and then they are removed.
//
// A Matrix owns at most one test endpoint of its host, for at most half a minute, whatever its peers ask. It is safe for
// concurrent use. A test endpoint is a process of Weft in a network namespace of its own, attached like any
// container. It runs nothing that peers send, and talks only to addresses of the overlay.
package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"weft/mesh/peer"
	"weft/prog/agent/ask"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/prog/words"
)

// The kinds of requests to peers, in the order in which a test sends them. All are JSON.
const (
	requestStart = "containers/start" // → started
	requestProbe = "containers/probe" // order → result
	requestStop  = "containers/stop"
)

const (
	// lifetime bounds how long a test endpoint exists, if the host that asked for it does not end it.
	lifetime = 30 * time.Second
	// mostTargets bounds the addresses of one request, mostNamed the pairs that a result names.
	mostTargets = 2048
	mostNamed   = 20
)

// started is the answer of a host that starts a test endpoint.
type started struct {
	Addresses []netip.Addr `json:"addresses"`
}

// Endpoints attaches and detaches endpoints.
type Endpoints interface {
	Attach(context.Context, api.AttachRequest) (api.AttachReply, error)
	Plug(context.Context, api.EndpointRef) error
	Detach(context.Context, api.EndpointRef) error
}

// Config configures a Matrix.
type Config struct {
	Self      peer.ID
	Mesh      ask.Mesh
	View      live.Reader[*view.View]
	Endpoints Endpoints
	Log       *slog.Logger
}

// Matrix starts test endpoints.
type Matrix struct {
	cfg   Config
	limit ask.Limit
	start func(context.Context) (*tester, error)

	mu     sync.Mutex // held while the endpoint is started, asked or ended
	tester *tester    // nil: there is none
	owner  peer.ID    // the host that asked for it: no other one ends it
	expiry *time.Timer

	testing sync.Mutex // held by Test: a second test would end the endpoints of the first
}

// New makes a Matrix; it starts nothing.
func New(cfg Config) *Matrix {
	m := &Matrix{cfg: cfg, limit: ask.Limit{Every: 10 * time.Second, Burst: 6}}
	m.start = m.attach
	return m
}

// Run removes the test endpoint that a killed agent has left, and ends that of this host when ctx ends.
func (m *Matrix) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.tester == nil {
		if err := m.clean(ctx); err != nil && ctx.Err() == nil {
			m.cfg.Log.Warn("cannot remove the test endpoint of an earlier run: the next check removes it", "err", err)
		}
	}
	m.mu.Unlock()
	<-ctx.Done()
	m.end()
	return nil
}

// begin starts this host's test endpoint for a host that asks for it, unless there is one already.
func (m *Matrix) begin(ctx context.Context, owner peer.ID) ([]netip.Addr, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tester != nil {
		return nil, errors.New("another check tests containers of this host at the moment: try again in half a minute")
	}
	t, err := m.start(ctx)
	if err != nil {
		return nil, err
	}
	m.tester, m.owner, m.expiry = t, owner, time.AfterFunc(lifetime, m.end)
	return t.addresses, nil
}

// end removes this host's test endpoint, if there is one.
func (m *Matrix) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove()
}

// endOf removes this host's test endpoint if the given host asked for it.
func (m *Matrix) endOf(owner peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.owner == owner {
		m.remove()
	}
}

// remove removes the test endpoint, if there is one. The caller holds mu.
func (m *Matrix) remove() {
	if m.tester == nil {
		return
	}
	m.expiry.Stop()
	m.tester.close()
	m.tester = nil
}

// probe has this host's test endpoint talk to others.
func (m *Matrix) probe(targets []netip.Addr) (r result, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tester == nil {
		return r, errors.New("there is no test endpoint here")
	}
	m.expiry.Reset(lifetime)
	return m.tester.talk(targets), nil
}

// Test returns the result of a test of all hosts.
func (m *Matrix) Test(ctx context.Context) []api.Check {
	if !m.testing.TryLock() {
		return []api.Check{{
			Area: api.AreaContainers, Result: api.CheckWarn, What: "another check of this host tests containers at the moment",
			Effect: "containers are not tested", Fix: "try again in half a minute",
		}}
	}
	defer m.testing.Unlock()
	defer func() {
		m.endOf(m.cfg.Self)
		ask.All(context.WithoutCancel(ctx), m.cfg.Mesh, requestStop, nil, func(peer.ID, []byte, error) {})
	}()
	at, failed := m.startAll(ctx)
	results := m.probeAll(ctx, at, failed)
	return judge(at, results, failed, m.cfg.View.Get().Name)
}

// startAll starts a test endpoint on every host. failed has why a host has none.
func (m *Matrix) startAll(ctx context.Context) (at map[peer.ID][]netip.Addr, failed map[peer.ID]string) {
	at, failed = map[peer.ID][]netip.Addr{}, map[peer.ID]string{}
	own, err := m.begin(ctx, m.cfg.Self)
	if err != nil {
		failed[m.cfg.Self] = err.Error()
	} else {
		at[m.cfg.Self] = own
	}
	ask.All(ctx, m.cfg.Mesh, requestStart, nil, func(id peer.ID, answer []byte, err error) {
		var s started
		if err == nil {
			err = json.Unmarshal(answer, &s)
		}
		switch v := m.cfg.View.Get(); {
		case errors.Is(err, ask.ErrUnreachable): // weft check names it as a host that does not answer
		case err != nil:
			failed[id] = words.Printable(err.Error(), 500)
		case !m.owns(v, id, s.Addresses):
			failed[id] = "it names addresses that are not its own"
		default:
			at[id] = s.Addresses
		}
	})
	return at, failed
}

// probeAll has each test endpoint talk to all others.
func (m *Matrix) probeAll(ctx context.Context, at map[peer.ID][]netip.Addr, failed map[peer.ID]string) map[peer.ID]result {
	var targets []netip.Addr
	for _, list := range at {
		targets = append(targets, list...)
	}
	results := map[peer.ID]result{}
	if len(at[m.cfg.Self]) > 0 {
		if r, err := m.probe(targets); err == nil {
			results[m.cfg.Self] = r
		} else {
			failed[m.cfg.Self] = err.Error()
		}
	}
	payload, err := json.Marshal(order{targets})
	if err != nil {
		failed[m.cfg.Self] = err.Error()
	}
	ask.All(ctx, m.cfg.Mesh, requestProbe, payload, func(id peer.ID, answer []byte, err error) {
		var r result
		if err == nil {
			err = json.Unmarshal(answer, &r)
		}
		switch {
		case at[id] == nil: // it has no test endpoint
		case err != nil:
			failed[id] = words.Printable(err.Error(), 500)
		default:
			results[id] = r
		}
	})
	return results
}

// owns reports whether a peer may name addresses as those of its endpoint: they are in its part of the ring.
func (m *Matrix) owns(v *view.View, id peer.ID, addresses []netip.Addr) bool {
	if v == nil || len(addresses) == 0 || len(addresses) > 2 {
		return false
	}
	for _, a := range addresses {
		s, ok := v.Ring.Universe.Slot(a)
		if owner, _ := v.Ring.Owner(s); !ok || owner != id {
			return false
		}
	}
	return true
}

// judge turns the answers of hosts into checks.
func judge(at map[peer.ID][]netip.Addr, results map[peer.ID]result, failed map[peer.ID]string, name func(peer.ID) string) (out []api.Check) {
	owner := map[netip.Addr]peer.ID{}
	for id, list := range at {
		for _, a := range list {
			owner[a] = id
		}
	}
	var broken, without []string
	for from, r := range results {
		for a, why := range r.Failed {
			if to, known := owner[a]; known {
				broken = append(broken, fmt.Sprintf("%s to %s (%v): %s", name(from), name(to), a, words.Printable(why, 100)))
			}
		}
	}
	for id, why := range failed {
		without = append(without, name(id)+": "+why)
	}
	slices.Sort(broken)
	slices.Sort(without)
	if n := len(broken); n > 0 {
		more := ""
		if n > mostNamed {
			more = fmt.Sprintf("; and %d more", n-mostNamed)
		}
		out = append(out, api.Check{
			Area: api.AreaContainers, Result: api.CheckFail, What: "test containers do not reach each other: " + strings.Join(broken[:min(n, mostNamed)], "; ") + more,
			Effect: "other containers of these hosts do not either", Fix: "see the other checks of these hosts",
		})
	}
	if len(without) > 0 {
		out = append(out, api.Check{
			Area: api.AreaContainers, Result: api.CheckWarn, What: "no test container on " + strings.Join(without, "; "),
			Effect: "containers of these hosts are not tested", Fix: "see each host's reason; if another check runs, try again in half a minute",
		})
	}
	if len(out) == 0 {
		out = append(out, api.Check{Area: api.AreaContainers, Result: api.CheckPass, What: fmt.Sprintf("test containers of %s reach each other", words.Count(len(at), "host"))})
	}
	return out
}

// Handlers answer other peers, by the kind of request.
func (m *Matrix) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){
		requestStart: func(ctx context.Context, from peer.ID, _ []byte) ([]byte, error) {
			if !m.limit.Allow(from, time.Now()) {
				return nil, errors.New("too many tests of containers: try again in ten seconds")
			}
			addresses, err := m.begin(ctx, from)
			if err != nil {
				return nil, err
			}
			return json.Marshal(started{addresses})
		},
		requestProbe: func(_ context.Context, _ peer.ID, payload []byte) ([]byte, error) {
			targets, err := m.targets(payload)
			if err != nil {
				return nil, err
			}
			r, err := m.probe(targets)
			if err != nil {
				return nil, err
			}
			return json.Marshal(r)
		},
		requestStop: func(_ context.Context, from peer.ID, _ []byte) ([]byte, error) {
			m.endOf(from)
			return []byte{}, nil
		},
	}
}

// targets reads the targets of a peer's request: at most mostTargets addresses of the overlay.
func (m *Matrix) targets(payload []byte) ([]netip.Addr, error) {
	var o order
	if err := json.Unmarshal(payload, &o); err != nil {
		return nil, err
	}
	v := m.cfg.View.Get()
	if v == nil || len(o.Targets) > mostTargets || slices.ContainsFunc(o.Targets, func(a netip.Addr) bool {
		_, ok := v.Ring.Universe.Slot(a)
		return !ok
	}) {
		return nil, errors.New("invalid request: want addresses of the overlay, at most " + strconv.Itoa(mostTargets))
	}
	return o.Targets, nil
}
