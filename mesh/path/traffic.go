package path

import "time"

// keepalive is the size of WireGuard's keepalives, which expect no answer.
const keepalive = 32

// observe takes what WireGuard counted, and reports whether that matters.
func (r *remote) observe(now time.Time, t Traffic) bool {
	last, since := r.traffic, r.looked // what is new has come since then, which at rest is long ago
	r.traffic, r.looked = t, now
	base := r.base
	if now.Sub(since) >= compareOver {
		base = last
	}
	if now.Sub(r.baseAt) >= compareOver {
		r.base, r.baseAt = t, now
	}
	if !t.Handshake.Equal(last.Handshake) { // its own time is the wall clock's
		r.shook = since
		if r.observed.IsZero() {
			r.shook = minTime(now, t.Handshake)
		}
	}
	if r.observed.IsZero() || t.Received < last.Received || t.Sent < last.Sent { // the first time, or a new device
		r.observed, r.base, r.baseAt = now, t, now
		if r.current == nil && t.Endpoint.IsValid() {
			r.current = r.learn(now, t.Endpoint) // an earlier agent chose it
		}
		if t.Received > burst {
			r.askAt = now.Add(unansweredAfter)
		}
		return true
	}
	if r.inVain.IsZero() && t.Sent > last.Sent+keepalive {
		r.inVain = now
	}
	switch {
	case t.Received > last.Received:
		r.path.Received, r.came, r.sentSince, r.inVain = now, since, time.Time{}, time.Time{}
		if t.Received > base.Received+burst {
			r.askAt = now.Add(unansweredAfter)
		}
		r.roamed(now, t.Endpoint)
		if r.alarm.IsZero() || !r.came.After(r.alarm) {
			break // only what came after the alarm says something about it
		}
		r.hear(now)
		if r.down() && r.shook.After(r.path.Since.Add(downGap)) { // packets travel both ways: its version knows no probes any more
			r.capable = false
		}
		if !r.needsAnswer || !r.capable || r.Quiet {
			r.calm(now)
		}
	case t.Sent > last.Sent+keepalive && r.sentSince.IsZero():
		ask := latest(now, r.path.Answered.Add(askAgain))
		r.sentSince = now
		if now.Sub(r.inVain) > busyEvery { // a stream in one direction: it is asked about less often
			ask = latest(now, r.path.Answered.Add(2*askAgain))
			r.sentSince = latest(now, ask.Add(-askAgain))
		}
		if r.askAt.Before(r.sentSince) || ask.Before(r.askAt) { // an earlier answer would not count
			r.askAt = ask
		}
	default:
		return false
	}
	if t.Received > base.Received+burst || t.Sent > base.Sent+burst {
		r.busy = now
		r.calmAt = minTime(r.calmAt, now.Add(busyEvery))
	}
	if !r.mtu.running {
		r.mtu.next = minTime(r.mtu.next, now.Add(verifyBusy))
	}
	return true
}

// hear notes that something came from a peer that was not heard: if it answers no question now, it does not
// hear this host.
func (r *remote) hear(now time.Time) {
	if r.path.State == Deaf && r.heardAt.IsZero() {
		r.heardAt, r.next = now, minTime(r.next, now)
	}
}

// recent reports whether traffic went to or came from the peer within the last seconds.
func (r *remote) recent(now time.Time) bool {
	return !r.sentSince.IsZero() || now.Sub(r.path.Received) < 2*time.Second
}
