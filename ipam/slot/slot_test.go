package slot

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestBlocksAreAlignedAndCoverTheRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Range{Slot(rapid.Uint32Range(0, 1<<20).Draw(t, "start")), 0}
		r.End = uint64(r.Start) + rapid.Uint64Range(0, 1<<20).Draw(t, "length")
		at := uint64(r.Start)
		for _, b := range r.Blocks() {
			if uint64(b.Start) != at || b.Len()&(b.Len()-1) != 0 || uint64(b.Start)%b.Len() != 0 {
				t.Fatalf("range %v: block %v does not start at the previous end, or is no aligned power of two; want both", r, b)
			}
			at = b.End
		}
		if at != max(r.End, uint64(r.Start)) {
			t.Fatalf("the blocks of range %v end at %d; want the range's end", r, at)
		}
	})
}

func TestSlotsConvertToAddressesAndBack(t *testing.T) {
	u := Universe{V4: DefaultV4, V6: netip.MustParsePrefix("fd01:2:3:4::/96")}
	rapid.Check(t, func(t *rapid.T) {
		s := Slot(rapid.Uint32Range(0, uint32(u.Range().End-1)).Draw(t, "slot"))
		four, ok4 := u.Slot(u.Addr4(s))
		six, ok6 := u.Slot(u.Addr6(s))
		if !ok4 || !ok6 || four != s || six != s {
			t.Fatalf("slot %d: its IPv4 address converts back to %v, its IPv6 address to %v; want the slot", s, four, six)
		}
		for _, p := range u.Prefixes(Range{s, uint64(s) + 1}) {
			if !p.IsSingleIP() || p.Addr() != u.Addr4(s) && p.Addr() != u.Addr6(s) {
				t.Fatalf("slot %d has the prefix %v; want one that contains only its address", s, p)
			}
		}
	})
	for _, outside := range []string{"10.48.0.0", "10.31.255.255", "fd01:2:3:4::10:0", "fd01:2:3:5::1", "192.0.2.1"} {
		if s, ok := u.Slot(netip.MustParseAddr(outside)); ok {
			t.Errorf("address %s outside the universe has slot %d; want none", outside, s)
		}
	}
}

func TestValidateRefusesUnusableUniverses(t *testing.T) {
	for _, tt := range []struct {
		v4, v6 string
		ok     bool
	}{
		{"10.32.0.0/12", "fd00::/96", true},
		{"10.0.0.0/8", "fd00::/64", true},
		{"10.32.0.0/28", "fd00::/124", true},
		{"10.32.0.1/12", "fd00::/96", false},
		{"10.32.0.0/29", "fd00::/96", false},
		{"10.0.0.0/7", "fd00::/96", false},
		{"10.32.0.0/12", "fd00::/120", false},
		{"10.32.0.0/12", "fd00::/48", false},
		{"fd00::/96", "10.32.0.0/12", false},
		{"127.0.0.0/8", "fd00::/96", false},
		{"169.254.0.0/16", "fd00::/96", false}, // this range contains the endpoints' gateway address
		{"224.0.0.0/8", "fd00::/96", false},
		{"255.0.0.0/8", "fd00::/96", false},
		{"0.0.0.0/8", "fd00::/96", false},
		{"10.32.0.0/12", "fe80::/64", false},
		{"10.32.0.0/12", "ff02::/64", false},
		{"10.32.0.0/12", "::/96", false},
	} {
		u := Universe{V4: netip.MustParsePrefix(tt.v4), V6: netip.MustParsePrefix(tt.v6)}
		if err := u.Validate(); (err == nil) != tt.ok {
			t.Errorf("Validate of %v returned %v; want success %v", u, err, tt.ok)
		}
	}
}
