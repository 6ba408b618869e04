package path

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
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
