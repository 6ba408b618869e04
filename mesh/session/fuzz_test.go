package session

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/mesh/meshtest"
)

// A greeting that is read is within its bounds, and is the same after another transfer.
func FuzzGreeting(f *testing.F) {
	for _, g := range []greeting{{}, {Run: runName(1, 1), Use: Gossip, Index: 7, Body: []byte("body")}, {Refuse: "it is not a member"}} {
		var out bytes.Buffer
		_ = g.send(&out)
		f.Add(out.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xa1})
	f.Add([]byte("\x00\x0b\xa1\x01\x9a\xff\xff\xff\xff\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := receive(bytes.NewReader(data))
		if err != nil {
			return
		}
		if len(g.Run) > maxRun || len(g.Refuse) > maxRefuse || len(g.Body) > maxGreeting {
			t.Fatalf("a greeting exceeds its bounds: %+v", g)
		}
		var out bytes.Buffer
		if err := g.send(&out); err != nil {
			t.Fatal(err)
		}
		again, err := receive(&out)
		if err != nil || again.Run != g.Run || again.Use != g.Use || again.Index != g.Index || !bytes.Equal(again.Body, g.Body) || again.Refuse != g.Refuse {
			t.Errorf("%+v was sent and received as %+v, error %v; want no change", g, again, err)
		}
	})
}

// A reason is legible for the other end, whatever it contains.
func FuzzReasonIsLegible(f *testing.F) {
	f.Add("one\ntwo\x00\xff\u0085")
	f.Fuzz(func(t *testing.T, reason string) {
		var out bytes.Buffer
		if err := (greeting{Refuse: reason}).send(&out); err != nil {
			t.Fatal(err)
		}
		if g, err := receive(&out); err != nil || (g.Refuse == "") != (reason == "") {
			t.Errorf("the reason %q was received as %q, error %v; want it read", reason, g.Refuse, err)
		}
	})
}

// Arbitrary packets from a stranger neither reach memberlist nor change a session.
func FuzzPacket(f *testing.F) {
	n := meshtest.New(1)
	a, b := start(f, n, 1, 1), start(f, n, 2, 1)
	if s, err := a.Ask(b.at(), Keys, time.Second); err != nil {
		f.Fatal(err)
	} else {
		s.Close()
	}
	k := b.table.to(a.run)
	for k == nil {
		time.Sleep(time.Millisecond)
		k = b.table.to(a.run)
	}
	mine := a.table.to(b.run)
	f.Add([]byte{packetType})
	f.Add(append([]byte{packetType}, make([]byte, Overhead-1)...))
	f.Add(append([]byte{packetType, 1, 2, 3, 4}, make([]byte, 1400)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, known := range []bool{false, true} {
			p := bytes.Clone(data)
			if known && len(p) >= 5 { // the index is no secret
				p[1], p[2], p[3], p[4] = byte(k.index>>24), byte(k.index>>16), byte(k.index>>8), byte(k.index)
			}
			b.receivePacket(&memberlist.Packet{Buf: p, From: net.UDPAddrFromAddrPort(netip.AddrPort{})})
		}
		select {
		case p := <-b.PacketCh():
			t.Fatalf("a stranger's packet was let in: %x", p.Buf)
		default:
		}
		if len(data) == 0 {
			return
		}
		packet, err := mine.seal(packetType, data)
		if err != nil {
			t.Fatal(err)
		}
		b.receivePacket(&memberlist.Packet{Buf: packet, From: net.UDPAddrFromAddrPort(a.addr)})
		if p := <-b.PacketCh(); !bytes.Equal(p.Buf, data) {
			t.Errorf("the packet %x arrived as %x; want no change", data, p.Buf)
		}
		b.locked(func() { b.incoming = nil })
	})
}

// Whatever a member sends as an echo, packets to it go only to addresses that are known to be its own.
func FuzzEcho(f *testing.F) {
	n := meshtest.New(1)
	second := meshtest.Address(22).String()
	a, b := start(f, n, 1, 1), start(f, n, 2, 1, func(c *Config) { c.Addresses = func(string) []string { return []string{second} } })
	s, err := a.Ask(b.at(), Keys, time.Second)
	if err != nil {
		f.Fatal(err)
	}
	s.Close()
	k := b.table.to(a.run)
	for k == nil {
		time.Sleep(time.Millisecond)
		k = b.table.to(a.run)
	}
	b.send(a, "x")
	for _, first := range []byte{question, answer, 0} {
		for _, addr := range []string{second, a.addr.String(), "203.0.113.9:6783", "[2001:db8::1]:6783", "[fe80::1%eth0]:1", ""} {
			f.Add(append([]byte{first}, addr...))
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		b.receiveEcho(k, &memberlist.Packet{From: net.UDPAddrFromAddrPort(a.addr)}, content)
		if packet, _ := b.routes.at(a.run); packet.inside || packet.addr != a.addr.String() && packet.addr != second {
			t.Errorf("after the echo %q packets go to %+v; want the advertised address or the other one of the record", content, packet)
		}
	})
}

// Arbitrary bytes on a stream of a stranger end without a stream, keys or a goroutine.
func FuzzStranger(f *testing.F) {
	hello := clientHello()
	f.Add(hello, true)
	f.Add(hello[:100], false)
	f.Add([]byte{firstTLS, 3, 1, 0xff, 0xff}, false)
	f.Add([]byte{firstOlder, 0xff, 0xff, 0xff, 0xff}, true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), true)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, data []byte, closes bool) {
		synctest.Test(t, func(t *testing.T) {
			n := meshtest.New(1)
			a, other := start(t, n, 1, 1), n.Join(meshtest.Address(2))
			c, err := other.DialTimeout(a.addr.String(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, c) }()
			go func() {
				_, _ = c.Write(data)
				if closes {
					c.Close()
				}
			}()
			time.Sleep(proofTimeout + time.Second)
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the stream of a stranger is still open; want it closed")
			}
			c.Close()
			if len(a.served)+len(a.table.byIndex)+len(a.door.queued) > 0 {
				t.Error("a stranger left a stream or keys; want neither")
			}
			_ = other.Shutdown()
			stop(t, a)
		})
	})
}

// A dialed host may answer with arbitrary bytes.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{firstTLS, 3, 3, 0xff, 0xff})
	f.Add([]byte{firstOlder, 0, 0, 0, 60, 1, 2, 3})
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40})
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			n := meshtest.New(1)
			a, other := start(t, n, 1, 1), n.Join(meshtest.Address(2))
			go func() {
				c := <-other.StreamCh()
				go func() { _, _ = io.Copy(io.Discard, c) }()
				_, _ = c.Write(data)
			}()
			begin := time.Now()
			s, err := a.Ask(memberlist.Address{Addr: meshtest.Address(2).String(), Name: runName(2, 1)}, Request, time.Second)
			if err == nil || time.Since(begin) > time.Second {
				t.Errorf("arbitrary bytes gave a stream %+v, error %v after %v; want an error within a second", s, err, time.Since(begin))
			}
			if len(a.table.byIndex) > 0 {
				t.Error("a failed stream left keys; want none")
			}
			_ = other.Shutdown()
			stop(t, a)
		})
	})
}

// All fields of a greeting are in its comparison above.
func TestGreetingHasFiveFields(t *testing.T) {
	if n := reflect.TypeFor[greeting]().NumField(); n != 5 {
		t.Errorf("a greeting has %d fields; want 5, and the fuzz test to compare the new ones", n)
	}
}
