package nft

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"weft/router/policy"
	"weft/router/routertest"
)

var (
	tcp4 = []byte{
		0x46, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0, 10, 32, 0, 2, 10, 32, 0, 3, 1, 1, 1, 1, // the four bytes 1 are options
		0x9c, 0x40, 0x15, 0x38, 0, 0, 0, 0,
	}
	udp6 = append(append(append([]byte{0x60, 0, 0, 0, 0, 16, 0, 64},
		netip.MustParseAddr("fd01:2:3:4::2").AsSlice()...), netip.MustParseAddr("fd01:2:3:4::3").AsSlice()...),
		17, 0, 0, 0, 0, 0, 0, 0, // a header with hop-by-hop options
		0, 53, 0x9c, 0x40)
)

func TestLoggedPacketsAreParsed(t *testing.T) {
	for _, c := range []struct {
		prefix  string
		payload []byte
		want    Logged
		ok      bool
	}{
		{"weft drop ingress\x00", tcp4, Logged{Packet: Packet{
			Src: netip.MustParseAddr("10.32.0.2"), Dst: netip.MustParseAddr("10.32.0.3"), Protocol: 6, SrcPort: 40000, DstPort: 5432,
		}}, true},
		{"weft audit answers-egress", udp6, Logged{Audit: true, Direction: policy.Egress, Packet: Packet{
			Src: netip.MustParseAddr("fd01:2:3:4::2"), Dst: netip.MustParseAddr("fd01:2:3:4::3"), Protocol: 17, SrcPort: 53, DstPort: 40000, Reply: true,
		}}, true},
		{"weft drop", tcp4, Logged{}, false},
		{"weft drop sideways", tcp4, Logged{}, false},
		{"other drop ingress", tcp4, Logged{}, false},
		{"weft drop ingress", tcp4[:26], Logged{}, false},
		{"weft drop ingress", udp6[:39], Logged{}, false},
		{"weft drop ingress", nil, Logged{}, false},
	} {
		if got, ok := parseLogged(c.prefix, c.payload); ok != c.ok || ok && got != c.want {
			t.Errorf("parsing a packet with the log prefix %q returned %+v, %v; want %+v, %v", c.prefix, got, ok, c.want, c.ok)
		}
	}
}

// No packet of an endpoint makes the parser panic.
func FuzzParsePacket(f *testing.F) {
	f.Add(tcp4)
	f.Add(udp6)
	f.Add([]byte{0x6f})
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, ok := parsePacket(data); ok && (!p.Src.IsValid() || !p.Dst.IsValid()) {
			t.Errorf("parsing %x returned a packet with invalid addresses: %+v; want valid ones", data, p)
		}
	})
}

// A dropped packet is reported and counted.
func TestDroppedPacketIsReportedAndCounted(t *testing.T) {
	self, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	prog := policy.Compile([]policy.Policy{{Namespace: "x", Name: "p", Isolates: policy.Of(policy.Egress)}},
		policy.World{Endpoints: []policy.Endpoint{{ID: "a", Namespace: "x", Addrs: []netip.Addr{self}}}},
		func(policy.Endpoint) bool { return true })
	ns := routertest.New(t)
	heard, ended := make(chan Logged, 100), make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go ns.Do(func() { ended <- Watch(ctx, func(l Logged) { heard <- l }) })
	ns.Do(func() {
		var k Kernel
		defer k.Close()
		if err := k.Apply(build(config(func(c *Config) { c.Policy.Program = &prog }))); err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialUDP("udp", &net.UDPAddr{IP: self.AsSlice()}, &net.UDPAddr{IP: other.AsSlice(), Port: 9})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for sent := uint64(1); ; sent++ { // repeat until Watch has subscribed
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			select {
			case l := <-heard:
				if l.Direction != policy.Egress || l.Audit || l.Reply || l.Src != self || l.Dst != other || l.Protocol != 17 || l.DstPort != 9 {
					t.Errorf("the reported packet is %+v; want the UDP packet that was dropped at egress", l)
				}
				j, err := k.Evaluate(policy.Egress, self, l.Packet)
				if err != nil || j.Allowed || j.Dropped != sent {
					t.Errorf("Evaluate returned %+v, error %v; want it denied, and the %d sent packets counted as dropped", j, err, sent)
				}
				if n, err := k.DroppedAll(policy.Egress); err != nil || n != sent {
					t.Errorf("DroppedAll returned %d, error %v; want %d, the number of packets sent", n, err, sent)
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				return
			case err := <-ended:
				t.Fatal(err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
}
