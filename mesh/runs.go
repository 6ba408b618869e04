package mesh

import (
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// runOf converts memberlist's node to a run; nil if name or address are invalid.
func runOf(n *memberlist.Node) *run {
	id, ok := idOfNode(n.Name)
	addr, valid := netip.AddrFromSlice(n.Addr)
	if !ok || !valid {
		return nil
	}
	return &run{id: id, name: n.Name, addr: netip.AddrPortFrom(addr.Unmap(), n.Port)}
}

// runJoined handles a run that memberlist reports as alive.
func (m *Mesh) runJoined(n *memberlist.Node) {
	r := runOf(n)
	if r == nil || n.Name == m.name {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.id == m.self {
		if !m.ownAddr(r.addr.Addr()) { // otherwise it is an earlier run of this host
			m.note(m.proof.twins, r)
		}
		return
	}
	k := m.peers[r.id]
	if k == nil { // the record of this peer has not arrived yet
		if len(m.peers) >= maxPeers {
			return // keep makes room when the record arrives
		}
		k = &known{heard: time.Now()}
		m.peers[r.id] = k
	}
	m.noteOf(k, r)
}

// noteOf adds a run of another peer. The caller holds the lock.
func (m *Mesh) noteOf(k *known, r *run) {
	if k.runs == nil {
		k.runs = map[string]*run{}
	}
	k.retry = backoff{next: time.Now().Add(firstRetry)} // it will be challenged first
	m.note(k.runs, r)
}

// note adds a run to those of its peer. Any member can report runs, so if there are too many, note
// drops the run with the most unanswered challenges. The caller holds the lock.
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
	m.wakeProver()
}

// runLeft handles a run that memberlist reports as ended.
func (m *Mesh) runLeft(name string) {
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

// forgetNameless drops a peer without run and record.
func (m *Mesh) forgetNameless(id peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.peers[id]; k != nil && !k.hasRecord() && len(k.runs) == 0 {
		delete(m.peers, id)
	}
}
