package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
)

// A peer whose advertised address does not answer is reached at another address of its record, by
// packets and streams, without being lost in between.
func TestPeerIsReachedAtItsSecondAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(1)}
		s.net.HangDials()
		other := netip.MustParseAddr("198.51.100.2")
		h1 := s.start(1, nil, nil)
		h2 := s.start(2, nil, []string{"192.0.2.1"}, func(c *Config) {
			c.Record.Underlay = append(c.Record.Underlay, netip.MustParseAddr("203.0.113.2"), other) // no host has the second address
			s.net.AddAddress(c.Transport.(*meshtest.Transport), netip.AddrPortFrom(other, Port))
		})
		hosts := []*host{h1, h2}
		eventually.True(t, 10*time.Second, "all hosts reach each other", allReach(hosts))
		since := peerAt(h1, h2).Since
		s.net.Partition(func(from, to netip.Addr) bool { return from == address(1).Addr() && to == address(2).Addr() })
		for range 600 {
			time.Sleep(time.Second)
			if p := peerAt(h1, h2); !p.Reachable || !p.Since.Equal(since) {
				t.Fatalf("only the first address of h2 fails, but h1 lost h2: %+v; want it reachable throughout", p)
			}
			if p := peerAt(h2, h1); !p.Reachable {
				t.Fatalf("only the first address of h1 fails, but h2 lost h1: %+v; want it reachable", p)
			}
		}
		if p := peerAt(h1, h2); p.Addr != other || p.Losses != 0 {
			t.Errorf("h1 reaches h2 at %v after %d losses; want %v", p.Addr, p.Losses, other)
		}
		if _, err := h1.Request(t.Context(), h2.self, "echo", []byte("x")); err != nil {
			t.Error(err)
		}
		// The other host restarts, and joins this host at its second address.
		s.end(h1)
		h1 = s.start(1, h1.disk, nil)
		eventually.True(t, time.Minute, "h1 joins h2 again", allReach([]*host{h1, h2}))
		s.end(h1, h2)
	})
}

// If another peer has taken over one address of a peer, that peer is joined at its other addresses.
func TestPeerIsJoinedAlthoughAnotherPeerHasItsAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(1)}
		h1 := s.start(1, nil, nil)
		virtual := netip.MustParseAddr("192.0.2.100")
		h2 := s.start(2, nil, []string{"192.0.2.1"}, func(c *Config) {
			c.Record.Underlay = []netip.Addr{virtual, address(2).Addr()}
		})
		h3 := s.start(3, nil, []string{"192.0.2.1"}, func(c *Config) {
			s.net.AddAddress(c.Transport.(*meshtest.Transport), netip.AddrPortFrom(virtual, Port))
		})
		eventually.True(t, 20*time.Second, "all hosts reach each other", allReach([]*host{h1, h2, h3}))
		apart := func(a, b netip.Addr) bool { return (a == address(2).Addr()) != (b == address(2).Addr()) }
		s.net.Partition(apart)
		eventually.True(t, time.Minute, "h1 has lost h2", func() bool { return !h1.Reachable(h2.self) })
		s.net.Heal()
		eventually.True(t, 3*time.Minute, "all hosts reach each other again", allReach([]*host{h1, h2, h3}))
		s.end(h1, h2, h3)
	})
}

// The first address that answers is used, without a long wait for the addresses before it. All
// other streams are closed.
func TestDialUsesFirstAddressThatAnswers(t *testing.T) {
	type answer struct {
		after time.Duration
		err   bool
	}
	for _, tt := range []struct {
		answers map[string]answer
		found   string // the address found before the call; empty: none
		want    string
		within  time.Duration
		after   string // the address found after the call; empty: none
	}{
		{map[string]answer{"a": {0, false}, "b": {0, false}}, "", "a", 0, ""},
		{map[string]answer{"a": {0, true}, "b": {0, false}, "c": {0, false}}, "", "b", 0, "b"},
		{map[string]answer{"a": {time.Hour, true}, "b": {0, true}, "c": {0, false}}, "", "c", headStart, "c"},
		{map[string]answer{"a": {time.Second, false}, "b": {time.Hour, true}, "c": {time.Hour, true}}, "", "a", time.Second, ""},
		{map[string]answer{"a": {0, false}, "b": {0, false}}, "b", "b", 0, "b"},
		{map[string]answer{"a": {0, false}, "b": {time.Hour, true}}, "b", "a", headStart, ""},
		{map[string]answer{"a": {0, true}, "b": {0, true}, "c": {0, true}}, "", "", 0, ""},
		{map[string]answer{"a": {time.Hour, true}, "b": {time.Hour, true}, "c": {time.Hour, true}}, "", "", 3 * time.Second, ""},
	} {
		t.Run(fmt.Sprint(tt.answers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &dialer{others: func(string) []string { return []string{"a", "b", "c"}[:len(tt.answers)] }}
				to := memberlist.Address{Addr: "a", Name: "run"}
				if tt.found != "" {
					w.note(to, tt.found)
				}
				var opened []net.Conn
				start := time.Now()
				conn, err := w.dial(to, 3*time.Second, func(addr string, timeout time.Duration) (net.Conn, error) {
					time.Sleep(min(tt.answers[addr].after, timeout))
					if tt.answers[addr].err {
						return nil, errors.New(addr)
					}
					c, far := net.Pipe()
					opened = append(opened, far)
					return named{c, addr}, nil
				})
				if took := time.Since(start); took != tt.within {
					t.Errorf("dialling took %v; want %v", took, tt.within)
				}
				if (err != nil) != (tt.want == "") || err == nil && conn.(named).addr != tt.want {
					t.Errorf("dialling returned %v, error %v; want a connection to %q", conn, err, tt.want)
				}
				if got := w.found["run"]; got != tt.after {
					t.Errorf("the remembered address is %q; want %q", got, tt.after)
				}
				time.Sleep(time.Minute)
				if conn != nil {
					conn.Close()
				}
				for _, far := range opened {
					_ = far.SetReadDeadline(time.Now().Add(time.Second))
					if _, err := far.Read(make([]byte, 1)); err == nil || isTimeout(err) {
						t.Errorf("an unused stream was left open: error %v; want it closed", err)
					}
				}
			})
		})
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

type named struct {
	net.Conn
	addr string
}
