package slot_test

import (
	"fmt"
	"net/netip"

	"weft/ipam/slot"
)

// One slot has an address in each family.
func ExampleUniverse() {
	u := slot.Universe{V4: slot.DefaultV4, V6: netip.MustParsePrefix("fd00::/96")}
	s, ok := u.Slot(netip.MustParseAddr("10.32.0.5"))
	fmt.Println(s, ok, u.Addr4(s), u.Addr6(s))
	fmt.Println(u.Prefixes(slot.Range{Start: 4, End: 8}))
	// Output:
	// 5 true 10.32.0.5 fd00::5
	// [10.32.0.4/30 fd00::4/126]
}

// Any range consists of few CIDRs.
func ExampleRange_Blocks() {
	fmt.Println(slot.Range{Start: 3, End: 17}.Blocks())
	// Output:
	// [[3,4) [4,8) [8,16) [16,17)]
}
