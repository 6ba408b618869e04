package path

import (
	"net/netip"
	"slices"
	"time"

	"weft/mesh/peer"
)

// A peer that does not answer directly is asked by way of a relay: a third host whose kernel forwards what comes from
// a port that stands for the peer. Both ends first prove to the relay from where they send, see serve.go. Such a way
// is an address of the peer like others. It is used while no direct address works.

// Way is how packets to a peer travel over a relay.
type Way struct {
	Peer, Relay peer.ID
	To          netip.AddrPort // the relay's
	Own         netip.AddrPort // this host's address towards the relay, and the port that stands for the peer
	Used        bool           // the tunnel uses it; what comes by it is accepted in any case
}

// detour makes an address of a peer one behind a relay: the address is the relay's.
type detour struct {
	relay  peer.ID
	port   uint16    // stands for the peer between this host and the relay
	until  time.Time // it is given up then
	last   time.Time // the last registration
	next   time.Time // the next one
	asked  uint64    // the number of the last registration; 0: it was answered
	tries  int       // registrations without an answer
	cookie uint64    // proves to the relay that this host receives at its address
	proven bool      // the relay has accepted the cookie
}

const (
	detourFor     = 45 * time.Second // a way is kept so long after its last use
	registerEvery = 15 * time.Second // firewalls and NAT keep a flow for 30 s or longer
	maxDetours    = 2                // per peer, at once
	maxTries      = 5                // registrations without an answer, before another relay is tried
	avoidFor      = time.Minute      // a relay that did not help

	// The ports that stand for peers: no service of Kubernetes (30000 and above), and no program that lets the kernel
	// choose its port (32768 and above) has them. A port is never opened, only rewritten.
	firstPort, portCount = 20000, 8192
)

