package view

import (
	"testing"
	"time"

	"weft/mesh"
	"weft/mesh/topology"
)

func TestAPeerIsLostAfterALongTimeWithoutGossip(t *testing.T) {
	const minute = time.Minute
	now := time.Unix(1_800_000_000, 0)
	for name, tt := range map[string]struct {
		reachable bool
		since     time.Duration // time since gossip reached the peer last; 0: never since this agent's start
		started   time.Duration // time since this agent's start
		want      topology.Reach
	}{
		"reached":                       {true, 1, 60 * minute, topology.Reached},
		"reached for long":              {true, 50 * minute, 60 * minute, topology.Reached},
		"just gone":                     {false, minute, 60 * minute, topology.Unsure},
		"gone for long":                 {false, 6 * minute, 60 * minute, topology.Lost},
		"not met yet, after our start":  {false, 0, minute, topology.Unsure},
		"never met, long after we came": {false, 0, 6 * minute, topology.Lost},
	} {
		t.Run(name, func(t *testing.T) {
			p := mesh.Peer{Reachable: tt.reachable}
			if tt.since > 0 {
				p.Since = now.Add(-tt.since)
			}
			if got := reach(p, now.Add(-tt.started), now); got != tt.want {
				t.Errorf("reach %d, want %d", got, tt.want)
			}
		})
	}
}
