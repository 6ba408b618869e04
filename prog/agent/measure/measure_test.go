package measure

import (
	"context"
	"crypto/ecdh"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/mesh/topology"
	"weft/prog/agent/agenttest"
	"weft/prog/agent/live"
	"weft/prog/agent/underlay"
	"weft/prog/agent/view"
	"weft/router/probe"
	"weft/router/wg"
)

// network carries probes between hosts by their addresses. A probe takes a millisecond.
type network struct {
	mu     sync.Mutex
	conns  map[netip.Addr]*conn
	cut    bool
	refuse error
}

type conn struct {
	net *network
	own netip.AddrPort
	in  chan probe.Datagram
	// broken ends Receive with an error.
	broken chan struct{}
}

func (n *network) open(own netip.AddrPort) *conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := &conn{net: n, own: own, in: make(chan probe.Datagram, 64), broken: make(chan struct{})}
	n.conns[own.Addr()] = c
	return c
}

func (c *conn) Send(to, _ netip.AddrPort, payload []byte, size int) error {
	c.net.mu.Lock()
	other, cut, refuse := c.net.conns[to.Addr()], c.net.cut, c.net.refuse
	c.net.mu.Unlock()
	if refuse != nil || other == nil || cut {
		return refuse
	}
	d := probe.Datagram{From: c.own, To: to, Payload: append([]byte(nil), payload...), Size: max(size, len(payload)+28)}
	time.AfterFunc(time.Millisecond, func() {
		select {
		case other.in <- d:
		default: // as a full buffer of the kernel
		}
	})
	return nil
}

func (c *conn) Receive(ctx context.Context, f func(probe.Datagram)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.broken:
			return errors.New("the socket failed")
		case d := <-c.in:
			f(d)
		}
	}
}

func (c *conn) Close() error { return nil }

// pair makes the components of two hosts on a network.
func pair(t *testing.T, n *network, open func(int) error) (out [2]*Measure, ids [2]peer.ID) {
	t.Helper()
	var private [2]*ecdh.PrivateKey
	var records [2]peer.Record
	for i := range private {
		seed := [32]byte{byte(i + 1)}
		private[i], _ = ecdh.X25519().NewPrivateKey(seed[:])
		records[i] = agenttest.Record(byte(i + 1))
		records[i].WireGuard = [32]byte(private[i].PublicKey().Bytes())
		ids[i] = records[i].ID()
	}
	for i := range out {
		other := records[1-i]
		to := netip.AddrPortFrom(other.Underlay[0], other.Port)
		tunnels := []topology.Tunnel{{Peer: ids[1-i], PublicKey: other.WireGuard, Endpoint: to, Record: []netip.AddrPort{to}, Route: 1500}}
		seen := &live.Value[*view.View]{}
		v := agenttest.ViewOf(records[i], []mesh.Peer{{Record: records[0], Reachable: true}, {Record: records[1], Reachable: true}}, ids[i])
		v.Reach[ids[1-i]] = topology.Reached
		seen.Set(v)
		var err error
		out[i], err = New(Config{
			Self: ids[i], PrivateKey: [32]byte(private[i].Bytes()), View: seen, Host: &live.Value[underlay.Host]{}, Tunnels: func() []topology.Tunnel { return tunnels },
			Open: func() (Conn, error) {
				if err := open(i); err != nil {
					return nil, err
				}
				return n.open(netip.AddrPortFrom(records[i].Underlay[0], 6784)), nil
			},
			Observe: func() (wg.Observed, error) { return wg.Observed{}, nil }, Bytes: func() (uint64, error) { return 0, nil },
			Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out, ids
}

// Two hosts measure the path between them, publish it, and publish that it fails and works again.
func TestPathsBetweenTwoHostsArePublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{conns: map[netip.Addr]*conn{}}
		hosts, ids := pair(t, n, func(int) error { return nil })
		for _, m := range hosts {
			agenttest.Run(t, m.Run)
		}
		time.Sleep(3 * time.Second)
		want := func(s path.State) {
			t.Helper()
			for i, m := range hosts {
				p := m.Get()[ids[1-i]]
				if p.State != s || !p.Endpoint.IsValid() || p.MTU != 1500 || (m.Best(ids[1-i]) == p.Endpoint.Addr()) != (s == path.Direct) {
					t.Errorf("host %d published %+v, best address %v; want state %v", i, p, m.Best(ids[1-i]), s)
				}
			}
		}
		want(path.Direct)
		n.mu.Lock()
		n.cut = true
		n.mu.Unlock()
		time.Sleep(20 * time.Second)
		want(path.Deaf)
		n.mu.Lock()
		n.refuse = unix.EPERM
		n.mu.Unlock()
		time.Sleep(10 * time.Second)
		if p, ok := hosts[0].Path(ids[1]); !ok || !p.Refused {
			t.Errorf("the kernel refuses to send, and the path is %+v; want that said", p)
		}
		n.mu.Lock()
		n.cut, n.refuse = false, nil
		n.mu.Unlock()
		time.Sleep(5 * time.Second)
		want(path.Direct)
	})
}

