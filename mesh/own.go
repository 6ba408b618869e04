package mesh

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/mesh/peer"
)

// Farewell sets the state that this peer announces when Run ends: Stopped by default.
func (m *Mesh) Farewell(s peer.State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.farewell = s
}

// leave announces that this peer leaves, and gives gossip a moment to deliver that announcement. A
// host whose identity belongs to another host announces nothing.
func (m *Mesh) leave(why error) {
	m.mu.Lock()
	state, silent := m.farewell, errors.Is(why, ErrTwin) || !m.proof.confirmed
	m.mu.Unlock()
	if !silent {
		if err := m.Update(func(r *peer.Record) { r.State = state }); err != nil {
			m.cfg.Log.Warn("cannot announce that this host leaves", "err", err)
		}
		m.sendToSome(envelope{Kind: kindDelta, Replica: peersName, Payload: m.ownState()})
	}
	if !errors.Is(why, ErrTwin) { // a copied host ends at once
		_ = m.list.Leave(time.Second)
		time.Sleep(2 * goodbyeInterval)
	}
	_ = m.list.Shutdown()
}

const goodbyeInterval = 200 * time.Millisecond // the interval of memberlist's gossip

// Own returns this peer's own record.
func (m *Mesh) Own() peer.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peers[m.self].signed.Record
}

// Update changes this peer's own record, and broadcasts it if it differs.
func (m *Mesh) Update(change func(*peer.Record)) error {
	before := m.Own()
	after := before
	after.Underlay = slices.Clone(before.Underlay)
	change(&after)
	if sameRecord(before, after) {
		return nil
	}
	if err := m.update(change); err != nil {
		return err
	}
	m.Broadcast(peersName, m.ownState())
	m.cfg.Changed()
	return nil
}

func sameRecord(a, b peer.Record) bool {
	return a.WireGuard == b.WireGuard && a.Nickname == b.Nickname && slices.Equal(a.Underlay, b.Underlay) && slices.Equal(a.MTUs, b.MTUs) &&
		a.Port == b.Port && a.Gossip == b.Gossip && a.Node == b.Node && a.State == b.State && a.Host == b.Host && a.Copy == b.Copy && string(a.Ring) == string(b.Ring)
}

// update signs and stores a changed record under the next sequence number.
func (m *Mesh) update(change func(*peer.Record)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	own := m.peers[m.self]
	r := own.signed.Record
	r.Underlay = slices.Clone(r.Underlay)
	change(&r)
	r.Sequence++
	signed, err := peer.Sign(r, m.cfg.Identity)
	if err != nil {
		return fmt.Errorf("mesh: signing this host's record: %w", err)
	}
	data := signed.Encode()
	if err := m.cfg.Store.SavePeers(map[peer.ID][]byte{m.self: data}); err != nil {
		return fmt.Errorf("mesh: storing this host's record: %w", err)
	}
	m.kept.bytes += len(data) - own.size
	own.signed, own.size = signed, len(data)
	return nil
}
