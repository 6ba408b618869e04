package mesh

import (
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// runOf is a run as memberlist tells of it; nil if that cannot be read.
func runOf(n *memberlist.Node) *run {
	id, ok := idOfNode(n.Name)
	addr, valid := netip.AddrFromSlice(n.Addr)
	if !ok || !valid {
		return nil
	}
	return &run{id: id, name: n.Name, addr: netip.AddrPortFrom(addr.Unmap(), n.Port)}
}

// believe notes that memberlist tells of a run.
func (m *Mesh) believe(n *memberlist.Node) {
	r := runOf(n)
	if r == nil || n.Name == m.name {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.id == m.self {
		if !m.ownAddr(r.addr.Addr()) { // else a run of ours that has ended
			m.note(m.proof.twins, r)
		}
		return
	}
	k := m.peers[r.id]
	if k == nil { // its record is on the way
		if len(m.peers) >= maxPeers {
			return // its record makes room, see keep
		}
		k = &known{heard: time.Now()}
		m.peers[r.id] = k
	}
	m.noteOf(k, r)
}

// noteOf notes a run of another peer. The caller holds the lock.
func (m *Mesh) noteOf(k *known, r *run) {
	if k.runs == nil {
		k.runs = map[string]*run{}
	}
	k.retry = backoff{next: time.Now().Add(firstRetry)} // it is about to prove itself
	m.note(k.runs, r)
}

// note adds a run to others of its peer. Where there are too many, the one goes that owes
// an answer to most challenges: every member can tell of more. The caller holds the lock.
func (m *Mesh) note(runs map[string]*run, r *run) {
	runs[r.name] = r
	if len(runs) > maxRunsHeard {
		worst := r
		for _, r := range runs {
			if !r.proven && (r.tries > worst.tries || r.tries == worst.tries && r.name < worst.name) {
				worst = r
			}
		}
		m.forgetChallenges(worst)
		delete(runs, worst.name)
	}
	m.doubt()
}

// disbelieve notes that memberlist says of a run that it has ended.
func (m *Mesh) disbelieve(name string) {
	id, ok := idOfNode(name)
	if !ok {
		return
	}
	m.mu.Lock()
	runs := m.proof.twins
	if k := m.peers[id]; id != m.self && k != nil {
		runs = k.runs
	}
	if r := runs[name]; r != nil {
		m.forgetChallenges(r)
		delete(runs, name)
	}
	m.mu.Unlock()
	if id != m.self {
		m.reach(id)
		m.forgetNameless(id)
	}
}

// forgetNameless drops a peer of which nothing is left: no run, and no record.
func (m *Mesh) forgetNameless(id peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.peers[id]; k != nil && !k.hasRecord() && len(k.runs) == 0 {
		delete(m.peers, id)
	}
}
