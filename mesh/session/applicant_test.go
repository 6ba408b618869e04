package session

import (
	"crypto/tls"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// A host that asks to become a member is none yet: nothing that it seals under its stream's keys gets in,
// not even while it delays the end of the handshake.
func TestPacketsOfAnApplicantAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, net2 := start(t, n, 1, 1), n.Join(meshtest.Address(2))
		id, err := newIdentity(meshtest.Identity(2))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := net2.DialTimeout(a.addr.String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		s := tls.Client(raw, id.config())
		if err := s.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := (greeting{Run: runName(2, 1), Use: Admit, Index: 7}).send(s); err != nil {
			t.Fatal(err)
		}
		welcome, err := receive(s)
		if err != nil {
			t.Fatal(err)
		}
		k, err := newKeys(s.ConnectionState(), Peer{}, true)
		if err != nil {
			t.Fatal(err)
		}
		k.theirs = welcome.Index
		for i, text := range []string{"before the end of the handshake", "after it"} {
			packet, err := k.seal([]byte(text))
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
