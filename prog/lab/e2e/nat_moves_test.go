package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"weft/mesh/meshtest/eventually"
	"weft/prog/api"
	"weft/prog/lab"
	"weft/prog/lab/labtest"
	"weft/prog/lab/node"
)

// staysSealed captures the underlay until the test ends, and asserts that nobody could read what containers sent. Unlike
// staysSilent it allows the ports that NATs choose.
func staysSealed(t *testing.T, l *lab.Lab) {
	t.Helper()
	capture, err := l.Capture(context.WithoutCancel(t.Context()), marker)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sum, err := capture.Stop()
		if err != nil || sum.Packets == 0 || sum.Marked > 0 || sum.Dropped > 0 {
			t.Errorf("the capture saw %+v (error %v), want packets, and none that contains what containers send", sum, err)
		}
	})
}

// A host moves between networks under traffic: from the underlay behind one NAT, behind another one, and back. Its
// connections survive. Packets arrive again within seconds, and in the end the tunnel is direct wherever it can be.
func TestAHostMovesBetweenNetworks(t *testing.T) {
	labtest.Waits(t)
	l := labtest.New(t, lab.Options{Hosts: 3, Containers: 1, Underlay: "4"})
	measured(t, l)
	staysSealed(t, l)
	for _, c := range []string{"h1/c1", "h2/c1", "h3/c1"} {
		listen(t, l, c)
	}
	for _, step := range []struct {
		network string
		move    func() error
	}{
		{"behind a restricted NAT", func() error { return l.SetNAT(t.Context(), "h2", node.Restricted, 0) }},
		{"behind a symmetric NAT", func() error { return l.SetNAT(t.Context(), "h2", node.Symmetric, 0) }},
		{"on the underlay", func() error { return l.RemoveNAT(t.Context(), "h2") }},
		{"behind the NAT of another host", func() error {
			if err := l.SetNAT(t.Context(), "h3", node.Restricted, 0); err != nil {
				return err
			}
			return l.JoinNAT(t.Context(), "h2", "h3")
		}},
		{"on the underlay again", func() error { return l.RemoveNAT(t.Context(), "h2") }},
	} {
		there, back := startFlow(t, l, "tcp", "h1/c1", "h2/c1"), startFlow(t, l, "udp", "h2/c1", "h1/c1")
		since := time.Now()
		if err := step.move(); err != nil {
			t.Fatal(err)
		}
		took := eventually.Nil(t, 60*time.Second, "h2 has tunnels to all hosts "+step.network, func() error {
			for _, ends := range [][2]string{{"h1", "h2"}, {"h2", "h1"}, {"h2", "h3"}, {"h3", "h2"}} {
				if c := connectionTo(t, l, ends[0], ends[1]); c.State != api.ConnDirect {
					return fmt.Errorf("the tunnel of %s to %s is %s: %s", ends[0], ends[1], c.State, c.Info)
				}
			}
			return nil
		})
		t.Logf("%s: all tunnels were direct %v after the move", step.network, took)
		reachEachOther(t, l, l.Hosts()...)
		for _, s := range back.stop(t) {
			if most := s.longest(since); most > 5*time.Second {
				t.Errorf("%s: packets to %s arrived again after %v, want within 5 s", step.network, s.Addr, most)
			}
		}
		for _, s := range there.stop(t) { // TCP sends again after 3 s, and then only after 6.2 s
			if most := s.longest(since); most > 7*time.Second {
				t.Errorf("%s: the connection to %s went on after %v, want within 7 s", step.network, s.Addr, most)
			}
		}
	}
}
