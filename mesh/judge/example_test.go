package judge_test

import (
	"fmt"
	"net/netip"

	"weft/mesh/judge"
)

// rules knows the runs a, b and me, which have promised incarnations up to 10.
type rules struct{}

func (rules) Self() string                  { return "me" }
func (rules) Left(string) bool              { return false }
func (rules) Ceiling(string) (uint32, bool) { return 10, true }
func (rules) CeilingIn([]byte, string, netip.Addr, uint16) (uint32, error) {
	return 10, nil
}
func (rules) Told(uint32)         {}
func (rules) Doubted(string)      {}
func (rules) Excused(string) bool { return false }

func (rules) Accuse(liar, about, what string) { fmt.Println(liar, "lied about", about+":", what) }

// Run a declares run b dead. memberlist only hears that a suspects b, and a is accused once b
// answers.
func Example() {
	j := judge.New(rules{})
	const dead, suspect = "\x05", "\x03"
	message := dead + "\x83\xabIncarnation\x01\xa4Node\xa1b\xa4From\xa1a"

	passed, ok := j.Packet("a", []byte(message))
	fmt.Println(ok, string(passed[:1]) == suspect)
	j.Alive("b")

	_, ok = j.Packet("b", []byte(message)) // b has no such verdict of a to pass on
	fmt.Println(ok)
	// Output:
	// true true
	// a lied about b: declared it dead, but it lives
	// b lied about b: passed on another run's verdict that it is dead, which no honest peer does
	// false
}
