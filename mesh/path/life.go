package path

import (
	"fmt"
	"time"
)

// Life says whether a peer's host is alive.
type Life uint8

// These are the verdicts.
const (
	Unsure Life = iota // this agent has just started, and has heard nothing yet
	Alive              // gossip reaches it, or its tunnel has brought a packet lately
	Dead               // neither
)

func (l Life) String() string { return [...]string{"unsure", "alive", "dead"}[l] }

// ProofFor is how long a packet from a tunnel proves that its host is alive. Without traffic there is an
// answer to a probe every 15 s, or a keepalive every 25 s.
const ProofFor = 40 * time.Second

// presumed is how long after the start of this agent a peer that was not heard yet may be alive.
const presumed = 30 * time.Second

// Evidence is what is known about a peer.
type Evidence struct {
	Gossip  bool      // gossip reaches the peer
	Lost    time.Time // when gossip lost it; zero: it was never reached, or still is
	Started time.Time // the start of this agent
	Path    Path
}

// Judge says whether a peer's host is alive, and why. It is the one definition for all that depends on it.
func Judge(now time.Time, e Evidence) (Life, []string) {
	var reasons []string
	switch {
	case e.Gossip:
		reasons = append(reasons, "gossip reaches it")
	case e.Lost.IsZero():
		reasons = append(reasons, "gossip has not reached it since this agent started")
	default:
		reasons = append(reasons, fmt.Sprintf("gossip lost it %v ago", ago(now, e.Lost)))
	}
	life := Dead
	if e.Gossip {
		life = Alive
	}
	for _, proof := range []struct {
		what string
		at   time.Time
	}{{"it answered a probe", e.Path.Answered}, {"its tunnel brought data", e.Path.Received}} {
		if proof.at.IsZero() {
			continue
		}
		if now.Sub(proof.at) < ProofFor {
			life = Alive
		}
		reasons = append(reasons, fmt.Sprintf("%s %v ago", proof.what, ago(now, proof.at)))
	}
	if life == Dead && now.Sub(e.Started) < presumed && e.Lost.IsZero() && e.Path.Alive().IsZero() {
		life = Unsure
	}
	return life, reasons
}

func ago(now, at time.Time) time.Duration { return now.Sub(at).Round(time.Second) }
