// Package ipamtest is a mesh of peers without network, disk or clock, in which everybody
// hears everything at once: how much space is where after a long time, how many CIDRs name
// what a peer owns, how large a ring becomes. For tests and benchmarks.
package ipamtest

import (
	"encoding/binary"
	"fmt"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/ipam/space"
	"weft/mesh/peer"
)

// Mesh is all peers.
type Mesh struct {
	Ring  ring.Ring
	Peers []*Peer
	// Grants is how often space was given away.
	Grants int

	born uint64
}

// Peer is one of them.
type Peer struct {
	ID   peer.ID
	Used []slot.Slot

	space *space.Space
}

// New makes a mesh of one peer, who owns everything.
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
	binary.BigEndian.PutUint64(p.ID[:], m.born*0x9E3779B97F4A7C15) // in no order
	m.Peers = append(m.Peers, p)
	return p
}

func (m *Mesh) resize(p *Peer) {
	p.space.Resize([]slot.Range{m.Ring.Universe.Usable()}, m.Ring.Owned()[p.ID], p.Used)
}

// Allocate gives a peer one more slot, if one is left anywhere.
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

// Free takes back the slot at an index of Used; it rests until a time.
func (m *Mesh) Free(p *Peer, i int, until int64) {
	s := p.Used[i]
	p.Used[i] = p.Used[len(p.Used)-1]
	p.Used = p.Used[:len(p.Used)-1]
	p.space.Give(s)
	p.space.Rest(space.Resting{Slot: s, Until: until})
}

// Wake frees what has rested.
func (m *Mesh) Wake(now int64) {
	for _, p := range m.Peers {
		p.space.Wake(now)
	}
}

// donate gives a peer space of the one who has most.
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
		panic(fmt.Sprintf("ipamtest: a peer gives away what is not its own: %v", err))
	}
	m.Ring = next
	m.Grants++
}

// Leave takes a peer out; who has least free is its heir.
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

// AllowedIPs is how many CIDRs of one family name what each owner owns.
func (m *Mesh) AllowedIPs() map[peer.ID]int {
	out := map[peer.ID]int{}
	for id, ranges := range m.Ring.Owned() {
		for _, r := range ranges {
			out[id] += len(r.Blocks())
		}
	}
	return out
}
