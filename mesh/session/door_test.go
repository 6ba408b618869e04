package session

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// strangers are ways to hold a stream without a proof of identity.
var strangers = map[string]func(net.Conn){
	"nothing":            func(net.Conn) {},
	"one byte":           func(c net.Conn) { _, _ = c.Write([]byte{firstTLS}) },
	"half a ClientHello": func(c net.Conn) { hello := clientHello(); _, _ = c.Write(hello[:len(hello)/2]) },
	"a large record":     func(c net.Conn) { _, _ = c.Write([]byte{firstTLS, 3, 1, 0x40, 0, 1}) },
	"a record that goes on": func(c net.Conn) {
		_, _ = c.Write([]byte{firstTLS, 3, 1, 0x40, 0})
		for {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	},
	"a large greeting": func(c net.Conn) {
		id, err := newIdentity(meshtest.Identity(9))
		if err != nil {
			return
		}
		s := tls.Client(c, id.config())
		if s.Handshake() == nil {
			_, _ = s.Write([]byte{0xff, 0xff, 0})
		}
	},
	"garbage": func(c net.Conn) {
		data := make([]byte, 4000)
		_, _ = rand.NewChaCha8([32]byte{7}).Read(data)
		_, _ = c.Write(data)
	},
}

// clientHello returns the start of a handshake.
var clientHello = sync.OnceValue(func() []byte {
	a, b := net.Pipe()
	id, err := newIdentity(meshtest.Identity(9))
	if err != nil {
		panic(err)
	}
	go func() { _ = tls.Client(a, id.config()).Handshake() }()
	defer a.Close()
	hello := make([]byte, 1000)
	_, _ = io.ReadFull(b, hello)
	return hello
})

// occupied returns the bytes of the heap and of all stacks.
func occupied() int {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return int(s.HeapAlloc + s.StackInuse)
}

// Thousands of streams that prove nothing take a bounded number of connections and little memory. Others
// get in meanwhile, and all such streams end within proofTimeout.
func TestStrangersTakeBoundedResources(t *testing.T) {
	for name, act := range strangers {
		for where, most := range map[string]int{"one source": maxStreamSource, "many sources": maxStreams} {
			t.Run(name+" from "+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { strangerTest(t, act, most) })
			})
		}
	}
}

func strangerTest(t *testing.T, act func(net.Conn), most int) {
	n := meshtest.New(1)
	var port *fed
	a := start(t, n, 1, 1, func(c *Config) { port = feed(t, c.Network); c.Network = port })
	proper := start(t, n, 2, 1)
	var open atomic.Int32
	before := occupied()
	streams, worst := 5000, 0
	if testing.Short() {
		streams = 1000
	}
	for i := range streams {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, 7}), 1)
		if most == maxStreams {
			addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 1)
		}
		open.Add(1)
		go func() {
			defer open.Add(-1)
			c := port.dial(addr)
			act(c)
			for small := make([]byte, 64); ; { // a small buffer, since the test measures memory
				if _, err := c.Read(small); err != nil {
					break
				}
			}
			c.Close()
		}()
		time.Sleep(100 * time.Microsecond)
		if i%100 != 99 {
			continue
		}
		synctest.Wait()
		a.door.mu.Lock()
		kept, sources := len(a.door.queued), len(a.door.sources)
		a.door.mu.Unlock()
		if kept > most || sources > kept || int(open.Load()) > most {
			t.Fatalf("%d streams are kept, %d of the strangers' are open; want at most %d", kept, open.Load(), most)
		}
		if i%1000 == 999 {
			worst = max(worst, occupied()-before)
			s, err := proper.Ask(a.at(), Request, time.Second)
			if err != nil {
				t.Fatalf("meanwhile another host is refused: %v; want it to get in", err)
			}
			s.Close()
		}
	}
	// The test itself takes some 6 MiB. crypto/tls makes room for a whole record once its header has come.
	if limit := 16 << 20; worst > limit {
		t.Errorf("%d streams take %d bytes; want at most %d", most, worst, limit)
	}
	time.Sleep(proofTimeout)
	synctest.Wait()
	if len(a.door.queued)+len(a.door.sources)+int(open.Load()) > 0 || len(a.table.byIndex) > 1+maxFresh {
		t.Errorf("%d streams of strangers and %d keys are left after proofTimeout; want none", open.Load(), len(a.table.byIndex))
	}
	stop(t, a, proper)
}

