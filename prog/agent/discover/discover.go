// Package discover finds other hosts of this host's network on the same LANs, by multicast, and lets
// them find this host. It owns the sockets of announcements, and publishes the hosts found.
//
// It listens on links with an underlay address only: never on Weft's own links, on tunnels, or on links
// for containers. A host that has the network's root key believes announcements of members only. A host
// that joins by a token cannot verify them: to it they are addresses to ask. Connections prove both ends
// in any case (mesh/session). It never sends a secret or a token.
package discover

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/ipam/slot"
	"weft/mesh/discovery"
	"weft/mesh/member"
	"weft/prog/agent/live"
	"weft/prog/agent/trust"
	"weft/prog/agent/view"
	"weft/router/link"
)

// Config configures a Discover.
type Config struct {
	GossipPort int
	Universe   slot.Universe // its addresses are none of hosts
	Log        *slog.Logger
	// Off means that this host neither sends nor listens: all methods do nothing.
	Off bool
	// Waiting is called with what a host without a network waits for.
	Waiting func(why string)
}

// mostVerified bounds the signatures to verify in a second: about 2 % of a core. Members drop further
// announcements.
const mostVerified = 100

// lookEvery is how often the links are read at rest; while a host seeks, they are read at each
// announcement.
const lookEvery = 10 * time.Second

// hearsAll is the time in which each host announces itself at least once.
const hearsAll = 15 * time.Second

// Discover publishes the hosts found, as targets.
type Discover struct {
	live.Value[[]string]
	cfg Config

	wake chan struct{} // the pace has changed

	mu       sync.Mutex
	network  discovery.Network
	invited  time.Time    // when this host began to look with a token
	trust    *trust.Trust // nil: not a member yet
	kind     discovery.Kind
	seeker   *discovery.Seeker // nil: this host does not seek
	hosts    discovery.Hosts
	pace     discovery.Pace
	verified int       // signatures verified since second
	second   time.Time // when verified was last 0

	sockets map[place]*socket // of Run's goroutine
	own     []link.HostAddr
	looked  time.Time
	trouble map[place]string // why this host does not announce itself there
}

// New makes a Discover; Run runs it.
func New(cfg Config) *Discover {
	return &Discover{cfg: cfg, wake: make(chan struct{}, 1), kind: discovery.Waiting, sockets: map[place]*socket{}, trouble: map[place]string{}}
}

// Invited has this host look for the network that a token is for; nil: there is no token.
func (d *Discover) Invited(token *member.Token) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if token != nil && d.trust == nil {
		d.network, d.invited = discovery.NetworkOf(token.Cluster()), time.Now()
	}
}

// Complete reports whether an invited host has listened long enough to have heard all members on its
// LANs. A refusal before that is not final: the member that refused may not be allowed to admit, or be
// none.
func (d *Discover) Complete() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg.Off || time.Since(d.invited) >= hearsAll
}

// ErrPassword refuses discovery in a network of a password.
var ErrPassword = errors.New("--discover is not possible with a password: anyone on the LAN could try passwords against the announcements: give all hosts one secret instead (`weft token new` makes it, --token takes it), or name the hosts to join")

// Start has this host announce itself once it is known how it gets a ring, and believe only members.
func (d *Discover) Start(t trust.Trust, hasRing, decides bool) error {
	kind := discovery.Waiting
	switch {
	case hasRing:
		kind = discovery.HasRing
	case decides:
		kind = discovery.Deciding
	}
	return d.believe(t, kind)
}

// believe has this host announce itself as a member of its network, and believe only members from now
// on.
func (d *Discover) believe(t trust.Trust, kind discovery.Kind) error {
	switch {
	case d.cfg.Off:
		return nil
	case t.Holds() && t.Token.Cluster.IsZero():
		return ErrPassword
	}
	cluster := member.ClusterOf(t.Root)
	d.mu.Lock()
	if d.trust == nil {
		d.trust, d.network, d.hosts = &t, discovery.NetworkOf(cluster[:]), discovery.Hosts{}
	}
	d.mu.Unlock()
	d.Announce(kind)
	d.publish()
	return nil
}

// Announce changes what this host announces.
func (d *Discover) Announce(kind discovery.Kind) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kind != kind {
		d.kind = kind
		d.pace.Changed(time.Now())
		d.wakeUp()
	}
}

