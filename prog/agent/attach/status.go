package attach

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/prog/agent/metric"
	"weft/prog/agent/view"
	"weft/prog/api"
	"weft/router/problem"
)

// Status describes all endpoints, in the order of their addresses.
func (a *Attachments) Status(v *view.View) []api.Endpoint {
	out, s := []api.Endpoint{}, a.cfg.Settings.Get()
	for _, e := range a.Get() {
		out = append(out, e.describe(v, s, a.cfg.IPv6))
	}
	slices.SortFunc(out, func(x, y api.Endpoint) int { return slices.CompareFunc(x.Addresses, y.Addresses, netip.Addr.Compare) })
	return out
}

// Problems names endpoints without a link, endpoints with more names or labels than the directory
// has room for, and strays.
func (a *Attachments) Problems() []problem.Problem {
	a.mu.Lock()
	broken := withoutLink(a.endpoints)
	a.mu.Unlock()
	return slices.Concat(a.strays.problems(), broken, misfits(a.Get()))
}

// withoutLink returns the endpoints whose links were deleted by hand.
func withoutLink(endpoints map[string]*record) (out []problem.Problem) {
	for _, e := range endpoints {
		if e.missing >= unlinked {
			out = append(out, problem.Problem{
				Reason: problem.DataPath, What: fmt.Sprintf("%s cannot be reached, and reaches nothing", e.Title()),
				Effect: fmt.Sprintf("link %s of the endpoint was deleted on this host, but not by a runtime", e.HostLink),
				Fix:    "delete the pod or container, so that a new one gets a link",
			})
		}
	}
	slices.SortFunc(out, func(x, y problem.Problem) int { return strings.Compare(x.What, y.What) })
	return out
}

// misfits returns the parts of endpoints that other hosts do not get, since they exceed the
// directory's limits.
func misfits(endpoints []Endpoint) (out []problem.Problem) {
	left := map[string][]string{} // by omitted part: the endpoints
	for _, e := range endpoints {
		if _, what := e.Entry().Fit(); len(what) > 0 {
			text := strings.Join(what, "; ")
			left[text] = append(left[text], e.Title())
		}
	}
	for text, titles := range left {
		slices.Sort(titles)
		more := ""
		if n := len(titles) - 1; n > 0 {
			more = fmt.Sprintf(" and %d more", n)
		}
		out = append(out, problem.Problem{
			Reason: problem.LeftOut, What: fmt.Sprintf("%s%s: not all names, labels and ports fit into the directory: %s is left out", titles[0], more, text),
			Effect: "its addresses work, and the policies of this host use all its labels and ports; other hosts miss what is left out",
		})
	}
	slices.SortFunc(out, func(x, y problem.Problem) int { return strings.Compare(x.What, y.What) })
	return out
}

var metricEndpoints = metric.Desc("endpoints", "Attached containers, pods and processes.")

// Metrics exports how many endpoints there are.
func (a *Attachments) Metrics(out metric.Out) { out.Gauge(metricEndpoints, float64(len(a.Get()))) }
