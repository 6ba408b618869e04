package path

import (
	"math/bits"
	"net/netip"
	"slices"
	"time"
)

// address is one address of a peer.
type address struct {
	to       netip.AddrPort
	own      netip.Addr // at which its last answer arrived
	detour   *detour    // nil: packets go there directly
	learned  time.Time  // when a probe last came from it; zero: it is in the record
	check    bool       // ask it as soon as possible
	left     time.Time  // when the tunnel last left it, because the data of the peer came from another one
	answered time.Time
	streak   int           // answers since the alarm began
	rtt      time.Duration // the mean of the first samples, and then smoothed
	samples  int
	last     [compared]time.Duration // the last samples
	sampled  time.Time               // the last one
	outcomes uint32                  // the last questions, the newest in bit 0; 1: answered
	asked    int
}

// note records the outcome of a question.
func (a *address) note(answered bool) {
	a.outcomes <<= 1
	if answered {
		a.outcomes |= 1
	}
	a.asked++
}

// measured takes a round trip. After a long time without one, those of before say nothing.
func (a *address) measured(now time.Time, rtt time.Duration) {
	const smoothing = 8
	if now.Sub(a.sampled) > othersEvery/2 {
		a.samples = 0
	}
	a.last[a.samples%compared] = rtt
	a.samples++
	a.sampled = now
	a.rtt += (rtt - a.rtt) / time.Duration(min(a.samples, smoothing))
}

// compared is how many samples tell how far an address is.
const compared = 3

// distance returns the shortest of the last round trips: a busy host makes some longer, and none shorter. ok is false if
// there are too few.
func (a *address) distance() (d time.Duration, ok bool) {
	return slices.Min(a.last[:]), a.samples >= compared
}

// loss returns the part of the last questions without an answer.
func (a *address) loss() (float64, bool) {
	n := min(a.asked, lossWindow)
	if n == 0 {
		return 0, false
	}
	hits := bits.OnesCount32(a.outcomes & uint32(1<<n-1))
	return 1 - float64(hits)/float64(n), true
}

// doubtful returns how many rounds of an alarm must ask the address in use before another one may replace it.
// Where questions are lost all the time, a few that are lost say little.
func (a *address) doubtful() int {
	if loss, ok := a.loss(); ok && a.asked >= lossWindow/4 && loss > 0.1 && loss < 0.9 {
		return lossyRounds
	}
	return 2
}

// port returns the port of this host from which packets go to the address; 0: the tunnel's.
func (a *address) port() uint16 {
	if a.detour == nil {
		return 0
	}
	return a.detour.port
}

// sends reports whether a probe came from the address.
func (a *address) sends(p Arrival) bool {
	return a.to == p.From && (a.detour == nil || a.detour.port == p.To.Port())
}
