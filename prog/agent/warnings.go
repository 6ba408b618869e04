package agent

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"weft/ipam"
	"weft/prog/kube"
	"weft/router"
)

// warning is what hurts users of this host: its cause, its effect and what to do. All of them
// are lines of the status, counted by metrics, and events under Kubernetes.
type warning struct {
	reason string // for who filters: kube.Reason…, or one of these
	text   string
}

// Reasons of warnings, beside those of prog/kube.
const (
	reasonHost     = "HostConfiguration" // firewall, CNI configuration
	reasonDataPath = "DataPath"
	reasonAddress  = "Address" // that is another's, or cannot be used
	reasonPolicy   = "PolicyUnread"
	reasonLeftOut  = "LeftOut"     // of an endpoint: what does not fit
	reasonPort     = "PortBlocked" // between this host and another one

	reasonTurnedAway = "TurnedAway" // a host with another secret, for example
)

// gathered are the warnings of one look at everything.
func (a *Agent) gathered(snap ipam.Snapshot, seen router.Observed, unseen error, ready bool) (list []warning) {
	add := func(reason string, texts ...string) {
		for _, text := range texts {
			list = append(list, warning{reason, text})
		}
	}
	if unseen == nil {
		add(reasonHost, seen.Warnings...)
	} else if ready {
		add(reasonDataPath, unseen.Error()+": it is made again within seconds; if it is not, see the agent's log")
	}
	add(reasonAddress, strayWarnings(snap)...)
	add(reasonAddress, a.stuckWarning()...)
	add(reasonLeftOut, a.misfits()...)
	add(reasonPolicy, a.policyWarnings()...)
	list = append(list, a.clusterWarnings()...)
	add(reasonPort, a.ports.warnings()...)
	_, cni := a.reportCNI()
	add(reasonHost, cni...)
	for _, l := range a.lostAddresses(snap) {
		add(reasonAddress, fmt.Sprintf("%s had %v, which %s owns by now: this host was given up for dead meanwhile. It is cut off: start it anew (or `weft detach` and attach it)",
			l.Endpoint, l.Address, l.Owner))
	}
	return list
}

// clusterWarnings are those about the API server and what it says.
func (a *Agent) clusterWarnings() []warning {
	if a.cluster == nil {
		return nil
	}
	a.cluster.mu.Lock()
	list := slices.Clone(a.cluster.warnings)
	a.cluster.mu.Unlock()
	if a.kube != nil { // it is made last
		for _, t := range a.kube.Troubles() {
			list = append(list, warning{kube.ReasonAPIServer, t.Err.Error()})
		}
	}
	return list
}

// warn says on the Node, in the log and in the status that something is wrong.
func (a *Agent) warn(reason, message string) {
	c := a.cluster
	c.mu.Lock()
	known := slices.Contains(c.warnings, warning{reason, message})
	if !known {
		c.warnings = append(c.warnings, warning{reason, message})
	}
	c.mu.Unlock()
	if !known {
		a.log.Warn(message, "reason", reason)
	}
	c.report.Warn(reason, message)
}

// unwarn takes back what was said, from the status: the log and the events tell when it was so.
func (a *Agent) unwarn(reason, message string) {
	c := a.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.warnings, warning{reason, message}); i >= 0 {
		c.warnings = slices.Delete(c.warnings, i, i+1)
		a.log.Info("it is not so any more", "warning", message)
	}
}

// oneWarning is who tells of one thing that may be wrong: each text takes the place of the one
// before, and an empty one says that all is well.
func (a *Agent) oneWarning(reason string) func(text string) {
	said := ""
	return func(text string) {
		if text == said {
			return
		}
		a.unwarn(reason, said)
		if said = text; text != "" {
			a.warn(reason, text)
		}
	}
}

// How often warnings are looked for that are to be events; how long this host may not be ready
// without that being one; and after how long what goes on is said again, while the API server
// still has the event before.
const (
	warningsEvery = 10 * time.Second
	notReadyFor   = 20 * time.Second
	sayAgain      = 50 * time.Minute
)

// told are warnings that were said, by what does not change while they go on.
type told map[warning]time.Time

var numbers = regexp.MustCompile(`\d+`)

// due reports whether a warning is to be said now.
func (t told) due(w warning, now time.Time) bool {
	w.text = numbers.ReplaceAllString(w.text, "#") // how long it goes on, for example
	if last, ok := t[w]; ok && now.Sub(last) < sayAgain {
		return false
	}
	t[w] = now
	return true
}

// tellWarnings makes events of this host's warnings.
func (a *Agent) tellWarnings(ctx context.Context) error {
	said, readyAt := told{}, time.Now()
	for ctx.Err() == nil {
		r, list, err := a.gather(ctx)
		now := time.Now()
		switch {
		case err != nil:
		case r.Ready:
			readyAt = now
		case now.Sub(readyAt) > notReadyFor:
			list = append(list, warning{kube.ReasonNotReady, "pods cannot be attached here: " + r.NotReady})
		}
		for _, w := range list {
			if said.due(w, now) {
				a.cluster.report.Warn(w.reason, w.text)
			}
		}
		for w, at := range said {
			if now.Sub(at) >= sayAgain {
				delete(said, w)
			}
		}
		sleep(ctx, warningsEvery)
	}
	return nil
}
