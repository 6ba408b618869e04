package dns

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// Sizes of messages, bytes.
const (
	headerSize = 12
	optSize    = 11    // an OPT record without options
	minUDP     = 512   // what every client takes (RFC 1035 4.2.1)
	maxUDP     = 1232  // what no path fragments: an IPv6 packet of 1280 bytes without its headers
	maxTCP     = 65535 // what the two bytes before a message over TCP can say
)

// Bits of the header's second word (RFC 1035 4.1.1, RFC 4035 3).
const (
	bitQR   = 1 << 15
	bitAA   = 1 << 10
	bitTC   = 1 << 9
	bitRD   = 1 << 8
	bitRA   = 1 << 7
	bitCD   = 1 << 4
	opcodes = 0xF << 11
)

// question is a query as far as a server must understand it.
type question struct {
	id      uint16
	bits    uint16
	section []byte // the question as it was asked, upper case and all; a part of the packet
	name    string // the same name fully qualified and in lower case, as package dns writes names
	qtype   uint16
	edns    bool
	do      bool
	size    int // the largest answer that the client takes
}

// keep makes q independent of the packet that it was read from.
func (q *question) keep() { q.section = slices.Clone(q.section) }

// parse reads a query. Not ok is what gets no answer: it is no query. Otherwise rcode is
// the error to answer with, or RcodeSuccess.
//
// The message is read by hand: this runs for every packet, and of a query only the
// question and OPT matter. Other records are walked over, which tells broken messages.
func parse(msg []byte) (q question, rcode int, ok bool) {
	if len(msg) < headerSize {
		return q, 0, false
	}
	q = question{id: binary.BigEndian.Uint16(msg), bits: binary.BigEndian.Uint16(msg[2:]), size: minUDP}
	if q.bits&bitQR != 0 {
		return q, 0, false // answering answers, two servers could talk for ever
	}
	switch q.bits & opcodes >> 11 {
	case dns.OpcodeQuery:
	case dns.OpcodeNotify, dns.OpcodeUpdate:
		return q, dns.RcodeRefused, true
	default:
		return q, dns.RcodeNotImplemented, true
	}
	if binary.BigEndian.Uint16(msg[4:]) != 1 {
		return q, dns.RcodeFormatError, true
	}
	off := q.readQuestion(msg)
	if off < 0 {
		return q, dns.RcodeFormatError, true
	}
	if rcode := q.readRecords(msg, off); rcode != dns.RcodeSuccess {
		return q, rcode, true
	}
	class := binary.BigEndian.Uint16(q.section[len(q.section)-2:])
	if class != dns.ClassINET || meta(q.qtype) {
		return q, dns.RcodeRefused, true
	}
	return q, dns.RcodeSuccess, true
}

// meta tells types that are no data: nothing, OPT, and what RFC 6895 sets aside from 128
// to 255, which has AXFR, IXFR and ANY in it.
func meta(qtype uint16) bool {
	return qtype == dns.TypeNone || qtype == dns.TypeOPT || qtype >= 128 && qtype <= 255
}

