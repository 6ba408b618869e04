package mesh

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
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

// Gossip follows the address that works best for the tunnel, while the agents run.
func TestGossipFollowsBestAddressOfTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(1)}
		other := netip.MustParseAddr("198.51.100.2")
		var best atomic.Pointer[netip.Addr]
		h1 := s.start(1, nil, nil, func(c *Config) {
			c.Best = func(id peer.ID) netip.Addr {
				if addr := best.Load(); addr != nil && id == idOf(2) {
					return *addr
				}
				return netip.Addr{}
			}
		})
		h2 := s.start(2, nil, []string{"192.0.2.1"}, func(c *Config) {
			c.Record.Underlay = append(c.Record.Underlay, other)
			s.net.AddAddress(c.Transport.(*meshtest.Transport), netip.AddrPortFrom(other, Port))
		})
		eventually.True(t, 10*time.Second, "all hosts reach each other", allReach([]*host{h1, h2}))
		since := peerAt(h1, h2).Since
		for _, addr := range []netip.Addr{other, address(2).Addr()} {
			best.Store(&addr)
			eventually.True(t, 3*time.Second, "the next packet goes to the new address", func() bool { return peerAt(h1, h2).Addr == addr })
			time.Sleep(time.Minute)
			if p := peerAt(h1, h2); p.Addr != addr || !p.Since.Equal(since) {
				t.Errorf("a minute later h1 reaches h2 like this: %+v; want it at %v, without a loss", p, addr)
			}
		}
		s.end(h1, h2)
	})
}
