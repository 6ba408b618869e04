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
	Alive              // gossip reaches it, or its tunnel works
	Silent             // neither, but a packet of it arrived within ProofFor
	Dead               // nothing has come for longer
)

func (l Life) String() string { return [...]string{"unsure", "alive", "silent", "dead"}[l] }

// ProofFor is how long a packet from a tunnel proves that its host is alive. Without traffic there is an
// answer to a probe every 15 s, or a keepalive every 25 s.
const ProofFor = 40 * time.Second

// presumed is how long after the start of this agent a peer that was not heard yet may be alive, since
// usually only the agent was restarted.
const presumed = 30 * time.Second

// Evidence is what is known about a peer.
type Evidence struct {
	Gossip  bool      // gossip reaches the peer
	Lost    time.Time // when gossip lost it, if it does not reach it; zero: it never did
	Started time.Time // the start of this agent
	Path    Path
}

// Judge says whether a peer's host is alive. It is the one definition for all that depends on it.
func Judge(now time.Time, e Evidence) Life {
	last := e.Path.Alive()
	recent := !last.IsZero() && now.Sub(last) < ProofFor
	switch {
	case e.Gossip, recent && e.Path.State != Deaf:
		return Alive
	case recent:
		return Silent
	case e.Lost.IsZero() && last.IsZero() && now.Sub(e.Started) < presumed:
		return Unsure
	}
	return Dead
}

// Reasons says what Judge decides by.
func Reasons(now time.Time, e Evidence) (out []string) {
	switch {
	case e.Gossip:
		out = append(out, "gossip reaches it")
	case e.Lost.IsZero():
		out = append(out, "gossip has not reached it since this agent started")
	default:
		out = append(out, fmt.Sprintf("gossip lost it %v ago", ago(now, e.Lost)))
	}
	if e.Path.State == Deaf {
		out = append(out, fmt.Sprintf("its tunnel has been silent for %v", ago(now, e.Path.Since)))
	}
	for _, proof := range []struct {
		what string
		at   time.Time
	}{{"it answered a probe", e.Path.Answered}, {"its tunnel brought data", e.Path.Received}} {
		if !proof.at.IsZero() {
			out = append(out, fmt.Sprintf("%s %v ago", proof.what, ago(now, proof.at)))
		}
	}
	return out
}

func ago(now, at time.Time) time.Duration { return now.Sub(at).Round(time.Second) }
