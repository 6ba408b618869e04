package ask

import (
	"sync"
	"time"

	"weft/mesh/peer"
)

// mostAskers bounds the members that a Limit counts.
const mostAskers = 4096

// Limit bounds how often each member is answered: one member's requests never use up those of another. It is safe for
// concurrent use.
type Limit struct {
	Every time.Duration // the interval of lasting requests
	Burst int           // requests that may come at once

	mu   sync.Mutex
	paid map[peer.ID]time.Time // until when a member's requests are paid for
}

// Allow reports whether a member may ask now.
func (l *Limit) Allow(id peer.ID, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paid == nil || len(l.paid) >= mostAskers {
		l.paid = map[peer.ID]time.Time{}
	}
	paid := l.paid[id]
	if paid.Before(now) {
		paid = now
	}
	if paid.Add(l.Every).Sub(now) > time.Duration(l.Burst)*l.Every {
		return false
	}
	l.paid[id] = paid.Add(l.Every)
	return true
}
