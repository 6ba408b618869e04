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

// maxRelays is how many relays there may be in a row.
const maxRelays = 3

// Relays are hosts in a row; the rest is zero.
type Relays [maxRelays]peer.ID

func relaysOf(list []peer.ID) (out Relays, ok bool) {
	if len(list) == 0 || len(list) > maxRelays {
		return out, false
	}
	copy(out[:], list)
	return out, true
}

func (r Relays) len() int {
	if i := slices.Index(r[:], peer.ID{}); i >= 0 {
		return i
	}
	return maxRelays
}

// IsZero reports whether there is no relay.
func (r Relays) IsZero() bool { return r == Relays{} }

// List returns the relays.
func (r Relays) List() []peer.ID { return slices.Clone(r[:r.len()]) }

func (r Relays) first() peer.ID { return r[0] }

func (r Relays) rest() (out [maxRelays - 1]peer.ID) {
	copy(out[:], r[1:])
	return out
}

// route says between whom the relays of a row forward. It travels from the origin to the target.
type route struct {
	origin, target peer.ID
	others         [maxRelays - 1]peer.ID // the relays but the sender and the receiver, from the origin to the target
	ahead          int                    // how many of them are behind the receiver
}

// around returns the relays before and behind the receiver of a route.
func (r route) around(sender peer.ID) (before, after []peer.ID) {
	n := 0
	for n < len(r.others) && !r.others[n].IsZero() {
		n++
	}
	at := max(n-r.ahead, 0)
	before, after = slices.Clone(r.others[:at]), slices.Clone(r.others[at:n])
	if sender != r.origin {
		before = append(before, sender)
	}
	return before, after
}

// onwards returns the route that a relay passes on.
func (r route) onwards(sender peer.ID) route {
	before, after := r.around(sender)
	out := route{origin: r.origin, target: r.target, ahead: max(len(after)-1, 0)}
	rest := before
	if len(after) > 0 {
		rest = append(rest, after[1:]...)
	}
	copy(out.others[:], rest)
	return out
}

// registration is the state of a registration with a relay, from a port of this host.
type registration struct {
	port    uint16
	last    time.Time // when it was last sent
	next    time.Time // when it is sent next
	asked   uint64    // the number of the last one; 0: it was answered
	tries   int       // without an answer
	ignored int       // how many of them got no answer, like questions to this address, from a relay that answers elsewhere
	cookie  uint32    // proves to the relay that this host receives at its address
	invited bool      // another host asked for it
	proven  bool      // the relay has accepted the cookie
	// A relay cannot turn IPv4 into IPv6: both hosts must use the same family. turn means that this host should use its
	// other one, and other that it tries the one that it would not have chosen. Until alone, the relay counts as one that
	// answers by one only.
	turn, other bool
	alone       time.Time
}

// quickTries is how often a registration is repeated quickly, before it is given more time. maxTries is how often it
// is sent without an answer, before other relays are tried.
const quickTries, maxTries = 5, 8

// registerEvery is how often a registration is repeated. Firewalls and NAT keep a flow for 30 s or longer.
const registerEvery = 15 * time.Second

// hurry repeats a registration soon.
func (g *registration) hurry(now time.Time) {
	if now.Sub(g.last) > gapMax {
		g.next = now
	}
}

// destination returns where the next registration goes, and whether the relay has an address of the other family. It stays at
// the last address while the relay answers there, though a nearer one may be known, and while the relay answers nowhere:
// it forwards what comes from where this host has registered, also without its agent.
func (p *Prober) destination(now time.Time, g *registration, with *remote, last netip.AddrPort) (to netip.AddrPort, both bool) {
	unanswered := g.tries > quickTries/2
	if unanswered {
		p.compare(g, with, last)
	}
	moves := g.ignored > 1 || with.find(last) == nil && (g.tries > 0 || !last.IsValid())
	switch first, _, ok := p.reaches(with.ID, false); {
	case g.turn && ok:
		g.turn, g.other, moves = false, first.Addr().Is4() == last.Addr().Is4(), true
	case unanswered && g.other:
		g.other, g.alone, moves = false, now.Add(othersEvery), true
	}
	to, both, ok := p.reaches(with.ID, g.other)
	if !ok || !moves {
		to = last
	}
	return to, both
}

// compare finds out why a registration gets no answer: the relay is silent, or it is not reached at that address.
func (p *Prober) compare(g *registration, with *remote, last netip.AddrPort) {
	if with.current == nil {
		return
	}
	at := with.find(last)
	since := func(a *address) bool { return a != nil && !a.answered.Before(g.last) }
	if since(with.current) && !since(at) {
		g.ignored++
	}
	if g.tries > quickTries/2+1 && g.tries <= quickTries { // a busy relay gets few questions
		return
	}
	with.current.check = true
	if at != nil {
		at.check = true
	}
	p.wake(with)
}

