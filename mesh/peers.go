package mesh

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/mesh/peer"
)

const peersName = "peers"

// What holders of the secret can make us remember. A record has some 250 bytes.
const (
	maxPeers     = 1 << 12
	maxPeerBytes = 3 << 20 // of all records; states of other kinds share a message with them
	// forgetAfter is how long a peer that owns nothing may be silent before it is forgotten.
	// It is long, since a majority is one of all peers that are known.
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

// ownState is the part of the replica that is this peer's word.
func (m *Mesh) ownState() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return encode([][]byte{m.peers[m.self].signed.Encode()})
}

func (k *known) hasRecord() bool { return k.signed.Record.Identity != nil }

// Merge keeps what supersedes the record that we have, and names it as news. One
// bad record does not spoil the others.
func (p peersReplica) Merge(data []byte) ([]byte, error) {
	var records [][]byte
	if err := decoding.Unmarshal(data, &records); err != nil {
		return nil, fmt.Errorf("peers: %w", err)
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

// mergeRecord keeps a record that is news. Most are not, which is clear before the
// signature, the dear part, is verified.
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
		return false, m.insist(s.Record)
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

// isNews reports whether a record says more than we have, or forgot. The caller holds the lock.
func (m *Mesh) isNews(s peer.Signed) bool {
	id := s.Record.ID()
	if f, ok := m.kept.forgotten[id]; ok && s.Record.Sequence <= f.sequence {
		return false
	}
	k := m.peers[id]
	return k == nil || !k.hasRecord() || s.Supersedes(k.signed)
}

// insistPause is how long the mesh may contradict us before we do.
const insistPause = 10 * time.Second

// insistLater comes back to a contradiction that fell into the pause: push/pull would say
// it again, but not soon.
func (m *Mesh) insistLater(in time.Duration, theirs peer.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.later != nil {
		m.later.Stop()
	}
	m.later = time.AfterFunc(in, func() {
		if m.Own().Sequence > theirs.Sequence {
			return // we have spoken meanwhile
		}
		if err := m.insist(theirs); err != nil {
			m.cfg.Log.Warn("cannot contradict what the mesh says of this peer", "err", err)
		}
	})
}

// insist speaks again, louder: the mesh remembers a later word of ours than we do.
// The first time our state was restored from an older copy. If it goes on, another
// host has our identity, and two who insist at once would never end.
func (m *Mesh) insist(theirs peer.Record) error {
	m.mu.Lock()
	now, last, own := time.Now(), m.insisted, m.peers[m.self].signed.Record
	wait := !last.IsZero() && now.Sub(last) < insistPause
	if !wait {
		m.insisted = now
	}
	m.mu.Unlock()
	if !last.IsZero() && len(theirs.Underlay) > 0 && !slices.Equal(theirs.Underlay, own.Underlay) {
		m.reject(theirs.Underlay[0].String(), twin)
	}
	if wait {
		m.insistLater(insistPause-now.Sub(last), theirs)
		return nil
	}
	if err := m.update(func(r *peer.Record) { r.Sequence = theirs.Sequence }); err != nil {
		return err
	}
	m.Broadcast(peersName, m.ownState())
	return nil
}
