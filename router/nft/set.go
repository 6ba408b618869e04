package nft

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"weft/router/policy"
)

// Set is a named set, or a map from keys to chains.
type Set struct {
	Name     string
	Key      Key
	Interval bool // whether elements are intervals from First to Last
	Counter  bool // whether each element counts its packets
	Jumps    bool // a verdict map: each element names a chain to jump to
	Elements Elements
	// If Size is not 0, the kernel adds elements by itself, up to this number, and deletes each after
	// Timeout.
	Size    uint32
	Timeout time.Duration
}

// Elements are the sorted elements of a set. Consecutive programs usually differ in one element of
// thousands, so elements are only encoded when needed.
type Elements interface {
	Len() int
	All() []Element
	// Missing returns the elements that the list others lacks.
	Missing(others Elements) []Element
}

// values implements Elements for a sorted list of values, which encode turns into elements.
type values[T comparable] struct {
	list    []T // sorted
	compare func(a, b T) int
	encode  func(T) Element
}

func (v values[T]) Len() int { return len(v.list) }

func (v values[T]) All() []Element {
	out := make([]Element, len(v.list))
	for i, one := range v.list {
		out[i] = v.encode(one)
	}
	return out
}

func (v values[T]) Missing(others Elements) (out []Element) {
	o, ok := others.(values[T])
	if !ok {
		return v.All()
	}
	i := 0
	for _, one := range v.list {
		for i < len(o.list) && v.compare(o.list[i], one) < 0 {
			i++
		}
		if i == len(o.list) || o.list[i] != one {
			out = append(out, v.encode(one))
		}
	}
	return out
}

// encoded returns elements that are already encoded, and sorts them.
func encoded(list []Element) Elements {
	slices.SortFunc(list, compareElements)
	return values[Element]{slices.Compact(list), compareElements, func(e Element) Element { return e }}
}

// addresses returns the elements of sorted addresses.
func addresses(list []netip.Addr) Elements {
	return values[netip.Addr]{list, netip.Addr.Compare, func(a netip.Addr) Element { return Element{First: string(a.AsSlice())} }}
}

// services returns the elements of sorted services.
func services(k Key, list []policy.Service) Elements {
	return values[policy.Service]{list, policy.Service.Compare, func(v policy.Service) Element {
		return Element{First: k.encode(v.Addr.AsSlice(), []byte{byte(v.Protocol)}, []byte(bigEndian(v.Port)))}
	}}
}

// ofFamily returns the part of a sorted list that has addresses of one family. IPv4 comes before
// IPv6.
func ofFamily[T any](list []T, is4 bool, addr func(T) netip.Addr) []T {
	n := sort.Search(len(list), func(i int) bool { return addr(list[i]).Is6() })
	if is4 {
		return list[:n]
	}
	return list[n:]
}

// Key is the type of a set's keys: one value or a concatenation.
type Key []kind

// kind is the type of one value in a key.
type kind struct {
	word  string // the name of the type in nft's syntax
	data  nftables.SetDatatype
	size  int // in bytes; a concatenation pads each value to a multiple of four
	print func([]byte) string
}

// These are the types of values.
var (
	addr4 = kind{"ipv4_addr", nftables.TypeIPAddr, 4, printAddr}
	addr6 = kind{"ipv6_addr", nftables.TypeIP6Addr, 16, printAddr}
	proto = kind{"inet_proto", nftables.TypeInetProto, 1, func(b []byte) string { return protocolName(b[0]) }}
	port  = kind{"inet_service", nftables.TypeInetService, 2, func(b []byte) string { return fmt.Sprint(int(b[0])<<8 | int(b[1])) }}
)

func addrKind(is4 bool) kind {
	if is4 {
		return addr4
	}
	return addr6
}

