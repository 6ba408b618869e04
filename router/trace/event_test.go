package trace

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/router/packet"
	"weft/router/policy"
)

// attr returns a netlink attribute.
func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func word(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// message returns a trace message: a rule of Docker's chain drops a packet.
func message(p Packet) []byte {
	b := p.Bytes()
	return bytes.Join([][]byte{
		{unix.NFPROTO_IPV4, 0, 0, 0},
		attr(attrTable, []byte("filter\x00")), attr(attrChain, []byte("DOCKER\x00")), attr(attrHandle, []byte{0, 0, 0, 0, 0, 0, 0, 7}),
		attr(attrType, word(3)), attr(attrVerdict, attr(verdictCode, word(0))), attr(attrID, word(9)), attr(attrNetwork, b[:20]), attr(attrTransport, b[20:]),
		attr(attrIn, word(4)), attr(attrOut, word(5)),
	}, nil)
}

var syn = Packet{Protocol: policy.TCP, Src: netip.MustParseAddr("10.32.0.2"), Dst: netip.MustParseAddr("10.32.0.3"), Port: 80, ID: 64000}

func TestATraceMessageIsRead(t *testing.T) {
	e, ok := parse(message(syn))
	if !ok || e.Table != "filter" || e.Chain != "DOCKER" || e.Handle != 7 || e.Kind != Rule || e.Verdict != Drop || e.In != 4 || e.Out != 5 || e.id != 9 || e.Family != unix.NFPROTO_IPV4 {
		t.Errorf("parse returns %+v, %v, want a drop by rule 7 of filter DOCKER", e, ok)
	}
	if src, dst, ok := packet.Addresses(e.Network); !ok || src != syn.Src || dst != syn.Dst {
		t.Errorf("the addresses are %v, %v, want %v, %v", src, dst, syn.Src, syn.Dst)
	}
}

// A recorder takes the events of marked packets only, and not without bound.
func TestRecorderTakesMarkedPackets(t *testing.T) {
	r := recorder{table: "weft-trace-6-64000", packet: syn}
	begin := Event{Table: r.table, Chain: "first-prerouting", Kind: Rule, Handle: 2, Network: syn.Bytes()[:20], id: 1}
	r.add(Event{Table: "filter", Chain: "FORWARD", Kind: End, id: 1})
	r.add(begin)
	r.add(Event{Table: "filter", Chain: "FORWARD", Kind: End, id: 1})
	r.add(Event{Table: "filter", Chain: "FORWARD", Kind: End, id: 2})
	if len(r.list) != 2 || r.list[0].Answer || r.full {
		t.Errorf("the recorder has %+v, want two events of the packet", r.list)
	}
	for range 2 * mostEvents {
		r.add(Event{Table: "filter", Chain: "FORWARD", Kind: End, id: 1})
	}
	for range 2 * mostPackets {
		r.add(begin)
	}
	if len(r.list) > mostEvents || r.packets > mostPackets || !r.full {
		t.Errorf("the recorder has %d events of %d packets, want bounds", len(r.list), r.packets)
	}
}

// The checksums of packets are right: the complement of the sum over each whole packet is 0 (RFC 1071).
func TestPacketsHaveValidChecksums(t *testing.T) {
	for _, src := range []string{"10.32.0.2", "fd00::2"} {
		p := Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(src).Next(), ID: 64000, Port: 80}
		protocols := []policy.Protocol{policy.TCP, policy.UDP, policy.ICMPv6}
		header := 40
		if p.Src.Is4() {
			protocols[2], header = policy.ICMP, 20
		}
		for _, p.Protocol = range protocols {
			b := p.Bytes()
			if header == 20 && packet.Checksum(b[:20]) != 0 {
				t.Errorf("%v: the checksum of the header is wrong", p)
			}
			var pseudo []byte
			if p.Protocol != policy.ICMP {
				pseudo = packet.PseudoHeader(p.Src, p.Dst, byte(p.Protocol), len(b)-header)
			}
			if packet.Checksum(pseudo, b[header:]) != 0 {
				t.Errorf("%v: the checksum is wrong", p)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message(syn), syn.Bytes()[20:])
	f.Add([]byte{2, 0, 0, 0, 4, 0, 1, 0}, []byte{3, 3})
	f.Fuzz(func(t *testing.T, b, transport []byte) {
		e, ok := parse(b)
		if len(e.Network) > mostHeader || len(e.Transport) > mostHeader {
			t.Errorf("a header has %d and %d bytes, want at most %d", len(e.Network), len(e.Transport), mostHeader)
		}
		if ok {
			syn.AnswerOf(e.Network, e.Transport)
			syn.AnswerOf(e.Network, transport)
			e.Hook()
		}
	})
}
