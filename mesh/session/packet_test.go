package session

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// recorded collects the packets on a network.
type recorded struct {
	mu      sync.Mutex
	packets []*memberlist.Packet
	to      []netip.AddrPort
}

func record(n *meshtest.Network) *recorded {
	r := &recorded{}
	n.Tap(func(to netip.AddrPort, p *memberlist.Packet) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.packets, r.to = append(r.packets, &memberlist.Packet{Buf: bytes.Clone(p.Buf), From: p.From}), append(r.to, to)
	})
	return r
}

// replay sends all packets again, after a change.
func (r *recorded) replay(n *meshtest.Network, change func([]byte)) {
	r.mu.Lock()
	packets, to := slices.Clone(r.packets), slices.Clone(r.to)
	r.mu.Unlock()
	for i, p := range packets {
		p = &memberlist.Packet{Buf: bytes.Clone(p.Buf), From: p.From}
		change(p.Buf)
		n.Send(to[i], p)
		synctest.Wait()
	}
}

// Packets wait for a session, and are sent once it stands. They are sealed, and each is opened once, in
// whatever order they arrive. A changed packet is dropped.
func TestPacketsAreSealedAndOpenedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		n.SetDelay(20 * time.Millisecond) // this changes their order
		r := record(n)
		a, b := start(t, n, 1, 1), start(t, n, 2, 1)
		want := []string{}
		for i := range maxWaiting {
			a.send(b, fmt.Sprint("secret word ", i))
			want = append(want, fmt.Sprint(a.run, ": secret word ", i))
		}
		time.Sleep(time.Second)
		if got := slices.Sorted(slices.Values(b.got())); !slices.Equal(got, want) {
			t.Fatalf("packets that waited for a session arrived as %q; want %q", got, want)
		}
		for i := range 100 {
			a.send(b, fmt.Sprint("to b ", i))
			b.send(a, fmt.Sprint("to a ", i))
		}
		time.Sleep(time.Second)
		if len(b.got()) != maxWaiting+100 || len(a.got()) != 100 {
			t.Fatalf("%d and %d packets arrived; want all", len(b.got()), len(a.got()))
		}
		seen := map[string]bool{}
		for _, p := range r.packets {
			if bytes.Contains(p.Buf, []byte("secret")) || bytes.Contains(p.Buf, []byte("to ")) || p.Buf[0] != packetType || seen[string(p.Buf)] {
				t.Fatalf("a packet on the network is %q; want it sealed, and no other one like it", p.Buf)
			}
			seen[string(p.Buf)] = true
		}
		r.replay(n, func([]byte) {})
		for bit := range 8 {
			r.replay(n, func(p []byte) { p[len(p)-1] ^= 1 << bit })
		}
		for i := range packetHead + 1 {
			r.replay(n, func(p []byte) { p[i]++ })
		}
		r.replay(n, func(p []byte) { copy(p[5:], "\x00\x00\x00\x00\x00\x0f\xff\xff") })
		time.Sleep(time.Second)
		if len(b.got()) != maxWaiting+100 || len(a.got()) != 100 {
			t.Errorf("replayed and changed packets raised the numbers to %d and %d; want no change", len(b.got()), len(a.got()))
		}
		a.send(b, "last")
		time.Sleep(time.Second)
		if got := b.got(); got[len(got)-1] != a.run+": last" {
			t.Error("after a replay a new packet does not arrive; want it to arrive")
		}
		stop(t, a, b)
	})
}

// Packets that waited are sent to the address that answered, also if the record lists another one first.
func TestWaitingPacketsGoWhereTheRunAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		b := start(t, n, 2, 1)
		second := meshtest.Address(22)
		n.AddAddress(b.cfg.Network.(*meshtest.Transport), second)
		for name, list := range map[string][]string{
			"the advertised one": {meshtest.Address(99).String(), b.addr.String()}, "another one": {meshtest.Address(99).String(), second.String()},
		} {
			a := start(t, n, 1, 1, func(c *Config) { c.Addresses = func(string) []string { return list } })
			to := memberlist.Address{Addr: b.addr.String(), Name: b.run}
			if name == "another one" {
				to.Addr = meshtest.Address(98).String()
			}
			_, _ = a.WriteToAddress([]byte(name), to)
			time.Sleep(time.Second)
			if !slices.Contains(b.got(), a.run+": "+name) {
				t.Errorf("%s answered, but the waiting packet arrived elsewhere; want it there", name)
			}
			stop(t, a)
		}
		stop(t, b)
	})
}

