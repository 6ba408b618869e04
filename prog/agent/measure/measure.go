// Package measure measures the tunnels to all peers: whether packets get through, by which address, how
// fast, and how large they may be. The rules are in package path; this package gives them a clock, the
// probes of the network, and WireGuard's counters.
//
// A Measure owns the state machine. It publishes the paths whenever a state, an endpoint or an MTU
// changes. It reads WireGuard's counters up to five times a second while data passes the tunnel device, and every
// ten seconds otherwise. It is safe for concurrent use, and changes nothing on the host.
package measure

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/live"
	"weft/prog/agent/underlay"
	"weft/prog/agent/view"
	"weft/router/probe"
	"weft/router/problem"
	"weft/router/wg"
)

const (
	// lookBusy and lookIdle are how often WireGuard's counters are read while data passes, and at rest.
	lookBusy, lookIdle = 200 * time.Millisecond, 10 * time.Second
	// With many peers the pause is lookShare times as long as the reading, but at most lookSlow, or a cut would be noticed
	// late.
	lookShare, lookSlow = 15, 500 * time.Millisecond
	// idleStep is how often the counters of the tunnel device are read when no data has passed it for so long.
	idleStep = time.Second
	// together is for how long changes are collected, since many paths change at once when an agent starts.
	together = 50 * time.Millisecond
	// saveEvery is how often at most the relays in use are saved.
	saveEvery = time.Second
	// again is the pause before the sockets are opened once more.
	again = 30 * time.Second
)

// Conn sends and receives probes.
type Conn interface {
	Send(to, from netip.AddrPort, payload []byte, size int) error
	Receive(ctx context.Context, f func(probe.Datagram)) error
	Close() error
}

// Config configures a Measure.
type Config struct {
	Self       peer.ID
	PrivateKey [32]byte // WireGuard's
	Port       uint16   // WireGuard's
	View       live.Reader[*view.View]
	Host       live.Reader[underlay.Host]
	// Tunnels returns the tunnels of the last plan.
	Tunnels func() []topology.Tunnel
	// Open opens the sockets for probes.
	Open func() (Conn, error)
	// Observe reads WireGuard's counters of all peers. Bytes reads how much the tunnel device has received
	// and sent, which costs little.
	Observe func() (wg.Observed, error)
	Bytes   func() (uint64, error)
	// Relays returns the relays in a row to a peer that does not answer, without those to avoid. Refuses means that this
	// host is none.
	Relays  func(to peer.ID, avoid func(peer.ID) bool) []peer.ID
	Refuses bool
	// Restored is what an earlier agent saved last. Save keeps it for the next one.
	Restored Relayed
	Save     func(Relayed) error
	Log      *slog.Logger
}

// Paths are the measured paths, by peer.
type Paths map[peer.ID]path.Path

// Measure measures tunnels, and publishes their paths.
type Measure struct {
	live.Value[Paths]
	Relayed live.Value[Relayed] // is published before Paths

	cfg     Config
	private *ecdh.PrivateKey
	failed  live.Value[error]

	kept uint64 // the version of Relayed that was saved; belongs to the loop

	mu        sync.Mutex
	prober    *path.Prober
	keys      map[[32]byte]path.Key // by the peer's public key
	tunnels   []topology.Tunnel
	version   uint64
	published time.Time
	wakeAt    time.Time     // when the loop will ask again
	changed   chan struct{} // wakes the loop before that, or to publish what receive left
	rates     map[peer.ID]rate
}

// New makes a Measure; Run starts it.
func New(cfg Config) (*Measure, error) {
	private, err := ecdh.X25519().NewPrivateKey(cfg.PrivateKey[:])
	if err != nil {
		return nil, fmt.Errorf("measure: reading this host's WireGuard key: %w", err)
	}
	m := &Measure{cfg: cfg, private: private, changed: make(chan struct{}, 1), keys: map[[32]byte]path.Key{}, rates: map[peer.ID]rate{}}
	m.prober = path.New(path.Config{Self: cfg.Self, Random: rand.Reader, Relays: cfg.Relays, Refuses: cfg.Refuses, Port: cfg.Port})
	m.prober.Restore(time.Now(), cfg.Restored.Ways, cfg.Restored.Pairs)
	m.Relayed.Set(Relayed{m.prober.Ways(), m.prober.Pairs()})
	m.kept = m.Relayed.Version()
	return m, nil
}

