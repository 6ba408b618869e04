package mesh

import "time"

// muteness is when a peer last answered a probe by TCP only: memberlist then goes on as if all
// were well, and says so nowhere but in its log. One such probe may be packets that were lost.
type muteness [3]time.Time

// lasts reports whether the peer was mute in most of the last rounds of probes.
func (t muteness) lasts(now time.Time, round time.Duration) bool {
	return !t[0].IsZero() && now.Sub(t[0]) < max(5*round, 30*time.Second)
}

// muted takes in what memberlist says of a peer, which it names first.
func (m *Mesh) muted(text string) {
	id, ok := idOfNode(text)
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.peers[id]; ok && k != nil {
		k.mute = muteness{k.mute[1], k.mute[2], time.Now()}
	}
}
