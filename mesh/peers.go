package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

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

// Full leaves out our own record until it is clear that nobody else is this peer.
func (p peersReplica) Full() []byte {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	records := make([][]byte, 0, len(p.m.peers))
	for id, k := range p.m.peers {
		if k.hasRecord() && (id != p.m.self || p.m.confirmed) {
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
	if f, ok := m.forgotten[id]; ok && s.Record.Sequence <= f.sequence {
		return false
	}
	k := m.peers[id]
	return k == nil || !k.hasRecord() || s.Supersedes(k.signed)
}

// keep makes a record the one that we have. Where there is no room, peers that own nothing
// and are silent make it, first those that never proved to be alive. The caller holds the lock.
func (m *Mesh) keep(id peer.ID, s peer.Signed, size int) error {
	k := m.peers[id]
	number, bytes := len(m.peers), m.peerBytes+size
	if k == nil {
		number++
	} else {
		bytes -= k.size
	}
	if number > maxPeers || bytes > maxPeerBytes {
		silent := m.silent()
		for _, other := range silent[:min(len(silent), 1+len(silent)/16)] {
			if other != id {
				m.forget(other)
			}
		}
		if len(silent) == 0 || len(silent) == 1 && silent[0] == id {
			return fmt.Errorf("peers: no room for %v: the %d that are known own addresses or are alive", id, len(m.peers))
		}
	}
	if k == nil {
		k = &known{heard: time.Now()}
		m.peers[id] = k
	}
	m.peerBytes += size - k.size
	k.signed, k.size, k.saved = s, size, false
	delete(m.forgotten, id)
	return nil
}

// silent lists the peers that can be forgotten: they own nothing and are not here. Those
// come first that never proved to be alive, then those that were silent for long. The caller
// holds the lock.
func (m *Mesh) silent() (out []peer.ID) {
	for id, k := range m.peers {
		if id != m.self && k.node == "" && !m.owns(id) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(a, b peer.ID) int {
		x, y := m.peers[a], m.peers[b]
		if x.met != y.met {
			if y.met {
				return -1
			}
			return 1
		}
		return x.heard.Compare(y.heard)
	})
	return out
}

func (m *Mesh) owns(id peer.ID) bool { return m.cfg.Owns != nil && m.cfg.Owns(id) }

// forgotten is the last word of a peer that we know no more: others may still repeat it.
type forgotten struct {
	sequence uint64
	at       time.Time
}

// forget drops what is known of a peer. The caller holds the lock.
func (m *Mesh) forget(id peer.ID) {
	k := m.peers[id]
	for _, r := range k.runs {
		m.forgetChallenges(r)
	}
	m.peerBytes -= k.size
	delete(m.peers, id)
	if !k.hasRecord() {
		return
	}
	m.dropped[id] = true
	if len(m.forgotten) < maxPeers {
		m.forgotten[id] = forgotten{k.signed.Record.Sequence, time.Now()}
	}
}

// expire forgets the peers that own nothing and were silent for long.
func (m *Mesh) expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.silent() {
		if now.Sub(m.peers[id].heard) > forgetAfter {
			m.forget(id)
		}
	}
	maps.DeleteFunc(m.forgotten, func(_ peer.ID, f forgotten) bool { return now.Sub(f.at) > 2*forgetAfter })
}

// requestForget asks a peer to forget another one, which is named.
const requestForget = "forget"

// ForgetPeer forgets a peer that owns nothing and is not here, and asks all others to.
func (m *Mesh) ForgetPeer(ctx context.Context, id peer.ID) error {
	if err := m.forgetSilent(id); err != nil {
		return err
	}
	m.cfg.Changed()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(maxAtOnce)
	for _, other := range m.Others() {
		if m.Reachable(other) {
			group.Go(func() error {
				// It may not have heard yet that the peer owns nothing any more. Who cannot be asked forgets it in time.
				for range 5 {
					if _, err := m.Request(ctx, other, requestForget, id[:]); err == nil || ctx.Err() != nil {
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				return nil
			})
		}
	}
	return group.Wait()
}

const maxAtOnce = 16

func (m *Mesh) serveForget(_ context.Context, _ peer.ID, payload []byte) ([]byte, error) {
	if len(payload) != len(peer.ID{}) {
		return nil, fmt.Errorf("a peer's id has %d bytes, not %d", len(peer.ID{}), len(payload))
	}
	err := m.forgetSilent(peer.ID(payload))
	m.cfg.Changed()
	return nil, err
}

func (m *Mesh) forgetSilent(id peer.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch k := m.peers[id]; {
	case k == nil:
		return nil
	case id == m.self, k.node != "":
		return fmt.Errorf("mesh: %v is alive", id)
	case m.owns(id):
		return fmt.Errorf("mesh: %v owns addresses", id)
	}
	m.forget(id)
	return nil
}

// save writes what is to be remembered over a restart: peers that proved to be alive, or
// own something. What a crash loses, others say again.
func (m *Mesh) save() error {
	m.mu.Lock()
	changes, kept := map[peer.ID][]byte{}, []*known(nil)
	for id := range m.dropped {
		changes[id] = nil
	}
	for id, k := range m.peers {
		if id != m.self && !k.saved && k.hasRecord() && (k.met || m.owns(id)) {
			changes[id], kept = k.signed.Encode(), append(kept, k)
			k.saved = true
		}
	}
	m.dropped = map[peer.ID]bool{}
	m.mu.Unlock()
	if len(changes) == 0 {
		return nil
	}
	err := m.cfg.Store.SavePeers(changes)
	if err != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, k := range kept {
			k.saved = false
		}
		for id, data := range changes {
			if data == nil {
				m.dropped[id] = true
			}
		}
		return fmt.Errorf("mesh: keep the records of peers: %w", err)
	}
	return nil
}

// remember saves and expires until ctx ends.
func (m *Mesh) remember(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return m.save()
		case <-m.unsaved:
		case now := <-tick.C:
			m.expire(now)
		}
		if err := m.save(); err != nil {
			m.cfg.Log.Warn("cannot keep the records of peers", "err", err)
		}
	}
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
	m.tell()
	return nil
}
