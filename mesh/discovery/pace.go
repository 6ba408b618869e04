package discovery

import "time"

// These are the pauses between two announcements of a host.
const (
	atStart  = 500 * time.Millisecond
	atRest   = 10 * time.Second
	quick    = 10 * time.Second // how long a host announces often after a change
	forReply = time.Second      // the shortest pause of a host that others ask for
)

// Pace decides when a host announces itself: often while it seeks and after each change, rarely at
// rest, and soon when a seeking host asks for it.
type Pace struct {
	changed time.Time // when the kind last changed
	last    time.Time // the last announcement
	next    time.Time
}

// Changed notes that the host announces something else: it does so at once.
func (p *Pace) Changed(now time.Time) { p.changed, p.next = now, now }

// Asked notes that a seeking host was heard. random is from 0 to 1; it spreads the replies of many
// hosts.
func (p *Pace) Asked(now time.Time, random float64) {
	at := now.Add(time.Duration(random * float64(atStart)))
	if earliest := p.last.Add(forReply); at.Before(earliest) {
		at = earliest
	}
	if at.Before(p.next) {
		p.next = at
	}
}

// Due reports whether to announce now, and if so plans the next announcement. random is from 0 to 1.
func (p *Pace) Due(now time.Time, seeking bool, random float64) bool {
	if now.Before(p.next) {
		return false
	}
	pause := atRest
	if seeking || now.Sub(p.changed) < quick {
		pause = atStart
	}
	p.last, p.next = now, now.Add(time.Duration((0.8+0.4*random)*float64(pause)))
	return true
}

// Wait returns the time until the next announcement.
func (p *Pace) Wait(now time.Time) time.Duration { return max(0, p.next.Sub(now)) }
