package path

import (
	"net/netip"
	"slices"
	"time"
)

// timeout is how long the answer to a question may take before it is missed.
func (r *remote) timeout() time.Duration {
	if r.current == nil || r.current.samples == 0 {
		return time.Second
	}
	return min(max(3*r.current.rtt, 300*time.Millisecond), 2*time.Second)
}

// gap is the time between two rounds of an alarm.
func (r *remote) gap() time.Duration {
	switch {
	case r.path.State == Deaf && r.capable && !r.heardAt.IsZero(): // the peer lives: does it hear this host?
		return r.timeout()
	case r.down() && r.Quiet:
		return quietGap - r.prober.upTo(quietGap/4)
	case r.down():
		return downGap - r.prober.upTo(downGap/4)
	case !r.capable && r.rounds > restRounds: // its version may know no probes
		return downGap
	case r.underLoad && r.current != nil:
		return gapMin
	}
	return gapMin * 3 / 2
}

// due returns the questions that this peer is to be asked now.
func (r *remote) due(now time.Time, out []Send) []Send {
	r.expire(now)
	if r.path.Left.IsValid() && now.Sub(r.switched) >= lateFor {
		r.path.Left, r.path.Own = netip.AddrPort{}, netip.Addr{}
		r.prober.version++
	}
	switch {
	case !r.sentSince.IsZero() && now.Sub(r.sentSince) >= unansweredAfter && (r.alarm.IsZero() || !r.underLoad):
		r.raise(now, false, true)
	case !r.alarm.IsZero():
	case !r.first && now.Sub(latest(r.path.Asked, r.path.Answered)) > patience:
		r.raise(now, false, false)
	case r.current == nil && r.asksCalm() && !now.Before(r.calmAt): // data came, but no address has answered
		r.raise(now, false, false)
	}
	if !r.alarm.IsZero() && !now.Before(r.next) {
		out = r.round(now, out)
	}
	if !r.askAt.IsZero() && !now.Before(r.askAt) {
		r.askAt = time.Time{}
		if r.alarm.IsZero() && r.current != nil {
			out = r.ask(now, out, r.current, 0)
		}
	}
	if r.alarm.IsZero() && r.asksCalm() && !now.Before(r.calmAt) && r.current != nil {
		out = r.ask(now, out, r.current, 0)
		r.calmAt = r.later(now)
	}
	if r.first && r.alarm.IsZero() && !now.Before(r.othersAt) && len(r.addrs) > 1 {
		for _, a := range r.addrs {
			if a != r.current || r.looks > 0 {
				out = r.ask(now, out, a, 0)
			}
		}
		r.othersAt = now.Add(othersEvery)
		if r.looks > 0 {
			r.looks--
			if r.looks > 0 {
				r.othersAt = now.Add(gapMin)
			}
		}
	}
	out = r.tend(now, r.seekDirect(now, out))
	for _, a := range r.addrs {
		if a.check {
			a.check = false
			out = r.ask(now, out, a, 0)
		}
	}
	return r.measure(now, out)
}

// asksCalm reports whether this host asks the calm tunnel: the other side does not, if gossip has lost it.
func (r *remote) asksCalm() bool { return r.first || r.Quiet }

// expire drops questions whose answers would come too late, and raises an alarm if the calm path has not
// answered in time.
func (r *remote) expire(now time.Time) {
	limit := r.timeout()
	for i := range r.asks {
		q := &r.asks[i]
		if q.late || now.Sub(q.at) < limit {
			continue
		}
		q.late = true
		if q.size == 0 && q.addr == r.current && r.alarm.IsZero() && q.addr.answered.Before(q.at) {
			r.raise(now, true, r.recent(now))
		}
	}
	r.asks = slices.DeleteFunc(r.asks, func(q ask) bool {
		old := now.Sub(q.at) >= forgetAfter
		if old && q.size == 0 {
			q.addr.note(false)
		}
		return old
	})
	old := func(t time.Time) bool { return now.Sub(t) > flappingSpan }
	r.changes, r.moves = slices.DeleteFunc(r.changes, old), slices.DeleteFunc(r.moves, old)
	r.path.Changes, r.path.Moves = len(r.changes), len(r.moves)
	r.tell()
}

// tell makes what this host measured itself a part of the path. In calm times the other side measures.
func (r *remote) tell() {
	a := r.current
	if a == nil || a.samples == 0 || !r.first && r.path.Measured && !r.down() {
		return
	}
	r.path.RTT, r.path.Measured = a.rtt, true
	if loss, ok := a.loss(); ok {
		r.path.Loss = loss
	}
}

// round asks all addresses, and gives the path up after enough rounds without an answer.
func (r *remote) round(now time.Time, out []Send) []Send {
	needed := restRounds
	if r.underLoad {
		needed = trafficRounds
	}
	late := r.current == nil || now.Sub(r.alarm) > r.current.rtt*3/2     // an answer would have come
	if r.rounds >= needed && late && now.Sub(r.path.Answered) > gapMax { // otherwise a second answer is awaited
		r.giveUp(now)
	}
	r.rounds++
	r.seek(now)
	r.next = now.Add(r.gap())
	if r.current != nil {
		out = r.ask(now, out, r.current, 0)
		for i := 0; i < 2 && r.rounds > 1 && !r.down(); i++ { // much loss is no cut
			out = r.ask(now, out, r.current, 0)
		}
	}
	if r.rounds > 1 || r.current == nil {
		for _, a := range r.addrs {
			if a != r.current {
				out = r.ask(now, out, a, 0)
			}
		}
	}
	return out
}

