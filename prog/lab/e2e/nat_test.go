package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/node"
)

// A host that is unreachable at its advertised address, as behind NAT, gets addresses within seconds.
// It never gets more than one grant of addresses, however long it keeps asking.
func TestHostBehindNATGetsOneGrant(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 3, Bare: true, Underlay: "4"})
	launchFounder(t, l)
	if err := l.Launch(t.Context(), "h2", token(t, l), "h1"); err != nil {
		t.Fatal(err)
	}
	run(t, l, "h3", "ip", "address", "add", "198.51.100.3/32", "dev", "lo")
	h1, err := l.UnderlayAddr("h1")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := l.Exec(t.Context(), "h3", strings.NewReader(token(t, l)), "weft", "launch", "--advertise", "198.51.100.3", "--token", "-", h1.String()); err != nil {
		t.Fatal(err)
	}
	t.Logf("h3 was ready after %v", time.Since(start))
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(time.Second) {
		if _, err := addresses(t, l, "h3", "nat"+time.Now().Format("150405"), 3); err != nil {
			t.Error(err)
		}
		for _, o := range report(t, l, "h1").IPAM.Owners {
			if o.Percent < 24 || o.Percent > 51 {
				t.Fatalf("%s owns %.1f %% of the addresses, want between 24 %% and 51 %%, as after one grant of addresses", o.Nickname, o.Percent)
			}
		}
	}
}

// h2, h3 and h4 are each behind a NAT of its own, of every kind. h5 is behind the NAT of h3.
func behindEveryNAT(t *testing.T) *lab.Lab {
	t.Helper()
	l := labtest.New(t, lab.Options{Hosts: 5, Containers: 1, Bare: true, Underlay: "4"})
	for i, kind := range node.NATKinds {
		if err := l.SetNAT(t.Context(), l.Hosts()[i+1], kind, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.JoinNAT(t.Context(), "h5", "h3"); err != nil {
		t.Fatal(err)
	}
	launchFounder(t, l)
	for _, h := range l.Hosts()[1:] {
		if err := l.Launch(t.Context(), h, token(t, l), "h1"); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// connections returns the connections of a host, by the other host's name.
func connections(t *testing.T, l *lab.Lab, host string) map[string]api.Connection {
	t.Helper()
	all := map[string]api.Connection{}
	for _, c := range report(t, l, host).Router.Connections {
		all[c.Nickname] = c
	}
	return all
}

// A host behind any kind of NAT has a tunnel with a public host, which answers at the outer address. So it has with
// a host behind the same NAT, at the inner address. Two hosts behind different NATs have none: each knows only the
// other's inner address.
func TestHostsBehindNATReachPublicHosts(t *testing.T) {
	labtest.Waits(t)
	l := behindEveryNAT(t)
	outer := map[string]string{"h2": "192.0.2.2", "h3": "192.0.2.3", "h4": "192.0.2.4", "h5": "192.0.2.3"}
	inner := map[string]string{"h3": "192.168.3.3", "h5": "192.168.3.5"}
	works := func(from, to, at string) bool {
		c := connections(t, l, from)[to]
		return c.State == api.ConnDirect && c.Address.Addr() == netip.MustParseAddr(at)
	}
	for h, at := range outer {
		eventually.True(t, 20*time.Second, h+" and h1 have a tunnel", func() bool { return works("h1", h, at) && works(h, "h1", "192.0.2.1") })
	}
	eventually.True(t, 20*time.Second, "h3 and h5 have a tunnel inside", func() bool {
		return works("h3", "h5", inner["h5"]) && works("h5", "h3", inner["h3"])
	})
	plugEach(t, l, l.Hosts()...)
	for _, h := range l.Hosts()[1:] {
		reachEachOther(t, l, "h1", h)
	}
	reachEachOther(t, l, "h3", "h5")
	for _, pair := range [][2]string{{"h2", "h3"}, {"h2", "h4"}, {"h3", "h4"}, {"h2", "h5"}, {"h4", "h5"}} {
		eventually.True(t, 30*time.Second, "the status of "+pair[0]+" and "+pair[1]+" shows that they have no tunnel", func() bool {
			return connections(t, l, pair[0])[pair[1]].State == api.ConnSilent && connections(t, l, pair[1])[pair[0]].State == api.ConnSilent
		})
	}
}
