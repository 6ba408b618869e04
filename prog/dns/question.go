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
	minUDP     = 512   // supported by all clients (RFC 1035 4.2.1)
	maxUDP     = 1232  // never fragmented: fits an IPv6 packet of 1280 bytes
	maxTCP     = 65535 // the largest length of a message over TCP
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

// question is a parsed query.
type question struct {
	id      uint16
	bits    uint16
	section []byte // the question as received, with its case; a part of the packet
	name    string // the name, fully qualified and in lower case, in the notation of package dns
	qtype   uint16
	edns    bool
	do      bool
	size    int // size of the largest answer that the client accepts
}

// keep copies the part of the packet that q refers to.
func (q *question) keep() { q.section = slices.Clone(q.section) }

// parse parses a query. If ok is false, the message is no query and gets no answer. Otherwise rcode
// is the error to answer with, or RcodeSuccess.
//
// It parses by hand, since it runs for every packet and only the question and OPT matter. It skips
// other records, and so detects broken messages.
func parse(msg []byte) (q question, rcode int, ok bool) {
	if len(msg) < headerSize {
		return q, 0, false
	}
	q = question{id: binary.BigEndian.Uint16(msg), bits: binary.BigEndian.Uint16(msg[2:]), size: minUDP}
	if q.bits&bitQR != 0 {
		return q, 0, false // never answer answers: two servers could loop forever
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

// meta reports whether a type has no data: 0, OPT, and the range 128 to 255 of RFC 6895, which
// includes AXFR, IXFR and ANY.
func meta(qtype uint16) bool {
	return qtype == dns.TypeNone || qtype == dns.TypeOPT || qtype >= 128 && qtype <= 255
}

// readQuestion parses the question and returns the offset after it, or -1.
func (q *question) readQuestion(msg []byte) int {
	var lower [255]byte
	off, n := headerSize, 0
	for {
		if off >= len(msg) || msg[off] > 63 { // a compression pointer could only point into the header
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

// readRecords skips the records after the question and evaluates OPT.
func (q *question) readRecords(msg []byte, off int) int {
	answers := int(binary.BigEndian.Uint16(msg[6:])) + int(binary.BigEndian.Uint16(msg[8:]))
	all := answers + int(binary.BigEndian.Uint16(msg[10:]))
	for i := range all {
		fixed, next := nextRecord(msg, off)
		if next < 0 {
			return dns.RcodeFormatError
		}
		if binary.BigEndian.Uint16(msg[fixed:]) == dns.TypeOPT {
			// There is at most one OPT, with the root name, in the additional section (RFC 6891
			// 6.1.1).
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

// nextRecord returns the offset of the fixed part of the record at off (type, class, TTL and length:
// 10 bytes), and the offset after the record, or -1 if it is incomplete.
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

// skipName returns the offset after the name at off, or -1.
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

// head writes the header and the question, with the client's spelling.
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

// tail appends OPT if the query had one (RFC 6891 6.1.1).
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

// room returns the maximum length of the answer without OPT.
func (q *question) room() int {
	if q.edns {
		return q.size - optSize
	}
	return q.size
}

// fail returns an answer with only an error.
func (q *question) fail(buf []byte, rcode int) []byte {
	return q.tail(q.head(buf[:0], 0, rcode, 0), rcode)
}

// truncated returns an empty answer with TC set, so that the client retries over TCP. Some clients
// would take a partial answer for the whole.
func (q *question) truncated(buf []byte, bits uint16) []byte {
	return q.tail(q.head(buf[:0], bits|bitTC, dns.RcodeSuccess, 0), 0)
}

// addresses answers with A or AAAA records of the name in question. These are most answers, so it
// writes them without package dns.
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
