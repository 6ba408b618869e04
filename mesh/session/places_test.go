package session

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// outgoing notes where packets and streams of a host go. If deaf, the host drops the echoes that it receives, as
// an agent that does not know them.
type outgoing struct {
	memberlist.Transport

	mu      sync.Mutex
	packets []string // without echoes
	deaf    bool
	echoes  int
	dials   []string
	blocked bool // streams outside the tunnel fail
}

func (o *outgoing) block(blocked bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.blocked = blocked
}

func (o *outgoing) WriteTo(b []byte, addr string) (time.Time, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if b[0] == echoType {
		o.echoes++
		if o.deaf {
			return time.Now(), nil
		}
	} else {
		o.packets = append(o.packets, addr)
	}
	return o.Transport.WriteTo(b, addr)
}

func (o *outgoing) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	o.mu.Lock()
	o.dials = append(o.dials, addr)
	blocked := o.blocked
	o.mu.Unlock()
	if blocked && netip.MustParseAddrPort(addr).Addr().As4()[3] < 40 {
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	return o.Transport.DialTimeout(addr, timeout)
}

// last returns where the last packet went.
func (o *outgoing) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.packets[len(o.packets)-1]
}

// asked returns the number of questions and answers that were sent.
func (o *outgoing) asked() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.echoes
}

// dialed returns where the streams since the last call went.
func (o *outgoing) dialed() (out []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out, o.dials = o.dials, nil
	return out
}

// reached is a host with several addresses, and how the other host reaches it.
type reached struct {
	*end
	out  *outgoing
	best func(string) // sets the other host's best address of this host
}

// two returns two hosts that know each other's addresses: the advertised one, a second one, and one inside a
// tunnel.
func two(t *testing.T, n *meshtest.Network) (a, b reached) {
	places := func(i int) (second, inside netip.AddrPort) { return meshtest.Address(20 + i), meshtest.Address(40 + i) }
	make := func(i, other int) reached {
		var mu sync.Mutex
		best := ""
		out := &outgoing{}
		second, inside := places(i)
		far, farInside := places(other)
		e := start(t, n, i, 1, func(c *Config) {
			network := c.Network.(*meshtest.Transport)
			n.AddAddress(network, second)
			n.AddInside(network, inside)
			out.Transport = network
			c.Network = out
			c.Addresses = func(string) []string { return []string{meshtest.Address(other).String(), far.String()} }
			c.Inside = func(string) []string { return []string{farInside.String()} }
			c.Best = func(string) string {
				mu.Lock()
				defer mu.Unlock()
				return best
			}
		})
		return reached{e, out, func(addr string) {
			mu.Lock()
			defer mu.Unlock()
			best = addr
		}}
	}
	a, b = make(1, 2), make(2, 1)
	a.best, b.best = b.best, a.best
	return a, b
}

// talk lets two hosts send packets to each other for a while, as memberlist does.
func talk(a, b reached, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		a.send(b.end, "x")
		b.send(a.end, "x")
	}
}

// within talks until a condition holds.
func within(t *testing.T, a, b reached, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	begin := time.Now()
	for !holds() {
		if time.Since(begin) > limit {
			t.Fatalf("after %v not yet: %s", limit, what)
		}
		talk(a, b, 200*time.Millisecond)
	}
	t.Logf("after %v: %s", time.Since(begin), what)
}

// between cuts two addresses off from each other.
func between(x, y netip.AddrPort) func(a, b netip.Addr) bool {
	return func(a, b netip.Addr) bool {
		return a == x.Addr() && b == y.Addr() || a == y.Addr() && b == x.Addr()
	}
}

