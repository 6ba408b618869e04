package path

import (
	"slices"
	"testing"
	"time"
)

func TestOneDefinitionSaysWhetherAPeerIsAlive(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, tt := range map[string]struct {
		e      Evidence
		want   Life
		reason string
	}{
		"gossip reaches it":                 {Evidence{Gossip: true, Started: ago(time.Hour)}, Alive, "gossip reaches it"},
		"gossip, though its tunnel fails":   {Evidence{Gossip: true, Path: Path{State: Deaf, Since: ago(time.Minute)}}, Alive, "its tunnel has been silent for 1m0s"},
		"its tunnel works, gossip does not": {Evidence{Lost: ago(time.Hour), Path: Path{State: Direct, Answered: ago(12 * time.Second)}}, Alive, "it answered a probe 12s ago"},
		"it does not hear this host":        {Evidence{Lost: ago(time.Hour), Path: Path{State: Unheard, Received: ago(2 * time.Second)}}, Alive, "its tunnel brought data 2s ago"},
		"just switched off":                 {Evidence{Lost: ago(time.Second), Path: Path{State: Deaf, Since: ago(time.Second), Answered: ago(9 * time.Second)}}, Silent, "gossip lost it 1s ago"},
		"switched off a while ago":          {Evidence{Lost: ago(time.Minute), Path: Path{State: Deaf, Since: ago(time.Minute), Answered: ago(ProofFor)}}, Dead, "it answered a probe 40s ago"},
		"an old answer, not asked since":    {Evidence{Lost: ago(time.Minute), Path: Path{State: Direct, Answered: ago(ProofFor)}}, Dead, "gossip lost it 1m0s ago"},
		"this agent has just started":       {Evidence{Started: ago(time.Second)}, Unsure, "gossip has not reached it since this agent started"},
		"never heard":                       {Evidence{Started: ago(presumed)}, Dead, "gossip has not reached it since this agent started"},
	} {
		if got, why := Judge(now, tt.e), Reasons(now, tt.e); got != tt.want || !slices.Contains(why, tt.reason) {
			t.Errorf("%s: %v, because %q; want %v, because %q", name, got, why, tt.want, tt.reason)
		}
	}
}