// register returns a registration to send. at is the address of the last one.
func (p *Prober) register(now time.Time, g *registration, relay peer.ID, at *netip.AddrPort, r route) (Send, bool) {
	g.next = now.Add(min(gapMin<<min(max(g.tries-quickTries, 0), maxTries), downGap)) // the rules that let the answer in may take a moment
	with := p.peers[relay]
	if with == nil {
		return Send{}, false
	}
	to, both := p.destination(now, g, with, *at)
	if to != *at {
		*at, g.proven = to, false
		p.version++
	}
	if !at.IsValid() {
		return Send{}, false
	}
	m := message{kind: register, id: p.newID(), stamp: p.stamp(now), route: r, cookie: g.cookie}
	if both && !now.Before(g.alone) {
		m.flags |= flagBoth
	}
	if g.invited {
		m.flags |= flagInvited
	}
	g.asked, g.tries, g.last = m.id, g.tries+1, now
	payload := p.seal(with, m)
	return Send{To: *at, Port: g.port, Payload: payload, peer: relay}, payload != nil
}

// took takes the answer to a registration.
func (g *registration) took(now time.Time, m message) (ok, refused bool) {
	if m.id == 0 || g.asked != m.id {
		return false, false
	}
	g.asked, g.tries, g.ignored = 0, 0, 0
	if m.flags&flagRefused != 0 {
		return false, true
	}
	switch g.proven = g.cookie == m.cookie; {
	case m.flags&flagBoth != 0 && !now.Before(g.alone):
		g.turn, g.next = true, now
	case g.proven:
		g.other, g.next = false, now.Add(registerEvery) // it stays there, see destination
	default:
		g.cookie, g.next = m.cookie, now
	}
	return true, false
}

// The ports that stand for peers: no service of Kubernetes (30000 and above), and no program that lets the kernel choose
// its port (32768 and above) has them. A port is never opened, only rewritten.
const firstPort, portCount = 20000, 8192

// freePort returns a port that stands for no peer yet. It follows from the peer and the relay, so that it is the same
// after a restart. At most that many ports are used: what others ask for must leave room.
func (p *Prober) freePort(of, relay peer.ID, most int) (uint16, bool) {
	taken := map[uint16]bool{p.cfg.Port: true}
	for _, w := range p.restored {
		taken[w.Own.Port()] = true
	}
	for _, r := range p.peers {
		for _, a := range r.detours() {
			taken[a.detour.port] = true
		}
	}
	for _, l := range p.legs {
		if l.on != nil {
			taken[l.on.port] = true
		}
	}
	if len(taken) >= most {
		return 0, false
	}
	sum := sha256.Sum256(slices.Concat(of[:], relay[:]))
	start := int(binary.BigEndian.Uint16(sum[:]))
	for i := range portCount {
		if port := uint16(firstPort + (start+i)%portCount); !taken[port] {
			return port, true
		}
	}
	return 0, false
}

// reaches returns the address by which this host reaches a relay or an end directly, if possible of the other family
// than the one that is used first.
func (p *Prober) reaches(id peer.ID, other bool) (to netip.AddrPort, both, ok bool) {
	r := p.peers[id]
	if r == nil || r.current == nil || r.current.detour != nil || r.down() {
		return to, false, false
	}
	to = r.current.to
	a := r.otherFamily()
	if a != nil && other {
		to = a.to
	}
	return to, a != nil, true
}

// otherFamily returns the address of the other family than the one in use that answered last; nil: there is none.
func (r *remote) otherFamily() (last *address) {
	for _, a := range r.addrs {
		if a.detour == nil && a.to.Addr().Is4() != r.current.to.Addr().Is4() && (last == nil || a.answered.After(last.answered)) {
			last = a
		}
	}
	return last
}

// prefersOther reports whether registrations with a relay should begin at its other family: IPv4, if it has answered there.
// Otherwise both ends of a way often begin at different families, since these are about as near.
func (p *Prober) prefersOther(relay peer.ID) bool {
	r := p.peers[relay]
	if r == nil || r.current == nil || r.current.to.Addr().Is4() {
		return false
	}
	a := r.otherFamily()
	return a != nil && !a.answered.IsZero() && r.current.answered.Sub(a.answered) < 2*othersEvery
}

// cookie proves that a host receives what is sent to an address. Nothing needs to be stored for it.
func (p *Prober) cookie(of legOf, at netip.AddrPort) uint32 {
	mac := hmac.New(sha256.New, p.secret[:])
	text, _ := at.MarshalBinary()
	mac.Write(slices.Concat(of.origin[:], of.target[:], of.row[0][:], of.row[1][:], of.row[2][:], text))
	return max(binary.BigEndian.Uint32(mac.Sum(nil)), 1)
}
