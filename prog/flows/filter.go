package flows

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/router/policy"
)

// Filter selects flows for which all conditions hold. The zero value of a condition holds for all.
type Filter struct {
	From, To  Ends
	Port      uint16 // of the destination, before or after its NAT
	Protocols []policy.Protocol
	Verdict   Verdict
	Since     time.Time // of the last packet or change
}

// Ends selects ends of flows, by an address or by names; all of them if it is zero.
type Ends struct {
	Block           netip.Prefix
	Namespace, Name string
}

// ParseEnds reads an address, a CIDR, NAME, NAMESPACE/NAME or NAMESPACE/. Every word is one of them.
func ParseEnds(word string) Ends {
	if a, err := netip.ParseAddr(word); err == nil {
		a = a.Unmap().WithZone("")
		return Ends{Block: netip.PrefixFrom(a, a.BitLen())}
	}
	if p, err := netip.ParsePrefix(word); err == nil {
		return Ends{Block: p.Masked()}
	}
	namespace, name, two := strings.Cut(word, "/")
	if !two {
		return Ends{Name: word}
	}
	return Ends{Namespace: namespace, Name: name}
}

func (e Ends) fits(a netip.Addr, is *End) bool {
	if e.Block.IsValid() {
		return e.Block.Contains(a)
	}
	return (e.Namespace == "" || strings.EqualFold(e.Namespace, is.Namespace)) && (e.Name == "" || strings.EqualFold(e.Name, is.Name))
}

// Fits reports whether all conditions hold for a flow, which must have facts.
func (f Filter) Fits(one *Flow) bool {
	e, before := &one.Entry, one.Entry.Original.Dst
	return (f.Port == 0 || e.ReplySrc.Port() == f.Port || before.Port() == f.Port) &&
		(f.Verdict == Unknown || one.Facts.Verdict == f.Verdict) && !one.Last().Before(f.Since) &&
		(f.Protocols == nil || slices.Contains(f.Protocols, e.Original.Protocol)) && f.From.fits(e.Original.Src.Addr(), one.Facts.From) &&
		(f.To.fits(e.ReplySrc.Addr(), one.Facts.To) || f.To.Block.IsValid() && f.To.Block.Contains(before.Addr()))
}
