package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

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

// Hosts behind any kinds of NAT reach each other. Two of them use outer addresses if at least one NAT lets in whoever
// sends, or both use one port for all destinations. Otherwise a host that both reach is their relay: the public one, unless
// one of them had just started and did not reach it yet. Hosts behind one NAT use their inner addresses. Gossip reaches all,
// though nobody can dial them.
func TestHostsBehindNATReachAllOthers(t *testing.T) {
	labtest.Waits(t)
	l := behindEveryNAT(t)
	const outer2, outer3 = "192.0.2.2", "192.0.2.3"
	works := func(from, to, at string) error {
		c := connections(t, l, from)[to]
		if c.State != api.ConnDirect || at != "" && c.Address.Addr().String() != at {
			return fmt.Errorf("the tunnel of %s to %s is %s at %v: %s", from, to, c.State, c.Address, c.Info)
		}
		return nil
	}
	for _, way := range [][3]string{
		{"h1", "h2", outer2},
		{"h1", "h3", outer3},
		{"h1", "h4", "192.0.2.4"},
		{"h1", "h5", outer3},
		{"h2", "h1", "192.0.2.1"},
		{"h3", "h1", "192.0.2.1"},
		{"h4", "h1", "192.0.2.1"},
		{"h5", "h1", "192.0.2.1"},
		{"h3", "h5", "192.168.3.5"},
		{"h5", "h3", "192.168.3.3"},
		{"h2", "h3", outer3},
		{"h3", "h2", outer2}, // both NATs are opened from inside
		{"h2", "h4", "192.0.2.4"},
		{"h4", "h2", outer2}, // the NAT of h2 lets in whoever sends
		{"h2", "h5", outer3},
		{"h5", "h2", outer2},
	} {
		took := eventually.Nil(t, 90*time.Second, way[0]+" uses the address "+way[2]+" of "+way[1], func() error { return works(way[0], way[1], way[2]) })
		t.Logf("%s uses the address %s of %s after %v", way[0], way[2], way[1], took)
	}
	for _, pair := range [][2]string{{"h3", "h4"}, {"h5", "h4"}} {
		becomes(t, l, 90*time.Second, pair[0], pair[1], api.ConnRelayed, "")
	}
	plugEach(t, l, l.Hosts()...)
	for i, a := range l.Hosts() {
		for _, b := range l.Hosts()[i+1:] {
			reachEachOther(t, l, a, b)
		}
	}
	for _, h := range l.Hosts() {
		eventually.Nil(t, 60*time.Second, "gossip of "+h+" reaches all", func() error {
			for _, c := range report(t, l, h).Router.Connections {
				if !c.Gossip {
					return fmt.Errorf("not %s: %s", c.Nickname, c.Info)
				}
			}
			return nil
		})
	}
}

// Half of many hosts are behind NATs of all kinds. All reach each other: directly unless one NAT is symmetric and the other
// one is symmetric or restricted, and over hosts that are behind no such NAT otherwise.
func TestHalfOfManyHostsAreBehindNAT(t *testing.T) {
	l := labtest.New(t, lab.Options{Hosts: labtest.Crowd(t, 20, 16, 12), Containers: 1, Bare: true, Underlay: "4"})
	staysSealed(t, l)
	kinds := map[string]node.NATKind{}
	hidden := l.Hosts()[len(l.Hosts())/2:]
	for i, h := range hidden {
		kinds[h] = node.NATKinds[i%len(node.NATKinds)]
		if err := l.SetNAT(t.Context(), h, kinds[h], 0); err != nil {
			t.Fatal(err)
		}
	}
	launchFounder(t, l)
	start := time.Now()
	secret := token(t, l)
	var launches errgroup.Group
	launches.SetLimit(4)
	for _, h := range l.Hosts()[1:] {
		launches.Go(func() error { return l.Launch(t.Context(), h, secret, "h1") })
	}
	if err := launches.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the other hosts were launched within %v", time.Since(start))
	wanted := func(a, b string) string {
		x, y := kinds[a], kinds[b]
		if x == node.Symmetric && (y == node.Symmetric || y == node.Restricted) || y == node.Symmetric && x == node.Restricted {
			return api.ConnRelayed
		}
		return api.ConnDirect
	}
	took := eventually.Nil(t, 2*time.Minute, "all hosts have tunnels to all others, and gossip reaches all", func() error {
		for _, a := range l.Hosts() {
			all := connections(t, l, a)
			for _, b := range l.Hosts() {
				c := all[b]
				switch {
				case a == b:
				case c.State != wanted(a, b):
					return fmt.Errorf("the tunnel of %s to %s is %q (%s), want %s", a, b, c.State, c.Info, wanted(a, b))
				case !c.Gossip:
					return fmt.Errorf("gossip of %s does not reach %s: %s", a, b, c.Info)
				case slices.Contains(c.Via, c.Peer):
					return fmt.Errorf("the tunnel of %s to %s goes over %[2]s: %[3]v", a, b, c.Via)
				}
			}
		}
		return nil
	})
	t.Logf("all tunnels worked %v after the last host was launched", took)
	some := append([]string{"h1", "h2"}, hidden[:2*len(node.NATKinds)]...)
	plugEach(t, l, some...)
	reachEachOther(t, l, some...)
	for _, h := range l.Hosts() {
		if w := strings.Join(report(t, l, h).Warnings, "\n"); strings.Contains(w, "UDP 6784") {
			t.Errorf("%s warns of tunnels, which all work: %s", h, w)
		}
	}
}

// Two hosts that joined by tokens, both behind a symmetric NAT, cannot dial each other. They agree on their pre-shared
// key over the public host, which then is their relay. It does not have that key.
func TestHostsWithoutTheSecretBehindNAT(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Bare: true, Underlay: "4"})
	for _, h := range []string{"h2", "h3"} {
		if err := l.SetNAT(t.Context(), h, node.Symmetric, 0); err != nil {
			t.Fatal(err)
		}
	}
	launchFounder(t, l)
	for _, h := range []string{"h2", "h3"} {
		joinBy(t, l, h, newToken(t, l, "h1"), "192.0.2.1")
	}
	becomes(t, l, 60*time.Second, "h2", "h3", api.ConnRelayed, "(h1)")
	plugEach(t, l, l.Hosts()...)
	reachEachOther(t, l, l.Hosts()...)
	pairKeys(t, l)
	eventually.True(t, 60*time.Second, "gossip of h2 and h3 goes through their tunnel", func() bool {
		return connections(t, l, "h2")["h3"].Gossip && connections(t, l, "h3")["h2"].Gossip
	})
}
