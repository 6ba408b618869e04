package ring_test

import (
	"fmt"
	"net/netip"

	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
)

var (
	universe  = slot.Universe{V4: netip.MustParsePrefix("10.32.0.0/24"), V6: netip.MustParsePrefix("fd00::/96")}
	h1, h2    = peer.ID{1}, peer.ID{2}
	ringID    = ring.ID{1}
	clusterID = [16]byte{1}
)

func print(r ring.Ring) {
	for _, s := range r.Segments() {
		fmt.Println(s.Owner, universe.Prefixes(s.Range)[0])
	}
}

// The founder owns all slots, and grants some to a peer that joins. The delta carries the grant to
// all other peers.
func Example() {
	founded := ring.Found(ringID, clusterID, universe, h1)
	granted, delta, err := founded.Grant(h1, h2, slot.Range{Start: 128, End: 256})
	if err != nil {
		panic(err)
	}
	merged, _, err := founded.Merge(delta) // every other peer merges the delta like this
	fmt.Println(merged.Equal(granted), err)
	print(merged)
	// Output:
	// true <nil>
	// 0100000000000000 10.32.0.0/25
	// 0200000000000000 10.32.0.128/25
}

// A take-over overrides a grant that the dead peer made meanwhile, in whichever order take-over
// and grant arrive.
func ExampleRing_TakeOver() {
	founded := ring.Found(ringID, clusterID, universe, h1, h2)
	h3 := peer.ID{3}
	_, grant, _ := founded.Grant(h2, h3, slot.Range{Start: 192, End: 256})
	_, takeOver, _ := founded.TakeOver(h2, h1)

	first, _, _ := founded.Merge(grant)
	first, _, _ = first.Merge(takeOver)
	second, _, _ := founded.Merge(takeOver)
	second, _, _ = second.Merge(grant)
	fmt.Println(first.Equal(second))
	fmt.Println(first.Owned()[h1], first.Owned()[h3])
	// Output:
	// true
	// [[0,256)] []
}
