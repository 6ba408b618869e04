package path

import (
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
)

// A relay forwards between two hosts once both have registered for each other:
//
//	A ── register: for B ─▶ relay        from the port that stands for B
//	A ◀─ registered: a cookie            bound to the source address that the relay saw
//	A ── register: for B, the cookie ─▶  proves that A receives there
//	                        relay ── invite: A ─▶ B, which does the same
//
// Of several relays in a row, each registers with the next one as if it were the host whose id is smaller, and an
// invitation travels from relay to relay. Two registrations fit if they come from both sides of the same row. A
// registration ends after legFor. A changed source address counts as soon as its cookie comes back.

// Leg is the way between this host, as a relay, and the next host towards one end.
type Leg struct{ Host, Own netip.AddrPort }

// Pair is two hosts between which this host is a relay. Next are its neighbours in the row on their sides.
type Pair struct {
	Peers, Next [2]peer.ID
	Legs        [2]Leg
}

// legOf is a row of relays as one of them sees it: the ends, and its neighbours on their sides. Who sends a registration
// is one of them. So nobody can take the place of another host.
type legOf struct{ origin, target, from, next peer.ID }

func (of legOf) back() legOf { return legOf{of.target, of.origin, of.next, of.from} }

// leg is a proven registration: what comes from Host is from the origin, for the target.
type leg struct {
	Leg
	seen    time.Time
	stamp   int64
	invited time.Time     // when the other side was last asked to register as well
	anew    bool          // the origin has just begun to register: the other side may have given up
	on      *registration // of this relay with the next one; nil: the other side registers
	onTo    Leg           // the way to that one
	onRoute route
	both    bool // the origin has both address families
}

const (
	legFor      = 50 * time.Second // three registrations may get lost
	inviteEvery = 200 * time.Millisecond
	// maxLegs and maxLegsPerHost bound what peers can make a relay store.
	maxLegs, maxLegsPerHost = 1024, 256
	// maxChanges is how many changes of this host's rules a peer can cause in a second.
	maxChanges = 20
)

// mayChange reports whether the peer may cause another change now.
func (r *remote) mayChange(now time.Time) bool {
	if now.Sub(r.second) >= time.Second {
		r.second, r.inSecond = now, 0
	}
	r.inSecond++
	return r.inSecond <= maxChanges
}

// Pairs returns the hosts between which this host forwards.
func (p *Prober) Pairs() (out []Pair) {
	for of, l := range p.legs {
		pair := Pair{Peers: [2]peer.ID{of.origin, of.target}, Next: [2]peer.ID{of.from, of.next}, Legs: [2]Leg{l.Leg}}
		back := p.legs[of.back()]
		switch {
		case l.on != nil && l.on.proven:
			pair.Legs[1] = l.onTo
		case back == nil || back.on != nil && back.on.proven || less(of.target, of.origin):
			continue
		default:
			pair.Legs[1] = back.Leg
		}
		if pair.Legs[1].Host.IsValid() && l.Host.Addr().Is4() == pair.Legs[1].Host.Addr().Is4() {
			out = append(out, pair)
		}
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return slices.Compare(slices.Concat(a.Peers[0][:], a.Peers[1][:], a.Next[0][:], a.Next[1][:]), slices.Concat(b.Peers[0][:], b.Peers[1][:], b.Next[0][:], b.Next[1][:]))
	})
	return out
}

func less(a, b peer.ID) bool { return slices.Compare(a[:], b[:]) < 0 }

// serve takes a registration, and returns the answer to it.
func (p *Prober) serve(now time.Time, arrived Arrival, r *remote, m message) (Send, bool) {
	before, after := m.around(r.ID)
	of := legOf{m.origin, m.target, r.ID, nextOf(m.target, after)}
	known := p.legs[of]
	to := Leg{arrived.From, arrived.To}
	switch {
	case p.peers[m.target] == nil, m.origin == m.target, m.origin == p.cfg.Self, m.target == r.ID:
		return Send{}, false
	case m.origin != r.ID && (len(before) == 0 || before[len(before)-1] != r.ID || !less(m.origin, m.target)):
		return Send{}, false // only a relay before this one registers for another host
	case m.stamp <= r.stamp-int64(forgetAfter) || known != nil && m.stamp <= known.stamp:
		return Send{}, false
	}
	out := message{kind: registered, id: m.id, stamp: p.stamp(now), route: route{origin: m.origin, target: m.target}, cookie: p.cookie(of, arrived.From)}
	switch {
	case p.cfg.Refuses || known == nil && !p.hasRoom(r.ID):
		out.flags = flagRefused
	case m.cookie == out.cookie:
		if (known == nil || known.Leg != to) && !r.mayChange(now) {
			return Send{}, false
		}
		p.accept(now, of, m, to, after)
		if p.mismatch(of, m.flags&flagBoth != 0) {
			out.flags = flagBoth
		}
	case known != nil:
		known.anew = true
	}
	s := Send{To: arrived.From, From: arrived.To.Addr(), Payload: p.seal(r, out), peer: r.ID}
	return s, s.Payload != nil
}

