// Package path measures the paths between this host and its peers: whether packets arrive, by which pair
// of addresses best, how long they take, and how large they may be.
//
// A Prober sends small sealed questions from the very UDP port of the tunnel, and answers those of peers.
// So probes meet the same firewalls and NAT as the tunnel. It is a state machine without a clock or a
// socket: callers pass the time, what arrived, and what WireGuard counted; they send what it returns.
//
//	       a new peer, an unanswered probe, traffic without an answer,
//	       a question of a peer that hears nothing, changed addresses
//	calm ────────────────────────────────────────────────────────────▶ alarm
//	 ▲     one prober per pair asks every 15 s, or every 2 s if busy     │  asks all addresses
//	 └───────────────────────────────────────────────────────────────────┤  in quick rounds
//	            an answer, or received data                              ▼
//	            (two answers, once it was down)                        down: asks every 3 s
//
// What makes an address count as working is only an answer to this host's own question, which carries a
// random number. So a replayed probe can neither move a tunnel nor keep a dead peer alive.
//
// A Prober is not safe for concurrent use. It never decides what to do about a path.
package path

import (
	"encoding/binary"
	"io"
	"net/netip"
	"time"

	"weft/mesh/peer"
)

// State is what is known about the tunnel to a peer.
type State uint8

// These are the states. Whether Deaf means a closed port or a host without power, only gossip can tell.
const (
	Unknown State = iota // not measured yet
	Direct               // packets travel both ways
	Deaf                 // nothing comes from the peer
	Unheard              // the peer's packets arrive, but it does not hear this host
)

// Path is what is known about the path to a peer.
type Path struct {
	State State
	Since time.Time // when State began
	// Endpoint is the address and port that the tunnel should use; invalid while no address is known to
	// work. It stays when the path fails.
	Endpoint netip.AddrPort
	// Left is the address that the tunnel has just left for a nearer one, of the same family. WireGuard would follow
	// packets that are on their way from there: they must look as if they came from Endpoint, to Own. Invalid: none.
	Left netip.AddrPort
	Own  netip.Addr
	// Via are the relays over which packets travel, see Way; zero: they go to Endpoint directly.
	Via      Relays
	RTT      time.Duration // smoothed; 0: not measured
	Loss     float64       // of the last probes: 0 to 1
	Measured bool          // whether RTT and Loss come from probes
	MTU      int           // the path MTU; 0: not measured
	// Answered is when the peer last answered a probe, Received is when data that has arrived through the tunnel was
	// last seen, Asked when its last question arrived. Zero: never.
	Answered, Received, Asked time.Time
	// Refused means that this host's own firewall refused to send the last probe.
	Refused bool
	// Changes is how often State changed between Direct and another one within the last ten minutes.
	Changes int
	// Moves is how often Endpoint, or the MTU that the peer told, changed within the last ten minutes.
	Moves int
}

// Alive reports when a packet last proved that the peer is alive; zero: never.
func (p Path) Alive() time.Time {
	if p.Answered.After(p.Received) {
		return p.Answered
	}
	return p.Received
}

// Remote is a peer to which this host has a tunnel.
type Remote struct {
	ID  peer.ID
	Key Key
	// Addrs are the addresses of its record that this host can send to, the preferred one first.
	Addrs []netip.AddrPort
	// MTU returns the MTU of this host's route to an address, or a smaller one of the peer's link; 0: unknown.
	MTU func(netip.Addr) int
	// Quiet means that gossip does not reach the peer: it is switched off, or only its agent is.
	Quiet bool
}

// Traffic is what WireGuard counted for a peer.
type Traffic struct {
	Endpoint       netip.AddrPort
	Received, Sent int64
	Handshake      time.Time
}

// Arrival is a probe that arrived.
type Arrival struct {
	From, To netip.AddrPort
	Payload  []byte
	Size     int // of the IP packet
}

// Send is a probe to send.
type Send struct {
	To      netip.AddrPort
	From    netip.Addr // invalid: the kernel chooses
	Port    uint16     // of this host; 0: the tunnel's
	Payload []byte
	Size    int // of the IP packet, padded; 0: no padding
	id      uint64
	peer    peer.ID
}

