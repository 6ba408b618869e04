package path

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"weft/mesh/peer"
)

// Whatever arrives is either a probe that the peer sealed, or ignored.
func FuzzReceive(f *testing.F) {
	w := newWorld(f, 2, 1)
	w.configure(false)
	a, b := w.hosts[0], w.hosts[1]
	for _, s := range b.Due(w.now.Add(time.Second)) {
		f.Add(s.Payload, 100)
	}
	f.Add([]byte("weft"), 0)
	f.Fuzz(func(t *testing.T, payload []byte, size int) {
		before := a.Version()
		from := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)
		s, ok := a.Receive(w.now, Arrival{From: from, To: from, Payload: payload, Size: size})
		if ok && (len(s.Payload) > len(payload) || s.Size > max(size, 0)) {
			t.Errorf("the answer to %d bytes has %d bytes, padded to %d; want no more than arrived", len(payload), len(s.Payload), s.Size)
		}
		if a.Version() != before {
			t.Error("a question changed the path; want that only answers do")
		}
	})
}

// A body is read as it was written.
func FuzzDecode(f *testing.F) {
	f.Add(message{kind: question, flags: flagDeaf, id: 7}.encode())
	f.Add(message{kind: invite, flags: flagRefused, id: 7, route: route{origin: peer.ID{1}, target: peer.ID{2}, others: [2]peer.ID{{3}, {4}}, ahead: 1}, cookie: 9}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := decode(b); ok {
			if again, ok := decode(m.encode()); !ok || again != m {
				t.Errorf("%+v is read again as %+v", m, again)
			}
		}
	})
}

// Only the two ends open a probe, and only in its direction.
func TestOnlyThePeerOpensAProbe(t *testing.T) {
	w := newWorld(t, 3, 1)
	random := reader{rand.New(rand.NewPCG(3, 4))}
	ab, ba, ac := w.key(w.hosts[0], w.hosts[1]), w.key(w.hosts[1], w.hosts[0]), w.key(w.hosts[0], w.hosts[2])
	m := message{kind: question, id: 1, stamp: 2, size: 1500, rtt: time.Millisecond}
	sealed, err := ab.seal(m, random)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := ba.open(sealed); !ok || got != m {
		t.Errorf("the peer read %+v, %v; want %+v", got, ok, m)
	}
	if _, ok := ba.open(append(sealed, make([]byte, 1000)...)); !ok {
		t.Error("the peer did not open a padded probe")
	}
	if _, ok := ab.open(sealed); ok {
		t.Error("the sender opens its own probe: an attacker could send it back")
	}
	if _, ok := ac.open(sealed); ok {
		t.Error("another peer opens the probe")
	}
	for i := range sealed {
		sealed[i] ^= 1
		if _, ok := ba.open(sealed); ok {
			t.Errorf("the peer opens a probe with a changed byte %d", i)
		}
		sealed[i] ^= 1
	}
}

// A replayed question moves nothing and proves nothing.
func TestAReplayedQuestionProvesNothing(t *testing.T) {
	w := newWorld(t, 2, 1)
	w.configure(false)
	w.run(20 * time.Second)
	a, b := w.hosts[0], w.hosts[1]
	key := b.peers[a.id].Key
	replay, err := key.seal(message{kind: question, id: 1, flags: flagChosen, stamp: w.now.Add(-time.Second).UnixNano()}, reader{w.random})
	if err != nil {
		t.Fatal(err)
	}
	w.link = func(netip.Addr, netip.Addr, int) (bool, time.Duration) { return false, 0 }
	thief := netip.MustParseAddrPort("203.0.113.1:6784")
	for range 200 {
		w.run(500 * time.Millisecond)
		if s, ok := a.Receive(w.now, Arrival{From: thief, To: netip.AddrPortFrom(a.addrs[0], port), Payload: replay, Size: 122}); !ok || len(s.Payload) > len(replay) {
			t.Fatal("a question got no answer, or a larger one")
		}
	}
	if p := w.path(0, 1); p.State != Deaf || p.Endpoint.Addr() == thief.Addr() || w.now.Sub(p.Alive()) < 90*time.Second {
		t.Errorf("replayed questions made the path %+v; want that nothing is heard", p)
	}
}

// Whatever a lying member says about relays, answers are no larger than questions, and the tables stay bounded.
func FuzzRelaying(f *testing.F) {
	f.Add(byte(register), byte(0), uint32(0), uint8(1), uint8(2), uint8(0), uint8(0), uint16(20001))
	f.Add(byte(invite), byte(3), uint32(0), uint8(1), uint8(0), uint8(2), uint8(3), uint16(6784))
	f.Fuzz(func(t *testing.T, kind1, ahead byte, cookie uint32, origin, target, first, second uint8, from uint16) {
		w := newWorld(t, 5, 1)
		w.configure(false)
		w.run(5 * time.Second)
		a, liar := w.hosts[0], w.hosts[1]
		id := func(i uint8) peer.ID {
			if int(i) < len(w.hosts) {
				return w.hosts[i].id
			}
			return peer.ID{i}
		}
		m := message{
			kind: register + kind(kind1%3), id: 7, cookie: cookie, stamp: w.now.UnixNano() + 1,
			route: route{origin: id(origin), target: id(target), ahead: int(ahead % 4)},
		}
		if first != 0 {
			m.others[0] = id(first)
		}
		if second != 0 {
			m.others[1] = id(second)
		}
		at := Arrival{From: netip.AddrPortFrom(liar.addrs[0], from), To: netip.AddrPortFrom(a.addrs[0], port), Size: 122}
		for range 3 {
			var err error
			if at.Payload, err = liar.peers[a.id].Key.seal(m, reader{w.random}); err != nil {
				t.Fatal(err)
			}
			s, ok := a.Receive(w.now, at)
			if ok && (len(s.Payload) > len(at.Payload) || s.To != at.From) {
				t.Errorf("%+v has an answer of %d bytes to %v", m, len(s.Payload), s.To)
			}
			if got, answered := liar.peers[a.id].Key.open(s.Payload); ok && answered {
				m.cookie = got.cookie // the second time it is right
			}
			m.stamp++
			w.run(time.Second)
		}
		if len(a.Ways()) > 1 || len(a.Pairs()) > 1 || len(a.legs) > 2 { // the other end may register as well
			t.Errorf("%+v made %d ways, %d pairs and %d registrations", m, len(a.Ways()), len(a.Pairs()), len(a.legs))
		}
		w.run(3 * legFor)
		if len(a.Ways())+len(a.legs) > 0 {
			t.Errorf("%+v left %v and %v", m, a.Ways(), a.legs)
		}
	})
}