// nextOf returns the next host on the side of a target.
func nextOf(target peer.ID, after []peer.ID) peer.ID {
	if len(after) > 0 {
		return after[0]
	}
	return target
}

func (p *Prober) hasRoom(sender peer.ID) bool {
	n := 0
	for of := range p.legs {
		if of.from == sender {
			n++
		}
	}
	return n < maxLegsPerHost && len(p.legs) < maxLegs
}

// accept stores a proven registration, and gets the other side to register, too.
func (p *Prober) accept(now time.Time, of legOf, m message, to Leg, after []peer.ID) {
	l := p.legs[of]
	if l == nil {
		l = &leg{anew: true}
		p.legs[of] = l
		p.version++
	}
	if l.Leg != to {
		l.Leg = to
		p.version++
	}
	l.seen, l.stamp = now, m.stamp
	on := m.onwards(of.from)
	if len(after) > 0 && less(m.origin, m.target) {
		if l.on == nil {
			if port, ok := p.freePort(m.target, of.next); ok {
				l.on = &registration{port: port, next: now}
			}
		}
		l.onRoute = on
		p.next = minTime(p.next, now)
		if !l.anew {
			return
		}
	}
	if back := p.legs[of.back()]; back != nil && back.stamp != 0 && !l.anew || now.Sub(l.invited) < inviteEvery {
		return
	}
	l.invited, l.anew = now, false
	p.invite(now, of.next, on)
}

// mismatch reports whether the origin should use its other address family: the other side uses it, and either has no
// other one, or it is IPv4.
func (p *Prober) mismatch(of legOf, both bool) bool {
	l, back := p.legs[of], p.legs[of.back()]
	if l.both = both; !both {
		return false
	}
	is4, theirs4, known := l.Host.Addr().Is4(), false, false
	switch {
	case l.on != nil && l.onTo.Host.IsValid():
		theirs4, known = l.onTo.Host.Addr().Is4(), true
	case back != nil:
		theirs4, known = back.Host.Addr().Is4(), true
	}
	return known && is4 != theirs4 && (theirs4 || back == nil || !back.both)
}

// invite asks the next host to register for the origin of a route, or to pass the question on.
func (p *Prober) invite(now time.Time, next peer.ID, on route) {
	to, _, ok := p.reaches(next, false)
	if !ok {
		return
	}
	m := message{kind: invite, id: p.newID(), stamp: p.stamp(now), route: on}
	if payload := p.seal(p.peers[next], m); payload != nil {
		p.outbox = append(p.outbox, Send{To: to, Payload: payload, peer: next})
		p.next = minTime(p.next, now)
	}
}

// invited takes a question whether this host registers as well.
func (p *Prober) invited(now time.Time, from *remote, m message) {
	before, after := m.around(from.ID)
	switch {
	case m.stamp <= from.stamp-int64(forgetAfter), len(before) == 0, before[len(before)-1] != from.ID:
	case m.target != p.cfg.Self && !p.cfg.Refuses:
		p.invite(now, nextOf(m.target, after), m.onwards(from.ID))
	case m.target == p.cfg.Self && len(after) == 0 && p.peers[m.origin] != nil:
		r := p.peers[m.origin]
		slices.Reverse(before)
		if over, ok := relaysOf(before); ok && len(r.detours()) <= maxDetours && from.mayChange(now) && r.over(now, over) {
			p.wake(r)
		}
	}
}

// tendLegs ends registrations that were not repeated, and appends this relay's own with others.
func (p *Prober) tendLegs(now time.Time, out []Send) []Send {
	for of, l := range p.legs {
		if now.Sub(l.seen) >= legFor {
			delete(p.legs, of)
			p.version++
			continue
		}
		if l.on == nil {
			continue
		}
		if !now.Before(l.on.next) {
			if s, ok := p.register(now, l.on, of.next, &l.onTo.Host, l.onRoute); ok {
				out = append(out, s)
			}
		}
		p.next = minTime(p.next, l.on.next)
	}
	if len(p.restored) > 0 && now.Sub(p.restoredAt) >= legFor {
		clear(p.restored)
		p.version++
	}
	return out
}

// registered takes the answer to a registration of this host.
func (p *Prober) registered(now time.Time, arrived Arrival, relay *remote, m message) {
	if m.origin == p.cfg.Self {
		if r := p.peers[m.target]; r != nil {
			r.registered(now, arrived, relay, m)
		}
		return
	}
	for of, l := range p.legs {
		if of.origin != m.origin || of.target != m.target || of.next != relay.ID || l.on == nil || l.on.port != arrived.To.Port() || l.onTo.Host != arrived.From {
			continue
		}
		was := l.on.proven
		switch ok, refused := l.on.took(now, m); {
		case refused:
			delete(p.legs, of)
			p.version++
		case ok && (l.onTo.Own != arrived.To || !was):
			l.onTo.Own = arrived.To
			p.version++
		}
		p.next = minTime(p.next, l.on.next)
	}
}