// fed is a network on which a test opens streams from any source.
type fed struct {
	memberlist.Transport
	streams chan net.Conn
}

func feed(t *testing.T, n memberlist.Transport) *fed {
	f := &fed{n, make(chan net.Conn)}
	go func() {
		for {
			select {
			case c := <-n.StreamCh():
				f.streams <- c
			case <-t.Context().Done():
				return
			}
		}
	}()
	return f
}

func (f *fed) StreamCh() <-chan net.Conn { return f.streams }

func (f *fed) dial(from netip.AddrPort) net.Conn {
	c, far := net.Pipe()
	f.streams <- sourced{far, net.TCPAddrFromAddrPort(from)}
	return c
}

type sourced struct {
	net.Conn
	from net.Addr
}

func (s sourced) RemoteAddr() net.Addr { return s.from }

// distant is a network with a long way between hosts.
type distant struct {
	net.Conn
	delay time.Duration
}

func (d distant) Read(p []byte) (int, error) {
	time.Sleep(d.delay)
	return d.Conn.Read(p)
}

// A host that is far away gets in after few attempts, although a thousand strangers come per second.
func TestDistantHostGetsInDuringFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := meshtest.New(1)
		var port *fed
		a := start(t, n, 1, 1, func(c *Config) { port = feed(t, c.Network); c.Network = port })
		far := start(t, n, 2, 1, func(c *Config) { c.Network = remote{c.Network.(*meshtest.Transport)} })
		over := make(chan bool)
		var flood sync.WaitGroup
		flood.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				case <-time.After(time.Millisecond):
				}
				c := port.dial(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 1))
				go func() {
					_, _ = io.Copy(io.Discard, c)
					c.Close()
				}()
			}
		})
		time.Sleep(time.Second)
		attempts := 0
		for ; attempts < 20; attempts++ {
			if s, err := far.Ask(a.at(), Request, time.Second); err == nil {
				s.Close()
				break
			}
		}
		if attempts == 20 {
			t.Error("a distant host did not get in with 20 attempts; want few")
		}
		close(over)
		flood.Wait()
		stop(t, a, far)
	})
}

type remote struct{ *meshtest.Transport }

func (r remote) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	c, err := r.Transport.DialTimeout(addr, timeout)
	if err != nil {
		return nil, err
	}
	return distant{c, 20 * time.Millisecond}, nil
}

// The sources of streams are IPv4 addresses and IPv6 networks of 64 bits, however they are written.
func TestSourceOfStream(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1:2:3:4": "2001:db8::", "2001:db8:0:1::1": "2001:db8:0:1::", "fe80::1%eth0": "fe80::",
	} {
		got := sourceOf(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 7)))
		if got != netip.MustParseAddr(want) {
			t.Errorf("the source of %s is %v; want %s", addr, got, want)
		}
	}
	if got := sourceOf(&net.UnixAddr{Name: "x"}); got.IsValid() {
		t.Errorf("the source of a stream without IP is %v; want none", got)
	}
}

// A guest reads no more than its bound before the proof, and all after it.
func TestGuestReadsBoundedBytesBeforeProof(t *testing.T) {
	g := &guest{Conn: begun{nil, bytes.NewReader(make([]byte, 3*maxUnproven))}, left: maxUnproven}
	if data, err := io.ReadAll(g); len(data) != maxUnproven || !errors.Is(err, errTooMuch) {
		t.Errorf("a guest reads %d bytes, error %v; want maxUnproven and errTooMuch", len(data), err)
	}
	g.proven = true
	if data, err := io.ReadAll(g); len(data) != 2*maxUnproven || err != nil {
		t.Errorf("after the proof it reads %d bytes, error %v; want all others", len(data), err)
	}
}
