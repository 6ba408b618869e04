package nft

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/florianl/go-nflog/v2"
	"golang.org/x/sys/unix"

	"weft/router/policy"
)

// Logged is a packet that policies dropped, or would have dropped.
type Logged struct {
	Packet
	Direction policy.Direction // whether policies of the destination (ingress) or of the source (egress) decided
	Audit     bool             // the packet passed, since only policies in audit mode would drop it
}

// Watch calls f for every packet that the kernel logs, until ctx ends. It reads the log of the
// calling thread's network namespace.
func Watch(ctx context.Context, f func(Logged)) error {
	// Deliver each packet at once: the rules limit the rate.
	log, err := nflog.Open(&nflog.Config{Group: LogGroup, Copymode: nflog.CopyPacket, Bufsize: snapshot, QThresh: 1})
	if err != nil {
		return fmt.Errorf("opening nflog group %d: %w", LogGroup, err)
	}
	defer log.Close()
	hook := func(a nflog.Attribute) int {
		if a.Prefix != nil && a.Payload != nil {
			if l, ok := parseLogged(*a.Prefix, *a.Payload); ok {
				f(l)
			}
		}
		return 0
	}
	// An error means that log messages were lost, for example when the buffer overflows. Watch
	// continues.
	failed := func(error) int { return 0 }
	if err := log.RegisterWithErrorFunc(ctx, hook, failed); err != nil {
		return fmt.Errorf("reading nflog group %d: %w", LogGroup, err)
	}
	<-ctx.Done()
	return nil
}

// parseLogged parses a log prefix of Weft's rules and the headers of a packet.
func parseLogged(prefix string, payload []byte) (l Logged, ok bool) {
	words := strings.Fields(strings.TrimRight(prefix, "\x00"))
	if len(words) != 3 {
		return l, false
	}
	switch words[0] + " " + words[1] + " " {
	case LogDrop:
	case LogAudit:
		l.Audit = true
	default:
		return l, false
	}
	name, answers := strings.CutPrefix(words[2], directions[2].prefix())
	switch name {
	case policy.Egress.String():
		l.Direction = policy.Egress
	case policy.Ingress.String():
	default:
		return l, false
	}
	l.Packet, ok = parsePacket(payload)
	l.Reply = answers
	return l, ok
}

// parsePacket parses addresses, protocol and ports. It skips IPv6 extension headers (RFC 8200), up
// to a small number.
func parsePacket(b []byte) (p Packet, ok bool) {
	if len(b) < 20 {
		return p, false
	}
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&15) * 4
		p.Protocol = b[9]
		p.Src, p.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[min(header, len(b)):]
	case 6:
		if len(b) < 40 {
			return p, false
		}
		p.Protocol = b[6]
		p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		p.Protocol, b = afterExtensions(p.Protocol, b[40:])
	default:
		return p, false
	}
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(b) < 4 {
			return p, false
		}
		p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	return p, true
}

// afterExtensions returns the protocol after the extension headers, and its header.
func afterExtensions(next byte, b []byte) (byte, []byte) {
	for range 8 {
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(b) < 2 {
				return next, nil
			}
			size := int(b[1])*8 + 8
			next, b = b[0], b[min(size, len(b)):]
		default:
			return next, b
		}
	}
	return next, nil
}

// DropChain returns the direction whose policies a chain ends with a drop.
func DropChain(name string) (policy.Direction, bool) {
	name, drops := strings.CutPrefix(name, "drop-")
	name = strings.TrimPrefix(name, directions[2].prefix())
	for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
		if drops && name == d.String() {
			return d, true
		}
	}
	return 0, false
}
