package dns

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// reply is an answer to any client.
type reply struct {
	rcode  int
	addrs  []netip.Addr // the addresses of the name that was asked for; used if there are no other records
	answer []dns.RR
	ns     []dns.RR
	extra  []dns.RR
}

// write returns the authoritative answer to q.
func (q *question) write(buf []byte, r reply, ttl uint32) []byte {
	if len(r.addrs) > 0 {
		return q.addresses(buf, r.addrs, ttl)
	}
	m := dns.Msg{
		MsgHdr:   dns.MsgHdr{Authoritative: r.rcode != dns.RcodeServerFailure, Rcode: r.rcode},
		Compress: true, Answer: r.answer, Ns: r.ns, Extra: r.extra,
	}
	p, err := pack(&m, q.name, q.qtype)
	if err == nil && len(p.wire) > q.room() && len(m.Extra) > 0 {
		m.Extra = nil // additional records are optional (RFC 2181 9)
		p, err = pack(&m, q.name, q.qtype)
	}
	if err == nil && len(p.wire) > q.room() && q.size == maxTCP {
		m.Truncate(q.room())
		p, err = pack(&m, q.name, q.qtype)
		if err == nil {
			p.wire[2] &^= bitTC >> 8 // clear TC: over TCP there is nothing to retry
		}
	}
	if err != nil {
		return q.fail(buf, dns.RcodeServerFailure)
	}
	return q.render(buf, p, p.stored)
}

// packed is an answer in wire format, for all clients: with the name in lower case, without id and
// OPT. It is immutable.
type packed struct {
	wire   []byte
	ttls   []int         // offsets of the records' TTLs
	stored time.Time     // when the TTLs began to count
	life   time.Duration // lifetime in the cache; 0: only for the clients that wait for it
}

// pack returns the answer to a question for name. Names of records that equal the question's must be
// in lower case: pack compresses them to pointers to the question, so that each client gets its own
// spelling.
func pack(m *dns.Msg, name string, qtype uint16) (*packed, error) {
	m.Compress = true
	m.Question = []dns.Question{{Name: name, Qtype: qtype, Qclass: dns.ClassINET}}
	wire, err := m.Pack()
	if err != nil {
		return nil, err
	}
	p := &packed{wire: wire}
	off := skipName(wire, headerSize) + 4
	for range len(m.Answer) + len(m.Ns) + len(m.Extra) {
		fixed, next := nextRecord(wire, off)
		if next < 0 {
			return nil, dns.ErrBuf
		}
		p.ttls, off = append(p.ttls, fixed+4), next
	}
	return p, nil
}

// failure returns a SERVFAIL answer. RFC 9520 requires caching it for at least a second, so that a
// failing query is not forwarded each time.
func failure(name string, qtype uint16, now time.Time) *packed {
	p, err := pack(&dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}}, name, qtype)
	if err != nil { // cannot happen: the name comes from a message
		p = &packed{wire: make([]byte, headerSize)}
	}
	p.stored, p.life = now, failureLife
	return p
}

// render returns p as the answer to q at the time now.
func (q *question) render(buf []byte, p *packed, now time.Time) []byte {
	bits := binary.BigEndian.Uint16(p.wire[2:]) & (bitAA | bitTC)
	rcode := int(p.wire[3] & 0xF)
	if len(p.wire) < headerSize+len(q.section) {
		return q.fail(buf, dns.RcodeServerFailure)
	}
	if len(p.wire) > q.room() {
		if q.size == maxTCP {
			return q.fail(buf, dns.RcodeServerFailure) // the answer cannot be encoded
		}
		return q.truncated(buf, bits)
	}
	buf = q.head(buf[:0], bits, rcode, 0)
	copy(buf[6:headerSize], p.wire[6:headerSize])
	buf = append(buf, p.wire[len(buf):]...)
	age := uint32(max(0, now.Sub(p.stored)) / time.Second)
	if age > 0 {
		for _, off := range p.ttls {
			ttl := binary.BigEndian.Uint32(buf[off:])
			binary.BigEndian.PutUint32(buf[off:], ttl-min(age, ttl))
		}
	}
	return q.tail(buf, rcode)
}