// The two directions have different keys, so a packet that is sent back is no packet.
func TestDirectionsHaveDifferentKeys(t *testing.T) {
	a, b := pair(t)
	dialed, err := newKeys(a.ConnectionState(), Peer{}, true)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := newKeys(b.ConnectionState(), Peer{}, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range [][2]*keys{{dialed, accepted}, {accepted, dialed}} {
		packet, err := way[0].seal(packetType, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := way[0].open(packet); ok {
			t.Error("an end opens its own packet; want different keys for the directions")
		}
		if content, ok := way[1].open(packet); !ok || string(content) != "x" {
			t.Errorf("the other end reads %q, %v; want x", content, ok)
		}
		if _, ok := way[1].open(packet); ok {
			t.Error("the other end opens a packet twice; want once")
		}
	}
	dialed.counter = maxCounter
	if _, err := dialed.seal(packetType, nil); err == nil {
		t.Error("keys seal a packet after the last counter; want an error")
	}
}

// pair returns the two ends of a TLS connection.
func pair(t testing.TB) (a, b *tls.Conn) {
	t.Helper()
	one, two := net.Pipe()
	t.Cleanup(func() { one.Close(); two.Close() })
	var ids [2]identity
	for i := range ids {
		var err error
		if ids[i], err = newIdentity(meshtest.Identity(i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	a, b = tls.Client(one, ids[0].config()), tls.Server(two, ids[1].config())
	done := make(chan error, 1)
	go func() { done <- b.Handshake() }()
	if err := a.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return a, b
}

// A peer that is not yet welcome can derive the keys of its stream, but its packets do not come in.
func TestPacketsBeforeWelcomeAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		net2 := n.Join(meshtest.Address(2))
		a := start(t, n, 1, 1)
		asked := make(chan error, 1)
		go func() {
			_, err := a.Ask(memberlist.Address{Addr: meshtest.Address(2).String()}, Request, time.Second)
			asked <- err
		}()
		id, err := newIdentity(meshtest.Identity(2))
		if err != nil {
			t.Fatal(err)
		}
		s := tls.Server(<-net2.StreamCh(), id.config())
		hello, err := receive(s)
		if err != nil {
			t.Fatal(err)
		}
		k, err := newKeys(s.ConnectionState(), Peer{}, false)
		if err != nil {
			t.Fatal(err)
		}
		k.theirs = hello.Index
		packet, err := k.seal(packetType, []byte("early"))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = net2.WriteTo(packet, a.addr.String())
		time.Sleep(100 * time.Millisecond)
		if got := a.got(); len(got) > 0 {
			t.Errorf("before it was welcome, a peer sent the packets %q; want none let in", got)
		}
		if err := <-asked; err == nil {
			t.Error("a stream without a welcome succeeded; want an error")
		}
		s.Close()
		stop(t, a)
	})
}

// A run that restarts has a new session within a second of the first packet under the old keys, and the
// keys of the old run are gone a second later.
func TestRestartedRunGetsNewSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		r := record(n)
		a, b := start(t, n, 1, 1), start(t, n, 2, 1)
		a.send(b, "one")
		time.Sleep(time.Second)
		b.send(a, "two")
		time.Sleep(100 * time.Millisecond)
		stop(t, b)
		again := start(t, n, 2, 2)
		a.send(b, "to the old run")
		time.Sleep(time.Second)
		if a.table.to(again.run) == nil {
			t.Error("a second after a packet under unknown keys there is no session; want one")
		}
		again.send(a, "three")
		time.Sleep(100 * time.Millisecond)
		if got := a.got(); !slices.Contains(got, again.run+": three") {
			t.Errorf("a second after the restart, the packets %q have arrived; want one of the new run", got)
		}
		time.Sleep(lastWord)
		if a.table.to(b.run) != nil || len(again.got()) > 0 {
			t.Errorf("the old run still has a session, or its packets %q arrived at the new run; want neither", again.got())
		}
		before := len(a.got())
		r.replay(n, func([]byte) {})
		time.Sleep(time.Second)
		if len(a.got()) != before || len(again.got()) != 0 {
			t.Errorf("replayed packets arrived at the hosts: %q and %q; want none", a.got(), again.got())
		}
		stop(t, a, again)
	})
}