func printAddr(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

func protocolName(number byte) string {
	switch number {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	}
	return fmt.Sprint(number)
}

// Element is an element in the kernel's encoding, in network byte order.
type Element struct {
	First, Last string // Last is the end of an interval, inclusive
	Chain       string // the chain to jump to, in a verdict map
}

// datatype returns the library's type of the key.
func (k Key) datatype() nftables.SetDatatype {
	if len(k) == 1 {
		return k[0].data
	}
	var types []nftables.SetDatatype
	for _, one := range k {
		types = append(types, one.data)
	}
	return nftables.MustConcatSetType(types...)
}

func (k Key) String() string {
	words := make([]string, len(k))
	for i, one := range k {
		words[i] = one.word
	}
	return strings.Join(words, " . ")
}

// encode returns the bytes of a key with the given values.
func (k Key) encode(values ...[]byte) string {
	if len(k) == 1 {
		return string(values[0])
	}
	var b []byte
	for _, v := range values {
		b = append(b, v...)
		b = append(b, make([]byte, padding(len(v)))...)
	}
	return string(b)
}

func padding(size int) int { return -size & 3 }

// print returns a key in nft's syntax.
func (k Key) print(key string) string {
	var words []string
	for _, one := range k {
		words = append(words, one.print([]byte(key[:one.size])))
		key = key[min(one.size+padding(one.size), len(key)):]
	}
	return strings.Join(words, " . ")
}

// print returns an element in nft's syntax, which prefers prefixes to intervals.
func (s Set) print(e Element) string {
	out := s.Key.print(e.First)
	switch {
	case e.Chain != "":
		return out + " : jump " + e.Chain
	case !s.Interval || e.First == e.Last:
		return out
	}
	if n := prefix(e.First, e.Last); n >= 0 && len(e.First) > 2 {
		return fmt.Sprintf("%s/%d", out, n)
	}
	return out + "-" + s.Key.print(e.Last)
}

// prefix returns the prefix length of an interval, or -1 if it is no prefix.
func prefix(first, last string) int {
	n, rest := 0, false
	for i := range len(first) {
		x := first[i] ^ last[i]
		switch {
		case rest && (x != 0xff || first[i] != 0):
			return -1
		case rest:
		case x == 0:
			n += 8
		default:
			same := bits.LeadingZeros8(x)
			if low := byte(0xff) >> same; x != low || first[i]&low != 0 {
				return -1
			}
			n, rest = n+same, true
		}
	}
	return n
}

// String returns the set in nft's syntax.
func (s Set) String() string {
	var b strings.Builder
	word, value := "set", ""
	if s.Jumps {
		word, value = "map", " : verdict"
	}
	fmt.Fprintf(&b, "\t%s %s {\n\t\ttype %v%s\n", word, s.Name, s.Key, value)
	if s.Interval {
		b.WriteString("\t\tflags interval\n")
	}
	if s.Counter {
		b.WriteString("\t\tcounter\n")
	}
	if s.Size > 0 {
		fmt.Fprintf(&b, "\t\tsize %d\n\t\tflags dynamic,timeout\n\t\ttimeout %s\n", s.Size, strings.TrimSuffix(s.Timeout.String(), "0s"))
	}
	if s.Elements.Len() > 0 {
		words := make([]string, s.Elements.Len())
		for i, e := range s.Elements.All() {
			if words[i] = s.print(e); s.Counter {
				words[i] += " counter"
			}
		}
		fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(words, ", "))
	}
	b.WriteString("\t}\n")
	return b.String()
}

// alike reports whether one set can become the other by changing its elements.
func (s *Set) alike(o *Set) bool {
	return s == o || s.Interval == o.Interval && s.Counter == o.Counter && s.Jumps == o.Jumps && s.Size == o.Size && s.Timeout == o.Timeout &&
		slices.EqualFunc(s.Key, o.Key, func(a, b kind) bool { return a.word == b.word })
}

// missing returns the elements of s that another set lacks.
func (s *Set) missing(other *Set) (out []Element) {
	return s.Elements.Missing(other.Elements)
}

func compareElements(a, b Element) int {
	if c := strings.Compare(a.First, b.First); c != 0 {
		return c
	}
	return strings.Compare(a.Chain, b.Chain)
}

// library returns the set in the library's form.
func (s Set) library(id uint32) *nftables.Set {
	set := &nftables.Set{
		Table: table, Name: s.Name, ID: id, Interval: s.Interval, Counter: s.Counter,
		KeyType: s.Key.datatype(), Concatenation: len(s.Key) > 1,
	}
	if s.Size > 0 {
		set.Dynamic, set.HasTimeout, set.Timeout, set.Size = true, true, s.Timeout, s.Size
	}
	if s.Jumps {
		set.IsMap, set.DataType = true, nftables.TypeVerdict
	}
	return set
}

// forLibrary returns elements in the library's form. An interval becomes two elements: its first value,
// and the value after its last value, if there is one.
func (s Set) forLibrary(list []Element) (out []nftables.SetElement) {
	for _, e := range list {
		one := nftables.SetElement{Key: []byte(e.First)}
		if e.Chain != "" {
			one.VerdictData = jump(e.Chain)
		}
		out = append(out, one)
		if s.Interval {
			if next := successor(e.Last); next != nil {
				out = append(out, nftables.SetElement{Key: next, IntervalEnd: true})
			}
		}
	}
	return out
}

// successor returns the next value, or nil after the largest.
func successor(value string) []byte {
	b := []byte(value)
	for i := range slices.Backward(b) {
		if b[i]++; b[i] != 0 {
			return b
		}
	}
	return nil
}
