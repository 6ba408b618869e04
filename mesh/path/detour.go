package path

import (
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
)

// A peer that does not answer directly is asked by way of relays: other hosts whose kernels forward what comes from a
// port that stands for the peer. Both ends first prove to their relay from where they send, see relay.go. Such a way is
// an address of the peer like others. It is used while no direct address works.

// Way is how packets to a peer travel over relays.
type Way struct {
	Peer   peer.ID // zero: this host is a relay, and asks another one to forward for others
	Relays Relays
	To     netip.AddrPort // the first relay's
	Own    netip.AddrPort // this host's address towards it, and the port that stands for the peer
	Used   bool           // the tunnel uses it; what comes by it is accepted in any case
}

// detour makes an address of a peer one behind relays: the address is the first relay's.
type detour struct {
	registration
	relays Relays
	until  time.Time // it is given up then
	made   time.Time
	// Until the first answer the peer is asked all the time for tryFor: it may just learn that it should register.
	tryNext, tryUntil time.Time
}

const (
	tryFor      = 5 * time.Second
	secondAfter = time.Second
	// minSoughtGap and maxSoughtGap bound the time between two searches for relays to a peer that gossip does not reach.
	// It may just join, like the relays: then the first one tried does not reach it yet.
	minSoughtGap = quietGap * 3 / 4
	maxSoughtGap = 15 * time.Minute
	detourFor    = 45 * time.Second // a way is kept so long after its last use
	maxDetours   = 2                // per peer, at once; and as many that a relay asks for
	vainFor      = 2 * passiveKeepalive
	avoidFor     = 20 * time.Second // a relay that did not help
	maxWays      = 512              // of a host
	maxAskedFor  = maxWays / 2      // if peers ask for them
)

// Ways returns all ways over relays.
func (p *Prober) Ways() (out []Way) {
	for _, r := range p.peers {
		for _, a := range r.detours() {
			out = append(out, Way{
				Peer: r.ID, Relays: a.detour.relays, To: a.to, Own: netip.AddrPortFrom(a.own, a.detour.port), Used: a == r.current && a.own.IsValid(),
			})
		}
	}
	for _, l := range p.legs {
		if l.on != nil && l.onTo.Host.IsValid() {
			out = append(out, Way{To: l.onTo.Host, Own: netip.AddrPortFrom(netip.Addr{}, l.on.port)})
		}
	}
	for _, w := range p.restored {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b Way) int { return int(a.Own.Port()) - int(b.Own.Port()) })
	return out
}

// Restore takes the ways that an earlier agent used, and the hosts between which this host was the relay. They end like
// others if nobody confirms them.
func (p *Prober) Restore(now time.Time, ways []Way, pairs []Pair) {
	for _, w := range ways[:min(len(ways), maxWays)] {
		if w.Used && w.To.IsValid() && w.Own.IsValid() && w.Relays.len() > 0 && p.peers[w.Peer] == nil {
			p.restored[w.Peer] = w
		}
	}
	for _, pair := range pairs[:min(len(pairs), maxLegs/2)] {
		for i, l := range pair.Legs {
			if l.Host.IsValid() && l.Own.IsValid() {
				of := legOf{pair.Peers[0], pair.Peers[1], pair.Row}
				if i == 1 {
					of = of.back()
				}
				p.legs[of] = &leg{Leg: l, seen: now}
			}
		}
	}
	p.restoredAt = now
	p.version++
}

// resume makes the way of an earlier agent the one that the tunnel uses.
func (r *remote) resume(now time.Time) {
	w, ok := r.prober.restored[r.ID]
	if !ok {
		return
	}
	delete(r.prober.restored, r.ID)
	a := newDetour(now, w.Relays, w.To, w.Own.Port())
	a.own = w.Own.Addr()
	r.addrs = append(r.addrs, a)
	r.current, r.path.Via = a, w.Relays
}

func newDetour(now time.Time, over Relays, to netip.AddrPort, port uint16) *address {
	return &address{to: to, detour: &detour{registration: registration{port: port, next: now}, relays: over, until: now.Add(detourFor), made: now}}
}

// seek finds relays for a path in doubt.
func (r *remote) seek(now time.Time) {
	doubt := 2
	if r.current != nil {
		doubt = r.current.doubtful()
	}
	if r.underLoad && r.needsAnswer {
		doubt-- // a question was lost, and traffic has no answer
	}
	if r.prober.cfg.Relays == nil || r.rounds < doubt || r.Quiet && now.Sub(r.soughtAt) < r.soughtGap {
		return
	}
	if r.soughtAt = now; r.Quiet { // it is dead, or behind NAT
		r.soughtGap = min(max(2*r.soughtGap, minSoughtGap), maxSoughtGap)
	}
	for _, a := range r.detours() { // a relay may have started anew
		a.detour.hurry(now)
	}
	// A second relay is tried a moment later: in a large outage the relays have no room for twice as many ways.
	young := func(d *detour) bool { return now.Sub(d.made) < secondAfter }
	for r.count(func(d *detour) bool { return !d.invited }) < maxDetours && r.count(young) == 0 {
		over, ok := r.untried(now)
		if !ok || !r.over(now, over, false) {
			return
		}
	}
}

