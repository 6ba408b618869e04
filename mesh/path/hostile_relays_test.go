package path

import (
	"net/netip"
	"testing"
	"time"

	"weft/mesh/peer"
)

// inject makes a host receive a message that another one has sealed.
func (w *world) inject(from, to *host, at Arrival, m message) {
	w.t.Helper()
	m.id, m.stamp = w.random.Uint64(), w.now.UnixNano()
	key := w.key(from, to)
	var err error
	if at.Payload, err = key.seal(m, reader{w.random}); err != nil {
		w.t.Fatal(err)
	}
	if at.Size == 0 {
		at.Size = 122
	}
	if s, ok := to.Receive(w.now, at); ok {
		w.send(to, s)
	}
	to.next = to.Next()
}

// A member that pretends to be a relay before this one for another host takes no pair away from it.
func TestAMemberCannotTakeOverARegistration(t *testing.T) {
	cut := true
	w := relayWorld(t, 4, &cut)
	if w.uses(0, 1) != 2 {
		t.Fatal("want the relay")
	}
	a, b, relay, liar := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
	if !less(a.id, b.id) {
		a, b = b, a
	}
	lost := 0
	w.each = func() {
		if len(relay.Pairs()) == 0 {
			lost++
		}
	}
	from := netip.AddrPortFrom(liar.addrs[0], 20001)
	for range 200 {
		m := message{kind: register, route: route{origin: a.id, target: b.id}}
		m.cookie = relay.cookie(legOf{a.id, b.id, Relays{liar.id, relay.id}}, from) // it can get that, since it receives there
		w.inject(liar, relay, Arrival{From: from, To: netip.AddrPortFrom(relay.addrs[0], port)}, m)
		w.run(100 * time.Millisecond)
	}
	if lost > 0 {
		t.Errorf("the relay did not forward for %d steps in 20 s, want none", lost)
	}
	if w.uses(0, 1) != 2 {
		t.Errorf("the relay is not used any more: %+v %+v", w.path(0, 1), w.path(1, 0))
	}
}

// A member that registers for other hosts, as if it were a relay before this one, uses up only its own share.
func TestAMemberCannotUseUpTheShareOfOthers(t *testing.T) {
	w := newWorld(t, 400, 1)
	a, liar := w.hosts[0], w.hosts[1]
	a.Configure(w.now, w.remotes(a), false)
	from := netip.AddrPortFrom(liar.addrs[0], 20001)
	n := 0
	for i := 2; i < 12; i++ {
		for k := 2; k < 400; k++ {
			origin, target := w.hosts[i], w.hosts[k]
			if i == k || !less(origin.id, target.id) {
				continue
			}
			w.now = w.now.Add(time.Second / 50)
			n++
			m := message{kind: register, route: route{origin: origin.id, target: target.id}}
			m.cookie = a.cookie(legOf{origin.id, target.id, Relays{liar.id, a.id}}, from)
			w.inject(liar, a, Arrival{From: from, To: netip.AddrPortFrom(a.addrs[0], port)}, m)
		}
	}
	if len(a.legs) > maxLegsPerHost {
		t.Errorf("one member made %d registrations, want at most %d", len(a.legs), maxLegsPerHost)
	}
}

// A relay that is removed (banned) is left by both ends at once, though it goes on forwarding.
func TestARemovedRelayIsLeft(t *testing.T) {
	cut := true
	w := relayWorld(t, 4, &cut)
	if w.uses(0, 1) != 2 {
		t.Fatal("want the relay")
	}
	banned := w.hosts[2]
	for _, h := range w.hosts[:2] {
		var rest []Remote
		for _, r := range w.remotes(h) {
			if r.ID != banned.id {
				rest = append(rest, r)
			}
		}
		relays := h.cfg.Relays
		h.cfg.Relays = func(to peer.ID, avoid func(peer.ID) bool) []peer.ID {
			return relays(to, func(id peer.ID) bool { return id == banned.id || avoid != nil && avoid(id) })
		}
		h.Configure(w.now, rest, false)
		h.next = w.now
	}
	banned.mute = true // its rules stay, since it wants to go on
	w.until(5*time.Second, "the other relay is used", func() bool { return w.uses(0, 1) == 3 })
}

