package mesh

import (
	"net/netip"
	"slices"

	"weft/mesh/peer"
)

// The transport chooses among these addresses of a peer, see mesh/session.

// at returns an address with the gossip port of a peer, as HOST:PORT. The caller holds the lock.
func (k *known) at(a netip.Addr) string {
	return netip.AddrPortFrom(a, k.signed.Record.Gossip).String()
}

// peerOf returns the other peer of a run; nil if it has no record. The caller holds the lock.
func (m *Mesh) peerOf(run string) (peer.ID, *known) {
	id, ok := idOfNode(run)
	if k := m.peers[id]; ok && id != m.self && k != nil && k.hasRecord() {
		return id, k
	}
	return id, nil
}

// recorded returns the addresses in the record of a run's peer.
func (m *Mesh) recorded(run string) (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, k := m.peerOf(run); k != nil {
		for _, a := range k.signed.Record.Underlay {
			out = append(out, k.at(a))
		}
	}
	return out
}

// best returns the address of its record at which the tunnel to a run's peer works best; empty: unknown. At another
// address, as that of a NAT, nobody knows where gossip's port leads.
func (m *Mesh) best(run string) string {
	if m.cfg.Best == nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if id, k := m.peerOf(run); k != nil {
		if a := m.cfg.Best(id); a.IsValid() && slices.Contains(k.signed.Record.Underlay, a) {
			return k.at(a)
		}
	}
	return ""
}

// inside returns the addresses of a run's peer inside its tunnel.
func (m *Mesh) inside(run string) (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if id, k := m.peerOf(run); k != nil {
		for _, a := range m.insideOf(id) {
			out = append(out, k.at(a))
		}
	}
	return out
}

// insideOf returns the addresses of another peer inside its tunnel.
func (m *Mesh) insideOf(id peer.ID) []netip.Addr {
	if m.cfg.Inside == nil || id == m.self {
		return nil
	}
	return m.cfg.Inside(id)
}

// isPlace reports whether an address is one of a known peer, outside or inside its tunnel.
func (m *Mesh) isPlace(a netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, k := range m.peers {
		if id != m.self && (slices.Contains(k.signed.Record.Underlay, a) || slices.Contains(m.insideOf(id), a)) {
			return true
		}
	}
	return false
}