// untried returns relays that were not tried lately, and that are not behind NAT, if there are any. If it has tried all, a
// quiet peer's are tried again.
func (r *remote) untried(now time.Time) (Relays, bool) {
	spans := []time.Duration{r.avoids()}
	if r.Quiet {
		spans = append(spans, avoidFor)
	}
	for _, span := range spans {
		for _, which := range []func(peer.ID) bool{r.prober.open, r.prober.relays} {
			if over, ok := r.notSince(now, span, which); ok {
				return over, true
			}
		}
	}
	return Relays{}, false
}

// avoids returns for how long a relay that did not help is avoided: for a quiet peer, until others were tried as well.
func (r *remote) avoids() time.Duration {
	if r.Quiet {
		return max(avoidFor, 3*r.soughtGap)
	}
	return avoidFor
}

// notSince returns relays that have not failed within a time: those that are chosen, or else others. This host reaches the
// first one as it should.
func (r *remote) notSince(now time.Time, span time.Duration, first func(peer.ID) bool) (Relays, bool) {
	fresh := func(over Relays) bool {
		tried := slices.ContainsFunc(r.detours(), func(a *address) bool { return a.detour.relays == over })
		return !tried && now.Sub(r.avoided[over]) >= span
	}
	over, ok := relaysOf(r.prober.cfg.Relays(r.ID, nil))
	if ok && fresh(over) && first(over.first()) {
		return over, true
	}
	over, ok = relaysOf(r.prober.cfg.Relays(r.ID, func(id peer.ID) bool { return !fresh(Relays{id}) || !first(id) }))
	return over, ok && fresh(over)
}

// open reports whether this host reaches a peer at an address of its record. Otherwise the peer is behind NAT, which may
// drop what comes from another port of this host.
func (p *Prober) open(id peer.ID) bool { return p.relays(id) && p.peers[id].current.learned.IsZero() }

// relays reports whether this host reaches a peer directly, so that it may be a relay.
func (p *Prober) relays(id peer.ID) bool {
	r := p.peers[id]
	return r != nil && r.path.State == Direct && r.capable && r.current != nil && r.current.detour == nil
}

func (r *remote) count(which func(*detour) bool) (n int) {
	for _, a := range r.detours() {
		if which(a.detour) {
			n++
		}
	}
	return n
}

// mayBeInvited reports whether a relay may ask for another way to the peer. No relay can keep others from it, nor this
// host's own choice.
func (r *remote) mayBeInvited(relay peer.ID) bool {
	ofRelay := r.count(func(d *detour) bool { return d.invited && d.relays.first() == relay })
	return ofRelay < maxDetours && r.count(func(d *detour) bool { return d.invited }) < 2*maxDetours
}

// detours returns the addresses behind relays.
func (r *remote) detours() (out []*address) {
	for _, a := range r.addrs {
		if a.detour != nil {
			out = append(out, a)
		}
	}
	return out
}

// over makes a way over relays an address of the peer, or keeps the one that exists.
func (r *remote) over(now time.Time, over Relays, invited bool) bool {
	p := r.prober
	for _, a := range r.detours() {
		if a.detour.relays == over {
			a.detour.until = now.Add(detourFor)
			return true
		}
	}
	if !p.relays(over.first()) {
		return false
	}
	most := maxWays
	if invited {
		most = maxAskedFor
	}
	port, ok := p.freePort(r.ID, over.first(), most)
	if !ok {
		return false
	}
	a := newDetour(now, over, p.peers[over.first()].current.to, port)
	a.detour.invited = invited
	r.addrs = append(r.addrs, a)
	p.version++
	return true
}

// swallowed reports whether the relay in use answers for the peer, but forwards no data: WireGuard answers data within
// passiveKeepalive, at least by a keepalive.
func (r *remote) swallowed(now time.Time) bool {
	return r.detoured() && r.alarm.IsZero() && !r.inVain.IsZero() && now.Sub(r.inVain) >= vainFor
}

// tend keeps the ways over relays, and appends their registrations.
func (r *remote) tend(now time.Time, out []Send) []Send {
	p := r.prober
	if r.swallowed(now) {
		r.inVain = time.Time{}
		r.drop(now, r.current)
	}
	for _, a := range r.detours() {
		d := a.detour
		if a == r.current {
			d.until = now.Add(detourFor)
		}
		useless := d.tries > maxTries || a.answered.IsZero() && !d.tryUntil.IsZero() && !now.Before(d.tryUntil)
		if !now.Before(d.until) || useless && a != r.current {
			r.drop(now, a)
			continue
		}
		if a.answered.IsZero() && !now.Before(d.tryNext) && now.Before(d.tryUntil) {
			a.check, d.tryNext = true, now.Add(gapMin)
		}
		if now.Before(d.next) {
			continue
		}
		s, ok := p.register(now, &d.registration, d.relays.first(), &a.to, route{origin: p.cfg.Self, target: r.ID, others: d.relays.rest(), ahead: d.relays.len() - 1})
		if ok {
			out = append(out, s)
		}
	}
	return out
}

