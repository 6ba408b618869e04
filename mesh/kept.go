package mesh

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh/peer"
)

// remembered is the bookkeeping of the records of all peers. The lock of its Mesh guards it.
type remembered struct {
	bytes     int // total size of all records
	unsaved   chan struct{}
	dropped   map[peer.ID]bool // forgotten peers that are still on disk
	forgotten map[peer.ID]forgotten
	keys      map[[32]byte]peer.ID // WireGuard keys and their peers, including this one
}

func newRemembered() remembered {
	return remembered{unsaved: make(chan struct{}, 1), dropped: map[peer.ID]bool{}, forgotten: map[peer.ID]forgotten{}, keys: map[[32]byte]peer.ID{}}
}

// keep stores a new record of a peer. If there is no room, it forgets peers that own nothing and
// are not reachable; peers that never proved to be alive go first. The caller holds the lock.
func (m *Mesh) keep(id peer.ID, s peer.Signed, size int) error {
	// A record does not prove possession of the WireGuard key. Accepting the key of another peer
	// would break that peer's tunnels.
	if owner, taken := m.kept.keys[s.Record.WireGuard]; taken && owner != id {
		return fmt.Errorf("peers: refused the record of %v: it has the WireGuard key of %v, which is already known: run `weft reset` on the copied host", id, owner)
	}
	k := m.peers[id]
	number, bytes := len(m.peers), m.kept.bytes+size
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
			return fmt.Errorf("peers: no room for %v: all %d known peers own addresses or are reachable", id, len(m.peers))
		}
	}
	if k == nil {
		k = &known{heard: time.Now()}
		m.peers[id] = k
		for _, n := range m.members.of(id) { // memberlist reports each run only once
			if r := runOf(n); r != nil {
				m.noteOf(k, r)
			}
		}
	}
	m.kept.bytes += size - k.size
	m.forgetKey(id, k)
	m.keepKey(id, s.Record.WireGuard)
	k.signed, k.size, k.saved, k.holder = s, size, false, m.holds(s.Record)
	delete(m.kept.forgotten, id)
	return nil
}

// keepKey stores the owner of a WireGuard key; the zero key means none. The caller holds the lock.
func (m *Mesh) keepKey(id peer.ID, key [32]byte) {
	if key != [32]byte{} {
		m.kept.keys[key] = id
	}
}

func (m *Mesh) forgetKey(id peer.ID, k *known) {
	if key := k.signed.Record.WireGuard; m.kept.keys[key] == id {
		delete(m.kept.keys, key)
	}
}

// silent lists the peers that can be forgotten: they own nothing and are not reachable. Peers that
// never proved to be alive come first, then the peers that have been unreachable longest. The
// caller holds the lock.
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

// forgotten is the last sequence number of a forgotten peer, whose record other peers may still
// send.
type forgotten struct {
	sequence uint64
	at       time.Time
}

// forget deletes all knowledge of a peer. The caller holds the lock.
func (m *Mesh) forget(id peer.ID) {
	k := m.peers[id]
	for _, r := range k.runs {
		m.forgetChallenges(r)
	}
	m.kept.bytes -= k.size
	m.forgetKey(id, k)
	delete(m.peers, id)
	if !k.hasRecord() {
		return
	}
	m.kept.dropped[id] = true
	if len(m.kept.forgotten) < maxPeers {
		m.kept.forgotten[id] = forgotten{k.signed.Record.Sequence, time.Now()}
	}
}

// expire forgets the peers that own nothing and have been unreachable for forgetAfter.
func (m *Mesh) expire(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.silent() {
		if now.Sub(m.peers[id].heard) > forgetAfter {
			m.forget(id)
		}
	}
	maps.DeleteFunc(m.kept.forgotten, func(_ peer.ID, f forgotten) bool { return now.Sub(f.at) > 2*forgetAfter })
}

// requestForget asks a peer to forget the peer in the payload.
const requestForget = "forget"

// ForgetPeer forgets a peer that owns nothing and is not reachable, and asks all other peers to
// forget it too.
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
				// The asked peer may not know yet that the peer to forget owns nothing. A peer that
				// cannot be asked forgets it after forgetAfter.
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
		return nil, fmt.Errorf("invalid id of the peer to forget: it has %d bytes, want %d", len(payload), len(peer.ID{}))
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
		return fmt.Errorf("mesh: %v cannot be forgotten: it is alive", id)
	case m.owns(id):
		return fmt.Errorf("mesh: %v cannot be forgotten: it owns addresses", id)
	}
	m.forget(id)
	return nil
}

// save stores the peers that proved to be alive or own something. Records lost in a crash arrive
// again from other peers.
func (m *Mesh) save() error {
	m.mu.Lock()
	changes, kept := map[peer.ID][]byte{}, []*known(nil)
	for id := range m.kept.dropped {
		changes[id] = nil
	}
	for id, k := range m.peers {
		if id != m.self && !k.saved && k.hasRecord() && (k.met || m.owns(id)) {
			changes[id], kept = k.signed.Encode(), append(kept, k)
			k.saved = true
		}
	}
	m.kept.dropped = map[peer.ID]bool{}
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
				m.kept.dropped[id] = true
			}
		}
		return fmt.Errorf("mesh: storing the records of peers: %w", err)
	}
	return nil
}

// remember saves and expires records until ctx ends.
func (m *Mesh) remember(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return m.save()
		case <-m.kept.unsaved:
		case now := <-tick.C:
			m.expire(now)
		}
		if err := m.save(); err != nil {
			m.cfg.Log.Warn("cannot store the records of peers: trying again", "err", err)
		}
	}
}
