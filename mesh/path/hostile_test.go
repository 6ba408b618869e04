package path

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A peer without probes, whose tunnel uses an address that no record names, keeps the agent neither busy nor idle.
func TestAPeerWithoutProbesAtAnUnknownAddress(t *testing.T) {
	for i := range 2 { // one of them asks when the tunnel is calm
		w := newWorld(t, 2, 1)
		h, o := w.hosts[i], w.hosts[1-i]
		o.mute = true
		h.count(o).Endpoint = netip.MustParseAddrPort("192.0.2.1:7000")
		overdue := 0
		w.each = func() {
			if !h.Next().After(w.now) {
				overdue++
			}
		}
		w.configure(false)
		for range 8 {
			h.count(o).Handshake = w.now
			w.run(25 * time.Second)
			h.count(o).Received += 32
		}
		sent := w.sent
		w.run(20 * time.Second)
		if p := w.path(i, 1-i); p.State != Direct {
			t.Errorf("the path is %+v; want direct, since data arrives", p)
		}
		if overdue > 100 {
			t.Errorf("after %d steps questions were still due; want that the agent can sleep", overdue)
		}
		if w.sent == sent {
			t.Error("the peer was not asked for 20 s; want that its next version is noticed")
		}
	}
}

// Keepalives of a peer without probes suffice, also after this host's routes have changed.
func TestKeepalivesOfAPeerWithoutProbesSuffice(t *testing.T) {
	for i := range 2 {
		w := newWorld(t, 2, 1)
		h, o := w.hosts[i], w.hosts[1-i]
		o.mute = true
		w.configure(false)
		h.count(o).Handshake = w.now
		w.run(20 * time.Second)
		for range 5 {
			h.count(o).Received += 32
			h.count(o).Handshake = w.now
			w.run(time.Second)
			h.Configure(w.now, w.remotes(h), true)
			h.next = w.now
			w.run(23 * time.Second)
			if p := w.path(i, 1-i); p.State != Direct {
				t.Fatalf("24 s after a keepalive the path is %+v; want direct", p)
			}
		}
	}
}

// A peer that went back to a version without probes is judged by its data, once WireGuard has made a handshake.
func TestAPeerMayGoBackToAVersionWithoutProbes(t *testing.T) {
	for i := range 2 {
		w := newWorld(t, 2, 1)
		h, o := w.hosts[i], w.hosts[1-i]
		w.configure(false)
		h.count(o).Handshake = w.now
		w.run(20 * time.Second)
		o.mute = true
		for step := range 16 {
			h.count(o).Received += 32
			if step%5 == 0 {
				h.count(o).Handshake = w.now
			}
			w.run(25 * time.Second)
			if p := w.path(i, 1-i); step > 5 && p.State != Direct {
				t.Errorf("%d s after its last answer the path is %+v; want direct, since data and handshakes arrive", (step+1)*25, p)
			}
		}
	}
}

// Peers without probes, as during an upgrade, are not asked several times a second for ever.
func TestPeersWithoutProbesAreAskedSeldom(t *testing.T) {
	w := newWorld(t, 2, 1)
	h, o := w.hosts[0], w.hosts[1]
	o.mute = true
	h.count(o).Handshake = w.now
	w.configure(false)
	w.run(30 * time.Second)
	sent := w.sent
	for range 12 {
		h.count(o).Received += 32
		h.count(o).Handshake = w.now
		w.run(25 * time.Second)
		if p := w.path(0, 1); p.State != Direct {
			t.Fatalf("with a keepalive every 25 s the path is %+v; want direct", p)
		}
	}
	if perSecond := float64(w.sent-sent) / 122 / 300; perSecond > 1.5 {
		t.Errorf("%.1f questions a second go to a peer that never answers; want at most 1.5", perSecond)
	}
}

// If the address in use answers once and then fails again, another one that answers is used.
func TestOneAnswerDoesNotHoldATunnel(t *testing.T) {
	w := newWorld(t, 2, 2)
	works := [2]bool{true, true}
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		return works[netOf(from)] && works[netOf(to)], 2 * time.Millisecond
	}
	w.configure(false)
	w.run(30 * time.Second)
	old := netOf(w.path(0, 1).Endpoint.Addr())
	works = [2]bool{}
	w.run(40 * time.Second)
	h := w.hosts[0]
	before := h.peers[w.hosts[1].id].current.answered
	works[old] = true
	for range 10_000 {
		w.run(time.Millisecond)
		if !h.peers[w.hosts[1].id].current.answered.Equal(before) {
			break
		}
	}
	works = [2]bool{old != 0, old != 1}
	w.run(20 * time.Second)
	for i := range 2 {
		if p := w.path(i, 1-i); p.State != Direct || netOf(p.Endpoint.Addr()) == old {
			t.Errorf("20 s after the other network works host %d has %+v; want that network", i, p)
		}
	}
}

// monotonic reports whether a time has a monotonic reading.
func monotonic(t time.Time) bool { return strings.Contains(t.String(), " m=") }

// The times of the next questions do not follow the wall clock: an operator may set it back.
func TestQuestionsDoNotWaitForTheWallClock(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.now = time.Now()
	w.configure(false)
	for _, h := range w.hosts {
		for _, r := range h.peers {
			r.current = r.addrs[0]
			r.path.Answered = w.now
			r.calm(w.now)
			if at := r.nextAt(); !monotonic(at) {
				t.Errorf("first %v: the next question is due at %v; want a time with a monotonic reading", r.first, at)
			}
			if r.first && !monotonic(r.calmAt) {
				t.Errorf("calm questions are due at %v; want a time with a monotonic reading", r.calmAt)
			}
		}
	}
}