// Two runs of one peer that both send keep their sessions: the peer's identity was copied.
func TestEarlierRunThatSendsKeepsItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a, b := start(t, n, 1, 1), start(t, n, 2, 1)
		a.send(b, "x")
		time.Sleep(time.Second)
		twin := start(t, n, 3, 0, func(c *Config) { c.Identity, c.Run = meshtest.Identity(2), runName(2, 2) })
		twin.run = runName(2, 2)
		a.send(twin, "x")
		for range 30 {
			b.send(a, "still here")
			time.Sleep(lastWord / 2)
		}
		for _, run := range []string{b.run, twin.run} {
			if a.table.to(run) == nil {
				t.Errorf("run %s has no session; want one for both runs", run)
			}
		}
		stop(t, a, b, twin)
	})
}

// counting counts the dials of a network.
type counting struct {
	memberlist.Transport
	dials *atomic.Int32
}

func (c counting) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	c.dials.Add(1)
	return c.Transport.DialTimeout(addr, timeout)
}

// A flood of packets under unknown keys from any sources causes one dial per second.
func TestFloodOfUnknownPacketsCausesFewDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		var dials atomic.Int32
		a := start(t, n, 1, 1, func(c *Config) { c.Network = counting{c.Network, &dials} })
		b := start(t, n, 2, 1)
		packet := append([]byte{packetType}, make([]byte, Overhead)...)
		sources := []net.Addr{
			net.UDPAddrFromAddrPort(b.addr), net.UDPAddrFromAddrPort(a.addr), &net.UDPAddr{IP: net.IPv4(224, 0, 0, 1), Port: 1},
			&net.UDPAddr{IP: net.IPv4bcast, Port: 1}, &net.UDPAddr{}, &net.UDPAddr{IP: net.IPv6unspecified, Port: 1}, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2)}, &net.UnixAddr{},
		}
		for i := range 10_000 {
			source := sources[i%len(sources)]
			if i%3 == 0 {
				source = &net.UDPAddr{IP: net.IPv4(198, 51, byte(i), byte(i>>8)), Port: i + 1}
			}
			packet[1+i%4] = byte(i)
			n.Send(a.addr, &memberlist.Packet{Buf: packet, From: source})
			time.Sleep(time.Millisecond)
		}
		if d := dials.Load(); d > 11 || d < 8 {
			t.Errorf("10 seconds of packets under unknown keys caused %d dials; want about 10", d)
		}
		if len(a.got()) > 0 || len(a.table.byIndex) > maxRuns*maxSessions {
			t.Errorf("the flood left %d packets and %d keys; want none and few", len(a.got()), len(a.table.byIndex))
		}
		stop(t, a, b)
	})
}

// kept counts the runs that have sessions, and all keys.
func kept(e *end) (runs, all int) {
	e.table.mu.Lock()
	defer e.table.mu.Unlock()
	return len(e.table.byRun), len(e.table.byIndex)
}

// The keys that one peer can make a host keep are bounded: per run, and by number of runs.
func TestKeysPerPeerAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		a := start(t, n, 1, 1)
		other := start(t, n, 3, 1)
		other.send(a, "x")
		for run := range 3 * maxRuns {
			b := start(t, n, 2, run)
			for range 2 * maxFresh {
				s, err := b.Ask(a.at(), Keys, time.Second)
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
			}
			synctest.Wait()
			a.send(b, "x")
			time.Sleep(time.Millisecond)
			if len(b.got()) != 1 {
				t.Fatalf("run %d with many sessions got %d packets; want 1", run, len(b.got()))
			}
			_ = b.Shutdown()
		}
		if runs, all := kept(a); runs > maxRuns+1 || all > maxRuns*maxFresh+1 {
			t.Errorf("the keys of %d runs are kept, %d in total; want at most maxRuns and maxFresh of each", runs, all)
		}
		time.Sleep(2 * lastWord)
		last := start(t, n, 2, 3*maxRuns)
		last.send(a, "x")
		time.Sleep(2 * lastWord)
		last.send(a, "x")
		if _, all := kept(a); all > maxSessions+1 {
			t.Errorf("after a later run has stood for a while, %d keys are kept; want at most maxSessions", all)
		}
		a.Expel(meshtest.ID(2))
		if runs, all := kept(a); runs != 1 || all != 1 {
			t.Errorf("after a peer is expelled, %d runs have keys; want 1, that of the other peer", runs)
		}
		a.Forget(other.run)
		if runs, _ := kept(a); runs > 0 {
			t.Error("a forgotten run has keys; want none")
		}
		stop(t, a, other, last)
	})
}