// These are the times of the state machine.
const (
	idleEvery       = 15 * time.Second                 // between two probes of a calm tunnel
	busyEvery       = 2 * time.Second                  // the same under traffic, to measure its loss
	patience        = idleEvery + 500*time.Millisecond // how long the peer that does not probe waits for the other one
	unansweredAfter = 800 * time.Millisecond           // traffic without an answer for so long is an alarm
	askAgain        = 400 * time.Millisecond           // between two questions whether traffic without an answer arrives
	compareOver     = 500 * time.Millisecond           // WireGuard's counters tell more if they are compared over so long
	gapMin, gapMax  = 200 * time.Millisecond, time.Second
	downGap         = 3 * time.Second  // between two rounds once a path is down
	quietGap        = 12 * time.Second // the same for a peer that gossip does not reach either
	forgetAfter     = 5 * time.Second  // an answer that comes later does not count
	othersEvery     = 2 * time.Minute  // between two looks at the addresses that are not used
	hold            = 30 * time.Second // between two changes to a nearer address
	learnedFor      = 3 * time.Minute
	flappingSpan    = 10 * time.Minute
	lateFor         = 4 * time.Second      // packets by an address that the tunnel has left may be on their way
	roamAfter       = 5 * time.Second      // the time for both hosts to follow a change of the address
	perPeer         = 4 * time.Millisecond // the first questions to many new peers are spread by so much
	maxSpread       = 4 * time.Second
)

const (
	// trafficRounds is how many rounds of an alarm without an answer mean that a path is down, if
	// traffic is going on; restRounds is the same for a tunnel at rest, where more time is left.
	trafficRounds, restRounds = 5, 8
	// lossyRounds is how many rounds it takes to leave an address that is known to lose packets.
	lossyRounds = 4
	maxLearned  = 4
	maxRoams    = 3 // times compareOver, before WireGuard's choice of an address is taken over
	maxAddrs    = 16
	maxMoves    = 20 // within flappingSpan, until the peer's choices are followed seldom
	lossWindow  = 32
	// burst is how many bytes within about compareOver are data, rather than WireGuard's own handshakes and keepalives.
	burst = 256
)

// calmStep is the grid of calm probes. All hosts whose clocks agree ask at the same moment, and their processors
// can sleep in between.
const calmStep = 2500 * time.Millisecond

// Flapping is how many Changes are too many: the path is a problem of its own.
const Flapping = 10

// Config configures a Prober.
type Config struct {
	Self   peer.ID
	Random io.Reader
	// Relays returns the relays in a row over which a peer should be reached, without those to avoid; nil: none. If it is nil, no relays are used.
	Relays func(to peer.ID, avoid func(peer.ID) bool) []peer.ID
	// Refuses means that this host is no relay.
	Refuses bool
	Port    uint16 // the tunnel's, of this host
}

// Prober measures the paths to all peers.
type Prober struct {
	cfg     Config
	peers   map[peer.ID]*remote
	byMark  map[[markSize]byte]*remote
	version uint64
	last    int64     // the stamp of the last probe
	next    time.Time // nothing is due before; zero: it is not known
	outbox  []Send    // is due at once

	// This host as a relay, see serve.go.
	legs   map[legOf]*leg
	secret [32]byte // makes cookies

	// Where peers saw this host last, if that is no address of its own.
	outerAddr netip.AddrPort
	outerAt   time.Time

	restored   map[peer.ID]Way // of an earlier agent, for peers that are not known yet
	restoredAt time.Time
}

// New makes a Prober without peers.
func New(cfg Config) *Prober {
	p := &Prober{cfg: cfg, peers: map[peer.ID]*remote{}, byMark: map[[markSize]byte]*remote{}, legs: map[legOf]*leg{}, restored: map[peer.ID]Way{}}
	_, _ = cfg.Random.Read(p.secret[:]) // the kernel's random numbers never end
	return p
}

// Version grows whenever a State, an Endpoint or an MTU changes.
func (p *Prober) Version() uint64 { return p.version }

// Configure sets the peers. moved means that this host's own addresses or routes have changed, so that
// all paths are measured anew.
func (p *Prober) Configure(now time.Time, remotes []Remote, moved bool) {
	next := make(map[peer.ID]*remote, len(remotes))
	p.byMark = make(map[[markSize]byte]*remote, len(remotes))
	spread := min(time.Duration(len(remotes))*perPeer, maxSpread)
	for _, r := range remotes {
		old := p.peers[r.ID]
		if old == nil || old.Key.inMark != r.Key.inMark {
			old = &remote{prober: p, first: prober(p.cfg.Self, r.ID), turn: turn(p.cfg.Self, r.ID)}
			p.version++
		}
		old.configure(now, r, moved, spread)
		p.wake(old)
		next[r.ID], p.byMark[r.Key.inMark] = old, old
	}
	if len(next) != len(p.peers) {
		p.version++
	}
	last := p.peers
	p.peers = next
	p.leave(now, func(id peer.ID) bool { return last[id] != nil && next[id] == nil })
}

