// Package paths says how this host reaches the others, for the status: whether the required ports are
// open, whether tunnels work, and the MTU of each path. Package measure measures them.
//
// Paths own the lasting blockages. Their goroutine looks for them once a second. Paths are safe for
// concurrent use. They change nothing on the host.
package paths

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/live"
	"weft/prog/agent/view"
	"weft/router/problem"
	"weft/router/wg"
)

const (
	// period is how often blockages are looked for, and readEvery how often WireGuard's handshakes are read for
	// that: with many peers it takes long.
	period, readEvery = time.Second, 5 * time.Second
)

// Config configures Paths.
type Config struct {
	View    live.Reader[*view.View]
	Started time.Time
	Gossip  int // the gossip port
	IPv6    bool
	// GivenMTU means that the operator gave the MTU.
	GivenMTU bool
	// Tunnels returns the tunnels of the last plan, in the order of their peers.
	Tunnels func() []topology.Tunnel
	// Targets returns the hosts to join. Expected returns the targets that should answer now.
	Targets, Expected func() []mesh.Target
	// Measured returns what is known about the path to a peer, and Rates how many bytes per second pass its
	// tunnel.
	Measured func(peer.ID) (path.Path, bool)
	Rates    func(peer.ID) (received, sent float64)
	// Keyless reports whether there is no pre-shared key for the tunnel to a peer yet.
	Keyless func(peer.ID) bool
	// Observe reads the tunnels of the kernel.
	Observe func() (wg.Observed, error)
}

// Paths watches how this host reaches other hosts.
type Paths struct {
	cfg Config

	mu      sync.Mutex
	since   map[string]time.Time // when each blockage was first seen, by its key
	lasting []problem.Problem    // the blockages that have lasted long enough to be problems
}

// New makes paths; Run starts them.
func New(cfg Config) *Paths { return &Paths{cfg: cfg} }

// Run looks at the tunnels until ctx ends.
func (p *Paths) Run(ctx context.Context) error {
	var seen wg.Observed
	var read time.Time
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(read) >= readEvery {
			if got, err := p.cfg.Observe(); err == nil { // otherwise there are no tunnels yet, which status reports
				seen, read = got, now
			}
		}
		if v := p.cfg.View.Get(); v != nil && !read.IsZero() {
			p.look(now, blockages(p.neighbours(v, seen, now), p.cfg.Expected(), p.cfg.Gossip))
		}
		live.Pause(ctx, period)
	}
	return nil
}

// look records the current blockages.
func (p *Paths) look(now time.Time, seen []blockage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := map[string]time.Time{}
	p.lasting = nil
	for _, b := range seen {
		first, ok := p.since[b.About]
		if !ok {
			first = now
		}
		since[b.About] = first
		if b.measured || now.Sub(first) >= lasting {
			p.lasting = append(p.lasting, b.Problem)
		}
	}
	p.since = since
}

// Check reports why containers would reach no other host.
func (p *Paths) Check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.IndexFunc(p.lasting, func(b problem.Problem) bool { return b.About == noTunnel }); i >= 0 {
		return errors.New(p.lasting[i].String())
	}
	return nil
}

// Problems names blocked ports, peers that gossip loses again and again, and peers to which packets
// are sent in fragments.
func (p *Paths) Problems(v *view.View) (list []problem.Problem) {
	p.mu.Lock()
	for _, b := range p.lasting {
		if b.About != noTunnel { // Check reports that blockage
			list = append(list, b)
		}
	}
	p.mu.Unlock()
	now := time.Now()
	list = append(list, flapping(v.Peers, v.Self, func(r peer.Record) bool {
		_, ok := p.ago(r.ID(), now)
		return ok
	})...)
	list = append(list, unsteady(v, p.cfg.Measured)...)
	for _, t := range p.cfg.Tunnels() {
		if one, ok := narrow(t, v.Name(t.Peer), p.cfg.IPv6, p.cfg.GivenMTU); ok {
			list = append(list, one)
		}
	}
	return list
}

// narrow returns a problem if the MTU of the path to a peer is too small for its tunnel; otherwise
// false.
func narrow(t topology.Tunnel, name string, ipv6, given bool) (problem.Problem, bool) {
	size := t.MTUFor(ipv6)
	need, fits := t.Sealed(size), t.Path()
	if fits == 0 || need <= fits {
		return problem.Problem{}, false
	}
	addr := t.Endpoint.Addr()
	where, look := fmt.Sprintf("this host's route to %v", addr), fmt.Sprintf(" (see `ip route get %v`)", addr)
	switch {
	case t.Route != 0 && fits >= t.Route:
	case t.Measured != 0:
		where, look = fmt.Sprintf("a link on the way to %v", addr), ""
	default:
		where, look = fmt.Sprintf("the link with %v on that host", addr), ""
	}
	what, or := "the tunnel", ""
	switch {
	case given:
		what, or = "the tunnel, with its --mtu,", ", or choose a smaller --mtu"
	case size > t.MTU:
		what = "IPv6 in the tunnel"
	}
	return problem.Problem{
		Reason: problem.PathMTU, About: t.Peer.String(),
		What:   fmt.Sprintf("large packets to %s go in fragments, which is slow, or are lost", name),
		Effect: fmt.Sprintf("the MTU of %s is %d, and %s needs %d", where, fits, what, need),
		Fix:    "raise it" + look + or,
	}, true
}
