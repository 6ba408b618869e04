package mesh

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/mesh/peer"
)

const peersName = "peers"

// These bounds limit the records that a peer with the secret can make us store. A record has about
// 250 bytes.
const (
	maxPeers     = 1 << 12
	maxPeerBytes = 3 << 20 // bytes of all records, which share a push/pull message with other states
	// forgetAfter is how long a peer that owns nothing may be unreachable before it is forgotten.
	// It is long, because all known peers count for a majority.
	forgetAfter = 24 * time.Hour
)

// peersReplica is the first replicated state: the records of all peers.
type peersReplica struct{ m *Mesh }

func (peersReplica) Name() string { return peersName }

func (p peersReplica) Full() []byte {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	records := make([][]byte, 0, len(p.m.peers))
	for _, k := range p.m.peers {
		if k.hasRecord() {
			records = append(records, k.signed.Encode())
		}
	}
	return encode(records)
}

// ownState returns the state that consists of this peer's record only.
func (m *Mesh) ownState() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return encode([][]byte{m.peers[m.self].signed.Encode()})
}

func (k *known) hasRecord() bool { return k.signed.Record.Identity != nil }

// Merge stores the records that supersede ours, and returns them as news. An invalid record does
// not affect the other records.
func (p peersReplica) Merge(data []byte) ([]byte, error) {
	var records [][]byte
	if err := decoding.Unmarshal(data, &records); err != nil {
		return nil, fmt.Errorf("peers: decoding records: %w", err)
	}
	var news [][]byte
	var errs []error
	for _, data := range records {
		isNews, err := p.m.mergeRecord(data)
		if err != nil {
			errs = append(errs, err)
		} else if isNews {
			news = append(news, data)
		}
	}
	if len(news) == 0 {
		return nil, errors.Join(errs...)
	}
	p.m.cfg.Changed()
	return encode(news), errors.Join(errs...)
}

// mergeRecord stores a record if it is news. Most records are not news. So mergeRecord checks that
// before it verifies the signature, which is expensive.
func (m *Mesh) mergeRecord(data []byte) (news bool, err error) {
	s, err := peer.Parse(data)
	if err != nil {
		return false, err
	}
	id := s.Record.ID()
	m.mu.Lock()
	fresh := m.isNews(s)
	m.mu.Unlock()
	if !fresh {
		return false, nil
	}
	if err := s.Verify(); err != nil {
		return false, err
	}
	if id == m.self {
		return false, m.refute(s.Record)
	}
	if err := m.checkMember(s.Record.Identity, s.Record.Certificate); err != nil {
		return false, fmt.Errorf("peers: refused the record of %v: %w", id, err)
	}
	m.mu.Lock()
	fresh = m.isNews(s)
	if fresh {
		err = m.keep(id, s, len(data))
	}
	m.mu.Unlock()
	if err == nil && fresh {
		m.reach(id)
	}
	return fresh && err == nil, err
}

// isNews reports whether a record supersedes the one that is stored, or that was forgotten. The
// caller holds the lock.
func (m *Mesh) isNews(s peer.Signed) bool {
	id := s.Record.ID()
	if f, ok := m.kept.forgotten[id]; ok && s.Record.Sequence <= f.sequence {
		return false
	}
	k := m.peers[id]
	return k == nil || !k.hasRecord() || s.Supersedes(k.signed)
}

// refutePause is the shortest time between two refutations.
const refutePause = 10 * time.Second

// refuteLater calls refute after a pause: push/pull would repeat the record only much later.
func (m *Mesh) refuteLater(in time.Duration, theirs peer.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.later != nil {
		m.later.Stop()
	}
	m.later = time.AfterFunc(in, func() {
		if m.Own().Sequence > theirs.Sequence {
			return // our record got a higher number meanwhile
		}
		if err := m.refute(theirs); err != nil {
			m.cfg.Log.Warn("cannot refute an outdated record of this host", "err", err)
		}
	})
}

// refute publishes our record with a higher sequence number than theirs, a record of this peer that
// this run did not write. If such a record arrives once, our state was probably restored from an
// older copy. If such records arrive again and again, another host has our identity; the pause
// keeps both from refuting each other without end.
func (m *Mesh) refute(theirs peer.Record) error {
	m.mu.Lock()
	now, last, own := time.Now(), m.refuted, m.peers[m.self].signed.Record
	wait := !last.IsZero() && now.Sub(last) < refutePause
	if !wait {
		m.refuted = now
	}
	m.mu.Unlock()
	if !last.IsZero() && len(theirs.Underlay) > 0 && !slices.Equal(theirs.Underlay, own.Underlay) {
		m.reject(theirs.Underlay[0].String(), twin)
	}
	if wait {
		m.refuteLater(refutePause-now.Sub(last), theirs)
		return nil
	}
	if err := m.update(func(r *peer.Record) { r.Sequence = theirs.Sequence }); err != nil {
		return err
	}
	m.Broadcast(peersName, m.ownState())
	return nil
}
