package mesh

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Peer is the state of one peer, which can be this host's own.
type Peer struct {
	Record    peer.Record
	Reachable bool       // whether gossip reaches the peer at present
	Addr      netip.Addr // the address at which gossip reaches the peer
	Since     time.Time  // when Reachable last changed; zero if never since our start
	Met       bool       // whether the peer proved to be alive since our start
	Mute      bool       // the peer answers probes by TCP, but repeatedly not by UDP
	// UDPInside and TCPInside mean that gossip's packets and streams reach the peer only through its tunnel.
	UDPInside, TCPInside bool
	// Losses is how often gossip lost the peer within Lately, and Runs is the number of its runs
	// that were lost.
	Losses, Runs int
}

// Lately is how long Losses and Runs count a loss of the peer by gossip.
const Lately = 10 * time.Minute

// loss is one event in which gossip lost a peer.
type loss struct {
	at  time.Time
	run string
}

// maxLosses bounds the stored losses per peer.
const maxLosses = 16

// lose records the loss of a run. The caller holds the lock.
func (k *known) lose(run string, now time.Time) {
	if len(k.losses) >= maxLosses {
		k.losses = k.losses[1:]
	}
	k.losses = append(k.losses, loss{now, run})
}

// lost returns the recent losses, and the number of runs among them. The caller holds the lock.
func (k *known) lost(now time.Time) (losses, runs int) {
	of := map[string]bool{}
	for _, l := range k.losses {
		if now.Sub(l.at) < Lately {
			losses++
			of[l.run] = true
		}
	}
	return losses, len(of)
}

// Peers lists all peers, sorted by id.
func (m *Mesh) Peers() []Peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	out, now := make([]Peer, 0, len(m.peers)), time.Now()
	round := time.Duration(len(m.peers)) * time.Second // the time in which each peer is probed about once
	for _, id := range slices.SortedFunc(maps.Keys(m.peers), func(a, b peer.ID) int { return slices.Compare(a[:], b[:]) }) {
		k := m.peers[id]
		p := Peer{Record: k.signed.Record, Reachable: k.node != "" || id == m.self, Addr: k.addr, Since: k.since, Met: k.met, Mute: k.mute.lasts(now, round)}
		m.addWay(&p, k.node)
		p.Losses, p.Runs = k.lost(now)
		out = append(out, p)
	}
	return out
}

// addWay adds to a reachable peer how packets and streams to its run travel.
func (m *Mesh) addWay(p *Peer, run string) {
	if run == "" || !m.running() {
		return
	}
	w := m.transport.Way(run)
	if w.Addr.IsValid() {
		p.Addr = w.Addr.Addr()
	}
	p.UDPInside, p.TCPInside = w.PacketsInside, w.StreamsInside
}

// Reachable reports whether gossip reaches a peer.
func (m *Mesh) Reachable(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.peers[id]
	return k != nil && k.node != ""
}

// Knows reports whether a peer's record is known.
func (m *Mesh) Knows(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.peers[id]
	return k != nil && k.hasRecord()
}

// Others lists all other known peers, reachable or not, without peers that have left or belong to
// another ring.
func (m *Mesh) Others() []peer.ID {
	ring := m.Own().Ring
	var out []peer.ID
	for _, p := range m.Peers() {
		r := p.Record
		apart := len(ring) > 0 && len(r.Ring) > 0 && !bytes.Equal(ring, r.Ring)
		if r.Identity != nil && r.ID() != m.self && r.State != peer.Left && !apart {
			out = append(out, r.ID())
		}
	}
	return out
}

// Stopped reports whether a peer announced that its agent was stopped; its containers may still
// run.
func (m *Mesh) Stopped(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.peers[id]
	return k != nil && k.node == "" && k.signed.Record.State == peer.Stopped
}

// Name returns a peer's name for messages: its id, and its nickname if known.
func (m *Mesh) Name(id peer.ID) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.peers[id]; k != nil && k.hasRecord() {
		return k.signed.Record.Name()
	}
	return id.String()
}

func (m *Mesh) reachableCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 1
	for _, k := range m.peers {
		if k.node != "" {
			n++
		}
	}
	return n
}
