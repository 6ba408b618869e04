// Package meshtest is a network for simulation: memberlist's transport in memory,
// with loss, delay and partitions, made for testing/synctest. A packet that finds
// its receiver's queue full is dropped, as a real one would be: a transport that
// waits deadlocks once a member has stopped.
package meshtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Network connects transports. Its methods may be called at any time.
type Network struct {
	mu    sync.Mutex
	nodes map[string]*Transport
	rand  *rand.Rand
	loss  float64
	delay time.Duration
	cut   func(a, b netip.Addr) bool
	hang  bool
	tap   func(to netip.AddrPort, p *memberlist.Packet)
	conns map[*conn]bool
	walls map[netip.Addr]wall
}

// wall is what does not come in to a host.
type wall struct{ streams, packets bool }

// New makes a network that loses nothing. The seed decides which packets are lost.
func New(seed uint64) *Network {
	return &Network{
		nodes: map[string]*Transport{}, conns: map[*conn]bool{}, walls: map[netip.Addr]wall{},
		rand: rand.New(rand.NewPCG(seed, 0)), cut: func(a, b netip.Addr) bool { return false },
	}
}

// SetLoss makes the network lose a share of packets, 0 to 1. Streams lose nothing.
func (n *Network) SetLoss(share float64) { n.locked(func() { n.loss = share }) }

// SetDelay makes every packet take up to twice d.
func (n *Network) SetDelay(d time.Duration) { n.locked(func() { n.delay = d }) }

// Hang makes a dial over a cut wait in vain for its whole time, as a real one does.
func (n *Network) Hang() { n.locked(func() { n.hang = true }) }

// Tap has every packet that arrives noted. What is noted can be sent again with Send.
func (n *Network) Tap(note func(to netip.AddrPort, p *memberlist.Packet)) {
	n.locked(func() { n.tap = note })
}

// Send brings a packet to a host, whoever it is from.
func (n *Network) Send(to netip.AddrPort, p *memberlist.Packet) {
	n.locked(func() {
		t := n.nodes[to.String()]
		if t == nil {
			return
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: append([]byte(nil), p.Buf...), From: p.From, Timestamp: time.Now()}:
		default:
		}
	})
}

// Partition cuts every pair of addresses for which cut holds, also streams that are open.
func (n *Network) Partition(cut func(a, b netip.Addr) bool) {
	n.locked(func() {
		n.cut = cut
		for c := range n.conns {
			if cut(c.a, c.b) {
				c.Conn.Close()
			}
		}
	})
}

// Heal ends all partitions.
func (n *Network) Heal() { n.Partition(func(netip.Addr, netip.Addr) bool { return false }) }

// Wall puts a host behind a firewall: nobody opens a stream to it, and those that it opens
// itself work both ways. Packets pass.
func (n *Network) Wall(a netip.Addr) { n.locked(func() { n.walls[a] = wall{streams: true} }) }

// NAT puts a host behind NAT: nothing reaches it where it says that it is, and streams that it
// opens itself work both ways.
func (n *Network) NAT(a netip.Addr) {
	n.locked(func() { n.walls[a] = wall{streams: true, packets: true} })
}

func (n *Network) locked(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// Join makes the transport of one host.
func (n *Network) Join(addr netip.AddrPort) *Transport {
	t := &Transport{net: n, addr: addr, packets: make(chan *memberlist.Packet, 256), streams: make(chan net.Conn, backlog)}
	n.locked(func() { n.nodes[addr.String()] = t })
	return t
}

// Also gives a host another address.
func (n *Network) Also(t *Transport, addr netip.AddrPort) {
	n.locked(func() { n.nodes[addr.String()] = t })
}

// route finds who listens at an address, unless the way there is cut.
func (n *Network) route(from netip.AddrPort, to string) (*Transport, error) {
	t := n.nodes[to]
	if t == nil {
		return nil, fmt.Errorf("dial %s: connection refused", to)
	}
	if at, err := netip.ParseAddrPort(to); err != nil || n.cut(from.Addr(), at.Addr()) {
		return nil, fmt.Errorf("dial %s: %w", to, errCut)
	}
	return t, nil
}

// backlog is how many streams wait for a host to take them, as the kernel has it (net.core.somaxconn).
const backlog = 4096

// Transport is one host's end; it implements memberlist.Transport.
type Transport struct {
	net     *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
}

// FinalAdvertiseAddr is the address of the host, whatever was configured.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

// WriteTo sends a packet; one that is lost on the way is no error.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(t.addr), Timestamp: now}
	t.net.locked(func() {
		to, err := t.net.route(t.addr, addr)
		if err != nil || t.net.walls[to.addr.Addr()].packets || t.net.rand.Float64() < t.net.loss {
			return
		}
		if t.net.tap != nil {
			t.net.tap(to.addr, p)
		}
		wait := time.Duration(0)
		if t.net.delay > 0 {
			wait = time.Duration(t.net.rand.Int64N(int64(2 * t.net.delay)))
		}
		time.AfterFunc(wait, func() {
			select {
			case to.packets <- p:
			default:
			}
		})
	})
	return now, nil
}

// PacketCh is where packets arrive.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh is where connections arrive.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

var errCut = errors.New("i/o timeout")

// DialTimeout opens a stream.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	c, err := t.dial(addr)
	if errors.Is(err, errCut) {
		hang := false
		t.net.locked(func() { hang = t.net.hang })
		if hang {
			time.Sleep(timeout)
		}
	}
	return c, err
}

func (t *Transport) dial(addr string) (net.Conn, error) {
	var ours net.Conn
	var err error
	t.net.locked(func() {
		var to *Transport
		if to, err = t.net.route(t.addr, addr); err != nil {
			return
		}
		if t.net.walls[to.addr.Addr()].streams {
			err = fmt.Errorf("dial %s: %w", addr, errCut)
			return
		}
		a, b := net.Pipe()
		theirs := &conn{Conn: b, net: t.net, a: t.addr.Addr(), b: to.addr.Addr(), remote: t.addr}
		select {
		case to.streams <- theirs:
			t.net.conns[theirs] = true
			ours = &conn{Conn: a, net: t.net, a: t.addr.Addr(), b: to.addr.Addr(), remote: to.addr}
		default:
			err = errors.New("dial: backlog is full")
		}
	})
	return ours, err
}

// Shutdown takes the host off the network.
func (t *Transport) Shutdown() error {
	t.net.locked(func() {
		if t.net.nodes[t.addr.String()] == t {
			delete(t.net.nodes, t.addr.String())
		}
	})
	return nil
}

// conn is a stream with the addresses of its ends.
type conn struct {
	net.Conn
	net    *Network
	a, b   netip.Addr
	remote netip.AddrPort
}

func (c *conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *conn) Close() error {
	c.net.locked(func() { delete(c.net.conns, c) })
	return c.Conn.Close()
}
