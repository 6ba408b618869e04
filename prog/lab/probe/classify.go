package probe

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"weft/prog/words"
)

const etherHeader = 14

// classify names the protocol of an Ethernet frame. It never fails: unknown or truncated frames are
// named by their number, so that the summary omits nothing.
func classify(frame []byte) key {
	if len(frame) < etherHeader {
		return key{kind: "short frame"}
	}
	body := frame[etherHeader:]
	switch etype := binary.BigEndian.Uint16(frame[12:]); etype {
	case unix.ETH_P_ARP:
		return key{kind: "arp"}
	case unix.ETH_P_IP:
		return packet4(body)
	case unix.ETH_P_IPV6:
		return packet6(body)
	default:
		return key{kind: fmt.Sprintf("ethertype 0x%04x", etype)}
	}
}

func packet4(body []byte) key {
	if len(body) < 20 || len(body) < int(body[0]&0xf)*4 {
		return key{kind: "short ipv4"}
	}
	if binary.BigEndian.Uint16(body[6:])&0x1fff != 0 {
		return key{kind: fmt.Sprintf("ipv4 fragment of protocol %d", body[9])}
	}
	proto, rest := body[9], body[int(body[0]&0xf)*4:]
	if proto == unix.IPPROTO_ICMP && len(rest) >= icmpHeader {
		switch rest[0] { // RFC 792
		case 3:
			return quoting(UnreachablePrefix, packet4(rest[icmpHeader:]))
		case 5:
			return quoting(RedirectPrefix, packet4(rest[icmpHeader:]))
		}
	}
	return transport(proto, rest)
}

func packet6(body []byte) key {
	if len(body) < 40 {
		return key{kind: "short ipv6"}
	}
	next, rest := body[6], body[40:]
	if next == unix.IPPROTO_ICMPV6 && len(rest) >= icmpHeader && rest[0] == 1 { // RFC 4443
		return quoting(UnreachablePrefix, packet6(rest[icmpHeader:]))
	}
	return transport6(next, rest)
}

// icmpHeader is the size of the header before the packet that an ICMP or ICMPv6 error quotes.
const icmpHeader = 8

// quoting names an ICMP message by the packet that caused it. A refusal of gossip is normal if the
// agent was killed, but a refusal of a container's traffic is not.
func quoting(prefix string, quoted key) key { return key{prefix + quoted.kind, quoted.port} }

// These are the prefixes, in Row.Kind, of the packet kind that caused an ICMP message.
const (
	UnreachablePrefix = "unreachable "
	RedirectPrefix    = "redirect " // of IPv4; IPv6's are "nd"
)

// transport6 skips hop-by-hop options, which MLD always has, and the header of a first fragment.
func transport6(next byte, body []byte) key {
	if next == unix.IPPROTO_FRAGMENT && len(body) >= 8 { // RFC 8200
		if binary.BigEndian.Uint16(body[2:])&^7 != 0 {
			return key{kind: fmt.Sprintf("ipv6 fragment of protocol %d", body[0])}
		}
		return transport(body[0], body[8:])
	}
	if next == unix.IPPROTO_HOPOPTS && len(body) >= 8 {
		if skip := 8 + int(body[1])*8; len(body) >= skip {
			return transport(body[0], body[skip:])
		}
	}
	return transport(next, body)
}

func transport(proto byte, body []byte) key {
	switch {
	case (proto == unix.IPPROTO_UDP || proto == unix.IPPROTO_TCP) && len(body) >= 4:
		kind := "udp"
		if proto == unix.IPPROTO_TCP {
			kind = "tcp"
		}
		return key{kind, min(binary.BigEndian.Uint16(body), binary.BigEndian.Uint16(body[2:]))}
	case proto == unix.IPPROTO_ICMP:
		return key{kind: "icmp"}
	case proto == unix.IPPROTO_IGMP:
		return key{kind: "igmp"}
	case proto == unix.IPPROTO_ICMPV6 && len(body) >= 1:
		switch t := body[0]; {
		case t >= 133 && t <= 137: // RFC 4861
			return key{kind: "nd"}
		case t >= 130 && t <= 132, t == 143: // RFC 2710, RFC 3810
			return key{kind: "mld"}
		}
		return key{kind: "icmpv6"}
	}
	return key{kind: fmt.Sprintf("ip protocol %d", proto)}
}

func merge(counts []counter) CaptureSummary {
	sum := CaptureSummary{Flows: []Row{}}
	all := make(map[key]*Row)
	for _, c := range counts {
		sum.Dropped += c.dropped
		for k, row := range c.rows {
			total := all[k]
			if total == nil {
				total = &Row{Kind: k.kind, Port: k.port}
				all[k] = total
			}
			total.Packets += row.Packets
			total.Bytes += row.Bytes
			total.Marked += row.Marked
		}
	}
	for _, row := range all {
		sum.Packets += row.Packets
		sum.Marked += row.Marked
		sum.Flows = append(sum.Flows, *row)
	}
	slices.SortFunc(sum.Flows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Port, b.Port))
	})
	return sum
}

// Name returns the row's protocol with its port.
func (r Row) Name() string {
	if r.Port == 0 {
		return r.Kind
	}
	return fmt.Sprintf("%s %d", r.Kind, r.Port)
}

// Print writes the summary as a table.
func (s CaptureSummary) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "PROTOCOL\tPACKETS\tBYTES\tWITH MARKER\t")
	for _, r := range s.Flows {
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t\n", r.Name(), r.Packets, r.Bytes, r.Marked)
	}
	fmt.Fprintf(tw, "all\t%d\t\t%d\t\n", s.Packets, s.Marked)
	if err := tw.Flush(); err != nil {
		return err
	}
	if s.Dropped > 0 {
		_, err := fmt.Fprintf(w, "missed: %s, since the capture was too slow\n", words.Count(s.Dropped, "packet"))
		return err
	}
	return nil
}
