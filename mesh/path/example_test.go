package path_test

import (
	"fmt"
	"time"

	"weft/mesh/path"
)

// A host that gossip has lost is alive as long as its tunnel brings packets.
func ExampleJudge() {
	now := time.Unix(1_800_000_000, 0)
	e := path.Evidence{Lost: now.Add(-time.Minute), Started: now.Add(-time.Hour), Path: path.Path{Answered: now.Add(-3 * time.Second)}}
	fmt.Println(path.Judge(now, e), path.Reasons(now, e))
	later := now.Add(path.ProofFor)
	fmt.Println(path.Judge(later, e), path.Reasons(later, e))
	// Output:
	// alive [gossip lost it 1m0s ago it answered a probe 3s ago]
	// dead [gossip lost it 1m40s ago it answered a probe 43s ago]
}
