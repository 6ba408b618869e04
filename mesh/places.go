package mesh

import (
	"net/netip"
	"slices"

	"github.com/hashicorp/memberlist"

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
	if _, k := m.peerOf(run); k != nil && !m.planned(k) {
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
	if id, k := m.peerOf(run); k != nil && !m.planned(k) {
		if a := m.cfg.Best(id); a.IsValid() && slices.Contains(k.signed.Record.Underlay, a) {
			return k.at(a)
		}
	}
	return ""
}

// confined reports whether a run's peer may be reached inside its tunnel only. Before its record is known, memberlist's
// address of it decides.
func (m *Mesh) confined(a memberlist.Address) bool {
	if !m.cfg.NoDiscovery {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, k := m.peerOf(a.Name)
	if k == nil {
		k = &known{}
		if at, err := netip.ParseAddrPort(a.Addr); err == nil {
			k.signed.Record.Underlay = []netip.Addr{at.Addr().Unmap()}
		}
	}
	return m.planned(k)
}

// planned reports whether this host must not connect to a peer, since it is no target. The caller holds the lock.
func (m *Mesh) planned(k *known) bool {
	if !m.cfg.NoDiscovery {
		return false
	}
	for host, t := range m.targets {
		if (Target{Host: host, Addrs: t.addrs}).Names(k.signed.Record) {
			return false
		}
	}
	return true
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

// over returns the runs of other peers in a row over which a peer is reached that does not answer.
func (m *Mesh) over(to peer.ID) (row []memberlist.Address) {
	if m.cfg.Relays == nil {
		return nil
	}
	for _, id := range m.cfg.Relays(to) {
		n := m.nodeFor(kindRequest, message{To: id})
		if n == nil {
			return nil
		}
		row = append(row, n.FullAddress())
	}
	return row
}

// passable returns the address of a run to which this host passes the streams of others.
func (m *Mesh) passable(run string) (memberlist.Address, bool) {
	n := m.members.named(run)
	if n == nil || m.cfg.NoRelay {
		return memberlist.Address{}, false
	}
	return n.FullAddress(), true
}
