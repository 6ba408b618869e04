package mesh

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

const peersName = "peers"

// maxPeers bounds what holders of the secret can make us remember.
const maxPeers = 1 << 14

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

func (m *Mesh) mergeRecord(data []byte) (news bool, err error) {
	s, err := peer.Decode(data)
	if err != nil {
		return false, err
	}
	id := s.Record.ID()
	m.mu.Lock()
	k := m.peers[id]
	fresh := k == nil || !k.hasRecord() || s.Supersedes(k.signed)
	full := k == nil && len(m.peers) >= maxPeers
	if fresh && !full && id != m.self {
		if err = m.cfg.Store.SavePeer(id, data); err == nil {
			if k == nil {
				k = &known{}
				m.peers[id] = k
			}
			k.signed = s
		}
	}
	m.mu.Unlock()
	switch {
	case err != nil:
		return false, fmt.Errorf("peers: keep %v: %w", id, err)
	case full:
		return false, fmt.Errorf("peers: %v is one more than %d, ignored", id, maxPeers)
	case fresh && id == m.self:
		return false, m.insist(s.Record)
	}
	return fresh, nil
}

// ErrTwin says that this host's identity is another host's too.
var ErrTwin = errors.New("this host has the identity of another one, which was there first: a disk was copied. Run `weft reset --force` on the copy, and launch it again")

// meetTwin looks whether another run of this peer that gossip tells of is alive. If it is,
// another host has our identity, and the run that was started last ends.
func (m *Mesh) meetTwin(n *memberlist.Node) {
	if !m.running() {
		return
	}
	if _, err := m.list.Ping(n.Name, &net.UDPAddr{IP: n.Addr, Port: int(n.Port)}); err != nil {
		return // our own last run, or one that ended meanwhile
	}
	m.reject(n.Addr.String(), twin)
	if m.name > n.Name {
		select {
		case m.copied <- fmt.Errorf("mesh: %w: %v", ErrTwin, n.Addr):
		default:
		}
	}
}

// insistPause is how long the mesh may contradict us before we do.
const insistPause = 10 * time.Second

const twin = "it speaks with this host's identity: was its disk copied from here, or this one's from there? The one that was started last stops by itself; run `weft reset --force` on the copy"

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