func (d *Discover) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run announces this host and listens to others, until ctx ends.
func (d *Discover) Run(ctx context.Context) error {
	if d.cfg.Off {
		<-ctx.Done()
		return nil
	}
	defer func() {
		for _, s := range d.sockets {
			s.Close()
		}
	}()
	for {
		wait := d.step(time.Now())
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-d.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// step announces this host if it is time, and returns when to do that next.
func (d *Discover) step(now time.Time) time.Duration {
	d.mu.Lock()
	seeking := d.seeker != nil
	due := d.pace.Due(now, seeking || d.trust == nil, rand.Float64())
	packet := d.packet()
	d.mu.Unlock()
	if due && (seeking || len(d.sockets) == 0 || now.Sub(d.looked) >= lookEvery) {
		d.look(now)
	}
	if due && packet != nil {
		d.send(packet)
	}
	d.publish()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seeker != nil && len(d.sockets) == 0 {
		d.seeker.Hold(d.noLink(), now)
	}
	return d.pace.Wait(now)
}

// packet returns this host's announcement; nil before it is a member. The caller holds the lock.
func (d *Discover) packet() []byte {
	if d.trust == nil {
		return nil
	}
	key := d.trust.Keys.Identity
	return discovery.Announcement{
		Kind: d.kind, Network: d.network, Gossip: uint16(d.cfg.GossipPort), Identity: key.Public().(ed25519.PublicKey), Certificate: d.trust.Certificate,
	}.Sign(key)
}

// heard takes a packet of another host.
func (d *Discover) heard(packet []byte, from netip.Addr) {
	a, err := discovery.Parse(packet)
	if err != nil || !from.IsGlobalUnicast() {
		return
	}
	if _, inside := d.cfg.Universe.Slot(from); inside {
		return
	}
	if d.take(a, from, time.Now()) {
		d.wakeUp()
	}
}

// take takes an announcement, and reports whether something follows from it.
func (d *Discover) take(a discovery.Announcement, from netip.Addr, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	own := slices.ContainsFunc(d.own, func(o link.HostAddr) bool { return o.Addr == from })
	if own || d.network == (discovery.Network{}) || a.Network != d.network {
		return false
	}
	if d.trust != nil {
		if now.Sub(d.second) >= time.Second {
			d.second, d.verified = now, 0
		}
		if d.verified++; d.verified > mostVerified {
			if d.seeker != nil { // perhaps that of a host with a ring is among those dropped
				d.seeker.Hold("more announcements arrive than can be verified", now)
			}
			return false
		}
		m, err := a.Verify(d.trust.Root)
		if err != nil || m.ID() == d.trust.Self {
			return false
		}
		if d.seeker != nil {
			d.seeker.Heard(m.ID(), a.Kind, fmt.Sprintf("the host at %v", from), now)
		}
		if a.Kind == discovery.Seeking {
			d.pace.Asked(now, rand.Float64())
		}
	}
	d.hosts.Add(netip.AddrPortFrom(from, a.Gossip), now)
	return true
}

// publish publishes the hosts found, if they have changed.
func (d *Discover) publish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var targets []string
	for _, at := range d.hosts.List(time.Now()) {
		targets = append(targets, at.String())
	}
	if !slices.Equal(targets, d.Get()) {
		d.Set(targets)
	}
}

// Seek waits until this host shall found a ring, or join another host that has one. If discovery is
// off, this host founds.
func (d *Discover) Seek(ctx context.Context, t trust.Trust) (found bool, err error) {
	if d.cfg.Off {
		return true, nil
	}
	d.mu.Lock()
	d.seeker = discovery.NewSeeker(t.Self, time.Now())
	d.mu.Unlock()
	if err := d.believe(t, discovery.Seeking); err != nil {
		return false, err
	}
	for said := ""; ; {
		d.mu.Lock()
		next, why := d.seeker.Next(time.Now()), "this host looks for its network on the LAN (--discover)"
		if held := d.seeker.Why(); held != "" {
			why += ": " + held
		}
		if next != discovery.Wait || ctx.Err() != nil {
			d.seeker = nil
		}
		d.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case next == discovery.Join:
			d.Announce(discovery.Waiting)
			return false, nil
		case next == discovery.Found:
			d.Announce(discovery.Deciding)
			return true, nil
		}
		if why != said {
			d.cfg.Waiting(why)
			said = why
		}
		live.Pause(ctx, 100*time.Millisecond)
	}
}

// Mesh joins targets.
type Mesh interface{ SetFound(hosts []string) }

// Follow gives the hosts found to the mesh, and announces when this host has a ring, until ctx ends.
func (d *Discover) Follow(ctx context.Context, mesh Mesh, in live.Reader[*view.View]) error {
	for known := []string(nil); ; {
		targets, found := d.Read()
		v, viewed := in.Read()
		if !slices.Equal(targets, known) { // the mesh's change leads to another view
			mesh.SetFound(targets)
			known = targets
		}
		if v != nil && !v.Ring.IsZero() {
			d.Announce(discovery.HasRing)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.Changed(found):
		case <-in.Changed(viewed):
		}
	}
}
