package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"weft/mesh/peer"
)

// ErrTwin says that this host's identity is another host's too.
var ErrTwin = errors.New("this host has the identity of another one, which was there first: a disk was copied. Run `weft reset --force` on the copy, and launch it again")

const twin = "it speaks with this host's identity: was its disk copied from here, or this one's from there? The one that came later stops by itself; run `weft reset --force` on the copy"

// meetTwin ends this run if it is the one that came later of two hosts with one identity:
// the one that is not confirmed yet, or else the one that was started last by its own clock,
// which may be wrong. The other one tells the mesh.
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
		m.cfg.Log.Warn("cannot tell the mesh of the copy", "addr", addr, "err", err)
	}
}

// What a peer that comes back waits for before it speaks and before WireGuard has its key:
// until somebody it has joined tells of no other host with its identity.
const (
	confirmWait = 10 * time.Second // with nobody to ask, it goes on
	confirmAsks = 3                // a run at another address that does not answer so often is over
)

// noteJoined notes that we know of all members that somebody else knows of.
func (m *Mesh) noteJoined() {
	m.mu.Lock()
	m.proof.joined = true
	m.mu.Unlock()
	m.doubt()
}

// confirm notes that this peer's identity is its own, once that is clear.
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
			m.cfg.Log.Warn("cannot take back what was said of a copy", "err", err)
		}
	}
}

// exchange gives all that this peer kept to itself to another one, who passes it on.
func (m *Mesh) exchange(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.proof.sure:
	}
	for _, n := range m.members.shuffled() {
		if _, err := m.list.Join([]string{n.Address()}); err == nil || ctx.Err() != nil {
			break
		}
	}
	return nil
}

// Confirmed reports whether it is clear that no other host has this one's identity.
func (m *Mesh) Confirmed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proof.confirmed
}
