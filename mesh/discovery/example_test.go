package discovery_test

import (
	"fmt"
	"time"

	"weft/mesh/discovery"
	"weft/mesh/peer"
)

// Two hosts start at the same time: the one with the lower id founds the ring.
func Example() {
	start := time.Unix(0, 0)
	lower, higher := discovery.NewSeeker(peer.ID{1}, start), discovery.NewSeeker(peer.ID{2}, start)
	soon := start.Add(time.Second)
	lower.Heard(peer.ID{2}, discovery.Seeking, "the host at 192.0.2.2", soon)
	higher.Heard(peer.ID{1}, discovery.Seeking, "the host at 192.0.2.1", soon)

	later := start.Add(discovery.Quiet)
	fmt.Println("the lower one founds:", lower.Next(later) == discovery.Found)
	fmt.Println("the higher one waits:", higher.Next(later) == discovery.Wait)
	fmt.Println(higher.Why())
	// Output:
	// the lower one founds: true
	// the higher one waits: true
	// the host at 192.0.2.1 has the lower id, so it founds the network
}
