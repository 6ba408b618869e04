package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// forgotten is after how many rounds without its link a pod that the API server has no more is
// not waited for: the runtime's DEL comes within seconds, or, where another plugin keeps it
// for itself, never.
const forgotten = 10

// deleted is after how many rounds without its link, which nobody asked to remove, people hear
// of an endpoint: a runtime's DEL comes within seconds of a container's end.
const deleted = 8

// unlinked warns of endpoints whose links were deleted by hand.
func (a *Agent) unlinked() (warnings []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.endpoints {
		if e.missing >= deleted {
			warnings = append(warnings, fmt.Sprintf("%s cannot be reached, and reaches nobody: its link %s is gone from this host, and no runtime asked for that. Delete the pod or container, so that a new one gets a link",
				cmp.Or(strings.Trim(e.Namespace+"/"+e.Name, "/"), e.ref().Key()), e.HostLink))
		}
	}
	slices.Sort(warnings)
	return warnings
}

// releaseEnded detaches processes that ended without `weft detach`: their
// namespace is gone, and the link with it. Two rounds, so that no race counts.
func (a *Agent) releaseEnded(ctx context.Context) {
	present, err := a.host.links()
	if err != nil {
		a.log.Warn("cannot list links", "err", err)
		return
	}
	err = a.detachWhere(ctx, func(e *endpointRecord) bool {
		if slices.Contains(present, e.HostLink) {
			e.missing = 0
			return false
		}
		e.missing++
		return e.missing >= 2 && e.Source == SourceAttach || e.missing >= forgotten && a.podEnded(e)
	})
	snap, snapErr := a.ipam.Snapshot(ctx)
	if err = errors.Join(err, snapErr, a.releaseStrays(ctx, snap, present)); err != nil && ctx.Err() == nil {
		a.log.Warn("cannot release endpoints that ended", "err", err)
	}
}
