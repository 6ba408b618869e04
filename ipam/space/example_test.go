package space_test

import (
	"fmt"

	"weft/ipam/slot"
	"weft/ipam/space"
)

// A released slot is not allocated again before its quarantine has ended.
func Example() {
	owned := []slot.Range{{Start: 0, End: 4}}
	s := space.New(owned, owned, nil)
	first, _ := s.Take()
	second, _ := s.Take()
	fmt.Println("allocated", first, "and", second)

	s.Give(first)
	s.Quarantine(space.Quarantined{Slot: first, Until: 60})
	s.Release(30) // at second 30, the quarantine has not ended
	fmt.Println(s.Free(), "free,", len(s.Quarantined()), "in quarantine")
	s.Release(60)
	fmt.Println(s.Free(), "free,", len(s.Quarantined()), "in quarantine")
	// Output:
	// allocated 0 and 1
	// 2 free, 1 in quarantine
	// 3 free, 0 in quarantine
}

// A peer that asks for space gets about half of what is free, as one CIDR.
func ExampleSpace_Donate() {
	owned := []slot.Range{{Start: 0, End: 256}}
	s := space.New(owned, owned, []slot.Slot{5})
	gift, ok := s.Donate()
	fmt.Println(gift, ok, s.Free())
	// Output:
	// [128,256) true 127
}
