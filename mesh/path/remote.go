package path

import (
	"net/netip"
	"slices"
	"time"
)

// remote is a peer, as the state machine sees it.
type remote struct {
	Remote
	prober *Prober
	first  bool // this host probes the calm tunnel, and decides which pair of addresses it uses
	turn   time.Duration
	path   Path
	wakeAt time.Time // when due has something to do

	addrs   []*address
	current *address // what the tunnel should use; nil: no address has answered yet
	wanted  *address // what the peer chose, while it has not answered this host yet
	asks    []ask    // questions without an answer, the oldest first

	traffic   Traffic
	observed  time.Time // when traffic was first observed
	looked    time.Time // when traffic was last observed
	base      Traffic   // what was observed at baseAt
	baseAt    time.Time // renewed by the first look that is compareOver later
	came      time.Time // the last data has come after that, and until path.Received; zero: none has
	shook     time.Time // the last handshake was after that
	heardAt   time.Time // when a deaf path's peer was heard again; zero: it was not
	sentSince time.Time // since when traffic should have had an answer; zero: it has one
	inVain    time.Time // since when data was sent and none came, whatever probes say; zero: data comes
	busy      time.Time // when much data was last seen
	askAt     time.Time // when to ask whether the path has failed, since traffic gets no answer or has ended; zero: no need
	stamp     int64     // of the newest probe
	capable   bool      // it has answered a probe, so its version knows them
	quietAt   time.Time // since when gossip does not reach it; zero: it does

	alarm       time.Time // since when the path is in doubt; zero: it is not
	needsAnswer bool      // only an answer ends the alarm: received data does not prove that the peer hears this host
	underLoad   bool      // the alarm was raised by traffic
	rounds      int       // of the alarm
	next        time.Time // the next round
	calmAt      time.Time // the next question of a calm tunnel
	othersAt    time.Time // the next look at the other addresses
	looks       int       // how many quick looks follow that one
	switched    time.Time
	roams       int       // how often data came from another address than the one in use, see roamed
	roamedAt    time.Time // when that was last looked at
	changes     []time.Time
	moves       []time.Time // of the endpoint, and of the MTU that the peer told
	mtu         search
	soughtAt    time.Time            // when relays to a quiet peer were last looked for
	soughtGap   time.Duration        // until they are looked for again
	directAt    time.Time            // when the direct addresses are asked next, while a relay is used
	avoided     map[Relays]time.Time // relays that did not help
	second      time.Time            // since when inSecond counts changes by this peer, see mayChange
	inSecond    int
}

// ask is a question without an answer.
type ask struct {
	id   uint64
	at   time.Time
	addr *address
	size int // padded to this size, to measure the MTU; 0: not padded
	late bool
}

// configure takes what is known about a peer. The first questions are spread over some time, if there are
// many peers.
func (r *remote) configure(now time.Time, c Remote, moved bool, spread time.Duration) {
	isNew, lost := r.path.Since.IsZero(), c.Quiet && !r.Quiet
	r.Remote = c
	switch {
	case !c.Quiet:
		r.quietAt, r.soughtGap = time.Time{}, 0
	case r.quietAt.IsZero():
		r.quietAt = now
	}
	var next []*address
	for _, to := range c.Addrs[:min(len(c.Addrs), maxAddrs)] {
		a := r.find(to)
		if a == nil {
			a = &address{to: to, check: !isNew}
		}
		a.learned = time.Time{}
		next = append(next, a)
	}
	for _, a := range r.addrs {
		if a.detour != nil {
			next = append(next, a)
			continue
		}
		if !a.learned.IsZero() && now.Sub(a.learned) < learnedFor && !slices.Contains(next, a) || a == r.current && !slices.Contains(next, a) {
			if a.learned.IsZero() {
				a.learned = now // it left the record, and goes as soon as another one works
			}
			next = append(next, a)
		}
	}
	r.addrs = next
	if isNew {
		r.resume(now)
		r.path.Since = now
		r.othersAt = now.Add(othersEvery)
		r.raise(now, true, false)
		r.next = now.Add(r.prober.upTo(spread))
	} else if moved || lost {
		r.raise(now, true, true)
		r.next = now.Add(r.prober.upTo(spread / 4)) // traffic follows within 3 s
	}
}

