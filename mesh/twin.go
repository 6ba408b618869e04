package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"weft/mesh/peer"
)

// ErrTwin reports that another host has this host's identity.
var ErrTwin = errors.New("this host has the identity of another host, which was here first: its disk was copied: run `weft reset --force` on the copy, and launch it again")

const twin = "it has the same identity as this host: one of the disks is a copy of the other: the agent that started later stops; run `weft reset --force` on the copy"

// meetTwin handles another host with our identity. The host that joined later ends its run: that is
// the host that is not confirmed. If both or neither are confirmed, the host that started last ends
// its run. Each host's own clock gives the time of its start, and may be wrong. The other host
// announces the copy.
func (m *Mesh) meetTwin(r *run) {
	addr := r.addr.Addr()
	m.reject(addr.String(), twin)
	m.mu.Lock()
	later := m.name > r.name
	if m.proof.confirmed != r.sure {
		later = r.sure
	}
	m.mu.Unlock()
	if later {
		select {
		case m.copied <- fmt.Errorf("mesh: %w: %v", ErrTwin, addr):
		default:
		}
		return
	}
	m.mu.Lock()
	m.proof.copySeen = time.Now()
	m.mu.Unlock()
	if err := m.Update(func(r *peer.Record) { r.Copy = addr }); err != nil {
		m.cfg.Log.Warn("cannot announce the host with a copied identity", "addr", addr, "err", err)
	}
}

// A returning peer waits until a peer that it joined reports no other host with its identity.
// Before that it sends nothing, and WireGuard does not get its key.
const (
	confirmWait = 10 * time.Second // a host continues after this time if it has no peer to ask
	confirmAsks = 3                // a run at another address has ended if it leaves this many challenges unanswered
)

// noteJoined notes that a push/pull delivered all members that another peer knows.
func (m *Mesh) noteJoined() {
	m.mu.Lock()
	m.proof.joined = true
	m.mu.Unlock()
	m.wakeProver()
}

// confirm marks this peer's identity as unique, once that is certain.
func (m *Mesh) confirm(now time.Time) {
	m.mu.Lock()
	asking := false
	for _, r := range m.proof.twins {
		asking = asking || r.proven || r.tries <= confirmAsks
	}
	sure := m.proof.joined && !asking || !now.Before(m.proof.start.Add(confirmWait))
	news := sure && !m.proof.confirmed
	m.proof.confirmed = m.proof.confirmed || sure
	stale := m.peers[m.self].signed.Record.Copy.IsValid() && now.Sub(m.proof.copySeen) > rejectionLife
	m.mu.Unlock()
	if news {
		close(m.proof.sure)
		m.cfg.Changed()
	}
	if stale {
		if err := m.Update(func(r *peer.Record) { r.Copy = netip.Addr{} }); err != nil {
			m.cfg.Log.Warn("cannot withdraw the announcement of a copied identity", "err", err)
		}
	}
}

// exchange sends another peer the states that this peer did not send before it was confirmed. The other peer passes
// them on. What others sent meanwhile goes to all. Later it exchanges states with peers whose packets were lost for a
// while, since news is sent only a few times.
func (m *Mesh) exchange(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.proof.sure:
	}
	for _, e := range m.outgoing.send() {
		m.gossip(e)
	}
	for _, n := range m.members.shuffled() {
		if _, err := m.list.Join([]string{n.Name + "/" + n.Address()}); err == nil || ctx.Err() != nil {
			break
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case run := <-m.moved:
			for _, n := range m.members.shuffled() {
				if id, ok := idOfNode(n.Name); ok && n.Name == run {
					if _, err := m.list.Join([]string{n.Name + "/" + n.Address()}); err != nil {
						m.cfg.Log.Debug("cannot exchange states with a peer whose packets were lost", "peer", m.Name(id), "err", err)
					}
				}
			}
		}
	}
}

// lostPackets has exchange exchange states with a run. If many runs wait already, the regular exchange does.
func (m *Mesh) lostPackets(run string) {
	select {
	case m.moved <- run:
	default:
	}
}

// Confirmed reports whether it is certain that no other host has this host's identity.
func (m *Mesh) Confirmed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proof.confirmed
}
