package agent

import (
	"cmp"
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
	// about stays the same while the warning lasts, however its text changes; empty: the text.
	about string
	text  string
	// elsewhere says that it hurts nobody here: other hosts make an event of it.
	elsewhere bool
}

// Reasons of warnings, beside those of prog/kube.
const (
	reasonHost     = "HostConfiguration" // firewall, CNI configuration
	reasonDataPath = "DataPath"
	reasonAddress  = "Address" // that is another's, or cannot be used
	reasonPolicy   = "PolicyUnread"
	reasonLeftOut  = "LeftOut"     // of an endpoint: what does not fit
	reasonPort     = "PortBlocked" // between this host and another one
	reasonFlapping = "PeerFlapping"
	reasonPath     = "PathMTU" // of the way to another host: less than the tunnel needs

	reasonCopy = "CopiedDisk" // of another host

	reasonTurnedAway = "TurnedAway" // a host with another secret, for example
)

// gathered are the warnings of one look at everything.
func (a *Agent) gathered(snap ipam.Snapshot, seen router.Observed, unseen error, ready bool) (list []warning) {
	add := func(reason string, texts ...string) {
		for _, text := range texts {
			list = append(list, warning{reason: reason, text: text})
		}
	}
	if unseen == nil {
		add(reasonHost, seen.Warnings...)
	} else if ready {
		add(reasonDataPath, unseen.Error()+": it is made again within seconds; if it is not, see the agent's log")
	}
	add(reasonAddress, strayWarnings(snap)...)
	for _, text := range a.stuckWarning() {
		list = append(list, warning{reason: reasonAddress, about: "stuck", text: text})
	}
	add(reasonAddress, a.ended.warnings()...)
	add(reasonLeftOut, a.misfits()...)
	add(reasonDataPath, a.unlinked()...)
	list = slices.Concat(list, a.policyWarnings(), a.clusterWarnings(), a.ports.warnings(), a.flapping(), a.pathWarnings())
	for _, p := range a.mesh.Peers() {
		if p.Record.Copy.IsValid() && p.Record.ID() != a.self() { // which says so as one that is turned away
			list = append(list, warning{reason: reasonCopy, elsewhere: true, text: fmt.Sprintf(
				"a host at %v has the identity of %s: a disk was copied. The copy stops by itself: run `weft reset --force` on it, and launch it again", p.Record.Copy, p.Record.Name())})
		}
	}
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
			w := warning{reason: kube.ReasonAPIServer, text: t.Err.Error()}
			if !t.Refused {
				w.about = "away" // with the ports of each attempt in its text
			}
			list = append(list, w)
		}
	}
	return list
}

// warn says on the Node, in the log and in the status that something is wrong.
func (a *Agent) warn(reason, message string) {
	c := a.cluster
	c.mu.Lock()
	w := warning{reason: reason, text: message}
	known := slices.Contains(c.warnings, w)
	if !known {
		c.warnings = append(c.warnings, w)
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
	if i := slices.Index(c.warnings, warning{reason: reason, text: message}); i >= 0 {
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

// told are warnings that were said, by reason and what they are about.
type told map[[2]string]time.Time

// maxTold bounds how many are said in sayAgain.
const maxTold = 500

// due reports whether a warning is to be said now.
func (t told) due(w warning, now time.Time) bool {
	key := [2]string{w.reason, cmp.Or(w.about, w.text)}
	last, ok := t[key]
	if ok && now.Sub(last) < sayAgain || !ok && len(t) >= maxTold {
		return false
	}
	t[key] = now
	return true
}

var numbers = regexp.MustCompile(`\d+`)

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
			about := numbers.ReplaceAllString(r.NotReady, "#") // how many wait, for example
			list = append(list, warning{reason: kube.ReasonNotReady, about: about, text: "pods cannot be attached here: " + r.NotReady})
		}
		for _, w := range list {
			if !w.elsewhere && said.due(w, now) {
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