// Ways returns all ways over relays.
func (p *Prober) Ways() (out []Way) {
	for _, r := range p.peers {
		for _, a := range r.detours() {
			out = append(out, Way{
				Peer: r.ID, Relay: a.detour.relay, To: a.to, Own: netip.AddrPortFrom(a.own, a.detour.port), Used: a == r.current && a.own.IsValid(),
			})
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
		if w.Used && w.To.IsValid() && w.Own.IsValid() && p.peers[w.Peer] == nil {
			p.restored[w.Peer] = w
		}
	}
	for _, pair := range pairs[:min(len(pairs), maxLegs/2)] {
		for i, l := range pair.Legs {
			if l.Host.IsValid() && l.Own.IsValid() {
				p.legs[legOf{pair.Peers[i], pair.Peers[1-i]}] = &leg{Leg: l, seen: now}
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
	a := &address{to: w.To, own: w.Own.Addr(), streak: 1, detour: &detour{relay: w.Relay, port: w.Own.Port(), until: now.Add(detourFor), next: now}}
	r.addrs = append(r.addrs, a)
	r.current, r.path.Via = a, w.Relay
}

// seek finds relays for a path in doubt.
func (r *remote) seek(now time.Time) {
	doubt := 2
	if r.current != nil {
		doubt = r.current.doubtful()
	}
	if r.underLoad && r.needsAnswer {
		doubt-- // a question was lost, and so is traffic
	}
	if r.prober.cfg.Relays == nil || r.Quiet || r.rounds < doubt {
		return
	}
	for _, a := range r.detours() { // the relay may have started anew
		if now.Sub(a.detour.last) > gapMax {
			a.detour.next = now
		}
	}
	for len(r.detours()) < maxDetours {
		avoid := func(id peer.ID) bool {
			return now.Sub(r.avoided[id]) < avoidFor || r.by(id) != nil || !r.prober.relays(id)
		}
		over := r.prober.cfg.Relays(r.ID, avoid)
		if len(over) != 1 || avoid(over[0]) || !r.over(now, over[0]) {
			return
		}
	}
}

// relays reports whether this host reaches a peer directly, so that it may be a relay.
func (p *Prober) relays(id peer.ID) bool {
	r := p.peers[id]
	return r != nil && r.path.State == Direct && r.capable && r.current != nil && r.current.detour == nil
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

// by returns the address behind a relay, if there is one.
func (r *remote) by(relay peer.ID) *address {
	for _, a := range r.detours() {
		if a.detour.relay == relay {
			return a
		}
	}
	return nil
}

// over makes a way over a relay an address of the peer, or keeps the one that exists.
func (r *remote) over(now time.Time, relay peer.ID) bool {
	p := r.prober
	if a := r.by(relay); a != nil {
		a.detour.until = now.Add(detourFor)
		return true
	}
	port, ok := p.freePort(r.ID, relay)
	if !ok || !p.relays(relay) {
		return false
	}
	a := &address{to: p.peers[relay].serves(), detour: &detour{relay: relay, port: port, until: now.Add(detourFor), next: now}}
	r.addrs = append(r.addrs, a)
	p.version++
	return true
}

// serves returns the address of a relay: an IPv4 address that has answered, since both hosts must use the same family.
func (r *remote) serves() netip.AddrPort {
	for _, a := range r.addrs {
		if a.detour == nil && a.to.Addr().Is4() && (a == r.current || a.answered.After(r.switched)) {
			return a.to
		}
	}
	return r.current.to
}

// freePort returns a port that stands for no peer yet. It follows from the peer and the relay, so that it is the same
// after a restart.
func (p *Prober) freePort(of, relay peer.ID) (uint16, bool) {
	taken := map[uint16]bool{}
	for _, r := range p.peers {
		for _, a := range r.detours() {
			taken[a.detour.port] = true
		}
	}
	if len(taken) >= maxWays {
		return 0, false
	}
	start := 0
	for i := range of {
		start = (start*31 + int(of[i])*7 + int(relay[i])) % portCount
	}
	for i := range portCount {
		if port := uint16(firstPort + (start+i)%portCount); !taken[port] {
			return port, true
		}
	}
	return 0, false
}

// maxWays bounds the ways of a host, since peers can ask it for some.
const maxWays = 512

// tend keeps the ways over relays, and appends their registrations.
func (r *remote) tend(now time.Time, out []Send) []Send {
	for _, a := range r.detours() {
		d := a.detour
		if a == r.current {
			d.until = now.Add(detourFor)
		}
		relay := r.prober.peers[d.relay]
		if !now.Before(d.until) || d.tries > maxTries && a != r.current {
			r.drop(now, a)
			continue
		}
		if relay == nil || now.Before(d.next) {
			continue
		}
		if r.prober.relays(d.relay) {
			if to := relay.serves(); to != a.to {
				a.to, d.cookie = to, 0
				r.prober.version++
			}
		}
		m := message{kind: register, id: r.prober.newID(), stamp: r.prober.stamp(now), peer: r.ID, cookie: d.cookie}
		d.asked, d.tries, d.last = m.id, d.tries+1, now
		d.next = now.Add(min(gapMin<<min(d.tries-1, 4), downGap))
		if payload := r.prober.seal(relay, m); payload != nil {
			out = append(out, Send{To: a.to, Port: d.port, Payload: payload, peer: r.ID})
		}
	}
	return out
}

// drop forgets a way over a relay.
func (r *remote) drop(now time.Time, a *address) {
	if a.streak == 0 || a == r.current {
		if r.avoided == nil {
			r.avoided = map[peer.ID]time.Time{}
		}
		for id, at := range r.avoided {
			if now.Sub(at) >= avoidFor {
				delete(r.avoided, id)
			}
		}
		r.avoided[a.detour.relay] = now
	}
	r.addrs = slices.DeleteFunc(r.addrs, func(b *address) bool { return a == b })
	if r.current == a {
		r.current, r.path.Via = nil, peer.ID{}
		r.raise(now, true, r.recent(now))
	}
	r.prober.version++
}

// registered takes a relay's answer to a registration.
func (p *Prober) registered(now time.Time, arrived Arrival, relay *remote, m message) {
	r := p.peers[m.peer]
	if r == nil || m.id == 0 {
		return
	}
	a := r.by(relay.ID)
	if a == nil || a.detour.asked != m.id || a.to != arrived.From || a.detour.port != arrived.To.Port() {
		return
	}
	d := a.detour
	d.asked, d.tries, d.proven = 0, 0, d.cookie == m.cookie
	switch {
	case m.flags&flagRefused != 0:
		r.drop(now, a)
		return
	case d.proven:
		d.next = now.Add(registerEvery)
		a.check = a.answered.IsZero()
	default:
		d.cookie, d.next = m.cookie, now
	}
	if own := arrived.To.Addr(); a.own != own {
		a.own = own
		p.version++
	}
	p.wake(r)
}

// nearby returns when the ways over relays have something to do.
func (r *remote) tendAt(take func(time.Time)) {
	for _, a := range r.detours() {
		take(a.detour.next)
		take(a.detour.until)
	}
	if r.detoured() && r.alarm.IsZero() && r.first {
		take(r.directAt)
	}
}

// detoured reports whether the tunnel uses a relay.
func (r *remote) detoured() bool { return r.current != nil && r.current.detour != nil }

// seekDirect asks the direct addresses while a calm tunnel uses a relay.
func (r *remote) seekDirect(now time.Time, out []Send) []Send {
	if !r.detoured() || !r.alarm.IsZero() || !r.first || now.Before(r.directAt) {
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
