package mesh

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh/meshtest"
	"weft/mesh/meshtest/eventually"
	"weft/mesh/peer"
)

// insideAddress is the address of a simulated peer inside the tunnels.
func insideAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 32, 0, byte(i)}) }

// tunnelled gives a host an address inside the tunnels, at which gossip reaches the others as well.
func (s *cluster) tunnelled(i int) option {
	return func(c *Config) {
		s.net.AddInside(c.Transport.(*meshtest.Transport), netip.AddrPortFrom(insideAddress(i), Port))
		c.Inside = func(id peer.ID) []netip.Addr {
			for n := 1; n <= 3; n++ {
				if idOf(n) == id {
					return []netip.Addr{insideAddress(n)}
				}
			}
			return nil
		}
	}
}

// If a firewall blocks gossip's port of a host, for TCP and UDP and for all other hosts, gossip goes on through
// the tunnel: no peer is lost, news spread, and a new run of that host finds the others. It leaves the tunnel
// when the port is open again.
func TestGossipGoesOnThroughTunnel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(1)}
		s.net.HangDials()
		h1 := s.start(1, nil, nil, s.tunnelled(1))
		h2 := s.start(2, nil, []string{"192.0.2.1"}, s.tunnelled(2))
		h3 := s.start(3, nil, []string{"192.0.2.1"}, s.tunnelled(3))
		eventually.True(t, 10*time.Second, "all hosts reach each other", allReach([]*host{h1, h2, h3}))
		time.Sleep(time.Minute)
		underlay := func(a netip.Addr) bool {
			return a != insideAddress(1) && a != insideAddress(2) && a != insideAddress(3)
		}
		s.net.Partition(func(a, b netip.Addr) bool {
			return underlay(a) && underlay(b) && (a == address(3).Addr()) != (b == address(3).Addr())
		})
		h1.Broadcast("counter", []byte{1}) // is sent only a few times, before gossip finds the tunnel
		eventually.True(t, 10*time.Second, "news from the moment of the cut arrives", func() bool { return h3.counter.get() == 1 })
		insides := func(udp, tcp bool) func() bool {
			return func() bool {
				for _, p := range []Peer{peerAt(h1, h3), peerAt(h2, h3), peerAt(h3, h1), peerAt(h3, h2)} {
					if p.UDPInside != udp || p.TCPInside != tcp || !underlay(p.Addr) {
						return false
					}
				}
				return true
			}
		}
		eventually.True(t, 20*time.Second, "all hosts say that gossip with h3 goes through the tunnel", insides(true, true))
		if p := peerAt(h1, h2); p.UDPInside || p.TCPInside {
			t.Errorf("h1 reaches h2 through the tunnel: %+v; want it outside", p)
		}
		for n := range 100 {
			h1.Broadcast("counter", []byte{byte(n + 2)})
			time.Sleep(time.Second)
			if got := h3.counter.get(); got != byte(n+2) {
				t.Fatalf("a second after news %d from h1, h3 has %d", n+2, got)
			}
		}
		for _, of := range [][2]*host{{h1, h3}, {h2, h3}, {h3, h1}, {h3, h2}} {
			if p := peerAt(of[0], of[1]); !p.Reachable || p.Losses != 0 {
				t.Errorf("while only the tunnel works a peer was lost: %+v; want it reachable throughout", p)
			}
		}
		s.end(h3)
		h3 = s.start(3, h3.disk, nil, s.tunnelled(3))
		eventually.True(t, 30*time.Second, "a new run of h3 finds the others through the tunnel", allReach([]*host{h1, h2, h3}))
		eventually.True(t, 30*time.Second, "all hosts say so", insides(true, true))
		if _, err := h3.Request(t.Context(), h1.self, "echo", []byte("x")); err != nil {
			t.Error(err)
		}
		s.net.Heal()
		eventually.True(t, 30*time.Second, "gossip leaves the tunnel", insides(false, false))
		s.end(h1, h2, h3)
	})
}

// The transport dials back to the node address of a known peer, and to no other one.
func TestNodeAddressesOfKnownPeersArePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &cluster{t, meshtest.New(1)}
		h1, h2 := s.start(1, nil, nil, s.tunnelled(1)), s.start(2, nil, []string{"192.0.2.1"}, s.tunnelled(2))
		eventually.True(t, 10*time.Second, "the hosts reach each other", allReach([]*host{h1, h2}))
		for a, want := range map[netip.Addr]bool{
			insideAddress(2): true, insideAddress(1): false, insideAddress(3): false, address(2).Addr(): true, address(3).Addr(): false,
		} {
			if got := h1.isPlace(a); got != want {
				t.Errorf("%v counts as an address of a peer: %v; want %v", a, got, want)
			}
		}
		s.end(h1, h2)
	})
}
