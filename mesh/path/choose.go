package path

import (
	"net/netip"
	"time"
)

// use makes an address the one that the tunnel uses.
func (r *remote) use(now time.Time, a *address) {
	if r.current == a && (r.path.Endpoint == a.to || a.detour != nil) {
		return
	}
	if r.path.Endpoint.IsValid() || !r.path.Via.IsZero() {
		r.moves = append(r.moves, now)
	}
	r.current, r.switched, r.wanted, r.roams = a, now, nil, 0
	r.soughtGap = 0
	r.inVain = time.Time{}
	r.path.Left, r.path.Own, r.path.Via = netip.AddrPort{}, netip.Addr{}, Relays{}
	if a.detour != nil {
		r.path.Via, r.directAt = a.detour.relays, now.Add(downGap) // WireGuard's endpoint stays as it is
	} else {
		r.path.Endpoint = a.to
	}
	r.mtu = search{}
	r.path.MTU = 0                    // it was another path's
	r.calmAt = minTime(r.calmAt, now) // the peer learns the choice from the next question
	r.prober.version++
}

// choose decides whether the tunnel moves to an address that has just answered.
func (r *remote) choose(now time.Time, a *address) {
	cur, first := r.current, !r.path.Endpoint.IsValid()
	switch {
	case cur == nil && len(r.addrs) > 0 && a != r.addrs[0] && r.rounds < 2:
		return // packets may be on their way to the preferred address: it gets the time of a round to answer
	case cur == nil, cur == a:
		r.use(now, a)
		if first {
			r.switched, r.looks, r.othersAt = time.Time{}, 3, now.Add(gapMin) // another one may be nearer
		}
	case !r.alarm.IsZero() && r.fails(now, cur) && r.rounds >= cur.doubtful() && !a.answered.Before(r.alarm):
		r.use(now, a) // the one in use fails
	case r.roams >= maxRoams && a.detour == nil && r.alarm.IsZero() && a.to == r.traffic.Endpoint:
		cur.left = now
		r.use(now, a)
	case cur.detour != nil || a.detour != nil:
		if r.first && r.alarm.IsZero() && a.detour == nil && r.worksAgain(now, a) {
			r.use(now, a)
		}
	case r.first && r.alarm.IsZero() && now.Sub(a.left) > flappingSpan && r.nearer(now, a):
		r.use(now, a)
		if cur.to.Addr().Is4() == a.to.Addr().Is4() {
			r.path.Left, r.path.Own = cur.to, a.own
		}
	}
}

// fails reports whether an address has not answered since the alarm began, or has stopped to answer again.
func (r *remote) fails(now time.Time, a *address) bool {
	return a.answered.Before(r.alarm) || now.Sub(a.answered) > r.timeout()+gapMin
}

// nearer reports whether an address is so much nearer than the one in use that the tunnel should move:
// by a fifth, and by a millisecond.
func (r *remote) nearer(now time.Time, a *address) bool {
	cur := r.current
	there, ok := a.distance()
	here, known := cur.distance()
	if !ok || !known {
		if a.rtt < cur.rtt && r.looks == 0 {
			r.looks, r.othersAt = 3, now // look again before anything moves
		}
		return false
	}
	if !r.switched.IsZero() && now.Sub(r.switched) < hold*time.Duration(1+len(r.changes)) {
		return false
	}
	return there+max(here/5, time.Millisecond) < here
}

// roamed takes the address from which data came last. If data keeps coming from another address than the one
// in use, the peer's routes have chosen that one, and WireGuard goes back to it each time. Then the tunnel
// should use it, if it answers questions. The other host follows the address from which questions come.
func (r *remote) roamed(now time.Time, from netip.AddrPort) {
	if !from.IsValid() || r.detoured() { // what comes over a relay looks as if it came from Endpoint
		return
	}
	a := r.learn(now, from)
	if now.Sub(r.roamedAt) < compareOver {
		return
	}
	r.roamedAt = now
	if a == r.current {
		r.roams = max(0, r.roams-1) // the agent has just written it
		return
	}
	if !r.first || !r.alarm.IsZero() || now.Sub(r.switched) < roamAfter {
		return
	}
	if r.roams++; r.roams >= maxRoams {
		a.check = true
	}
}
