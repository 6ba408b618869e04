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
	cookie  uint32    // proves to the relay that this host receives at its address
	invited bool      // another host asked for it
	proven  bool      // the relay has accepted the cookie
	// A relay cannot turn IPv4 into IPv6: both hosts must use the same family. other means that this host uses the one
	// that it would not have chosen, and alone that the relay answers by one only.
	other, alone bool
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

// register returns a registration to send. at is the address of the last one.
func (p *Prober) register(now time.Time, g *registration, relay peer.ID, at *netip.AddrPort, r route) (Send, bool) {
	g.next = now.Add(min(gapMin<<min(max(g.tries-quickTries, 0), maxTries), downGap)) // the rules that let the answer in may take a moment
	if g.tries > quickTries/2 && g.other {
		g.other, g.alone = false, true
	}
	to, both, ok := p.reaches(relay, g.other)
	if ok && to != *at {
		*at = to
		p.version++
	}
	with := p.peers[relay]
	if with == nil || !at.IsValid() {
		return Send{}, false
	}
	m := message{kind: register, id: p.newID(), stamp: p.stamp(now), route: r, cookie: g.cookie}
	if both && !g.alone {
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
	g.asked, g.tries = 0, 0
	if m.flags&flagRefused != 0 {
		return false, true
	}
	switch g.proven = g.cookie == m.cookie; {
	case m.flags&flagBoth != 0 && !g.alone:
		g.other, g.next = !g.other, now
	case g.proven:
		g.next = now.Add(registerEvery)
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
	i := slices.IndexFunc(r.addrs, func(a *address) bool { return a.detour == nil && a.to.Addr().Is4() != to.Addr().Is4() })
	if i >= 0 && other {
		to = r.addrs[i].to
	}
	return to, i >= 0, true
}

// cookie proves that a host receives what is sent to an address. Nothing needs to be stored for it.
func (p *Prober) cookie(of legOf, at netip.AddrPort) uint32 {
	mac := hmac.New(sha256.New, p.secret[:])
	text, _ := at.MarshalBinary()
	mac.Write(slices.Concat(of.origin[:], of.target[:], of.row[0][:], of.row[1][:], of.row[2][:], text))
	return max(binary.BigEndian.Uint32(mac.Sum(nil)), 1)
}
