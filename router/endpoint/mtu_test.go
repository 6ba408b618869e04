package endpoint

import (
	"testing"

	"github.com/vishvananda/netlink"

	"weft/router/link"
	"weft/router/routertest"
)

// Sync sets both ends of an endpoint's link to the MTU of the container's end. It does so even if
// other programs changed either end, or if the recorded MTU is not known.
func TestSyncGivesTheHostEndTheContainersMTU(t *testing.T) {
	host, c := routertest.New(t), routertest.New(t)
	set := func(ns routertest.Namespace, name string, mtu int) {
		t.Helper()
		ns.Do(func() {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetMTU(l, mtu)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	var e Endpoint
	host.Do(func() {
		addNode(t)
		e = make4and6(t, c, "one", 7)
		if err := Plug(e, node4, node6); err != nil {
			t.Fatal(err)
		}
	})
	otherEnd := func(l netlink.Link) int {
		socket, err := link.OpenSocket()
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		return socket.OtherEndMTU(l)
	}
	for _, given := range []int{e.MTU, 1300, 9000, 0} {
		for _, mtu := range []int{1400, 8920, 1320} {
			set(c, "eth0", mtu)
			set(host, e.HostLink, 1350)
			host.Do(func() {
				e.MTU = given
				if err := Sync([]Endpoint{e}, node4, node6); err != nil {
					t.Fatal(err)
				}
				l, err := netlink.LinkByName(e.HostLink)
				if err != nil {
					t.Fatal(err)
				}
				if got := l.Attrs().MTU; got != mtu || otherEnd(l) != mtu {
					t.Errorf("with the recorded MTU %d, the host's end has %d and the container's %d; want %d", given, got, otherEnd(l), mtu)
				}
			})
		}
	}
}
