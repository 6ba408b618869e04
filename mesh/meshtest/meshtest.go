// Package meshtest simulates peers for tests with testing/synctest. It has three levels. Cluster
// simulates Hosts at the level of what a mesh promises its users, and a Disk holds what a host has
// stored when it crashes. Network is memberlist's transport in memory, with loss, delay and
// partitions, for whole meshes. Solo is the mesh of a part of an agent that a test runs alone.
//
// All types are safe for concurrent use. A packet for a full queue of a Network is dropped, as in a
// real network: a transport that blocks would deadlock once a member has stopped.
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

// Network connects transports. It is safe for concurrent use.
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
	// insides are the hosts' addresses inside a tunnel, and mute cuts packets only.
	insides map[*Transport]netip.AddrPort
	mute    func(a, b netip.Addr) bool
}

// wall says which traffic a host does not receive.
type wall struct{ streams, packets bool }

// New returns a network without loss. The seed decides which packets will be lost.
func New(seed uint64) *Network {
	return &Network{
		nodes: map[string]*Transport{}, conns: map[*conn]bool{}, walls: map[netip.Addr]wall{},
		insides: map[*Transport]netip.AddrPort{}, mute: func(a, b netip.Addr) bool { return false },
		rand: rand.New(rand.NewPCG(seed, 0)), cut: func(a, b netip.Addr) bool { return false },
	}
}

// SetLoss sets the share of packets that are lost, from 0 to 1. Streams lose nothing.
func (n *Network) SetLoss(share float64) { n.locked(func() { n.loss = share }) }

// SetDelay makes every packet take up to 2*d.
func (n *Network) SetDelay(d time.Duration) { n.locked(func() { n.delay = d }) }

// HangDials makes dials across a partition block until their timeout, as in a real network.
func (n *Network) HangDials() { n.locked(func() { n.hang = true }) }

// Tap sets a function that gets a copy of every packet. Send can replay it.
func (n *Network) Tap(note func(to netip.AddrPort, p *memberlist.Packet)) {
	n.locked(func() { n.tap = note })
}

// Send delivers a packet to a host, whatever its sender.
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

// Partition cuts every pair of addresses for which cut returns true, including open streams.
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

// Firewall puts a host behind a firewall: other hosts cannot open streams to it. Streams that it opens
// work in both directions, and packets pass.
func (n *Network) Firewall(a netip.Addr) { n.locked(func() { n.walls[a] = wall{streams: true} }) }

// NAT puts a host behind NAT: nothing reaches its advertised address. Streams that it opens work in
// both directions.
func (n *Network) NAT(a netip.Addr) {
	n.locked(func() { n.walls[a] = wall{streams: true, packets: true} })
}

func (n *Network) locked(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// Join returns the transport of a new host.
func (n *Network) Join(addr netip.AddrPort) *Transport {
	t := &Transport{net: n, addr: addr, packets: make(chan *memberlist.Packet, 256), streams: make(chan net.Conn, backlog)}
	n.locked(func() { n.nodes[addr.String()] = t })
	return t
}

// AddAddress gives a host another address.
func (n *Network) AddAddress(t *Transport, addr netip.AddrPort) {
	n.locked(func() { n.nodes[addr.String()] = t })
}

// AddInside gives a host an address inside a tunnel. What another host with such an address sends there comes
// from that host's address inside.
func (n *Network) AddInside(t *Transport, addr netip.AddrPort) {
	n.locked(func() { n.nodes[addr.String()], n.insides[t] = t, addr })
}

// source returns the address from which a host sends to another address.
func (n *Network) source(t *Transport, to string) netip.AddrPort {
	own, ok := n.insides[t]
	if far := n.nodes[to]; ok && far != nil && n.insides[far].String() == to {
		return own
	}
	return t.addr
}

// Mute cuts packets, but not streams, from the first address to the second one.
func (n *Network) Mute(mute func(from, to netip.Addr) bool) { n.locked(func() { n.mute = mute }) }

// route returns the transport at an address, unless a partition lies in between.
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

// backlog is how many streams wait to be accepted, as net.core.somaxconn in the kernel.
const backlog = 4096

// Transport is one host's end of the network. It implements memberlist.Transport.
type Transport struct {
	net     *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
}

// FinalAdvertiseAddr returns the address of the host, whatever was configured.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

// WriteTo sends a packet. A lost packet is no error.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	now := time.Now()
	t.net.locked(func() {
		from := t.net.source(t, addr)
		p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(from), Timestamp: now}
		to, err := t.net.route(from, addr)
		if err != nil || t.net.walls[to.addr.Addr()].packets || t.net.mute(from.Addr(), netip.MustParseAddrPort(addr).Addr()) || t.net.rand.Float64() < t.net.loss {
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

// PacketCh returns the channel of received packets.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh returns the channel of accepted streams.
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
		from := t.net.source(t, addr)
		if to, err = t.net.route(from, addr); err != nil {
			return
		}
		if t.net.walls[to.addr.Addr()].streams {
			err = fmt.Errorf("dial %s: %w", addr, errCut)
			return
		}
		a, b := net.Pipe()
		at := to.addr
		if from != t.addr {
			at = t.net.insides[to]
		}
		theirs := &conn{Conn: b, net: t.net, a: from.Addr(), b: at.Addr(), remote: from}
		select {
		case to.streams <- theirs:
			t.net.conns[theirs] = true
			ours = &conn{Conn: a, net: t.net, a: from.Addr(), b: at.Addr(), remote: at}
		default:
			err = errors.New("dial: backlog is full")
		}
	})
	return ours, err
}

// Shutdown removes the host from the network.
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
