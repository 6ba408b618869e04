package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
)

// authority answers for the mesh's own zones. The answer depends only on the question, the directory
// and a random order.
type authority struct {
	domain      string
	ttl         uint32
	preferLocal bool
	self        peer.ID
	names       Names
	nodes       func() []netip.Addr // the addresses of ns.dns.DOMAIN
}

// nameServer is the name of this server, relative to the domain. Endpoints cannot take it.
const nameServer = "ns.dns"

// answer answers a question about a name in one of the mesh's zones. If ours is false, an upstream
// must be asked.
func (a *authority) answer(name string, qtype uint16) (r reply, ours bool) {
	if rel, ok := within(name, a.domain); ok {
		return a.forward(name, rel, qtype), true
	}
	if !strings.HasSuffix(name, ".arpa.") {
		return reply{}, false
	}
	p, rest, ok := spelled(name)
	if !ok {
		return reply{}, false
	}
	u := a.names.Universe()
	apex, ok := reverseZone(u, name, p)
	if !ok {
		return reply{}, false
	}
	return a.reverse(u, name, apex, p, rest, qtype), true
}

// owns reports whether a name lies in one of the mesh's zones.
func (a *authority) owns(name string) bool {
	if _, ok := within(name, a.domain); ok {
		return true
	}
	p, _, ok := spelled(name)
	if ok {
		_, ok = reverseZone(a.names.Universe(), name, p)
	}
	return ok
}

// node is what exists at a name in the domain.
type node struct {
	exists  bool // true also without any record
	entries []directory.Entry
	addrs   []netip.Addr // the addresses to answer, if not all of the entries'; nil: all
	srv     []service
}

// service is one SRV record (RFC 2782).
type service struct {
	entry directory.Entry
	of    string // the name under which it was found
	port  uint16
}

// forward answers a question about a name in the domain.
func (a *authority) forward(name, rel string, qtype uint16) reply {
	u := a.names.Universe()
	if u.IsZero() {
		return reply{rcode: dns.RcodeServerFailure} // the directory is not known yet
	}
	if rel == "" {
		return a.apex(name, qtype)
	}
	n := a.find(u, rel)
	if !n.exists {
		return a.missing(a.domain)
	}
	var r reply
	switch qtype {
	case dns.TypeA, dns.TypeAAAA:
		r.addrs = a.order(u, n, qtype == dns.TypeA)
	case dns.TypeTXT:
		for _, e := range n.entries {
			r.answer = append(r.answer, a.text(name, e))
		}
	case dns.TypeSRV:
		a.services(&r, u, name, n.srv)
	}
	if len(r.addrs)+len(r.answer) == 0 {
		return a.noData(a.domain)
	}
	return r
}

