package mesh

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Peer is what is known of one peer, this one included.
type Peer struct {
	Record    peer.Record
	Reachable bool       // gossip reaches it right now
	Addr      netip.Addr // where
	Since     time.Time  // since when that is so; zero if never since our start
	Met       bool       // it proved to be alive, since our start
}

// Peers lists all peers, in the order of their ids.
func (m *Mesh) Peers() []Peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Peer, 0, len(m.peers))
	for _, id := range slices.SortedFunc(maps.Keys(m.peers), func(a, b peer.ID) int { return slices.Compare(a[:], b[:]) }) {
		k := m.peers[id]
		out = append(out, Peer{Record: k.signed.Record, Reachable: k.node != "" || id == m.self, Addr: k.addr, Since: k.since, Met: k.met})
	}
	return out
}

// Reachable reports whether gossip reaches a peer.
func (m *Mesh) Reachable(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.peers[id]
	return k != nil && k.node != ""
}

// Knows reports whether a record of a peer is here.
func (m *Mesh) Knows(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.peers[id]
	return k != nil && k.hasRecord()
}

// Others lists all other peers that are known, reachable or not, but for those that have
// left and those of another ring.
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

// Stopped reports whether a peer said that its agent was stopped; its containers run on.
func (m *Mesh) Stopped(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.peers[id]
	return k != nil && k.node == "" && k.signed.Record.State == peer.Stopped
}

// Name is what people call a peer: its id, and its nickname where that is known.
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
