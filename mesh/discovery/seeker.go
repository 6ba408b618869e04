package discovery

import (
	"bytes"
	"fmt"
	"time"

	"weft/mesh/peer"
)

// Quiet is how long a host must hear nothing that holds it back before it founds a ring. Hosts announce
// themselves about ten times in this time.
const Quiet = 5 * time.Second

// Step is what a seeking host does next.
type Step uint8

const (
	// Wait means that the host asks again later.
	Wait Step = iota
	// Found means that the host founds a ring.
	Found
	// Join means that another host has a ring: this host founds none.
	Join
)

// Seeker decides for one host without a ring whether it founds one. Of several hosts that start at the
// same time, the one with the lowest id founds. A Seeker must only be told of announcements that were
// verified.
type Seeker struct {
	self  peer.ID
	quiet time.Time // when this host last began to wait
	join  bool
	why   string
}

// NewSeeker returns the Seeker of a host that begins to listen.
func NewSeeker(self peer.ID, now time.Time) *Seeker { return &Seeker{self: self, quiet: now} }

// Heard takes the announcement of another host. from names that host for people.
func (s *Seeker) Heard(id peer.ID, kind Kind, from string, now time.Time) {
	switch {
	case id == s.self:
	case kind == HasRing:
		s.join = true
	case kind == Deciding:
		s.Hold(fmt.Sprintf("%s is founding the network, or votes about that", from), now)
	case kind == Seeking && bytes.Compare(id[:], s.self[:]) < 0:
		s.Hold(fmt.Sprintf("%s has the lower id, so it founds the network", from), now)
	}
}

// Hold starts the time of silence anew, for a reason.
func (s *Seeker) Hold(why string, now time.Time) { s.quiet, s.why = now, why }

// Next returns what to do now.
func (s *Seeker) Next(now time.Time) Step {
	switch {
	case s.join:
		return Join
	case now.Sub(s.quiet) >= Quiet:
		return Found
	}
	return Wait
}

// Why returns what holds this host back; empty if nothing did.
func (s *Seeker) Why() string { return s.why }
