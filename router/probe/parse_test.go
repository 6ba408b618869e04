package probe

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft/mesh/path"
)

// packet returns an IP packet with a UDP datagram.
func packet(from, to netip.AddrPort, payload []byte) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(udpHeader+len(payload)))
	udp = append(append(udp, 0, 0), payload...)
	if from.Addr().Is4() {
		ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 255, unix.IPPROTO_UDP, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Header+len(udp)))
		return append(append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...), udp...)
	}
	ip := []byte{0x60, 0, 0, 0, 0, 0, unix.IPPROTO_UDP, 255}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
	return append(append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...), udp...)
}

// messages returns a netlink datagram with a log message for each packet.
func messages(t testing.TB, packets ...[]byte) (out []byte) {
	t.Helper()
	for _, p := range packets {
		attributes, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: 1, Data: make([]byte, 4)}, {Type: attributePayload, Data: p}, {Type: 10, Data: []byte{0}}})
		if err != nil {
			t.Fatal(err)
		}
		data := append([]byte{unix.AF_INET, 0, Group >> 8, Group & 0xff}, attributes...)
		m := netlink.Message{Header: netlink.Header{Length: uint32(unix.NLMSG_HDRLEN + len(data)), Type: logPacket}, Data: data}
		b, err := m.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

var (
	from4, to4 = netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:6784")
	from6, to6 = netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[2001:db8::2]:6784")
)

func TestParseReadsEachProbeOfADatagram(t *testing.T) {
	short, long := []byte("weftabc"), append([]byte("weft"), bytes.Repeat([]byte{7}, 300)...)
	shorter := packet(from4, to4, append([]byte("weftabc"), 0, 0))
	binary.BigEndian.PutUint16(shorter[ipv4Header+4:], uint16(udpHeader+len(short))) // Ethernet's padding follows
	options := packet(from4, to4, short)
	options = append(append(append([]byte{0x46}, options[1:ipv4Header]...), 1, 1, 1, 1), options[ipv4Header:]...)
	var got []Datagram
	parse(messages(t,
		packet(from4, to4, short), packet(from6, to6, long), shorter, options,
		packet(from4, netip.AddrPortFrom(to4.Addr(), 20000), short), packet(from4, to4, []byte("we")), packet(from4, to4, []byte("xyzabcd")), nil,
	), func(d Datagram) { got = append(got, d) })
	want := []Datagram{
		{from4, to4, short, 35},
		{from6, to6, long[:MaxPayload], 352},
		{from4, to4, short, 37},
		{from4, to4, short, 35},
		{from4, netip.AddrPortFrom(to4.Addr(), 20000), short, 35},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("parsed probes differ (-want +got):\n%s", d)
	}
}

// Whatever the bytes are, parse neither panics nor delivers a payload that is no probe.
func FuzzParse(f *testing.F) {
	f.Add(messages(f, packet(from4, to4, []byte("weftabc")), packet(from6, to6, []byte("weft"))))
	f.Add(messages(f, packet(from6, to6, []byte("weftabc"))[:50]))
	f.Fuzz(func(t *testing.T, b []byte) {
		parse(b, func(d Datagram) {
			if len(d.Payload) < len(path.Magic) || len(d.Payload) > MaxPayload || [3]byte(d.Payload) != path.Magic || !d.From.Addr().IsValid() {
				t.Errorf("parse delivered %+v, want a probe with a payload of 3 to 256 bytes", d)
			}
		})
	})
}

// The checksum of a whole datagram, itself included, is 0xffff (RFC 1071).
func TestChecksumIsValid(t *testing.T) {
	for size := range 64 {
		udp := packet(from4, to4, append([]byte("weft"), bytes.Repeat([]byte{0xff}, size)...))[ipv4Header:]
		sum := checksum4(from4.Addr(), to4.Addr(), udp, len(udp)-udpHeader)
		if sum == 0 {
			t.Errorf("the checksum of %d bytes is 0, which means that there is none", len(udp))
		}
		binary.BigEndian.PutUint16(udp[checksumAt:], sum)
		if again := checksum4(from4.Addr(), to4.Addr(), udp, len(udp)-udpHeader); again != 0xffff {
			t.Errorf("the checksum of %d bytes with their checksum is %#x before the complement; want 0xffff", len(udp), again)
		}
	}
}
