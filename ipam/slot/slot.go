// Package slot is the arithmetic of the address universe: slots, ranges of slots, and the
// conversion of slots to IPv4 and IPv6 addresses.
//
// A slot is an offset into the universe. One ring serves both address families, so ring, space and
// allocations handle only slots. Universe converts them where addresses are needed.
//
// All types are plain values, safe to copy and to compare.
package slot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
)

// Slot is an offset into the universe.
type Slot uint32

// Range is the half-open range of slots [Start, End). End has 64 bits, so that it can be one more
// than the last of 2^32 slots.
type Range struct {
	Start Slot   `json:"start"`
	End   uint64 `json:"end"`
}

// Len returns the number of slots in r.
func (r Range) Len() uint64 {
	if r.End <= uint64(r.Start) {
		return 0
	}
	return r.End - uint64(r.Start)
}

// Contains reports whether s lies in r.
func (r Range) Contains(s Slot) bool { return s >= r.Start && uint64(s) < r.End }

// Intersect returns the slots that are in both r and o; the result is empty if there are no such
// slots.
func (r Range) Intersect(o Range) Range {
	r.Start, r.End = max(r.Start, o.Start), min(r.End, o.End)
	if r.Len() == 0 {
		return Range{}
	}
	return r
}

// Without returns the parts of r that are not in o.
func (r Range) Without(o Range) (rest []Range) {
	o = r.Intersect(o)
	if o.Len() == 0 {
		return []Range{r}
	}
	for _, part := range []Range{{r.Start, uint64(o.Start)}, {Slot(o.End), r.End}} {
		if part.Len() > 0 {
			rest = append(rest, part)
		}
	}
	return rest
}

func (r Range) String() string { return fmt.Sprintf("[%d,%d)", r.Start, r.End) }

// Blocks divides r into the fewest ranges that are each one CIDR: the size is a power of two, and
// the start a multiple of the size.
func (r Range) Blocks() []Range {
	var out []Range
	for start := uint64(r.Start); start < r.End; {
		size := uint64(1) << min(bits.TrailingZeros64(start|1<<32), bits.Len64(r.End-start)-1)
		out = append(out, Range{Slot(start), start + size})
		start += size
	}
	return out
}

// Universe maps slots to addresses: slot n is V4's address n and V6's address n.
// The zero Universe means that it is not known yet.
type Universe struct {
	V4 netip.Prefix `json:"v4"`
	V6 netip.Prefix `json:"v6"`
}

// DefaultV4 is the IPv4 universe of a mesh whose configuration names none. Weave Net uses the same
// range.
var DefaultV4 = netip.MustParsePrefix("10.32.0.0/12")

// ClusterV6 derives the IPv6 universe from a cluster id: a /96 inside a ULA /64 (RFC 4193). This
// universe is unique to the cluster and the same on every peer, without configuration. hash must
// hold at least 7 bytes of the id's hash.
func ClusterV6(hash []byte) netip.Prefix {
	a := [16]byte{0: 0xfd}
	copy(a[1:8], hash)
	return netip.PrefixFrom(netip.AddrFrom16(a), 96)
}

// Validate returns an error if u cannot serve as a universe.
func (u Universe) Validate() error {
	switch {
	case !u.V4.IsValid() || !u.V4.Addr().Is4():
		return errors.New("universe: the first range must be an IPv4 CIDR, for example 10.32.0.0/12")
	case u.V4.Masked() != u.V4:
		return fmt.Errorf("universe: %v has host bits set; did you mean %v?", u.V4, u.V4.Masked())
	case u.V4.Bits() < 8 || u.V4.Bits() > 28:
		return fmt.Errorf("universe: the prefix length of %v must be from /8 to /28", u.V4)
	case !u.V6.IsValid() || !u.V6.Addr().Is6() || u.V6.Addr().Is4In6():
		return errors.New("universe: the second range must be an IPv6 CIDR, for example fd00:77ef::/96")
	case u.V6.Masked() != u.V6:
		return fmt.Errorf("universe: %v has host bits set; did you mean %v?", u.V6, u.V6.Masked())
	case 128-u.V6.Bits() < 32-u.V4.Bits() || u.V6.Bits() < 64:
		return fmt.Errorf("universe: the prefix length of %v must be from /64 to /%d, to hold as many addresses as %v",
			u.V6, 128-(32-u.V4.Bits()), u.V4)
	}
	for _, a := range []netip.Addr{u.V4.Addr(), u.Addr4(Slot(u.Range().End - 1)), u.V6.Addr()} {
		if !a.IsGlobalUnicast() { // this excludes loopback, link-local, multicast and broadcast addresses
			return fmt.Errorf("universe: %v cannot be a host address: use a private range, for example 10.32.0.0/12", a)
		}
	}
	return nil
}

