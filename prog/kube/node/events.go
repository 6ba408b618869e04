package node

import (
	"context"
	"regexp"
	"time"

	"weft/prog/kube"
	"weft/router/problem"
)

// How often problems are looked for that are to be events; how long this host may not be ready
// without that being one; and after how long what goes on is said again, while the API server
// still has the event before.
const (
	problemsEvery = 10 * time.Second
	notReadyFor   = 20 * time.Second
	sayAgain      = 50 * time.Minute
)

// told are problems that were said, by their keys.
type told map[[2]string]time.Time

// maxTold bounds how many are said in sayAgain.
const maxTold = 500

// due reports whether a problem is to be said now.
func (t told) due(p problem.Problem, now time.Time) bool {
	key := p.Key()
	last, ok := t[key]
	if ok && now.Sub(last) < sayAgain || !ok && len(t) >= maxTold {
		return false
	}
	t[key] = now
	return true
}

var numbers = regexp.MustCompile(`\d+`)

// tellProblems makes events of this host's problems.
func (n *Node) tellProblems(ctx context.Context, d Duties) error {
	said, readyAt := told{}, time.Now()
	for ctx.Err() == nil {
		list, err := d.Problems(ctx)
		now := time.Now()
		switch why := d.NotReady(); {
		case err != nil:
		case why == "":
			readyAt = now
		case now.Sub(readyAt) > notReadyFor:
			about := numbers.ReplaceAllString(why, "#") // how many wait, for example
			list = append(list, problem.Problem{Reason: kube.ReasonNotReady, About: about, What: "pods cannot be attached here", Effect: why})
		}
		for _, p := range list {
			if !p.Elsewhere && said.due(p, now) {
				n.Report.Warn(p.Reason, p.String())
			}
		}
		for key, at := range said {
			if now.Sub(at) >= sayAgain {
				delete(said, key)
			}
		}
		pause(ctx, problemsEvery)
	}
	return nil
}

// Waiting says on the Node what the agent waits for before it has started, once that takes long.
func (n *Node) Waiting(ctx context.Context, why string, started time.Time) {
	if time.Since(started) < notReadyFor {
		return
	}
	if err := n.Report.WarnNow(ctx, kube.ReasonNotReady, why); err != nil && ctx.Err() == nil {
		n.cfg.Log.Debug("cannot write an event of this Node", "err", err)
	}
}

// LastWord says on the Node why the agent ends.
func (n *Node) LastWord(ctx context.Context, reason string, why error) {
	if err := n.Report.WarnNow(ctx, reason, "Weft does not start: "+why.Error()); err != nil {
		n.cfg.Log.Warn("cannot write an event of this Node", "err", err)
	}
}
