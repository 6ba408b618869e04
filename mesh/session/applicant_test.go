package session

import (
	"crypto/tls"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// greet shakes hands as host 2 up to the welcome, and leaves out that it is ready.
func greet(t *testing.T, from *meshtest.Transport, to *end, g greeting) (s *tls.Conn, welcome greeting) {
	t.Helper()
	id, err := newIdentity(meshtest.Identity(2))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := from.DialTimeout(to.addr.String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s = tls.Client(raw, id.config())
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := g.send(s); err != nil {
		t.Fatal(err)
	}
	if welcome, err = receive(s); err != nil {
		t.Fatal(err)
	}
	return s, welcome
}

// A host that asks to become a member is none yet: nothing that it seals under its stream's keys gets in,
// not even while it delays the end of the handshake.
func TestPacketsOfAnApplicantAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, net2 := start(t, n, 1, 1), n.Join(meshtest.Address(2))
		s, welcome := greet(t, net2, a, greeting{Run: runName(2, 1), Use: Admit, Index: 7})
		k, err := newKeys(s.ConnectionState(), Peer{}, true)
		if err != nil {
			t.Fatal(err)
		}
		k.theirs = welcome.Index
		for i, text := range []string{"before the end of the handshake", "after it"} {
			packet, err := k.seal(packetType, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = net2.WriteTo(packet, a.addr.String())
			time.Sleep(100 * time.Millisecond)
			if i == 0 {
				_ = greeting{}.send(s)
			}
		}
		if got := a.got(); len(got) > 0 {
			t.Errorf("a host that asks to become a member sent the packets %q; want none let in", got)
		}
		s.Close()
		_ = net2.Shutdown()
		stop(t, a)
	})
}
