package agent

import (
	"fmt"
	"sync"
	"time"

	"weft/mesh/peer"
	"weft/router/wg"
)

// hearing is what comes through the tunnels: proof that a host lives, whatever gossip says. It
// is safe for concurrent use.
type hearing struct {
	mu    sync.Mutex
	peers map[[32]byte]heard // by public key
}

// heard is what has come from a peer, and when the last of it was noticed.
type heard struct {
	bytes int64
	at    time.Time
}

// heardFor is for how long what came is proof: a host that lives sends a keepalive every 25 s,
// and tunnels are looked at every portsEvery.
const heardFor = 40 * time.Second

// look takes in what has come by now. Of a tunnel that is seen for the first time nobody knows
// when the last of it came: if its keys are in use, that may have been just now.
func (h *hearing) look(now time.Time, seen wg.Observed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	peers := make(map[[32]byte]heard, len(seen.Peers))
	for key, tunnel := range seen.Peers {
		last, known := h.peers[key]
		switch {
		case !known && now.Sub(tunnel.Handshake) < staleHandshake, known && tunnel.Received > last.bytes:
			last.at = now
		}
		last.bytes = tunnel.Received
		peers[key] = last
	}
	h.peers = peers
}

// ago is how long ago something came from a peer; false if that is no proof any more.
func (h *hearing) ago(key [32]byte, now time.Time) (time.Duration, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, ok := h.peers[key]
	ago := now.Sub(p.at)
	return ago, ok && ago < heardFor
}

// heard says that a peer lives, since something came through its tunnel; empty if nothing did.
func (a *Agent) heard(id peer.ID) string {
	for _, p := range a.mesh.Peers() {
		if p.Record.Identity == nil || p.Record.ID() != id {
			continue
		}
		if ago, ok := a.hearing.ago(p.Record.WireGuard, time.Now()); ok {
			return fmt.Sprintf("its tunnel to %s brought data %d s ago, though gossip does not reach it. Open TCP and UDP %d between the two hosts, both ways, or run `weft reset` on it; if it has just been switched off, try again in %d s",
				a.mesh.Name(a.self()), int(ago.Seconds()), p.Record.Gossip, int((heardFor-ago+portsEvery).Seconds())+1)
		}
	}
	return ""
}