// The relays in use are saved when the agent ends, however lately they have changed: its next run begins with them.
func TestRelaysInUseAreSavedAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{conns: map[netip.Addr]*conn{}}
		hosts, _ := pair(t, n, func(int) error { return nil })
		m := hosts[0]
		var saved Relayed
		m.cfg.Save = func(r Relayed) error { saved = r; return nil }
		ctx, end := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(3*time.Second + 10*time.Millisecond) // between two turns of its loop
		want := Relayed{Pairs: []path.Pair{{Peers: [2]peer.ID{{7}, {8}}}}}
		m.Relayed.Set(want)
		end()
		if err := <-done; err != nil || !saved.equal(want) {
			t.Errorf("at the end %+v was saved, error %v; want %+v", saved, err, want)
		}
	})
}

// Once a question is answered again, a second answer confirms it at once, on both hosts.
func TestARestoredPathIsConfirmedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{conns: map[netip.Addr]*conn{}}
		hosts, ids := pair(t, n, func(int) error { return nil })
		for _, m := range hosts {
			agenttest.Run(t, m.Run)
		}
		set := func(cut bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.cut = cut
		}
		for round := range 10 {
			set(false)
			for restored := time.Now(); ; time.Sleep(5 * time.Millisecond) {
				if p, _ := hosts[0].Path(ids[1]); p.Answered.After(restored) {
					break
				}
				if time.Since(restored) > 4*time.Second {
					t.Fatal("4 s after the network works, no question was answered; want one")
				}
			}
			time.Sleep(400 * time.Millisecond)
			for i, m := range hosts {
				if p := m.Get()[ids[1-i]]; p.State != path.Direct {
					t.Errorf("round %d: 400 ms after an answer host %d has the path %+v; want direct", round, i, p)
				}
			}
			set(true)
			time.Sleep(20*time.Second + time.Duration(round)*170*time.Millisecond)
		}
	})
}

// If the sockets cannot be opened, the status says why, and it is tried again.
func TestAHostThatCannotProbeSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{conns: map[netip.Addr]*conn{}}
		var mu sync.Mutex
		fail := errors.New("no such log")
		hosts, ids := pair(t, n, func(i int) error {
			mu.Lock()
			defer mu.Unlock()
			if i == 0 {
				return fail
			}
			return nil
		})
		for _, m := range hosts {
			agenttest.Run(t, m.Run)
		}
		time.Sleep(time.Second)
		if p := hosts[0].Problems(); len(p) != 1 || !strings.Contains(p[0].String(), "no such log") {
			t.Errorf("problems %v; want the reason why nothing is measured", p)
		}
		mu.Lock()
		fail = nil
		mu.Unlock()
		time.Sleep(again + 5*time.Second)
		if p := hosts[0].Problems(); len(p) != 0 || hosts[0].Get()[ids[1]].State != path.Direct {
			t.Errorf("with sockets: problems %v, paths %+v; want a measured path", p, hosts[0].Get())
		}
	})
}

