package path

import (
	"math"
	"slices"
	"time"
)

// search measures the MTU of the path in use: with padded questions, and answers of the same size, that no
// router may fragment.
//
//	verify the known MTU ──▶ unanswered, while ──▶ rounds: several sizes at once between the largest that
//	  ▲    every 3 s under    small ones are       was answered and the smallest that was not, until both
//	  │    traffic, every     answered; or it      are closer than 4 bytes
//	  │    10 min at rest     may have grown               │
//	  └────────────────────────────────────────────────────┘
//
// Loss must not look like a smaller MTU. Questions that are smaller than an answered one are lost by chance
// only: they tell how often each size must be asked.
type search struct {
	top       int // the largest MTU that this host's route and the peer's link allow
	low, high int // answered; not answered (0: none)
	sizes     []int
	copies    int // how often each size is asked
	hits      []int
	small     counts    // questions that were surely small enough
	misses    int       // rounds without any answer, or failed verifications
	silent    int       // rounds that say nothing, because small questions were not answered either
	running   bool      // a round is out
	verifying bool      // the known MTU is asked
	next      time.Time // when the round ends, or the next verification begins
	growAt    time.Time // when larger sizes are tried again
}

// counts are questions that were answered and not.
type counts struct{ hits, lost int }

// copies returns how often a size must be asked, so that all questions are hardly ever lost by chance.
func (c counts) copies() int {
	if c.lost == 0 {
		return 1
	}
	const chance = 0.003
	loss := float64(c.lost) / float64(c.hits+c.lost)
	return min(max(int(math.Ceil(math.Log(chance)/math.Log(loss))), 1), maxCopies)
}

const (
	// maxCopies limits the traffic. If the known MTU is unanswered, it is asked controlCopies times, and as many
	// small questions tell whether that is loss: enough of them must be answered.
	maxCopies, controlCopies, controlHits = 6, 8, 6
	maxSilent                             = 5 // rounds that say nothing, one after the other, before the known MTU is kept

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
	if s.hits = append(s.hits, size); len(s.hits) >= len(s.sizes)*s.copies {
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
	case s.verifying:
		return r.verified(now, out)
	case s.running:
		return r.roundEnded(now, out)
	case r.path.MTU == 0:
		return r.begin(now, out, search{top: top})
	}
	s.verifying = true
	return r.sizes(now, out, []int{r.path.MTU}, 1)
}

// verified ends a round of questions of the known MTU.
func (r *remote) verified(now time.Time, out []Send) []Send {
	s := &r.mtu
	small := counts{hits: s.count(leastMTU)}
	small.lost = s.copies - small.hits
	switch {
	case s.count(r.path.MTU) > 0 && r.path.MTU < s.top && !now.Before(s.growAt):
		return r.begin(now, out, search{top: s.top, low: r.path.MTU})
	case s.count(r.path.MTU) > 0, s.misses > maxSilent:
		s.verifying, s.running, s.misses = false, false, 0
		s.next = now.Add(r.verifyIn(now))
		return out
	case s.misses > 0 && small.hits >= controlHits:
		return r.begin(now, out, search{top: s.top, high: r.path.MTU, small: small})
	}
	s.misses++
	return r.sizes(now, out, []int{r.path.MTU, leastMTU}, controlCopies)
}

// count returns how many questions of a size were answered in this round.
func (s *search) count(size int) (n int) {
	for _, hit := range s.hits {
		if hit == size {
			n++
		}
	}
	return n
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
		return r.sizes(now, out, []int{s.top}, 1)
	}
	return r.sizes(now, out, s.usual(), s.small.copies())
}

// usual returns common sizes between the largest that was answered and the smallest that was not, and the former:
// if that is unanswered as well, the round says nothing.
func (s *search) usual() (sizes []int) {
	if s.high == 0 {
		sizes = append(sizes, s.top)
	}
	for _, size := range slices.Backward(usual) {
		if size < s.top && size > s.low && (s.high == 0 || size < s.high) {
			sizes = append(sizes, size)
		}
	}
	if s.low != 0 || len(sizes) == 0 {
		sizes = append(sizes, max(s.low, leastMTU))
	}
	return sizes
}

// sizes asks with several sizes at once, with each as often as told.
func (r *remote) sizes(now time.Time, out []Send, sizes []int, copies int) []Send {
	s := &r.mtu
	s.sizes, s.copies, s.hits, s.running = sizes, copies, nil, true
	s.next = now.Add(min(max(3*r.current.rtt, 250*time.Millisecond), time.Second))
	r.asks = slices.DeleteFunc(r.asks, func(q ask) bool { return q.size != 0 }) // those of the last round
	for range copies {
		for _, size := range sizes {
			out = r.ask(now, out, r.current, size)
		}
	}
	return out
}

// roundEnded narrows the search.
func (r *remote) roundEnded(now time.Time, out []Send) []Send {
	s := &r.mtu
	s.running = false
	if s.low != 0 && s.count(s.low) == 0 && len(s.hits) == 0 {
		if s.silent++; s.silent > maxSilent {
			s.silent, s.next = 0, now.Add(verifyBusy)
			return out
		}
		s.small.lost += s.copies
		return r.sizes(now, out, s.sizes, s.small.copies())
	}
	s.silent = 0
	for _, size := range s.hits {
		s.low = max(s.low, size)
	}
	if len(s.hits) == 0 && s.low == 0 {
		if s.high == 0 {
			s.high = s.top
			return r.sizes(now, out, s.usual(), s.small.copies())
		}
		if s.misses++; s.misses >= 4 {
			s.misses, s.next = 0, now.Add(30*time.Second) // nothing this large arrives, or much is lost
			return out
		}
		return r.sizes(now, out, s.sizes, min(2*s.copies, maxCopies))
	}
	if s.high != 0 && s.high <= s.low {
		s.high = 0
	}
	for _, size := range s.sizes {
		if size <= s.low {
			n := s.count(size)
			s.small.hits, s.small.lost = s.small.hits+n, s.small.lost+s.copies-n
		}
	}
	if need := s.small.copies(); need > s.copies { // sizes may be unanswered by chance
		if open := slices.DeleteFunc(slices.Clone(s.sizes), func(size int) bool { return size <= s.low }); len(open) > 0 {
			return r.sizes(now, out, append(open, s.low), need)
		}
	}
	for _, size := range s.sizes {
		if size > s.low && (s.high == 0 || size < s.high) {
			s.high = size
		}
	}
	if s.low >= s.top || s.high != 0 && s.high-s.low <= mtuStep {
		if s.high != 0 && s.high <= s.top && s.low < s.top && s.misses < 2 { // it may have been lost: ask once more
			s.misses++
			return r.sizes(now, out, []int{s.high, s.top, s.low}, s.small.copies())
		}
		r.found(now, s.low)
		return out
	}
	if r.path.MTU > s.low && s.low != 0 {
		r.found(now, s.low) // smaller than believed: packets are being lost now
	}
	return r.sizes(now, out, append(s.between(), s.low), s.small.copies())
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
