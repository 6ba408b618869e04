package paxos_test

import (
	"fmt"
	"net/netip"

	"weft/ipam/paxos"
	"weft/mesh/peer"
)

// Three hosts start together. Each host merges the states that the others send, and stores its own
// state before it sends that. All three hosts found the same ring.
func Example() {
	voters := make([]paxos.State, 3)
	for i := range voters {
		s, err := paxos.New(peer.ID{byte(i + 1)}, paxos.Terms{Expect: 3})
		if err != nil {
			panic(err)
		}
		voters[i] = s
	}
	voters[0], _ = voters[0].Propose()
	for range 4 { // each pass is a round of gossip
		for i := range voters {
			for j := range voters {
				voters[i], _, _ = voters[i].Merge(voters[j])
			}
			voters[i], _, _ = voters[i].Advance(func(known []peer.ID) paxos.Value {
				return paxos.Value{
					Ring: [16]byte{byte(i + 1)}, Cluster: [16]byte{9}, Founders: known,
					V4: netip.MustParsePrefix("10.32.0.0/12"), V6: netip.MustParsePrefix("fd00::/96"),
				}
			})
		}
	}
	for _, s := range voters {
		v, ok := s.Decided()
		fmt.Println(ok, v.Ring[0], len(v.Founders))
	}
	// Output:
	// true 1 3
	// true 1 3
	// true 1 3
}
