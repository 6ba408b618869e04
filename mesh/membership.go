package mesh

import (
	"crypto/ed25519"
	"fmt"

	"weft/mesh/member"
	"weft/mesh/peer"
)

// BannedError reports that a member was banned.
type BannedError struct{ Err error }

func (e *BannedError) Error() string { return e.Err.Error() }
func (e *BannedError) Unwrap() error { return e.Err }

// checkMember returns an error unless a certificate makes a member of an identity, and it is not banned.
func (m *Mesh) checkMember(identity ed25519.PublicKey, certificate []byte) error {
	who, err := member.Verify(m.cfg.Root, identity, certificate)
	if err != nil {
		return fmt.Errorf("it is no member of this network: %w", err)
	}
	if m.cfg.Banned != nil {
		if err := m.cfg.Banned(who); err != nil {
			return &BannedError{err}
		}
	}
	return nil
}

// Expel ends all sessions of a peer and forgets it. Config.Banned must refuse it from now on.
func (m *Mesh) Expel(id peer.ID) {
	if id == m.self {
		return
	}
	m.mu.Lock()
	if k := m.peers[id]; k != nil {
		m.forget(id)
	}
	m.mu.Unlock()
	if m.outgoing.listens() {
		m.transport.Expel(id)
		for _, n := range m.members.of(id) {
			m.verified.forget(n.Name)
		}
	}
	m.cfg.Changed()
}

// HoldsSecret reports whether a peer holds the cluster's secret, by its certificate. The record of a peer
// that has not been upgraded yet has none: all peers of that version hold it.
func (m *Mesh) HoldsSecret(id peer.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.peers[id]
	return k != nil && k.holder
}

// holds reports whether the peer of a record holds the secret.
func (m *Mesh) holds(r peer.Record) bool {
	if len(r.Certificate) == 0 {
		return true
	}
	who, err := member.Verify(m.cfg.Root, r.Identity, r.Certificate)
	return err == nil && who.Rights.Has(member.Holder)
}