// IsZero reports whether the universe is not known yet.
func (u Universe) IsZero() bool { return !u.V4.IsValid() }

// Range returns every slot of the universe.
func (u Universe) Range() Range {
	if u.IsZero() {
		return Range{}
	}
	return Range{0, 1 << (32 - u.V4.Bits())}
}

// Usable returns Range without its first and last slot. Routing does not reserve them, but some
// software treats them as network, broadcast or subnet-router anycast addresses. So they are never
// allocated.
func (u Universe) Usable() Range {
	r := u.Range()
	return Range{r.Start + 1, r.End - 1}
}

// Addr4 returns the IPv4 address of s.
func (u Universe) Addr4(s Slot) netip.Addr {
	a := u.V4.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+uint32(s))
	return netip.AddrFrom4(a)
}

// Addr6 returns the IPv6 address of s.
func (u Universe) Addr6(s Slot) netip.Addr {
	a := u.V6.Addr().As16()
	low := binary.BigEndian.Uint64(a[8:]) + uint64(s)
	binary.BigEndian.PutUint64(a[8:], low)
	return netip.AddrFrom16(a)
}

// Slot returns the slot of an IPv4 or IPv6 address, and false if the address is outside u.
func (u Universe) Slot(a netip.Addr) (Slot, bool) {
	a = a.Unmap()
	switch {
	case u.IsZero():
		return 0, false
	case a.Is4() && u.V4.Contains(a):
		b, base := a.As4(), u.V4.Addr().As4()
		return Slot(binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(base[:])), true
	case a.Is6() && u.V6.Contains(a):
		b, base := a.As16(), u.V6.Addr().As16()
		n := binary.BigEndian.Uint64(b[8:]) - binary.BigEndian.Uint64(base[8:])
		if n >= u.Range().End {
			return 0, false
		}
		return Slot(n), true
	}
	return 0, false
}

// Cut returns the slots whose addresses lie in p, an IPv4 or IPv6 prefix.
func (u Universe) Cut(p netip.Prefix) Range {
	p = p.Masked()
	whole, bits := u.V6, 128
	if p.Addr().Is4() {
		whole, bits = u.V4, 32
	}
	switch {
	case u.IsZero() || !whole.Overlaps(p):
		return Range{}
	case p.Bits() <= whole.Bits():
		return u.Range()
	}
	first, ok := u.Slot(p.Addr())
	if !ok {
		return Range{}
	}
	return Range{first, uint64(first) + 1<<min(32, bits-p.Bits())}.Intersect(u.Range())
}

// Prefixes returns the CIDRs that contain exactly the slots of r, IPv4 before IPv6.
func (u Universe) Prefixes(r Range) []netip.Prefix {
	blocks := r.Intersect(u.Range()).Blocks()
	out := make([]netip.Prefix, 0, 2*len(blocks))
	for _, b := range blocks {
		out = append(out, netip.PrefixFrom(u.Addr4(b.Start), 32-bits.TrailingZeros64(b.Len())))
	}
	for _, b := range blocks {
		out = append(out, netip.PrefixFrom(u.Addr6(b.Start), 128-bits.TrailingZeros64(b.Len())))
	}
	return out
}

// Cover returns the two prefixes that contain exactly the slots of u: V4, and the part of V6 that
// slots map to.
func (u Universe) Cover() []netip.Prefix { return u.Prefixes(u.Range()) }

func (u Universe) String() string {
	if u.IsZero() {
		return "unknown"
	}
	return u.V4.String() + "," + u.V6.String()
}
