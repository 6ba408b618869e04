package paths

import (
	"fmt"
	"time"

	"weft/mesh/peer"
	"weft/router/wg"
)

// heard records when the last packet from a peer's tunnel was noticed. Such a packet proves that the
// host is alive, even if gossip does not reach it.
type heard struct {
	bytes int64
	at    time.Time
}

// heardFor is how long a packet proves that a host is alive. A live host sends a keepalive every 25
// s, and tunnels are checked every period.
const heardFor = 40 * time.Second

// listen records new traffic. When a tunnel is seen for the first time, the time of its last packet
// is unknown: if the tunnel has a recent handshake, a packet may have come just now.
func (p *Paths) listen(now time.Time, seen wg.Observed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	peers := make(map[[32]byte]heard, len(seen.Peers))
	for key, tunnel := range seen.Peers {
		last, known := p.heard[key]
		switch {
		case !known && now.Sub(tunnel.Handshake) < staleHandshake, known && tunnel.Received > last.bytes:
			last.at = now
		}
		last.bytes = tunnel.Received
		peers[key] = last
	}
	p.heard = peers
}

// ago returns how long ago the last packet came from a peer; false if it is too old to prove that the
// host is alive.
func (p *Paths) ago(key [32]byte, now time.Time) (time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, ok := p.heard[key]
	ago := now.Sub(last.at)
	return ago, ok && ago < heardFor
}

// Heard returns proof that a peer is alive, and the command that helps; empty if no packet came
// through its tunnel lately.
func (p *Paths) Heard(id peer.ID) string {
	v := p.cfg.View.Get()
	if v == nil {
		return ""
	}
	r, known := v.Records[id]
	if !known {
		return ""
	}
	ago, ok := p.ago(r.WireGuard, time.Now())
	if !ok {
		return ""
	}
	return fmt.Sprintf("its tunnel to %s brought data %d s ago, though gossip does not reach that host. Open TCP and UDP %d between the two hosts, both ways, or run `weft reset` on that host; if the host has just been switched off, try again in %d s",
		v.Name(v.Self), int(ago.Seconds()), r.Gossip, int((heardFor-ago+period).Seconds())+1)
}
