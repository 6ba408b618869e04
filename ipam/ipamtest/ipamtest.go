// Package ipamtest simulates address allocation in a mesh, without network, disk or clock. Every
// peer learns of every change at once. Tests and benchmarks use it to measure how space spreads
// over a long time: CIDRs per peer and size of the ring. A Mesh belongs to one goroutine.
package ipamtest

import (
	"encoding/binary"
	"fmt"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// Mesh is the simulated mesh: one ring that all peers share.
type Mesh struct {
	Ring  ring.Ring
	Peers []*Peer
	// Grants counts how often a peer gave space to another peer.
	Grants int

	born uint64
}

// Peer is one simulated host.
type Peer struct {
	ID   peer.ID
	Used []slot.Slot

	space *space.Space
}

// New returns a mesh of one peer that owns the whole universe.
func New(u slot.Universe) *Mesh {
	m := &Mesh{}
	p := m.Join()
	m.Ring = ring.Found(ring.ID{1}, [16]byte{1}, u, p.ID)
	m.resize(p)
	return m
}

// Join adds a peer that owns nothing.
func (m *Mesh) Join() *Peer {
	m.born++
	p := &Peer{space: space.New(nil, nil, nil)}
	binary.BigEndian.PutUint64(p.ID[:], m.born*0x9E3779B97F4A7C15) // multiplied so that ids are in no order
	m.Peers = append(m.Peers, p)
	return p
}

func (m *Mesh) resize(p *Peer) {
	p.space.Resize([]slot.Range{m.Ring.Universe.Usable()}, m.Ring.Owned()[p.ID], p.Used)
}

// Allocate gives a slot to p, and reports whether one was free in the mesh.
func (m *Mesh) Allocate(p *Peer) bool {
	s, ok := p.space.Take()
	if !ok && m.donate(p) {
		s, ok = p.space.Take()
	}
	if ok {
		p.Used = append(p.Used, s)
	}
	return ok
}

// Free releases p.Used[i]; the slot stays in quarantine until the given time.
func (m *Mesh) Free(p *Peer, i int, until int64) {
	s := p.Used[i]
	p.Used[i] = p.Used[len(p.Used)-1]
	p.Used = p.Used[:len(p.Used)-1]
	p.space.Give(s)
	p.space.Quarantine(space.Quarantined{Slot: s, Until: until})
}

// Release ends the quarantines that last until now or earlier.
func (m *Mesh) Release(now int64) {
	for _, p := range m.Peers {
		p.space.Release(now)
	}
}

// donate moves space to a peer from the peer with the most free slots.
func (m *Mesh) donate(to *Peer) bool {
	var from *Peer
	for _, p := range m.Peers {
		if p != to && (from == nil || p.space.Free() > from.space.Free()) {
			from = p
		}
	}
	if from == nil {
		return false
	}
	gift, ok := from.space.Donate()
	if !ok {
		return false
	}
	m.grant(from, to, gift)
	m.resize(to)
	return true
}

func (m *Mesh) grant(from, to *Peer, g slot.Range) {
	next, _, err := m.Ring.Grant(from.ID, to.ID, g)
	if err != nil {
		panic(fmt.Sprintf("ipamtest: a peer grants slots that it does not own: %v", err))
	}
	m.Ring = next
	m.Grants++
}

// Leave removes peer i; the peer with the fewest free slots inherits its slots.
func (m *Mesh) Leave(i int) {
	p := m.Peers[i]
	m.Peers[i] = m.Peers[len(m.Peers)-1]
	m.Peers = m.Peers[:len(m.Peers)-1]
	var heir *Peer
	for _, o := range m.Peers {
		if heir == nil || o.space.Free() < heir.space.Free() {
			heir = o
		}
	}
	for _, g := range m.Ring.Owned()[p.ID] {
		m.grant(p, heir, g)
	}
	m.resize(heir)
}

// AllowedIPs returns how many CIDRs of one family each owner has.
func (m *Mesh) AllowedIPs() map[peer.ID]int {
	out := map[peer.ID]int{}
	for id, ranges := range m.Ring.Owned() {
		for _, r := range ranges {
			out[id] += len(r.Blocks())
		}
	}
	return out
}
