package paths

import (
	"fmt"

	"weft/mesh"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/prog/agent/view"
	"weft/prog/words"
	"weft/router/problem"
)

// flapLosses is how many losses of one peer, within mesh.Lately, are too many for a restart or a
// link that failed once.
const flapLosses = 4

// unsteady returns a problem for each tunnel that repeatedly fails and works again.
func unsteady(v *view.View, measured func(peer.ID) (path.Path, bool)) (out []problem.Problem) {
	for id, r := range v.Records {
		if p, _ := measured(id); id != v.Self && p.Changes > path.Flapping {
			out = append(out, problem.Problem{
				Reason: problem.Flapping, About: "tunnel " + id.String(),
				What:   fmt.Sprintf("the tunnel to %s failed and worked again %s within ten minutes", r.Name(), words.Count(p.Changes/2, "time")),
				Effect: "connections to containers on that host stall again and again",
				Fix:    fmt.Sprintf("check the links and switches between the two hosts (`ping %v`)", p.Endpoint.Addr()),
			})
		}
	}
	return out
}

// flapping returns a problem for each peer that gossip repeatedly loses and finds: the reason, as far
// as it is known, and the fix. fresh reports whether a peer's tunnel works.
func flapping(peers []mesh.Peer, self peer.ID, fresh func(peer.Record) bool) (out []problem.Problem) {
	for _, p := range peers {
		r := p.Record
		if r.Identity == nil || r.ID() == self || p.Losses < flapLosses || len(r.Underlay) == 0 {
			continue
		}
		one := problem.Problem{
			Reason: problem.Flapping, About: r.ID().String(),
			What: fmt.Sprintf("gossip lost %s %s within %d minutes, and found it again", r.Name(), words.Count(p.Losses, "time"), int(mesh.Lately.Minutes())),
		}
		const effect = "its names and policies repeatedly disappear on this host. "
		switch {
		case p.Runs > p.Losses/2:
			one.Effect = effect + fmt.Sprintf("Its agent was started %s meanwhile", words.Count(p.Runs, "time"))
			one.Fix = "see the agent's log on that host, and whether that host's addresses change"
		case fresh(r):
			one.Effect = effect + fmt.Sprintf("Its tunnel works, so its host is alive: packets to port %d are lost", r.Gossip)
			one.Fix = fmt.Sprintf("open TCP and UDP %d between the two hosts, both ways, at %v; if that address is the wrong one, name another with --advertise on that host", r.Gossip, r.Underlay[0])
		default:
			one.Effect = effect + fmt.Sprintf("Its tunnel fails as well: packets between the two hosts get lost, or two hosts have the address %v", r.Underlay[0])
			one.Fix = "check that host's network; if that address is the wrong one, name another with --advertise on that host"
		}
		out = append(out, one)
	}
	return out
}
