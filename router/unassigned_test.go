package router

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/ipam/slot"
	"weft/router/routertest"
)

// expectUnreachable connects to an address and expects "host unreachable" or "network unreachable".
// A new route may take a moment to appear; a timeout is a failure.
func expectUnreachable(t *testing.T, from routertest.Namespace, to netip.Addr) {
	t.Helper()
	from.Do(func() {
		_, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 7).String(), 5*time.Second)
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) || os.IsTimeout(err) {
			t.Errorf("connecting to the unassigned address %v failed with %v; want host unreachable", to, err)
		}
	})
}

// Connections to an unassigned address fail at once, from a container and from a host, in both
// families. The address may be in the ranges of this host or of another host. A host may own a
// single address or all of them.
func TestConnectionsToUnassignedAddressesFailAtOnce(t *testing.T) {
	h1, h2, c1, c2, e1, e2 := twoHosts(t)
	leaks := sniff(t, h1)
	expectCall(t, c1, e2.Addr4, e1.Addr4.String()) // the tunnel works
	expectCall(t, c1, e2.Addr6, e1.Addr6.String())
	for _, s := range []slot.Slot{1<<16 + 99, 2<<16 + 99} {
		for _, to := range []netip.Addr{universe.Addr4(s), universe.Addr6(s)} {
			for _, from := range []routertest.Namespace{c1, h1.ns, c2, h2.ns} {
				expectUnreachable(t, from, to)
			}
		}
	}
	if n := leaks.Load(); n != 0 {
		t.Errorf("the number of plaintext packets on the underlay is %d; want 0", n)
	}
	before := h1.config.Own
	h1.config.Own = []slot.Range{{Start: 1<<16 + 1, End: 1<<16 + 2}, {Start: 1<<16 + 7, End: 1<<16 + 8}}
	h1.must(request{Config: &h1.config})
	expectCall(t, c2, e1.Addr4, e2.Addr4.String())
	expectCall(t, c2, e1.Addr6, e2.Addr6.String())
	h1.config.Own, h1.config.Tunnels = []slot.Range{universe.Range()}, nil
	h1.must(request{Config: &h1.config})
	for _, from := range []routertest.Namespace{c1, h1.ns} {
		expectUnreachable(t, from, universe.Addr4(3<<16))
		expectUnreachable(t, from, universe.Addr6(3<<16))
	}
	h1.config.Own = before
	h1.tunnelTo(h2, 2)
	h1.must(request{Config: &h1.config})
	expectCall(t, c1, e2.Addr4, e1.Addr4.String())
	expectCall(t, c1, e2.Addr6, e1.Addr6.String())
}