// find returns what exists at a name relative to the domain: entries with that name, services of
// entries, and single addresses of entries. It looks for services and single addresses only if no
// entry has the name.
func (a *authority) find(u slot.Universe, rel string) (n node) {
	switch {
	case strings.Contains(rel, `\`):
		return node{} // names have no characters that need escapes
	case rel == nameServer:
		return node{exists: true, addrs: a.nodes()}
	case rel == "dns":
		n.exists = true
	}
	entries, exists := a.names.Lookup(rel)
	n.exists = n.exists || exists
	if n.entries = entries; len(entries) > 0 {
		return n
	}
	label, name, ok := strings.Cut(rel, ".")
	if !ok {
		return n
	}
	if label[0] == '_' {
		return a.findService(n, label, name)
	}
	addr, ok := undashed(label)
	if !ok {
		return n
	}
	entries, _ = a.names.Lookup(name)
	for _, e := range entries {
		if same := together(u, e, addr); same != nil {
			n.exists, n.entries, n.addrs = true, append(n.entries, e), append(n.addrs, same...)
		}
	}
	return n
}

// findService searches _service._protocol.name and _protocol.name. The latter exists if an entry
// of name has a port of this protocol.
func (a *authority) findService(n node, label, name string) node {
	port, protocol := "", label[1:]
	if next, rest, ok := strings.Cut(name, "."); ok && next[0] == '_' {
		port, protocol, name = label[1:], next[1:], rest
	}
	if protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
		return n
	}
	entries, exists := a.names.Lookup(name)
	if exists && len(entries) == 0 {
		// Its entries may be unreachable, so do not deny that the name exists.
		n.exists = true
	}
	for _, e := range entries {
		for _, p := range e.Ports {
			switch {
			case p.Protocol != protocol:
			case port == "":
				n.exists = true
			case p.Name == port:
				n.exists, n.srv = true, append(n.srv, service{e, name, p.Number})
			}
		}
	}
	return n
}

// together returns all addresses of the interface of e that has addr: IPv4 and IPv6 clients must both
// reach it. It returns nil if e does not have addr.
func together(u slot.Universe, e directory.Entry, addr netip.Addr) []netip.Addr {
	if s, ok := u.Slot(addr); ok {
		switch {
		case !slices.Contains(e.Slots, s) || e.IPv4Only && addr.Is6():
			return nil
		case e.IPv4Only:
			return []netip.Addr{u.Addr4(s)}
		}
		return []netip.Addr{u.Addr4(s), u.Addr6(s)}
	}
	if slices.Contains(e.Outside, addr) {
		return []netip.Addr{addr}
	}
	return nil
}

// dashed formats an address as a label: 10-32-0-5, fd00-77ef--5.
func dashed(a netip.Addr) string { return dashes.Replace(a.String()) }

var dashes = strings.NewReplacer(".", "-", ":", "-")

// undashed parses a label made by dashed.
func undashed(label string) (netip.Addr, bool) {
	if !strings.Contains(label, "-") {
		return netip.Addr{}, false
	}
	for _, by := range []string{".", ":"} {
		if a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", by)); err == nil && !a.Is4In6() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// order returns the addresses of one family, without duplicates, in random order. With preferLocal,
// those on this host come first.
func (a *authority) order(u slot.Universe, n node, v4 bool) []netip.Addr {
	var near, far []netip.Addr
	take := func(to, addrs []netip.Addr) []netip.Addr {
		for _, addr := range addrs {
			if addr.Is4() == v4 {
				to = append(to, addr)
			}
		}
		return to
	}
	if n.addrs != nil {
		far = take(nil, n.addrs)
	} else {
		for _, e := range n.entries {
			if a.preferLocal && e.Owner == a.self {
				near = take(near, e.Addrs(u))
			} else {
				far = take(far, e.Addrs(u))
			}
		}
	}
	near, far = unique(near), unique(far)
	if len(near) > 0 {
		far = slices.DeleteFunc(far, func(addr netip.Addr) bool {
			_, both := slices.BinarySearchFunc(near, addr, netip.Addr.Compare)
			return both
		})
	}
	shuffle(near)
	shuffle(far)
	return append(near, far...)
}

func unique(addrs []netip.Addr) []netip.Addr {
	if len(addrs) < 2 {
		return addrs
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func shuffle[T any](all []T) {
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
}

// services adds SRV records and the addresses of their targets. All have the same priority and
// weight, so the client chooses.
func (a *authority) services(r *reply, u slot.Universe, name string, srv []service) {
	shuffle(srv)
	known := map[string]bool{}
	for _, s := range srv {
		addrs := s.entry.Addrs(u)
		if len(addrs) == 0 {
			continue
		}
		target := a.full(dashed(addrs[0]) + "." + s.of)
		if target == "" {
			continue
		}
		r.answer = append(r.answer, &dns.SRV{Hdr: a.header(name, dns.TypeSRV), Weight: 100, Port: s.port, Target: target})
		if known[target] {
			continue
		}
		known[target] = true
		r.extra = append(r.extra, a.glue(target, together(u, s.entry, addrs[0]))...)
	}
}

// glue returns the address records of a name.
func (a *authority) glue(name string, addrs []netip.Addr) (out []dns.RR) {
	for _, addr := range addrs {
		if addr.Is4() {
			out = append(out, &dns.A{Hdr: a.header(name, dns.TypeA), A: addr.AsSlice()})
		} else {
			out = append(out, &dns.AAAA{Hdr: a.header(name, dns.TypeAAAA), AAAA: addr.AsSlice()})
		}
	}
	return out
}

// text returns a TXT record with the peer and the id of an entry. A string of a TXT record has at
// most 255 bytes (RFC 1035 3.3.14), so longer texts are split.
func (a *authority) text(name string, e directory.Entry) dns.RR {
	t := &dns.TXT{Hdr: a.header(name, dns.TypeTXT)}
	for _, s := range []string{"peer=" + a.names.PeerName(e.Owner), "id=" + e.ID} {
		for ; s != ""; s = s[min(255, len(s)):] {
			// Package dns interprets backslashes in TXT strings.
			t.Txt = append(t.Txt, strings.ReplaceAll(s[:min(255, len(s))], `\`, `\\`))
		}
	}
	return t
}

// reverse answers a question about a name in one of the reverse zones.
func (a *authority) reverse(u slot.Universe, name, apex string, p netip.Prefix, rest string, qtype uint16) reply {
	if name == apex && (qtype == dns.TypeSOA || qtype == dns.TypeNS) {
		return a.apex(name, qtype)
	}
	s, inside := u.Slot(p.Addr())
	var e directory.Entry
	var exists bool
	switch {
	case rest != "":
	case !p.IsSingleIP():
		exists = u.Cut(p).Len() > 0 // addresses below it could have names (RFC 8020)
	case inside:
		e, exists = a.names.At(s)
		exists = exists && (p.Addr().Is4() || !e.IPv4Only)
	}
	if !exists && name != apex {
		return a.missing(apex)
	}
	var r reply
	if exists && qtype == dns.TypePTR {
		for _, n := range e.Names() {
			if target := a.full(n); target != "" {
				r.answer = append(r.answer, &dns.PTR{Hdr: a.header(name, dns.TypePTR), Ptr: target})
			}
		}
	}
	if len(r.answer) == 0 {
		return a.noData(apex)
	}
	return r
}

// apex answers a question about the apex of a zone. It only has SOA and NS records.
func (a *authority) apex(zone string, qtype uint16) reply {
	switch qtype {
	case dns.TypeSOA:
		return reply{answer: []dns.RR{a.soa(zone)}}
	case dns.TypeNS:
		ns := nameServer + "." + a.domain
		return reply{
			answer: []dns.RR{&dns.NS{Hdr: a.header(zone, dns.TypeNS), Ns: ns}},
			extra:  a.glue(ns, a.nodes()),
		}
	}
	return a.noData(zone)
}

// noData answers that a name exists, but has no record of the type. missing answers that neither the
// name nor any name below it exists. The SOA limits how long that is cached (RFC 2308 3).
func (a *authority) noData(zone string) reply { return reply{ns: []dns.RR{a.soa(zone)}} }

func (a *authority) missing(zone string) reply {
	return reply{rcode: dns.RcodeNameError, ns: []dns.RR{a.soa(zone)}}
}

// soa returns a zone's SOA record. There are no zone transfers, so only its last field matters: the
// TTL of negative answers.
func (a *authority) soa(zone string) dns.RR {
	return &dns.SOA{
		Hdr: a.header(zone, dns.TypeSOA),
		Ns:  nameServer + "." + a.domain, Mbox: "hostmaster." + a.domain,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: a.ttl,
	}
}

func (a *authority) header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: a.ttl}
}

// full returns a name below the domain, or "" if it is too long.
func (a *authority) full(rel string) string {
	if len(rel)+1+len(a.domain) > 254 { // with the final dot: 255 bytes on the wire
		return ""
	}
	return rel + "." + a.domain
}

// local answers a question about a special name.
func (a *authority) local(zone string, qtype uint16) reply {
	addrs := special[zone]
	if addrs == nil {
		return a.missing(zone)
	}
	for _, addr := range addrs {
		if qtype == dns.TypeA && addr.Is4() || qtype == dns.TypeAAAA && addr.Is6() {
			return reply{addrs: []netip.Addr{addr}}
		}
	}
	return a.noData(zone)
}