func (r *remote) find(to netip.AddrPort) *address {
	for _, a := range r.addrs {
		if a.to == to && a.detour == nil {
			return a
		}
	}
	return nil
}

// learn returns the address from which a probe came, as a candidate.
func (r *remote) learn(now time.Time, from netip.AddrPort) *address {
	if a := r.find(from); a != nil {
		if !a.learned.IsZero() {
			a.learned = now
		}
		return a
	}
	var oldest *address
	count := 0
	for _, a := range r.addrs {
		if a.learned.IsZero() {
			continue
		}
		count++
		if a != r.current && (oldest == nil || a.learned.Before(oldest.learned)) {
			oldest = a
		}
	}
	if count >= maxLearned {
		r.addrs = slices.DeleteFunc(r.addrs, func(a *address) bool { return a == oldest })
	}
	a := &address{to: from, learned: now, check: true}
	r.addrs = append(r.addrs, a)
	return a
}

// raise puts a path in doubt.
func (r *remote) raise(now time.Time, needsAnswer, underLoad bool) {
	if r.alarm.IsZero() {
		r.alarm, r.next, r.rounds, r.needsAnswer, r.underLoad = now, now, 0, needsAnswer, underLoad
		for _, a := range r.addrs {
			a.streak = 0
		}
		return
	}
	r.needsAnswer = r.needsAnswer || needsAnswer
	if underLoad && !r.underLoad {
		r.underLoad = true
		if r.path.State != Deaf && r.path.State != Unheard {
			r.next = minTime(r.next, now.Add(r.gap()))
		}
	}
}

// calm ends an alarm.
func (r *remote) calm(now time.Time) {
	r.alarm, r.rounds, r.sentSince = time.Time{}, 0, time.Time{}
	r.calmAt = r.later(now)
	r.set(now, Direct)
}

// later returns when a calm tunnel is asked next: soon under traffic, and if data has come before any answer. At rest
// it is asked at its turn in each idleEvery of the wall clock. The result has a monotonic reading: a wall clock that
// is set back must delay no question.
func (r *remote) later(now time.Time) time.Time {
	if now.Sub(r.busy) < busyEvery || r.current == nil && now.Sub(r.path.Since) < idleEvery {
		return now.Add(busyEvery)
	}
	since := time.Duration((now.UnixNano() - int64(r.turn)) % int64(idleEvery))
	return now.Add(idleEvery - since)
}

func (r *remote) down() bool { return r.path.State == Deaf || r.path.State == Unheard }

func (r *remote) set(now time.Time, s State) {
	was := r.path.State
	if was == s {
		return
	}
	if was != Unknown && (was == Direct || s == Direct) {
		r.changes = append(r.changes, now)
	}
	if s == Direct { // the loss while the path was down says nothing about it now
		r.asks = nil
		for _, a := range r.addrs {
			a.outcomes, a.asked = 0, 0
		}
	}
	r.path.State, r.path.Since, r.heardAt = s, now, time.Time{}
	r.prober.version++
}

