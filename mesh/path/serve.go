package path

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
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
// A registration ends after legFor. A changed source address counts as soon as its cookie comes back.

// Leg is the way between this host, as a relay, and another host.
type Leg struct{ Host, Own netip.AddrPort }

// Pair is two hosts between which this host is the relay.
type Pair struct {
	Peers [2]peer.ID
	Legs  [2]Leg
}

type legOf struct{ host, other peer.ID }

// leg is a proven registration of a host for another one.
type leg struct {
	Leg
	seen    time.Time
	stamp   int64
	invited time.Time // when the other host was last asked to register as well
}

const (
	legFor      = 50 * time.Second // three registrations may get lost
	inviteEvery = 200 * time.Millisecond
	// maxLegs and maxLegsPerHost bound what peers can make a relay store.
	maxLegs, maxLegsPerHost = 1024, 256
)

// Pairs returns the hosts between which this host forwards.
func (p *Prober) Pairs() (out []Pair) {
	for of, l := range p.legs {
		back := p.legs[legOf{of.other, of.host}]
		if back == nil || slices.Compare(of.host[:], of.other[:]) > 0 || l.Host.Addr().Is4() != back.Host.Addr().Is4() {
			continue
		}
		out = append(out, Pair{[2]peer.ID{of.host, of.other}, [2]Leg{l.Leg, back.Leg}})
	}
	slices.SortFunc(out, func(a, b Pair) int {
		return slices.Compare(slices.Concat(a.Peers[0][:], a.Peers[1][:]), slices.Concat(b.Peers[0][:], b.Peers[1][:]))
	})
	return out
}

// serve takes a registration, and returns the answer to it.
func (p *Prober) serve(now time.Time, arrived Arrival, r *remote, m message) (Send, bool) {
	of := legOf{r.ID, m.peer}
	known := p.legs[of]
	if other := p.peers[m.peer]; other == nil || other == r || m.stamp <= r.stamp-int64(forgetAfter) || known != nil && m.stamp <= known.stamp {
		return Send{}, false
	}
	out := message{kind: registered, id: m.id, stamp: p.stamp(now), peer: m.peer, cookie: p.cookie(of, arrived.From)}
	switch {
	case p.cfg.Refuses || known == nil && !p.hasRoom(r.ID):
		out.flags = flagRefused
	case hmac.Equal(binary.BigEndian.AppendUint64(nil, m.cookie), binary.BigEndian.AppendUint64(nil, out.cookie)):
		p.accept(now, of, Leg{arrived.From, arrived.To}, m.stamp)
	}
	s := Send{To: arrived.From, From: arrived.To.Addr(), Payload: p.seal(r, out), peer: r.ID}
	return s, s.Payload != nil
}

func (p *Prober) hasRoom(host peer.ID) bool {
	n := 0
	for of := range p.legs {
		if of.host == host {
			n++
		}
	}
	return n < maxLegsPerHost && len(p.legs) < maxLegs
}

// accept stores a proven registration, and invites the other host.
func (p *Prober) accept(now time.Time, of legOf, to Leg, stamp int64) {
	l := p.legs[of]
	if l == nil {
		l = &leg{}
		p.legs[of] = l
	}
	if l.Leg != to {
		l.Leg = to
		p.version++
	}
	l.seen, l.stamp = now, stamp
	other := p.peers[of.other]
	if p.legs[legOf{of.other, of.host}] != nil || now.Sub(l.invited) < inviteEvery || other.current == nil || other.current.detour != nil {
		return
	}
	l.invited = now
	m := message{kind: invite, id: p.newID(), stamp: p.stamp(now), peer: of.host}
	if payload := p.seal(other, m); payload != nil {
		p.outbox = append(p.outbox, Send{To: other.current.to, Payload: payload, peer: of.other})
		p.next = minTime(p.next, now)
	}
}

// invited takes a relay's question whether this host registers as well.
func (p *Prober) invited(now time.Time, relay *remote, m message) {
	r := p.peers[m.peer]
	if r == nil || r == relay || m.stamp <= relay.stamp-int64(forgetAfter) || r.by(relay.ID) == nil && len(r.detours()) > maxDetours {
		return
	}
	if r.over(now, relay.ID) {
		p.wake(r)
	}
}

// forgetLegs ends registrations that were not repeated.
func (p *Prober) forgetLegs(now time.Time) {
	for of, l := range p.legs {
		if now.Sub(l.seen) >= legFor {
			delete(p.legs, of)
			p.version++
		}
	}
	if len(p.restored) > 0 && now.Sub(p.restoredAt) >= legFor {
		clear(p.restored)
		p.version++
	}
}

// cookie proves that a host receives what is sent to an address. Nothing needs to be stored for it.
func (p *Prober) cookie(of legOf, at netip.AddrPort) uint64 {
	mac := hmac.New(sha256.New, p.secret[:])
	text, _ := at.MarshalBinary()
	mac.Write(slices.Concat(of.host[:], of.other[:], text))
	return max(binary.BigEndian.Uint64(mac.Sum(nil)), 1)
}