// Run measures until ctx ends.
func (m *Measure) Run(ctx context.Context) error {
	var said string
	for {
		conn, err := m.cfg.Open()
		if err == nil {
			m.failed.Set(nil)
			err = m.serve(ctx, conn)
		}
		if ctx.Err() != nil {
			return nil
		}
		m.failed.Set(err)
		if text := err.Error(); text != said {
			m.cfg.Log.Warn("tunnels are not measured", "err", err)
			said = text
		}
		m.watch(ctx)
	}
}

// serve measures until ctx ends or the sockets fail.
func (m *Measure) serve(ctx context.Context, conn Conn) error {
	defer conn.Close()
	ctx, stop := context.WithCancel(ctx)
	received := make(chan error, 1)
	go func() { // ends with ctx
		received <- conn.Receive(ctx, func(d probe.Datagram) { m.receive(conn, d) })
		stop()
	}()
	m.loop(ctx, conn)
	stop()
	return <-received
}

// loop asks what is due, until ctx ends.
func (m *Measure) loop(ctx context.Context, conn Conn) {
	var looked, listed, saved, busy time.Time
	var bytes uint64
	step := idleStep
	_, hosted := m.cfg.Host.Read()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			m.keep() // the next run of this agent begins with it
			return
		case <-timer.C:
		case <-m.changed:
		}
		now := time.Now()
		if now.Sub(listed) >= step {
			listed = now
			_, version := m.cfg.Host.Read()
			m.configure(now, version != hosted)
			hosted = version
			n, err := m.cfg.Bytes()
			passed := err == nil && n != bytes
			if step = idleStep; now.Sub(busy) < idleStep {
				step = lookBusy
			}
			if passed || now.Sub(looked) >= lookIdle {
				bytes, looked = n, now
				took, data := m.look(now)
				if data { // not only a keepalive, which the kernel's device counts as well
					busy = now
				}
				if passed {
					step = min(max(lookShare*took, lookBusy), lookSlow)
				}
			}
		}
		next := m.ask(conn, time.Now())
		if now.Sub(saved) >= saveEvery {
			saved = now
			m.keep()
		}
		wait := min(time.Until(next), time.Until(listed.Add(step)))
		if m.unsaved() {
			wait = min(wait, time.Until(saved.Add(saveEvery)))
		}
		timer.Reset(max(wait, time.Millisecond))
	}
}

// configure tells the state machine which peers have tunnels.
func (m *Measure) configure(now time.Time, moved bool) {
	tunnels, v := m.cfg.Tunnels(), m.cfg.View.Get()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(tunnels) == len(m.tunnels) && (len(tunnels) == 0 || &tunnels[0] == &m.tunnels[0]) && !moved {
		return
	}
	m.tunnels = tunnels
	keys := make(map[[32]byte]path.Key, len(tunnels))
	remotes := make([]path.Remote, 0, len(tunnels))
	for _, t := range tunnels {
		key, ok := m.keys[t.PublicKey]
		if !ok {
			var err error
			if key, err = m.key(t.PublicKey); err != nil {
				continue // no tunnel works with such a key either
			}
		}
		keys[t.PublicKey] = key
		route := func(a netip.Addr) int {
			if a == t.Endpoint.Addr() {
				return t.Ends()
			}
			return 0
		}
		remotes = append(remotes, path.Remote{ID: t.Peer, Key: key, Addrs: endpointFirst(t), MTU: route, Quiet: v != nil && v.Reach[t.Peer] != topology.Reached})
	}
	m.keys = keys
	m.prober.Configure(now, remotes, moved)
	m.publish(now)
}

// key derives the key for probes with a peer.
func (m *Measure) key(public [32]byte) (path.Key, error) {
	theirs, err := ecdh.X25519().NewPublicKey(public[:])
	if err != nil {
		return path.Key{}, err
	}
	shared, err := m.private.ECDH(theirs)
	if err != nil {
		return path.Key{}, err
	}
	return path.NewKey(shared, [32]byte(m.private.PublicKey().Bytes()), public)
}

