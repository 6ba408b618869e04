package agent

import (
	"fmt"
	"time"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/words"
)

// flapLosses is how many losses of one peer, within mesh.Lately, are too many for a restart or a
// link that failed once.
const flapLosses = 4

// flapping says of peers that gossip loses and finds again and again: why, as far as that is
// known, and what to do. fresh reports whether a peer's tunnel works.
func flapping(peers []mesh.Peer, self peer.ID, fresh func(peer.Record) bool) (out []warning) {
	for _, p := range peers {
		r := p.Record
		if r.Identity == nil || r.ID() == self || p.Losses < flapLosses || len(r.Underlay) == 0 {
			continue
		}
		text := fmt.Sprintf("gossip lost %s %s within %d minutes, and found it again: its names and policies come and go here. ", r.Name(), words.Count(p.Losses, "time"), int(mesh.Lately.Minutes()))
		switch {
		case p.Runs > p.Losses/2:
			text += fmt.Sprintf("Its agent was started %s meanwhile: see its log there, and whether that host's addresses change", words.Count(p.Runs, "time"))
		case fresh(r):
			text += fmt.Sprintf("Its tunnel works, so that its host lives: packets at port %d get lost. Open TCP and UDP %d between the two hosts, both ways, at %v; if that address is the wrong one, name another with --advertise on that host", r.Gossip, r.Gossip, r.Underlay[0])
		default:
			text += fmt.Sprintf("Its tunnel fails as well: packets between the two hosts get lost, or two hosts have the address %v. See the network there; if that address is the wrong one, name another with --advertise on that host", r.Underlay[0])
		}
		out = append(out, warning{reason: reasonFlapping, about: r.ID().String(), text: text})
	}
	return out
}

// flapping are this host's warnings of that kind.
func (a *Agent) flapping() []warning {
	now := time.Now()
	return flapping(a.mesh.Peers(), a.self(), func(r peer.Record) bool {
		_, ok := a.hearing.ago(r.WireGuard, now)
		return ok
	})
}
