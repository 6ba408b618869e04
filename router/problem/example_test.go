package problem_test

import (
	"fmt"

	"weft/router/problem"
)

// A problem is one line for people. Its key stays the same while its text changes.
func Example() {
	blocked := func(packets int) problem.Problem {
		return problem.Problem{
			Reason: problem.Host, About: "filter FORWARD",
			What:   fmt.Sprintf("the firewall dropped %d packets", packets),
			Effect: "containers do not reach each other",
			Fix:    "accept packets of the interface weft",
		}
	}
	fmt.Println(blocked(7))
	fmt.Println(blocked(7).Key() == blocked(8).Key())
	// Output:
	// the firewall dropped 7 packets: containers do not reach each other. Accept packets of the interface weft
	// true
}