// The counters are read soon after each packet while data passes, however small the flow, and seldom at rest. The
// rates follow the traffic, and are zero soon after it.
func TestCountersAreReadSoonWhileDataPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{conns: map[netip.Addr]*conn{}}
		hosts, ids := pair(t, n, func(int) error { return nil })
		m := hosts[0]
		key := m.cfg.Tunnels()[0].PublicKey
		const size, every = 1000, 400 * time.Millisecond
		var mu sync.Mutex
		var passed uint64
		var seen []time.Time
		reads := 0
		m.cfg.Bytes = func() (uint64, error) {
			mu.Lock()
			defer mu.Unlock()
			reads++
			return passed, nil
		}
		m.cfg.Observe = func() (wg.Observed, error) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, time.Now())
			return wg.Observed{Peers: map[[32]byte]wg.Peer{key: {Received: int64(passed), Sent: int64(passed)}}}, nil
		}
		agenttest.Run(t, m.Run)
		for range 6 { // keepalives, which the kernel's device counts
			time.Sleep(5 * time.Second)
			mu.Lock()
			passed += 32
			mu.Unlock()
		}
		mu.Lock()
		if len(seen) > 10 || reads > 40 {
			t.Errorf("in 30 s with 5 keepalives the counters of the device were read %d times, and those of the peers %d times; want at most 40 and 10", reads, len(seen))
		}
		mu.Unlock()
		for i := range 50 {
			mu.Lock()
			passed += size
			seen = nil
			mu.Unlock()
			time.Sleep(every)
			mu.Lock()
			if i > 2 && len(seen) == 0 {
				t.Errorf("the counters were not read within %v after packet %d, want a reading", every, i)
			}
			mu.Unlock()
		}
		if received, sent := m.Rates(ids[1]); received < 1600 || received > 3400 || sent != received {
			t.Errorf("%d bytes each %v are shown as %v and %v per second, want about 2500", size, every, received, sent)
		}
		time.Sleep(3 * time.Second)
		if received, sent := m.Rates(ids[1]); received != 0 || sent != 0 {
			t.Errorf("3 s after the last packet the rates are %v and %v, want 0", received, sent)
		}
	})
}

// Data proves that a peer is alive also while the sockets cannot be opened.
func TestDataCountsWithoutSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, before := range []bool{false, true} { // whether probes were exchanged before
			n := &network{conns: map[netip.Addr]*conn{}}
			var mu sync.Mutex
			works := before
			hosts, ids := pair(t, n, func(int) error {
				mu.Lock()
				defer mu.Unlock()
				if !works {
					return errors.New("no such log")
				}
				return nil
			})
			key := hosts[0].cfg.Tunnels()[0].PublicKey
			start := time.Now()
			hosts[0].cfg.Observe = func() (wg.Observed, error) {
				return wg.Observed{Peers: map[[32]byte]wg.Peer{key: {Received: int64(32 * (1 + time.Since(start)/(25*time.Second))), Handshake: start}}}, nil
			}
			for _, m := range hosts {
				agenttest.Run(t, m.Run)
			}
			time.Sleep(20 * time.Second)
			mu.Lock()
			works = false
			mu.Unlock()
			n.mu.Lock()
			for _, c := range n.conns {
				close(c.broken)
			}
			n.mu.Unlock()
			for range 10 {
				time.Sleep(35 * time.Second)
				if p, _ := hosts[0].Path(ids[1]); p.State != path.Direct || time.Since(p.Alive()) > path.ProofFor {
					t.Errorf("probes exchanged before: %v; %v after the start the path is %+v; want direct and alive", before, time.Since(start), p)
				}
			}
			if len(hosts[0].Problems()) != 1 {
				t.Errorf("problems %v; want that tunnels are not measured", hosts[0].Problems())
			}
		}
	})
}
