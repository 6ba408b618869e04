package path

import (
	"slices"
	"time"
)

// search measures the MTU of the path in use: with padded questions, and answers of the same size, that no
// router may fragment.
//
//	verify the known MTU ──▶ three unanswered ──▶ rounds: several sizes at once between the largest that
//	  ▲    every 3 s under traffic,     or it     was answered and the smallest that was not, until both
//	  │    every 10 min at rest      may have     are closer than 4 bytes
//	  │                              grown                │
//	  └───────────────────────────────────────────────────┘
type search struct {
	top       int // the MTU of this host's route
	low, high int // answered; not answered (0: none)
	sizes     []int
	hits      []int
	misses    int       // rounds without any answer, or failed verifications
	running   bool      // a round is out
	verifying bool      // the known MTU is asked
	next      time.Time // when the round ends, or the next verification begins
	growAt    time.Time // when larger sizes are tried again
}

const (
	verifyBusy  = 3 * time.Second
	verifyRest  = 10 * time.Minute
	growEvery   = 2 * time.Minute // under traffic; otherwise verifyRest
	mtuStep     = 4               // bytes: how exact a measured MTU is
	mtuParallel = 6               // sizes per round
	leastMTU    = 576
	usualMTU    = 1500
	maxMTU      = 65535
)

// usual are the MTUs of common links and tunnels.
var usual = []int{leastMTU, 1280, 1400, 1420, 1440, 1460, 1480, 1492, usualMTU, 8900, 9000}

// answered notes that a size arrived, there and back.
func (s *search) answered(now time.Time, size int) {
	if s.hits = append(s.hits, size); len(s.hits) >= len(s.sizes) {
		s.next = now
	}
}

// measurable reports whether this host measures the MTU of the path, now.
func (r *remote) measurable() bool {
	return r.first && r.current != nil && r.path.State == Direct && r.alarm.IsZero() && !r.current.answered.IsZero()
}

// measure advances the measurement, and appends its questions.
func (r *remote) measure(now time.Time, out []Send) []Send {
	s := &r.mtu
	if !r.measurable() {
		return out
	}
	top := usualMTU
	if r.MTU != nil {
		if of := r.MTU(r.current.to.Addr()); of != 0 {
			top = min(max(of, leastMTU), maxMTU)
		}
	}
	switch {
	case top != s.top:
		return r.begin(now, out, search{top: top})
	case now.Before(s.next):
		return out
	case s.verifying && slices.Contains(s.hits, r.path.MTU):
		if r.path.MTU < top && !now.Before(s.growAt) {
			return r.begin(now, out, search{top: top, low: r.path.MTU})
		}
		s.verifying, s.running, s.misses = false, false, 0
		s.next = now.Add(r.verifyIn(now))
		return out
	case s.verifying:
		if s.misses++; s.misses < 3 {
			return r.sizes(now, out, []int{r.path.MTU})
		}
		return r.begin(now, out, search{top: top, high: r.path.MTU})
	case s.running:
		return r.roundEnded(now, out)
	case r.path.MTU == 0:
		return r.begin(now, out, search{top: top})
	}
	s.verifying = true
	return r.sizes(now, out, []int{r.path.MTU})
}

// verifyIn returns when a measured MTU is verified again.
func (r *remote) verifyIn(now time.Time) time.Duration {
	if r.recent(now) {
		return verifyBusy
	}
	return verifyRest
}

// begin starts a search. Usually the MTU of the route is right; it is all that the first round asks.
func (r *remote) begin(now time.Time, out []Send, s search) []Send {
	r.mtu = s
	if s.low == 0 && s.high == 0 {
		return r.sizes(now, out, []int{s.top})
	}
	return r.sizes(now, out, s.usual())
}

// usual returns common sizes between the largest that was answered and the smallest that was not.
func (s *search) usual() (sizes []int) {
	if s.high == 0 {
		sizes = append(sizes, s.top)
	}
	for _, size := range slices.Backward(usual) {
		if size < s.top && size > s.low && (s.high == 0 || size < s.high) {
			sizes = append(sizes, size)
		}
	}
	if len(sizes) == 0 {
		sizes = append(sizes, leastMTU)
	}
	return sizes
}

// sizes asks with several sizes at once.
func (r *remote) sizes(now time.Time, out []Send, sizes []int) []Send {
	s := &r.mtu
	s.sizes, s.hits, s.running = sizes, nil, true
	s.next = now.Add(min(max(3*r.current.rtt, 250*time.Millisecond), time.Second))
	for _, size := range sizes {
		out = r.ask(now, out, r.current, size)
	}
	return out
}

// roundEnded narrows the search.
func (r *remote) roundEnded(now time.Time, out []Send) []Send {
	s := &r.mtu
	s.running = false
	for _, size := range s.hits {
		s.low = max(s.low, size)
	}
	if len(s.hits) == 0 && s.low == 0 {
		if s.high == 0 {
			s.high = s.top
			return r.sizes(now, out, s.usual())
		}
		if s.misses++; s.misses >= 4 {
			s.misses, s.next = 0, now.Add(30*time.Second) // nothing this large arrives, or much is lost
			return out
		}
		return r.sizes(now, out, s.sizes)
	}
	if s.high != 0 && s.high <= s.low {
		s.high = 0
	}
	for _, size := range s.sizes {
		if size > s.low && (s.high == 0 || size < s.high) {
			s.high = size
		}
	}
	if s.low >= s.top || s.high != 0 && s.high-s.low <= mtuStep {
		if s.high != 0 && s.high <= s.top && s.low < s.top && s.misses < 2 { // it may have been lost: ask once more
			s.misses++
			return r.sizes(now, out, []int{s.high, s.top})
		}
		r.found(now, s.low)
		return out
	}
	if r.path.MTU > s.low && s.low != 0 {
		r.found(now, s.low) // smaller than believed: packets are being lost now
	}
	return r.sizes(now, out, s.between())
}

// between returns sizes between the largest that was answered and the smallest that was not.
func (s *search) between() (out []int) {
	high := s.high
	if high == 0 {
		high = s.top + 1
	}
	for i := 1; i <= mtuParallel; i++ {
		size := s.low + (high-s.low)*i/(mtuParallel+1)
		size -= size % mtuStep
		if size > s.low && size < high && !slices.Contains(out, size) {
			out = append(out, size)
		}
	}
	if len(out) == 0 {
		out = []int{s.low + mtuStep}
	}
	return out
}

// found publishes a measured MTU, and tells it to the peer with the next question.
func (r *remote) found(now time.Time, mtu int) {
	s := &r.mtu
	s.misses, s.next, s.growAt = 0, now.Add(r.verifyIn(now)), now.Add(verifyRest)
	if r.recent(now) {
		s.growAt = now.Add(growEvery)
	}
	if mtu != r.path.MTU {
		r.path.MTU = mtu
		r.calmAt = minTime(r.calmAt, now)
		r.prober.version++
	}
}