// look gives the state machine WireGuard's counters. It returns how long it took to read them, and whether data has
// passed.
func (m *Measure) look(now time.Time) (took time.Duration, data bool) {
	start := time.Now()
	seen, err := m.cfg.Observe()
	took = time.Since(start)
	if err != nil {
		return took, false // there is no device yet, which the status reports
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	byPeer := make(map[peer.ID]path.Traffic, len(m.tunnels))
	rates := make(map[peer.ID]rate, len(m.tunnels))
	for _, t := range m.tunnels {
		if p, ok := seen.Peers[t.PublicKey]; ok {
			byPeer[t.Peer] = path.Traffic{Endpoint: p.Endpoint, Received: p.Received, Sent: p.Sent, Handshake: p.Handshake}
			rates[t.Peer] = m.rates[t.Peer].next(now, p)
		}
	}
	m.rates = rates
	data = m.prober.Observe(now, func(id peer.ID) (path.Traffic, bool) {
		t, ok := byPeer[id]
		return t, ok
	})
	m.publish(now)
	return took, data
}

// ask sends what is due, and returns when more is.
func (m *Measure) ask(conn Conn, now time.Time) time.Time {
	m.mu.Lock()
	due := m.prober.Due(now)
	m.mu.Unlock()
	for _, s := range due {
		m.send(conn, s)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.prober.Next()
	if at := m.published.Add(together); !m.publish(now) && at.Before(next) {
		next = at
	}
	m.wakeAt = next
	return next
}

// send sends a probe. What this host's own firewall or routes refuse counts as unanswered.
func (m *Measure) send(conn Conn, s path.Send) {
	err := conn.Send(s.To, netip.AddrPortFrom(s.From, s.Port), s.Payload, s.Size)
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prober.Failed(time.Now(), s, errors.Is(err, unix.EPERM))
}

// receive takes a probe, and answers it.
func (m *Measure) receive(conn Conn, d probe.Datagram) {
	m.mu.Lock()
	now := time.Now()
	relayed := m.Relayed.Version()
	answer, ok := m.prober.Receive(now, path.Arrival{From: d.From, To: d.To, Payload: d.Payload, Size: d.Size})
	if !m.publish(now) || m.prober.Next().Before(m.wakeAt) || m.Relayed.Version() != relayed { // that is to be saved
		select {
		case m.changed <- struct{}{}:
		default:
		}
	}
	m.mu.Unlock()
	if ok {
		m.send(conn, answer)
	}
}

// publish publishes the paths if they have changed, and logs new states. It returns false if it is too
// early for that. The caller holds the lock.
func (m *Measure) publish(now time.Time) bool {
	version := m.prober.Version()
	if version == m.version {
		return true
	}
	if now.Sub(m.published) < together {
		return false
	}
	m.version, m.published = version, now
	last, next := m.Get(), make(Paths, len(m.tunnels))
	for _, t := range m.tunnels {
		p, ok := m.prober.Path(t.Peer)
		if !ok {
			continue
		}
		next[t.Peer] = p
		if was := last[t.Peer]; p.Changes <= path.Flapping {
			m.log(t.Peer, was, p, now)
		}
	}
	if now := (Relayed{m.prober.Ways(), m.prober.Pairs()}); !m.Relayed.Get().equal(now) {
		m.Relayed.Set(now)
	}
	m.Set(next)
	return true
}

// Path returns what is known now about the path to a peer.
func (m *Measure) Path(id peer.ID) (path.Path, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.prober.Path(id)
}

// Best returns the address of a peer whose tunnel works; invalid if none does.
func (m *Measure) Best(id peer.ID) netip.Addr {
	if p := m.Get()[id]; p.State == path.Direct && p.Via.IsZero() {
		return p.Endpoint.Addr()
	}
	return netip.Addr{}
}

// Problems reports that tunnels are not measured.
func (m *Measure) Problems() []problem.Problem {
	err := m.failed.Get()
	if err == nil {
		return nil
	}
	return []problem.Problem{{
		Reason: problem.DataPath, About: "probes", What: "tunnels are not measured: " + err.Error(),
		Effect: "the status shows no round trips, and a failed path is noticed late", Fix: "give the agent the capability NET_RAW, and the kernel nftables' log expression (nft_log)",
	}}
}