// readQuestion reads the question and returns the offset behind it, or -1.
func (q *question) readQuestion(msg []byte) int {
	var lower [255]byte
	off, n := headerSize, 0
	for {
		if off >= len(msg) || msg[off] > 63 { // a pointer could only point at the header
			return -1
		}
		size := 1 + int(msg[off])
		if off+size > len(msg) || n+size > len(lower) {
			return -1
		}
		lower[n] = msg[off]
		for i := 1; i < size; i++ {
			c := msg[off+i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			lower[n+i] = c
		}
		off, n = off+size, n+size
		if size == 1 {
			break
		}
	}
	name, _, err := dns.UnpackDomainName(lower[:n], 0)
	if err != nil || off+4 > len(msg) {
		return -1
	}
	q.name, q.qtype = name, binary.BigEndian.Uint16(msg[off:])
	q.section = msg[headerSize : off+4]
	return off + 4
}

// readRecords walks over the records behind the question and takes what OPT says.
func (q *question) readRecords(msg []byte, off int) int {
	answers := int(binary.BigEndian.Uint16(msg[6:])) + int(binary.BigEndian.Uint16(msg[8:]))
	all := answers + int(binary.BigEndian.Uint16(msg[10:]))
	for i := range all {
		fixed, next := nextRecord(msg, off)
		if next < 0 {
			return dns.RcodeFormatError
		}
		if binary.BigEndian.Uint16(msg[fixed:]) == dns.TypeOPT {
			// One OPT, of the root, among the additional records (RFC 6891 6.1.1).
			if q.edns || i < answers || fixed != off+1 {
				return dns.RcodeFormatError
			}
			q.edns, q.do = true, msg[fixed+6]&0x80 != 0
			q.size = min(max(minUDP, int(binary.BigEndian.Uint16(msg[fixed+2:]))), maxUDP)
			if msg[fixed+5] != 0 {
				return dns.RcodeBadVers
			}
		}
		off = next
	}
	return dns.RcodeSuccess
}

// nextRecord finds the fixed part of the record at off (type, class, TTL and length: 10
// bytes) and the offset behind the record, which is -1 where there is no whole record.
func nextRecord(msg []byte, off int) (fixed, next int) {
	fixed = skipName(msg, off)
	if fixed < 0 || fixed+10 > len(msg) {
		return fixed, -1
	}
	next = fixed + 10 + int(binary.BigEndian.Uint16(msg[fixed+8:]))
	if next > len(msg) {
		return fixed, -1
	}
	return fixed, next
}

// skipName returns the offset behind the name at off, or -1.
func skipName(msg []byte, off int) int {
	for off < len(msg) {
		c := int(msg[off])
		switch {
		case c == 0:
			return off + 1
		case c >= 0xC0:
			return off + 2
		case c > 63:
			return -1
		}
		off += 1 + c
	}
	return -1
}

// head begins an answer: the header and the question as it was asked.
func (q *question) head(buf []byte, bits uint16, rcode, answers int) []byte {
	bits |= bitQR | bitRA | q.bits&(opcodes|bitRD|bitCD) | uint16(rcode&0xF)
	buf = binary.BigEndian.AppendUint16(buf, q.id)
	buf = binary.BigEndian.AppendUint16(buf, bits)
	questions := uint16(0)
	if len(q.section) > 0 {
		questions = 1
	}
	buf = binary.BigEndian.AppendUint16(buf, questions)
	buf = binary.BigEndian.AppendUint16(buf, uint16(answers))
	buf = append(buf, 0, 0, 0, 0)
	return append(buf, q.section...)
}

// tail ends an answer: with OPT where there was one in the query (RFC 6891 6.1.1).
func (q *question) tail(buf []byte, rcode int) []byte {
	if !q.edns {
		return buf
	}
	binary.BigEndian.PutUint16(buf[10:], binary.BigEndian.Uint16(buf[10:])+1)
	do := byte(0)
	if q.do {
		do = 0x80
	}
	return append(buf, 0, 0, byte(dns.TypeOPT), maxUDP>>8, maxUDP&0xFF, byte(rcode>>4), 0, do, 0, 0, 0)
}

// room is how long an answer may be before OPT is put behind it.
func (q *question) room() int {
	if q.edns {
		return q.size - optSize
	}
	return q.size
}

// fail answers with nothing but an error.
func (q *question) fail(buf []byte, rcode int) []byte {
	return q.tail(q.head(buf[:0], 0, rcode, 0), rcode)
}

// truncated answers with nothing but the advice to ask again over TCP. A part of the
// answer would be allowed too, but there are clients that take it for the whole.
func (q *question) truncated(buf []byte, bits uint16) []byte {
	return q.tail(q.head(buf[:0], bits|bitTC, dns.RcodeSuccess, 0), 0)
}

// addresses answers with A or AAAA records of the name that was asked. They are most of
// what is asked, so that they go into the message without a detour.
func (q *question) addresses(buf []byte, addrs []netip.Addr, ttl uint32) []byte {
	size := 12 + addrs[0].BitLen()/8
	fit := (q.room() - headerSize - len(q.section)) / size
	if len(addrs) > fit {
		if q.size < maxTCP {
			return q.truncated(buf, bitAA)
		}
		addrs = addrs[:fit]
	}
	buf = q.head(buf[:0], bitAA, dns.RcodeSuccess, len(addrs))
	for _, a := range addrs {
		buf = append(buf, 0xC0, headerSize, byte(q.qtype>>8), byte(q.qtype), 0, dns.ClassINET)
		buf = binary.BigEndian.AppendUint32(buf, ttl)
		if a.Is4() {
			b := a.As4()
			buf = append(append(buf, 0, 4), b[:]...)
		} else {
			b := a.As16()
			buf = append(append(buf, 0, 16), b[:]...)
		}
	}
	return q.tail(buf, 0)
}