// WireGuard's port may be any.
func TestTheTunnelsPortMayBeOneOfThoseThatStandForPeers(t *testing.T) {
	w := newWorld(t, 2, 1)
	a, b := w.hosts[0], w.hosts[1]
	a.cfg.Port = 25000
	w.configure(false)
	m := message{kind: question, id: 1, stamp: w.now.UnixNano()}
	payload, _ := w.key(b, a).seal(m, reader{w.random})
	if _, ok := a.Receive(w.now, Arrival{From: netip.AddrPortFrom(b.addrs[0], 25000), To: netip.AddrPortFrom(a.addrs[0], 25000), Payload: payload, Size: 122}); !ok {
		t.Error("a question to --wireguard-port 25000 is not answered")
	}
}

// Two ways to a peer begin with the same relay: the one that is used stays usable.
func TestTwoRowsThatBeginWithTheSameRelay(t *testing.T) {
	w := newWorld(t, 4, 1)
	a, b, r, s := w.hosts[0], w.hosts[1], w.hosts[2], w.hosts[3]
	cuts := map[[2]*host]bool{{a, b}: true, {a, s}: true, {r, b}: true}
	w.link = func(from, to netip.Addr, _ int) (bool, time.Duration) {
		x, y := w.byAddr[from], w.byAddr[to]
		return !cuts[[2]*host{x, y}] && !cuts[[2]*host{y, x}], time.Millisecond
	}
	row := []peer.ID{r.id, s.id}
	for i, h := range []*host{a, b} {
		h.cfg.Relays = func(to peer.ID, avoid func(peer.ID) bool) []peer.ID {
			over := append([]peer.ID{}, row...)
			if len(over) == 2 && i == 1 {
				over[0], over[1] = over[1], over[0]
			}
			if to != a.id && to != b.id || avoid != nil && avoid(over[0]) {
				return nil
			}
			return over
		}
	}
	w.configure(false)
	a.busy[b.id], b.busy[a.id] = true, true
	w.until(20*time.Second, "two relays are used", func() bool {
		return w.path(0, 1).Via.len() == 2 && w.path(1, 0).Via.len() == 2 && w.path(0, 1).State == Direct
	})
	w.run(30 * time.Second)
	// The link r-b works again, and b has lost s for a moment: b now prefers r alone.
	delete(cuts, [2]*host{r, b})
	w.run(20 * time.Second)
	row = []peer.ID{r.id}
	cuts[[2]*host{s, b}] = true
	took := w.until(10*time.Second, "one relay is used", func() bool {
		return w.path(0, 1).Via.len() == 1 && w.path(1, 0).Via.len() == 1 && w.path(0, 1).State == Direct && w.path(1, 0).State == Direct
	})
	t.Logf("after %v", took)
	w.run(3 * time.Second)
	bad, n, versions := 0, 0, r.Version()
	w.each = func() {
		n++
		if w.path(0, 1).State != Direct || w.path(1, 0).State != Direct || len(r.Pairs()) == 0 {
			bad++
		}
	}
	w.run(2 * time.Minute)
	t.Logf("the relay changed its rules %d times in 2 min; of %d steps %d without a working path", r.Version()-versions, n, bad)
	if bad > 0 {
		t.Errorf("%d of %d steps without a path, want none", bad, n)
	}
}

// The relay that a tunnel uses is gone, and there is no other: the agent can sleep all the same.
func TestARelayThatIsGoneKeepsNobodyBusy(t *testing.T) {
	cut := true
	w := relayWorld(t, 3, &cut)
	if w.uses(0, 1) != 2 {
		t.Fatal("want the relay")
	}
	w.hosts[2].down, w.hosts[2].mute = true, true
	w.run(5 * time.Minute)
	overdue := 0
	w.each = func() {
		if !w.hosts[0].Next().After(w.now) {
			overdue++
		}
	}
	w.run(time.Minute)
	if overdue > 100 {
		t.Errorf("at %d steps of a minute questions were still due; want that the agent can sleep", overdue)
	}
}

// Both ends gave a relay up, and one of them tries it again: the relay asks the other one to do so as well, though it still
// knows an old registration of that one.
func TestAHostThatGaveUpIsInvitedAgain(t *testing.T) {
	cut := true
	w := relayWorld(t, 3, &cut)
	if w.uses(0, 1) != 2 {
		t.Fatal("want the relay")
	}
	a, b := w.hosts[0].peers[w.hosts[1].id], w.hosts[1].peers[w.hosts[0].id]
	for _, r := range []*remote{a, b} {
		r.drop(w.now, r.detours()[0])
	}
	a.avoided = nil
	w.until(10*time.Second, "both use the relay again", func() bool { return w.uses(0, 1) == 2 })
}