// prober reports whether the first of two peers probes a calm tunnel. Half of all peers do, whatever
// their order.
func prober(self, other peer.ID) bool {
	var odd byte
	less := false
	for i := range self {
		odd ^= self[i] ^ other[i]
	}
	for i := range self {
		if self[i] != other[i] {
			less = self[i] < other[i]
			break
		}
	}
	return less == (odd&1 == 0)
}

// turn returns when in each idleEvery this host asks a calm tunnel: the tunnels of a host have different turns.
func turn(self, other peer.ID) time.Duration {
	both := binary.BigEndian.Uint64(self[:]) ^ binary.BigEndian.Uint64(other[:])
	return time.Duration(both%uint64(idleEvery/calmStep)) * calmStep
}

// Observe takes what WireGuard has counted, and reports whether data has passed: more than a keepalive, and no handshake.
func (p *Prober) Observe(now time.Time, seen func(peer.ID) (Traffic, bool)) (data bool) {
	for id, r := range p.peers {
		t, ok := seen(id)
		if !ok {
			continue
		}
		data = data || t.Handshake.Equal(r.traffic.Handshake) && (t.Received > r.traffic.Received+keepalive || t.Sent > r.traffic.Sent+keepalive)
		if r.observe(now, t) {
			p.wake(r)
		}
	}
	return data
}

// Receive takes a probe that arrived, and returns the answer to it.
func (p *Prober) Receive(now time.Time, a Arrival) (Send, bool) {
	mark, ok := markOf(a.Payload)
	if !ok {
		return Send{}, false
	}
	r := p.byMark[mark]
	if r == nil {
		return Send{}, false
	}
	m, ok := r.Key.open(a.Payload)
	if !ok {
		return Send{}, false
	}
	defer p.wake(r)
	switch m.kind {
	case question:
		return r.asked(now, a, m)
	case answer:
		r.answered(now, a, m)
	case register:
		return p.serve(now, a, r, m)
	case registered:
		p.registered(now, a, r, m)
	case invite:
		p.invited(now, r, m)
	}
	return Send{}, false
}

// Failed tells that the kernel refused to send a probe. firewall means that a rule of this host did.
func (p *Prober) Failed(now time.Time, s Send, firewall bool) {
	if r := p.peers[s.peer]; r != nil {
		r.failed(now, s, firewall)
		p.wake(r)
	}
}

// Blind tells that no probe can be sent or received for now: until one is answered again, received data decides.
func (p *Prober) Blind() {
	for _, r := range p.peers {
		r.capable = false
	}
}

// wake notes when a peer has something to do next.
func (p *Prober) wake(r *remote) {
	r.wakeAt = r.nextAt()
	if r.wakeAt.Before(p.next) {
		p.next = r.wakeAt
	}
}

// Due returns the probes to send now.
func (p *Prober) Due(now time.Time) (out []Send) {
	if now.Before(p.next) {
		return nil
	}
	p.next = now.Add(idleEvery)
	out, p.outbox = p.tendLegs(now, p.outbox), nil
	for _, r := range p.peers {
		if !now.Before(r.wakeAt) {
			out = r.due(now, out)
			p.wake(r)
		} else if r.wakeAt.Before(p.next) {
			p.next = r.wakeAt
		}
	}
	return out
}

// Next returns when Due should be called again.
func (p *Prober) Next() time.Time { return p.next }

// Path returns what is known about the path to a peer.
func (p *Prober) Path(id peer.ID) (Path, bool) {
	r := p.peers[id]
	if r == nil {
		return Path{}, false
	}
	return r.path, true
}

// stamp returns the time of a probe. Two probes never have the same one, or the later would look like a
// replay.
func (p *Prober) stamp(now time.Time) int64 {
	p.last = max(p.last+1, now.UnixNano())
	return p.last
}

// seal seals a message for a peer.
func (p *Prober) seal(r *remote, m message) []byte {
	b, err := r.Key.seal(m, p.cfg.Random)
	if err != nil {
		return nil // the kernel's random numbers never end
	}
	return b
}

// newID returns a random number for a question.
func (p *Prober) newID() uint64 {
	var b [8]byte
	_, _ = p.cfg.Random.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}

// upTo returns a random duration below d.
func (p *Prober) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(p.newID() % uint64(d))
}
