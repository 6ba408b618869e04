package dns

import (
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// maxChain limits the length of a chain of aliases.
const maxChain = 16

// believe returns the parts of an upstream's reply that answer the question: the records of the name,
// those that its aliases lead to, and the SOA with the TTL of a negative answer. Everything else is
// dropped, so that an upstream cannot answer for other servers' names. Aliases to names of the mesh
// are not followed. If the reply is no answer, it returns an error.
func believe(m *dns.Msg, k key, ours func(string) bool) (*packed, error) {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("answered %s", dns.RcodeToString[m.Rcode])
	}
	out := &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: m.Rcode}}
	final, answered := chain(out, m, k, ours)
	life := maxLife
	for _, rr := range out.Answer {
		life = min(life, ttlOf(rr))
	}
	soa := authorities(out, m, k, final)
	if !answered {
		switch {
		case soa != nil: // RFC 2308 5
			soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl, uint32(maxNegative/time.Second))
			life = min(life, ttlOf(soa))
		case m.Rcode == dns.RcodeSuccess && len(out.Answer) == 0 && referral(m):
			return nil, fmt.Errorf("does not resolve, but refers to other servers")
		default:
			life = 0
		}
	}
	p, err := pack(out, k.name, k.qtype)
	if err == nil {
		err = new(dns.Msg).Unpack(p.wire) // package dns can read some messages that it cannot write
	}
	if err != nil {
		return nil, fmt.Errorf("cannot be passed on: %w", err)
	}
	p.life = life
	return p, nil
}

// chain follows the aliases from the question's name. It returns the last name, and whether that
// name has records of the question's type.
func chain(out, m *dns.Msg, k key, ours func(string) bool) (name string, answered bool) {
	name = k.name
	for range maxChain {
		if name != k.name && ours(name) {
			return name, false
		}
		data := of(m.Answer, name, k.qtype, k)
		if len(data) > 0 {
			out.Answer = append(out.Answer, data...)
			return name, true
		}
		alias := of(m.Answer, name, dns.TypeCNAME, k)
		if len(alias) == 0 {
			return name, false
		}
		cname, ok := alias[0].(*dns.CNAME)
		if !ok {
			return name, false // a signature without a CNAME
		}
		out.Answer = append(append(out.Answer, synthesizedFrom(m.Answer, name, k)...), alias...)
		name = strings.ToLower(cname.Target)
	}
	return name, false
}

// of returns the records of a name and a type, with their signatures if requested. Their name is
// written as in the question.
func of(all []dns.RR, name string, rrtype uint16, k key) (out []dns.RR) {
	var signatures []dns.RR
	for _, rr := range all {
		h := rr.Header()
		if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) || hollow(rr) {
			continue
		}
		sig, signature := rr.(*dns.RRSIG)
		switch {
		case h.Rrtype == rrtype && (rrtype != dns.TypeCNAME || k.qtype == dns.TypeCNAME || len(out) == 0):
			out = append(out, rr)
		case signature && k.do && sig.TypeCovered == rrtype:
			signatures = append(signatures, rr)
		default:
			continue
		}
		h.Name = name
		h.Ttl = uint32(ttlOf(rr) / time.Second)
	}
	if len(out) == 0 {
		return nil
	}
	return append(out, signatures...)
}

// synthesizedFrom returns the DNAME from which the alias of a name was made (RFC 6672), if any.
func synthesizedFrom(all []dns.RR, name string, k key) []dns.RR {
	for _, rr := range all {
		if d, ok := rr.(*dns.DNAME); ok {
			owner := strings.ToLower(d.Hdr.Name)
			if rel, below := within(name, owner); below && rel != "" {
				return of(all, owner, dns.TypeDNAME, k)
			}
		}
	}
	return nil
}

// authorities copies the SOA of the name's zone and, with DO, the records that validators need.
func authorities(out, m *dns.Msg, k key, name string) (soa *dns.SOA) {
	for _, rr := range m.Ns {
		h := rr.Header()
		if h.Class != dns.ClassINET || hollow(rr) {
			continue
		}
		h.Ttl = uint32(ttlOf(rr) / time.Second)
		switch rr := rr.(type) {
		case *dns.SOA:
			if _, ok := within(name, strings.ToLower(h.Name)); !ok || soa != nil {
				continue
			}
			h.Name, soa = strings.ToLower(h.Name), rr
		case *dns.NSEC, *dns.NSEC3, *dns.RRSIG:
			if !k.do {
				continue
			}
		default:
			continue
		}
		out.Ns = append(out.Ns, rr)
	}
	return soa
}

// hollow reports whether a record lacks its data. Package dns accepts such records, since they have a
// meaning in updates (RFC 2136).
func hollow(rr dns.RR) bool {
	switch rr.(type) {
	case *dns.RFC3597, *dns.NULL, *dns.APL:
		return false
	}
	return rr.Header().Rdlength == 0
}

// referral reports whether a reply only names other servers.
func referral(m *dns.Msg) bool {
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeNS {
			return true
		}
	}
	return false
}

// ttlOf returns how long a record may be cached. A TTL with the highest bit set counts as 0 (RFC 2181
// 8).
func ttlOf(rr dns.RR) time.Duration {
	ttl := rr.Header().Ttl
	if ttl >= 1<<31 {
		return 0
	}
	return min(time.Duration(ttl)*time.Second, maxLife)
}