// answered takes the answer to a question of this host.
func (r *remote) answered(now time.Time, arrived Arrival, m message) {
	// An answer comes from the address that was asked: a question that somebody diverts to another address of
	// the peer proves nothing.
	i := slices.IndexFunc(r.asks, func(q ask) bool { return q.id == m.id && q.addr.sends(arrived) })
	if i < 0 || now.Sub(r.asks[i].at) >= forgetAfter {
		return
	}
	q := r.asks[i]
	r.asks = slices.Delete(r.asks, i, i+1)
	r.capable = true
	if m.stamp > r.stamp || r.stamp-m.stamp > int64(forgetAfter) { // the peer's clock may have been set back
		r.stamp = m.stamp
	}
	r.path.Answered, r.path.Refused = now, false
	if q.addr.detour == nil {
		r.prober.seenAt(now, m.seen, arrived.To)
	} else {
		r.behindNAT(now, m.seen)
	}
	if q.addr == r.current && r.alarm.IsZero() && !r.sentSince.IsZero() && q.at.Sub(r.sentSince) >= 0 {
		r.sentSince, r.askAt = time.Time{}, time.Time{}
	}
	a := q.addr
	a.answered, a.own = now, arrived.To.Addr()
	a.streak++
	if q.size != 0 {
		if arrived.Size >= q.size && a == r.current {
			r.mtu.answered(now, q.size)
		}
	} else {
		a.note(true)
		a.measured(now, now.Sub(q.at))
	}
	if slices.Contains(r.addrs, a) { // otherwise it was forgotten meanwhile
		if a == r.wanted {
			r.use(now, a)
		}
		r.choose(now, a)
	}
	switch {
	case r.alarm.IsZero():
		r.set(now, Direct)
	case a != r.current:
	case r.down() && a.streak < 2:
		r.next = minTime(r.next, now.Add(gapMin)) // a second answer confirms it
	default:
		r.calm(now)
	}
	r.tell()
}

// asked takes a question of the peer, and returns the answer.
func (r *remote) asked(now time.Time, arrived Arrival, m message) (Send, bool) {
	from := r.source(now, arrived)
	if from == nil {
		return Send{}, false
	}
	if m.stamp > r.stamp {
		r.stamp = m.stamp
		r.path.Asked, r.capable = now, true
		r.hear(now)
		r.behindNAT(now, m.seen)
		r.heed(now, from, m)
	}
	out := message{kind: answer, id: m.id, stamp: r.prober.stamp(now), seen: arrived.From}
	if from.detour != nil {
		out.seen = r.prober.outer(now)
	}
	s := Send{To: arrived.From, From: arrived.To.Addr(), Port: from.port(), Payload: r.prober.seal(r, out), peer: r.ID}
	if m.size != 0 { // a measurement of the MTU: the way back counts as well
		s.Size = min(int(m.size), arrived.Size)
	}
	return s, s.Payload != nil
}

// heed takes what a fresh question says.
func (r *remote) heed(now time.Time, a *address, m message) {
	if m.flags&flagDeaf != 0 {
		r.raise(now, true, r.recent(now))
		a.check = true
	}
	if r.first {
		if a != r.current && now.Sub(a.answered) > time.Second {
			a.check = true
		}
		return
	}
	if m.flags&flagChosen != 0 && a != r.current && r.follows(now) {
		if r.wanted = a; !a.answered.IsZero() && now.Sub(a.answered) < hold && (r.alarm.IsZero() || !a.answered.Before(r.alarm)) {
			r.use(now, a)
		} else {
			a.check = true
		}
	}
	if a != r.current || m.flags&flagDeaf != 0 {
		return
	}
	if m.flags&flagChosen != 0 { // otherwise the peer tells of the path by another address
		if m.mtu >= leastMTU && int(m.mtu) != r.path.MTU && r.follows(now) {
			r.moves = append(r.moves, now)
			r.path.MTU = int(m.mtu)
			r.prober.version++
		}
		if m.rtt > 0 {
			r.path.RTT, r.path.Loss, r.path.Measured = m.rtt, min(float64(m.loss)/10000, 1), true
		}
	}
	if !r.alarm.IsZero() && !r.needsAnswer {
		r.calm(now)
	}
}

// follows reports whether this host does now what the peer chose or measured. A peer that lies must not change
// this host's tunnels and routes all the time.
func (r *remote) follows(now time.Time) bool {
	return len(r.moves) < maxMoves || now.Sub(r.moves[len(r.moves)-1]) >= hold
}
