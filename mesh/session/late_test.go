package session

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
)

// What a run said while a network was cut is not delivered after the cut: it is no longer true.
func TestPacketsOfACutAreNotDeliveredLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := start(t, n, 1, 1), start(t, n, 2, 1)
		n.Partition(func(netip.Addr, netip.Addr) bool { return true })
		a.send(b, "dialed in vain")
		time.Sleep(dialInterval / 2)
		a.send(b, "not dialed again")
		time.Sleep(time.Minute)
		n.Heal()
		s, err := b.Ask(a.at(), Keys, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		a.send(b, "now")
		time.Sleep(time.Second)
		if got := b.got(); len(got) != 1 || got[0] != a.run+": now" {
			t.Errorf("after the cut, the packets %q arrived; want only the last one", got)
		}
		stop(t, a, b)
	})
}
