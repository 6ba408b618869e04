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

// Pair is two hosts between which this host is a relay, alone or in a row.
type Pair struct {
	Peers [2]peer.ID
	Row   Relays // from the first one
	Legs  [2]Leg
}

// legOf is a row of relays, from the origin to the target. A host registers only for rows in which it is next to this
// one. So nobody can take the place of another host, and two rows between the same ends stay apart.
type legOf struct {
	origin, target peer.ID
	row            Relays
}

func (of legOf) back() legOf {
	out := legOf{origin: of.target, target: of.origin, row: of.row}
	slices.Reverse(out.row[:out.row.len()])
	return out
}

// beside returns the hosts beside a relay of a row, on the sides of the origin and of the target.
func (of legOf) beside(self peer.ID) (from, next peer.ID) {
	from, next = of.origin, of.target
	i := slices.Index(of.row[:], self)
	if i > 0 {
		from = of.row[i-1]
	}
	if i+1 < of.row.len() {
		next = of.row[i+1]
	}
	return from, next
}

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
	// clockSetBack is how much older a peer's newest probe must be than its registration, to show that its clock was set
	// back. At rest it sends a probe every 15 s.
	clockSetBack = time.Minute
	// maxLegs and maxLegsPerHost bound what peers can make a relay store.
	maxLegs, maxLegsPerHost = 1024, 256
	// ManyPairs is for how many pairs of hosts a relay forwards before others should choose another one: some that are on
	// their way still find room.
	ManyPairs = maxLegs / 2 * 15 / 16
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
		pair := Pair{Peers: [2]peer.ID{of.origin, of.target}, Row: of.row, Legs: [2]Leg{l.Leg}}
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
		return slices.Compare(a.order(), b.order())
	})
	return out
}

// order is what pairs are sorted by.
func (p Pair) order() []byte {
	return slices.Concat(p.Peers[0][:], p.Peers[1][:], p.Row[0][:], p.Row[1][:], p.Row[2][:])
}

func less(a, b peer.ID) bool { return slices.Compare(a[:], b[:]) < 0 }

// serve takes a registration, and returns the answer to it.
func (p *Prober) serve(now time.Time, arrived Arrival, r *remote, m message) (Send, bool) {
	before, after := m.around(r.ID)
	row, ok := relaysOf(slices.Concat(before, []peer.ID{p.cfg.Self}, after))
	of := legOf{m.origin, m.target, row}
	known := p.legs[of]
	to := Leg{arrived.From, arrived.To}
	switch {
	case !ok, p.peers[m.target] == nil, m.origin == m.target, m.origin == p.cfg.Self, m.target == r.ID:
		return Send{}, false
	case m.origin == r.ID && len(before) > 0, m.origin != r.ID && (len(before) == 0 || before[len(before)-1] != r.ID || !less(m.origin, m.target)):
		return Send{}, false // only a relay before this one registers for another host
	case m.stamp <= r.stamp-int64(forgetAfter) || known != nil && m.stamp <= known.stamp && r.stamp > known.stamp-int64(clockSetBack):
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
	case known != nil && m.flags&flagInvited == 0:
		known.anew = true
	}
	s := Send{To: arrived.From, From: arrived.To.Addr(), Payload: p.seal(r, out), peer: r.ID}
	return s, s.Payload != nil
}

func (p *Prober) hasRoom(sender peer.ID) bool {
	n := 0
	for of := range p.legs {
		if from, _ := of.beside(p.cfg.Self); from == sender {
			n++
		}
	}
	return n < maxLegsPerHost && len(p.legs) < maxLegs
}

// accept stores a proven registration, and gets the other side to register, too.
func (p *Prober) accept(now time.Time, of legOf, m message, to Leg, after []peer.ID) {
	l := p.legs[of]
	if l == nil {
		l = &leg{anew: m.flags&flagInvited == 0}
		p.legs[of] = l
		p.version++
	}
	if l.Leg != to {
		l.Leg = to
		p.version++
	}
	l.seen, l.stamp = now, m.stamp
	from, next := of.beside(p.cfg.Self)
	on := m.onwards(from)
	if len(after) > 0 && less(m.origin, m.target) {
		if l.on == nil {
			if port, ok := p.freePort(m.target, next, maxAskedFor); ok {
				l.on = &registration{port: port, next: now, invited: true}
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
	p.invite(now, next, on)
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
		next := m.target
		if len(after) > 0 {
			next = after[0]
		}
		p.invite(now, next, m.onwards(from.ID))
	case m.target == p.cfg.Self && len(after) == 0 && p.peers[m.origin] != nil:
		r := p.peers[m.origin]
		slices.Reverse(before)
		if over, ok := relaysOf(before); ok && r.mayBeInvited(from.ID) && from.mayChange(now) && r.over(now, over, true) {
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
			_, next := of.beside(p.cfg.Self)
			if s, ok := p.register(now, l.on, next, &l.onTo.Host, l.onRoute); ok {
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
	if m.flags&flagBoth != 0 && !relay.mayChange(now) {
		m.flags &^= flagBoth
	}
	if m.origin == p.cfg.Self {
		if r := p.peers[m.target]; r != nil {
			r.registered(now, arrived, relay, m)
		}
		return
	}
	for of, l := range p.legs {
		if of.origin != m.origin || of.target != m.target || l.on == nil || l.on.port != arrived.To.Port() || l.onTo.Host != arrived.From {
			continue
		}
		if _, next := of.beside(p.cfg.Self); next != relay.ID {
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