// liar returns a host that follows the choices of the other one, and a function that sends it a question of that one.
func liar(t *testing.T) (w *world, victim, other *host, tell func(addr int, m message)) {
	w = newWorld(t, 2, 2)
	victim, other = w.hosts[0], w.hosts[1]
	if victim.prober(other) {
		victim, other = other, victim
	}
	w.configure(false)
	w.run(20 * time.Second)
	tell = func(addr int, m message) {
		m.kind, m.stamp = question, other.stamp(w.now)
		w.send(other, Send{To: netip.AddrPortFrom(victim.addrs[addr], port), From: other.addrs[addr], Payload: other.seal(other.peers[victim.id], m)})
	}
	return w, victim, other, tell
}

func (h *host) prober(o *host) bool { return prober(h.id, o.id) }

// A member that tells another address or MTU all the time causes few changes on this host.
func TestALyingPeerCausesFewChanges(t *testing.T) {
	w, victim, other, tell := liar(t)
	from, start := victim.Version(), w.now
	for i := range 60 * 50 {
		tell(i/25%2, message{flags: flagChosen, mtu: uint16(1000 + i%100)})
		w.run(20 * time.Millisecond)
	}
	if n := victim.Version() - from; n > 30 {
		t.Errorf("in %v a peer caused %d changes; want at most 30", w.now.Sub(start), n)
	}
	w.run(10 * time.Minute)
	for i := range 2 {
		if p := w.path(i, 1-i); p.State != Direct || p.MTU < 9000-mtuStep {
			t.Errorf("10 minutes after the lies host %d has %+v; want direct with an MTU of 9000", i, p)
		}
	}
	_ = other
}

// What a member tells is used only as far as it makes sense.
func TestImpossibleClaimsAreIgnored(t *testing.T) {
	w, victim, other, tell := liar(t)
	was, _ := victim.Path(other.id)
	addr := int(netOf(was.Endpoint.Addr()))
	tell(addr, message{flags: flagChosen, mtu: 1, rtt: time.Millisecond, loss: 65535})
	w.run(10 * time.Millisecond)
	if p, _ := victim.Path(other.id); p.MTU != was.MTU || p.Loss > 1 || p.RTT != time.Millisecond {
		t.Errorf("told an MTU of 1 and a loss of 655 %%, the path is %+v; want an MTU of %d and a loss of at most 1", p, was.MTU)
	}
}

// The MTU of one path says nothing about another one between the same hosts.
func TestTheMTUOfAnotherPathIsIgnored(t *testing.T) {
	w, victim, other, tell := liar(t)
	was, _ := victim.Path(other.id)
	tell(int(netOf(was.Endpoint.Addr())), message{mtu: 1400})
	w.run(10 * time.Millisecond)
	if p, _ := victim.Path(other.id); p.MTU != was.MTU {
		t.Errorf("told the MTU of a path that is not this one, the path is %+v; want an MTU of %d", p, was.MTU)
	}
}

// An answer to a padded question says nothing about an address that is used since.
func TestALateAnswerBelongsToItsAddress(t *testing.T) {
	w := newWorld(t, 2, 2)
	w.configure(false)
	w.run(20 * time.Second)
	for i, h := range w.hosts {
		r := h.peers[w.hosts[1-i].id]
		if !r.first {
			continue
		}
		old := r.current
		r.sizes(w.now, nil, []int{9000}, 1)
		q := r.asks[len(r.asks)-1]
		for _, a := range r.addrs {
			if a != old {
				r.use(w.now, a)
			}
		}
		r.sizes(w.now, nil, []int{9000}, 1)
		r.answered(w.now, Arrival{From: old.to, Size: 9000}, message{kind: answer, id: q.id})
		if len(r.mtu.hits) != 0 {
			t.Errorf("an answer by %v counts for %v; want that it does not", old.to, r.current.to)
		}
	}
}

// An address that was forgotten meanwhile is not used when its answer comes.
func TestAForgottenAddressIsNotUsed(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.configure(false)
	w.run(20 * time.Second)
	h := w.hosts[0]
	r := h.peers[w.hosts[1].id]
	gone := r.learn(w.now, netip.MustParseAddrPort("192.0.2.9:1"))
	r.ask(w.now, nil, gone, 0)
	q := r.asks[len(r.asks)-1]
	r.wanted = gone
	for i := range maxLearned {
		w.now = w.now.Add(time.Millisecond)
		r.learn(w.now, netip.AddrPortFrom(gone.to.Addr(), uint16(100+i)))
	}
	r.answered(w.now, Arrival{From: gone.to, Size: 122}, message{kind: answer, id: q.id})
	if r.find(r.current.to) != r.current {
		t.Errorf("the tunnel uses %v; want one of the %d candidates", r.current.to, len(r.addrs))
	}
}

// A peer with another key is published at once: what was known belonged to another tunnel.
func TestAnotherKeyIsAChange(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.configure(false)
	w.run(20 * time.Second)
	h := w.hosts[0]
	remotes := w.remotes(h)
	remotes[0].Key.inMark[0]++
	version := h.Version()
	h.Configure(w.now, remotes, false)
	if h.Version() == version {
		t.Error("the version is unchanged; want that callers learn of the new path")
	}
}
