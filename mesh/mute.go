package mesh

import "time"

// muteness holds the last three times at which a peer answered a probe only by TCP, not by UDP.
// memberlist treats such a peer as healthy and only logs it. A single missing answer may be due to
// packet loss.
type muteness [3]time.Time

// lasts reports whether the peer failed to answer UDP in most of the recent probe rounds.
func (t muteness) lasts(now time.Time, round time.Duration) bool {
	return !t[0].IsZero() && now.Sub(t[0]) < max(5*round, 30*time.Second)
}

// muted handles a line of memberlist's log that a peer answered a probe only by TCP. text begins
// with the peer's name.
func (m *Mesh) muted(text string) {
	id, ok := idOfNode(text)
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.peers[id]; ok && k != nil {
		k.mute = muteness{k.mute[1], k.mute[2], time.Now()}
	}
}