// Packets and streams go to the best address from the moment when it changes. If it does not answer, they go
// to the first one that does, and return when the best one answers again.
func TestGossipFollowsBestAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		n.HangDials()
		a, b := two(t, n)
		advertised, second := b.addr.String(), meshtest.Address(22).String()
		talk(a, b, time.Second)
		if got := a.out.last(); got != advertised {
			t.Errorf("without a best address the last packet went to %s; want %s", got, advertised)
		}
		for _, best := range []string{second, advertised, second} {
			b.best(best)
			a.send(b.end, "x")
			a.out.dialed()
			s, err := a.Ask(b.at(), Keys, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			if packet, streams := a.out.last(), a.out.dialed(); packet != best || !slices.Equal(streams, []string{best}) {
				t.Errorf("the best address is %s, but the next packet went to %s and the next stream to %v; want both there", best, packet, streams)
			}
			talk(a, b, 5*time.Second)
		}
		n.Partition(between(a.addr, meshtest.Address(22)))
		within(t, a, b, 3*time.Second, "packets leave the best address, which no longer answers", func() bool { return a.out.last() == advertised })
		talk(a, b, time.Minute)
		if got := a.Way(b.run); got.Addr != b.addr || got.StreamsInside || got.PacketsInside {
			t.Errorf("a reaches b by %+v; want the advertised address", got)
		}
		b.best("") // no opinion is no change
		talk(a, b, time.Second)
		b.best(second)
		n.Heal()
		within(t, a, b, retryPause+2*time.Second, "packets return to the best address", func() bool { return a.out.last() == second })
		stop(t, a.end, b.end)
	})
}

// If no other address answers, packets and streams go through the tunnel. They leave it once another one
// answers. Both hosts notice, whichever direction is blocked.
func TestGossipGoesThroughTunnelAsLastResort(t *testing.T) {
	underlay := func(x netip.Addr) bool { return x.As4()[3] < 40 }
	one := func(from, to netip.Addr) bool {
		return underlay(from) && underlay(to) && from == meshtest.Address(1).Addr()
	}
	both := func(from, to netip.Addr) bool { return underlay(from) && underlay(to) }
	type way struct{ packets, streams bool }
	for name, tt := range map[string]struct {
		cut  func(*meshtest.Network)
		want []way // of host 1, and of host 2
	}{
		// Host 2 is reached at its second address. Echoes that it asks for are lost, its packets are not, so it
		// may use either way.
		"the second address works in one way": {func(n *meshtest.Network) {
			n.Partition(func(from, to netip.Addr) bool { return one(from, to) && to == meshtest.Address(2).Addr() })
		}, []way{{}}},
		"UDP is blocked":            {func(n *meshtest.Network) { n.Mute(both) }, []way{{true, false}, {true, false}}},
		"UDP is blocked in one way": {func(n *meshtest.Network) { n.Mute(one) }, []way{{true, false}, {true, false}}},
		"UDP and TCP are blocked":   {func(n *meshtest.Network) { n.Partition(both) }, []way{{true, true}, {true, true}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := meshtest.New(1)
				n.HangDials()
				a, b := two(t, n)
				talk(a, b, 30*time.Second)
				if a.Way(b.run) != (Way{Addr: b.addr}) || b.Way(a.run) != (Way{Addr: a.addr}) {
					t.Fatalf("the hosts reach each other by %+v and %+v; want the advertised addresses", a.Way(b.run), b.Way(a.run))
				}
				tt.cut(n)
				is := func(r, to reached) way {
					w := r.Way(to.run)
					if w.Addr.IsValid() && !underlay(w.Addr.Addr()) {
						t.Errorf("the address outside the tunnel is %v, which is inside", w.Addr)
					}
					return way{w.PacketsInside, w.StreamsInside}
				}
				within(t, a, b, 3500*time.Millisecond, "both hosts have found another way", func() bool {
					before := [2]int{len(a.got()), len(b.got())}
					talk(a, b, time.Second)
					return len(a.got()) >= before[0]+5 && len(b.got()) >= before[1]+5
				})
				talk(a, b, retryPause)
				const rounds = 30
				before := len(b.got())
				for range rounds {
					if got := []way{is(a, b), is(b, a)}; !slices.Equal(got[:len(tt.want)], tt.want) {
						t.Errorf("the hosts send through the tunnel: %+v; want %+v", got, tt.want)
					}
					talk(a, b, time.Second)
				}
				// If both hosts open a stream at the same moment, a packet under the oldest keys may come too late.
				if got := len(b.got()) - before; got < 5*rounds-3 {
					t.Errorf("of %d packets on the other way %d arrived; want all, except 3", 5*rounds, got)
				}
				n.Heal()
				n.Mute(func(netip.Addr, netip.Addr) bool { return false })
				within(t, a, b, 2*retryPause+3*time.Second, "both hosts use the advertised addresses again", func() bool {
					return a.Way(b.run) == Way{Addr: b.addr} && b.Way(a.run) == Way{Addr: a.addr}
				})
				stop(t, a.end, b.end)
			})
		})
	}
}

