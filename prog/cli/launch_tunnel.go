package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/prog/api"
	"weft/router/problem"
)

const (
	// tunnelWait is how long launch waits for a first tunnel, and quietWait how long it does so silently.
	tunnelWait, quietWait = 10 * time.Second, time.Second
	// lookAgain is the advice of a launch that ends without a tunnel.
	lookAgain = "see `weft status connections --watch`"
)

// tunnelWaiter waits for the first tunnel of a host that was launched with targets.
type tunnelWaiter struct {
	report      func(context.Context) (api.Report, error)
	out         io.Writer // for progress and notes
	wait, quiet time.Duration
}

// await waits until packets travel both ways through a first tunnel. It fails if gossip reaches another
// host and no tunnel works. If gossip reaches no host, it prints a note: the others may not run yet.
func (t tunnelWaiter) await(ctx context.Context) error {
	start, progress := time.Now(), newProgress(t.out)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := t.report(ctx)
		switch waited := time.Since(start); {
		case err == nil && (!hasTargets(r.Router) || direct(r.Router.Connections) > 0):
			progress.done()
			return nil
		case ctx.Err() != nil:
			progress.done()
			return &api.Error{Code: api.CodeNotReady, Message: "interrupted: the agent is ready and keeps running, but no tunnel works yet: " + lookAgain}
		case waited >= t.wait:
			progress.done()
			return t.gaveUp(r, err)
		case err == nil && waited >= t.quiet:
			progress.line("%4.1f s  waiting for a first tunnel: %s", waited.Seconds(), strings.Join(waitsFor(r), "; "))
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// gaveUp says why no tunnel works.
func (t tunnelWaiter) gaveUp(r api.Report, err error) error {
	if err != nil { // the agent has ended meanwhile
		return err
	}
	if causes := blocked(r); len(causes) > 0 {
		return &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("the agent is ready and keeps running, but no tunnel works after %v (%s):\n  %s",
			t.wait, lookAgain, strings.Join(causes, "\n  "))}
	}
	fmt.Fprintf(t.out, "no tunnel yet, since gossip reaches no other host: %s. The agent keeps trying: %s\n", strings.Join(waitsFor(r), "; "), lookAgain)
	return nil
}

// hasTargets reports whether a host is to join another host than itself.
func hasTargets(r api.Router) bool {
	return slices.ContainsFunc(r.Targets, func(t api.Target) bool {
		host := t.Host
		if at, err := netip.ParseAddrPort(host); err == nil {
			host = at.Addr().String()
		}
		addr, err := netip.ParseAddr(host)
		return host != r.Nickname && (err != nil || !slices.Contains(r.Underlay, addr.Unmap()))
	})
}

// waitsFor lists what a host without a tunnel waits for: the tunnels to hosts that gossip reaches, else the
// targets.
func waitsFor(r api.Report) (out []string) {
	for _, c := range joined(r.Router) {
		out = append(out, fmt.Sprintf("%s is %s", nameOf(c), c.State))
	}
	if out != nil {
		return out
	}
	for _, t := range r.Router.Targets {
		out = append(out, fmt.Sprintf("target %s: %s", t.Host, cmp.Or(t.Error, t.State)))
	}
	return out
}

// joined returns the connections to hosts that gossip reaches and that have a ring. A host without a
// ring has no tunnel yet.
func joined(r api.Router) (out []api.Connection) {
	for _, c := range r.Connections {
		hasRing := slices.ContainsFunc(r.Peers, func(p api.Peer) bool { return p.ID == c.Peer && p.Ring != "" })
		if c.Gossip && hasRing {
			out = append(out, c)
		}
	}
	return out
}

// blocked says for each host that gossip reaches why its tunnel does not work, and what to do. The agent's
// own warnings come first, since they know most.
func blocked(r api.Report) (out []string) {
	for _, c := range joined(r.Router) {
		said := len(out)
		for _, p := range r.Problems {
			if p.Reason == problem.Port && strings.Contains(p.What, nameOf(c)) {
				out = append(out, p.What+": "+p.Fix)
			}
		}
		if len(out) == said {
			out = append(out, cause(c))
		}
	}
	return out
}

// cause says why a tunnel does not work if the agent has no warning about it yet.
func cause(c api.Connection) string {
	port := c.Address.Port()
	switch c.State {
	case api.ConnFailed:
		return c.Info
	case api.ConnOneWay:
		return fmt.Sprintf("packets of %s arrive, but it does not hear this host: open UDP %d on that host for packets from this host, and on the way between them", nameOf(c), port)
	}
	return fmt.Sprintf("nothing comes from UDP %d of %s, though gossip reaches that host: open UDP %d between the two hosts, both ways", port, nameOf(c), port)
}

func nameOf(c api.Connection) string { return fmt.Sprintf("%s(%s)", c.Peer, c.Nickname) }

// awaitTunnel waits for a first tunnel after launch. Under Kubernetes the Nodes are the targets, and
// come when they come.
func (a *app) awaitTunnel(ctx context.Context, client *api.Client, f *launchFlags) error {
	if f.wait == 0 || f.Kubernetes.On {
		return nil
	}
	return tunnelWaiter{client.Report, a.err, tunnelWait, quietWait}.await(ctx)
}