// SessionLife is how long WireGuard uses the keys of a handshake (REJECT_AFTER_TIME).
const SessionLife = 180 * time.Second

// passiveKeepalive is when WireGuard at the latest answers data with a keepalive (KEEPALIVE_TIMEOUT), and some
// time for that to be seen.
const passiveKeepalive = 12 * time.Second

// withoutAgent reports whether data comes through the tunnel since gossip lost the peer: only its agent is
// down, which answers no probes. The tunnel works without it.
func (r *remote) withoutAgent(now time.Time) bool {
	return r.Quiet && r.came.After(r.quietAt) && now.Sub(r.path.Received) < ProofFor && (r.sentSince.IsZero() || !r.underLoad)
}

// giveUp decides what it means that nothing has answered.
func (r *remote) giveUp(now time.Time) {
	if r.withoutAgent(now) {
		r.calm(now)
		return
	}
	if !r.capable && r.sentSince.IsZero() { // no data waits for an answer
		if now.Sub(r.path.Received) < ProofFor {
			r.set(now, Direct)
			return
		}
		if now.Sub(r.shook) < SessionLife && now.Sub(r.observed) < ProofFor {
			return // its keepalive may come yet
		}
	}
	if !r.capable && now.Sub(r.path.Received) < passiveKeepalive && now.Sub(r.path.Received) >= 0 {
		return // it receives data, and has none to send
	}
	// What came before the alarm, or was on its way, proves nothing.
	heard := func(at, after time.Time, within time.Duration) bool {
		return now.Sub(at) < within && after.Sub(r.alarm) > gapMin/2
	}
	every := downGap // between two questions of the peer
	if r.Quiet {
		every = quietGap
	}
	if s := 3 * time.Second; heard(r.path.Received, r.came, s) || heard(r.path.Asked, r.path.Asked, s+every) {
		if r.path.State == Deaf && now.Sub(r.heardAt) < r.timeout() {
			return // the answer to the first question since then may still come
		}
		r.set(now, Unheard)
		return
	}
	r.heardAt = time.Time{}
	r.set(now, Deaf)
}

// ask appends a question to an address.
func (r *remote) ask(now time.Time, out []Send, a *address, size int) []Send {
	const maxAsks = 256
	if len(r.asks) >= maxAsks {
		return out
	}
	m := message{kind: question, id: r.prober.newID(), stamp: r.prober.stamp(now), size: uint16(size), mtu: uint16(r.path.MTU), rtt: r.path.RTT, loss: uint16(r.path.Loss * 10000), seen: r.prober.outer(now)}
	if a == r.current {
		m.flags |= flagChosen
	}
	if !r.alarm.IsZero() && r.rounds > 1 {
		m.flags |= flagDeaf
	}
	payload := r.prober.seal(r, m)
	if payload == nil {
		return out
	}
	r.asks = append(r.asks, ask{id: m.id, at: now, addr: a, size: size})
	return append(out, Send{To: a.to, Port: a.port(), Payload: payload, Size: size, id: m.id, peer: r.ID})
}

// failed takes the kernel's refusal to send.
func (r *remote) failed(now time.Time, s Send, firewall bool) {
	if i := slices.IndexFunc(r.asks, func(q ask) bool { return s.id != 0 && q.id == s.id }); i >= 0 {
		if q := r.asks[i]; q.size == 0 {
			q.addr.note(false)
			if q.addr == r.current {
				r.path.Refused = firewall
				r.raise(now, true, r.recent(now))
			}
		}
		r.asks = slices.Delete(r.asks, i, i+1)
	}
}

// nextAt returns when due has something to do.
func (r *remote) nextAt() time.Time {
	var at time.Time
	take := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if r.alarm.IsZero() {
		if r.asksCalm() {
			take(r.calmAt)
		} else {
			take(latest(r.path.Asked, r.path.Answered).Add(patience + 1))
		}
		if r.first && len(r.addrs) > 1 {
			take(r.othersAt)
		}
		for _, q := range r.asks {
			if !q.late {
				take(q.at.Add(r.timeout()))
			}
		}
	} else {
		take(r.next)
	}
	if !r.sentSince.IsZero() && (r.alarm.IsZero() || !r.underLoad) {
		take(r.sentSince.Add(unansweredAfter))
	}
	take(r.askAt)
	if r.path.Left.IsValid() {
		take(r.switched.Add(lateFor))
	}
	for _, list := range [][]time.Time{r.changes, r.moves} {
		if len(list) > 0 {
			take(list[0].Add(flappingSpan + 1)) // it no longer counts
		}
	}
	r.tendAt(take)
	for _, a := range r.addrs {
		if a.check {
			take(r.path.Since) // at once
		}
	}
	if r.measurable() {
		take(latest(r.mtu.next, r.path.Since)) // at once, if it has never been measured
	}
	return at
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