// A relay that lies in each of its answers does not make a host change its rules all the time.
func TestALyingRelayChangesRulesSeldom(t *testing.T) {
	cut := true
	w := relayWorld(t, 4, &cut)
	a, b, liar := w.hosts[0], w.hosts[1], w.hosts[2]
	for i, h := range w.hosts { // each has a second address, of the other family
		second := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)})
		h.addrs = append(h.addrs, second)
		w.byAddr[second] = h
	}
	a.Configure(w.now, w.remotes(a), false)
	before, sent := a.Version(), 0
	for range 2000 { // 20 s
		w.now = w.now.Add(10 * time.Millisecond)
		for _, s := range a.Due(w.now) {
			m, ok := w.key(liar, a).open(s.Payload)
			if !ok || m.kind != register || sent/50 > int(w.now.Sub(time.Unix(1_800_000_020, 0))/time.Second) {
				continue
			}
			sent++
			answer := message{kind: registered, id: m.id, stamp: w.now.UnixNano(), flags: flagBoth, route: route{origin: a.id, target: b.id}, cookie: w.random.Uint32()}
			payload, _ := w.key(liar, a).seal(answer, reader{w.random})
			own := a.addrs[0]
			if s.To.Addr().Is6() {
				own = a.addrs[1]
			}
			a.Receive(w.now, Arrival{From: s.To, To: netip.AddrPortFrom(own, s.Port), Payload: payload, Size: 122})
		}
	}
	t.Logf("%d answers made %d versions", sent, a.Version()-before)
	if n := a.Version() - before; n > 20*maxChanges {
		t.Errorf("%d versions in 20 s, want at most %d", n, 20*maxChanges)
	}
}

// Invitations of one member leave room for this host's own ways, and for those of other relays.
func TestInvitationsOfOneMemberLeaveRoom(t *testing.T) {
	w := newWorld(t, 600, 1)
	a, liar := w.hosts[0], w.hosts[1]
	a.Configure(w.now, w.remotes(a), false)
	for _, r := range a.peers { // all are reached directly but one
		r.current, r.capable, r.path.State, r.alarm = r.addrs[0], true, Direct, time.Time{}
	}
	for n := range 598 {
		w.now = w.now.Add(time.Second / maxChanges)
		m := message{kind: invite, route: route{origin: w.hosts[2+n].id, target: a.id}}
		w.inject(liar, a, Arrival{From: netip.AddrPortFrom(liar.addrs[0], port), To: netip.AddrPortFrom(a.addrs[0], port)}, m)
	}
	r := a.peers[w.hosts[599].id]
	if !r.over(w.now, Relays{w.hosts[300].id}, false) {
		t.Errorf("the invitations made %d ways, and there is no room for another one", len(a.Ways()))
	}
}

// A host starts anew with a clock that was set back, and another address: its relay takes that at once.
func TestARelayFollowsAClockThatWasSetBack(t *testing.T) {
	cut := true
	w := relayWorld(t, 3, &cut)
	if w.uses(0, 1) != 2 {
		t.Fatal("want the relay")
	}
	a, b, relay := w.hosts[0], w.hosts[1], w.hosts[2]
	of := legOf{a.id, b.id, Relays{relay.id}}
	relay.peers[a.id].stamp = w.now.Add(-time.Hour).UnixNano() // an answer has shown the new clock
	from := netip.AddrPortFrom(a.addrs[0], 21234)
	m := message{kind: register, route: route{origin: a.id, target: b.id}, id: 7, stamp: w.now.Add(-time.Hour).UnixNano(), cookie: relay.cookie(of, from)}
	payload, _ := w.key(a, relay).seal(m, reader{w.random})
	if _, ok := relay.Receive(w.now, Arrival{From: from, To: netip.AddrPortFrom(relay.addrs[0], port), Payload: payload, Size: 122}); !ok {
		t.Error("the registration was not answered")
	}
	if got := relay.legs[of].Host; got != from {
		t.Errorf("the relay sends to %v, want %v", got, from)
	}
}

// A relay forwards probes, but no data: it is left, though questions are answered.
func TestARelayThatSwallowsDataIsLeft(t *testing.T) {
	cut := true
	w := relayWorld(t, 4, &cut)
	w.run(time.Minute)
	if w.uses(0, 1) != 2 {
		t.Fatal("want the first relay")
	}
	w.hosts[2].swallow = true
	took := w.until(time.Minute, "the other relay is used", func() bool { return w.uses(0, 1) == 3 })
	t.Logf("after %v", took)
	w.run(10 * time.Minute)
	if w.uses(0, 1) != 3 {
		t.Errorf("ten minutes later the paths are %+v and %+v, want the other relay", w.path(0, 1), w.path(1, 0))
	}
}
