package measure

import (
	"time"

	"weft/mesh/peer"
	"weft/router/wg"
)

// rateOver is over how long rates are averaged at least.
const rateOver = 500 * time.Millisecond

// rate is how much data passes a tunnel.
type rate struct {
	at                     time.Time
	received, sent         int64   // bytes at that time
	receivedRate, sentRate float64 // bytes per second
}

// next returns the rate after another look at the counters.
func (r rate) next(now time.Time, p wg.Peer) rate {
	out, since := rate{at: now, received: p.Received, sent: p.Sent}, now.Sub(r.at)
	if r.at.IsZero() || p.Received < r.received || p.Sent < r.sent {
		return out // the first look, or a new device
	}
	if since < rateOver {
		return r
	}
	out.receivedRate, out.sentRate = float64(p.Received-r.received)/since.Seconds(), float64(p.Sent-r.sent)/since.Seconds()
	return out
}

// Rates returns how many bytes per second pass the tunnel to a peer.
func (m *Measure) Rates(id peer.ID) (received, sent float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.rates[id]
	if time.Since(r.at) > 2*idleStep { // the counters are read sooner if data passes
		return 0, 0
	}
	return r.receivedRate, r.sentRate
}