// drop forgets a way over relays.
func (r *remote) drop(now time.Time, a *address) {
	if a.answered.IsZero() || a == r.current {
		if r.avoided == nil {
			r.avoided = map[Relays]time.Time{}
		}
		for id, at := range r.avoided {
			if now.Sub(at) >= r.avoids() {
				delete(r.avoided, id)
			}
		}
		r.avoided[a.detour.relays] = now
	}
	r.addrs = slices.DeleteFunc(r.addrs, func(b *address) bool { return a == b })
	if r.current == a {
		r.current, r.path.Via = nil, Relays{}
		r.raise(now, true, r.recent(now))
	}
	r.prober.version++
}

// leave forgets what goes over peers that have left, or that were banned: they may go on forwarding.
func (p *Prober) leave(now time.Time, gone func(peer.ID) bool) {
	for of := range p.legs {
		if gone(of.origin) || gone(of.target) || slices.ContainsFunc(of.row.List(), gone) {
			delete(p.legs, of)
			p.version++
		}
	}
	for _, r := range p.peers {
		for _, a := range r.detours() {
			if slices.ContainsFunc(a.detour.relays.List(), gone) {
				r.drop(now, a)
				p.wake(r)
			}
		}
	}
}

// registered takes a relay's answer to a registration for a way.
func (r *remote) registered(now time.Time, arrived Arrival, relay *remote, m message) {
	i := slices.IndexFunc(r.addrs, func(a *address) bool {
		return a.detour != nil && a.sends(arrived) && a.detour.relays.first() == relay.ID
	})
	if i < 0 {
		return
	}
	a := r.addrs[i]
	switch ok, refused := a.detour.took(now, m); {
	case refused:
		r.drop(now, a)
		return
	case !ok:
		return
	}
	if d := a.detour; d.proven && a.answered.IsZero() && d.tryUntil.IsZero() {
		d.tryNext, d.tryUntil = now, now.Add(tryFor)
	}
	if own := arrived.To.Addr(); a.own != own {
		a.own = own
		r.prober.version++
	}
	r.prober.wake(r)
}

// source returns the address from which a probe came, as a candidate. Nil: it came by a way that is not known any more.
func (r *remote) source(now time.Time, arrived Arrival) *address {
	for _, a := range r.detours() {
		if a.sends(arrived) {
			a.detour.until = now.Add(detourFor)
			return a
		}
	}
	if port := arrived.To.Port(); port >= firstPort && port < firstPort+portCount && port != r.prober.cfg.Port {
		return nil
	}
	return r.learn(now, arrived.From)
}

// tendAt returns when the ways over relays have something to do.
func (r *remote) tendAt(take func(time.Time)) {
	for _, a := range r.detours() {
		take(a.detour.next)
		take(a.detour.until)
		if a.answered.IsZero() && !a.detour.tryUntil.IsZero() {
			take(minTime(a.detour.tryNext, a.detour.tryUntil))
		}
	}
	if r.detoured() && r.alarm.IsZero() {
		take(r.directAt)
		if !r.inVain.IsZero() {
			take(r.inVain.Add(vainFor))
		}
	}
}

// detoured reports whether the tunnel uses a relay.
func (r *remote) detoured() bool { return r.current != nil && r.current.detour != nil }

// seekDirect asks the direct addresses while a calm tunnel uses a relay. Both hosts do so: the questions of each open its
// NAT for those of the other.
func (r *remote) seekDirect(now time.Time, out []Send) []Send {
	if !r.detoured() || !r.alarm.IsZero() || now.Before(r.directAt) {
		return out
	}
	r.directAt = now.Add(downGap)
	for _, a := range r.addrs {
		if a.detour == nil {
			out = r.ask(now, out, a, 0)
		}
	}
	return out
}

// worksAgain reports whether the tunnel should go back from a relay to an address: its last questions were answered,
// and the tunnel has not moved often.
func (r *remote) worksAgain(now time.Time, a *address) bool {
	const answers = 3
	if e := r.find(r.path.Endpoint); e != nil && e != a && now.Sub(e.answered) < downGap {
		return false // WireGuard has that one: nothing may get lost on the way to another one
	}
	if now.Sub(r.switched) < min(time.Duration(len(r.moves))*downGap, maxDirectHold) {
		return false
	}
	if a.asked >= answers && a.outcomes&(1<<answers-1) == 1<<answers-1 {
		return true
	}
	r.directAt = minTime(r.directAt, now.Add(gapMin))
	return false
}

// maxDirectHold is how long a tunnel that moves often stays with a relay at most, once a direct address answers.
const maxDirectHold = 2 * time.Minute