// If TCP alone is blocked, packets stay where they are, and streams go through the tunnel.
func TestOnlyStreamsGoThroughTunnelIfTCPIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := two(t, n)
		talk(a, b, time.Second)
		a.out.block(true)
		s, err := a.Ask(b.at(), Keys, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		talk(a, b, time.Minute)
		if got, want := a.Way(b.run), (Way{Addr: b.addr, StreamsInside: true}); got != want {
			t.Errorf("a reaches b by %+v; want %+v", got, want)
		}
		a.out.block(false)
		within(t, a, b, retryPause+time.Second, "streams leave the tunnel", func() bool { return a.Way(b.run) == Way{Addr: b.addr} })
		stop(t, a.end, b.end)
	})
}

// A host that answers no echoes is of an older version. Packets to it stay at the advertised address, and
// questions become rare.
func TestPacketsStayIfNoEchoComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := two(t, n)
		b.out.mu.Lock()
		b.out.deaf = true
		b.out.mu.Unlock()
		talk(a, b, time.Second)
		for range 300 { // b receives, but says nothing
			a.send(b.end, "x")
			time.Sleep(200 * time.Millisecond)
		}
		if got := a.Way(b.run); got != (Way{Addr: b.addr}) {
			t.Errorf("a reaches b by %+v; want the advertised address", got)
		}
		if asked := a.out.asked(); asked < 10 || asked > 40 {
			t.Errorf("in a minute a asked %d times for an echo; want 10 to 40: at three addresses, and ever less often", asked)
		}
		stop(t, a.end, b.end)
	})
}

// While packets go both ways, nobody asks for echoes.
func TestQuietNetworkHasNoEchoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := two(t, n)
		talk(a, b, time.Second)
		before := a.out.asked() + b.out.asked()
		talk(a, b, time.Minute)
		if got := a.out.asked() + b.out.asked() - before; got > 0 {
			t.Errorf("%d echoes were sent in a minute; want none", got)
		}
		stop(t, a.end, b.end)
	})
}

// A run that opened a stream from inside the tunnel is answered there at once: its other addresses may be
// blocked.
func TestNewRunIsAnsweredWhereItsStreamCameFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := two(t, n)
		n.Partition(func(from, to netip.Addr) bool { return from.As4()[3] < 40 && to.As4()[3] < 40 })
		s, err := b.Ask(memberlist.Address{Addr: meshtest.Address(41).String()}, Request, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		a.send(b.end, "one")
		b.send(a.end, "two")
		time.Sleep(100 * time.Millisecond)
		if len(a.got()) != 1 || len(b.got()) != 1 {
			t.Errorf("the first packets %v and %v arrived; want one at each host", a.got(), b.got())
		}
		s.Close()
		stop(t, a.end, b.end)
	})
}

// What no peer's record lists is not an address of it, even if the peer says so in an echo.
func TestEchoFromForeignAddressChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := two(t, n)
		talk(a, b, time.Second)
		k := b.table.to(a.run)
		a.send(b.end, "x")
		time.Sleep(time.Second)
		for _, content := range []string{"\x02203.0.113.9:6783", "\x02nowhere", "\x02", "", "\x03" + b.addr.String(), "\x01" + string(make([]byte, 900))} {
			p, err := k.seal(echoType, []byte(content))
			if err != nil {
				t.Fatal(err)
			}
			n.Send(a.addr, &memberlist.Packet{Buf: p, From: net.UDPAddrFromAddrPort(b.addr)})
			synctest.Wait()
		}
		a.send(b.end, "x")
		if got := a.out.last(); got != b.addr.String() {
			t.Errorf("after invalid echoes packets go to %s; want %s", got, b.addr)
		}
		stop(t, a.end, b.end)
	})
}
