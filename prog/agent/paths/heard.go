package paths

import (
	"fmt"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
)

// ago returns how long ago the last packet came from a peer; false if it is too old to prove that the
// host is alive.
func (p *Paths) ago(id peer.ID, now time.Time) (time.Duration, bool) {
	measured, _ := p.cfg.Measured(id)
	at := measured.Alive()
	ago := now.Sub(at)
	return ago, !at.IsZero() && ago < path.ProofFor
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
	ago, ok := p.ago(id, time.Now())
	if !ok {
		return ""
	}
	return fmt.Sprintf("its tunnel to %s brought data %d s ago, though gossip does not reach that host. Open TCP and UDP %d between the two hosts, both ways, or run `weft reset` on that host; if the host has just been switched off, try again in %d s",
		v.Name(v.Self), int(ago.Seconds()), r.Gossip, int((path.ProofFor-ago).Seconds())+1)
}
