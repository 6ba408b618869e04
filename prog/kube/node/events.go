package node

import (
	"context"
	"regexp"
	"time"

	"weft/prog/kube"
	"weft/router/problem"
)

// problemsEvery is the interval at which problems become events. notReadyFor is how long this host
// may not be ready before there is an event. sayAgain is the time after which the event of a
// persisting problem is repeated, while the API server still has the last event.
const (
	problemsEvery = 10 * time.Second
	notReadyFor   = 20 * time.Second
	sayAgain      = 50 * time.Minute
)

// told holds the times of reported problems, by key.
type told map[[2]string]time.Time

// maxTold limits the number of reported problems within sayAgain.
const maxTold = 500

// due reports whether to report a problem now.
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

// tellProblems writes this host's problems as events.
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
			about := numbers.ReplaceAllString(why, "#") // numbers in it change, for example of waiting requests
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
		kube.Sleep(ctx, problemsEvery)
	}
	return nil
}

// Waiting writes an event with what the agent waits for before its start, once that takes long.
func (n *Node) Waiting(ctx context.Context, why string, started time.Time) {
	if time.Since(started) < notReadyFor {
		return
	}
	if err := n.Report.WarnNow(ctx, kube.ReasonNotReady, why); err != nil && ctx.Err() == nil {
		n.cfg.Log.Debug("cannot write an event of this Node", "err", err)
	}
}

// LastWord writes an event with the reason why the agent ends.
func (n *Node) LastWord(ctx context.Context, reason string, why error) {
	if err := n.Report.WarnNow(ctx, reason, "Weft does not start: "+why.Error()); err != nil {
		n.cfg.Log.Warn("cannot write an event of this Node", "err", err)
	}
}
