package directory_test

import (
	"crypto/ed25519"
	"fmt"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
)

// owners is a ring that maps each slot to its owner.
type owners map[slot.Slot]peer.ID

func (o owners) Owner(s slot.Slot) (peer.ID, bool) {
	id, ok := o[s]
	return id, ok
}

// Each peer signs the set of its own endpoints. An entry counts while the ring says that its peer
// owns the slot.
func Example() {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	h1 := peer.IDOf(key.Public().(ed25519.PublicKey))
	set, _, err := directory.Next(nil, []directory.Endpoint{
		{ID: "c1/eth0", Name: "web", Slots: []slot.Slot{5}},
		{ID: "c2/eth0", Name: "db", Slots: []slot.Slot{6}},
	}, 0, key)
	if err != nil {
		panic(err)
	}
	d := directory.New()
	d.Put(set)
	ring := owners{5: h1, 6: {9}} // by now another peer owns slot 6
	for _, name := range []string{"web", "db"} {
		entries, _ := d.Lookup(name, ring)
		for _, e := range entries {
			fmt.Println(e.Name, "is", e.ID, "on", e.Owner)
		}
	}
	// Output:
	// web is c1/eth0 on 139e3940e64b5491
}

// A change travels as a delta, which fits only the version that it was made for.
func ExampleSet_Apply() {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	first, _, _ := directory.Next(nil, []directory.Endpoint{{ID: "c1/eth0", Slots: []slot.Slot{5}}}, 0, key)
	second, _, _ := directory.Next(first, nil, 0, key)
	third, delta, _ := directory.Next(second, []directory.Endpoint{{ID: "c2/eth0", Slots: []slot.Slot{6}}}, 0, key)

	got, err := second.Apply(*delta)
	fmt.Println(got.Digest == third.Digest, err)
	_, err = first.Apply(*delta)
	fmt.Println(err)
	// Output:
	// true <nil>
	// directory: the delta is for another version of the set
}
