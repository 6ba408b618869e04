package packet

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// What another implementation builds and reads is the same.
func TestPacketsAreThoseOfTheStandard(t *testing.T) {
	body := []byte{1, 2, 3}
	a4, b4 := netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("10.40.0.9")
	p := IP(a4, b4, 17, body)
	h, err := ipv4.ParseHeader(p)
	if err != nil || h.Len != 20 || h.TotalLen != 23 || h.Flags != ipv4.DontFragment || h.TTL != hops || h.Protocol != 17 || !h.Src.Equal(a4.AsSlice()) || !h.Dst.Equal(b4.AsSlice()) {
		t.Errorf("the IPv4 header is %+v, error %v", h, err)
	}
	if Checksum(p[:20]) != 0 {
		t.Errorf("the checksum over the IPv4 header with its checksum is %#x, want 0", Checksum(p[:20]))
	}
	a6, b6 := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2:3")
	p = IP(a6, b6, 58, body)
	h6, err := ipv6.ParseHeader(p)
	if err != nil || h6.PayloadLen != 3 || h6.NextHeader != 58 || h6.HopLimit != hops || !h6.Src.Equal(a6.AsSlice()) || !h6.Dst.Equal(b6.AsSlice()) {
		t.Errorf("the IPv6 header is %+v, error %v", h6, err)
	}
	m, err := (&icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: 1, Seq: 2, Data: body}}).Marshal(icmp.IPv6PseudoHeader(a6.AsSlice(), b6.AsSlice()))
	if err != nil {
		t.Fatal(err)
	}
	if c := Checksum(PseudoHeader(a6, b6, 58, len(m)), m); c != 0 {
		t.Errorf("the checksum over an ICMPv6 message with its checksum is %#x, want 0", c)
	}
	to, from := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	for kind, p := range map[string][]byte{"\x08\x00": IP(a4, b4, 17, body), "\x86\xdd": IP(a6, b6, 17, body)} {
		want := append([]byte("\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02"+kind), p...)
		if got := Frame(to, from, p); !bytes.Equal(got, want) {
			t.Errorf("the frame is %x, want %x", got, want)
		}
	}
}
