package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
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

// firstTunnel waits until packets travel both ways through a first tunnel, if this host has targets. It fails if
// none does in time.
func firstTunnel(ctx context.Context, report func(context.Context) (api.Report, error), out io.Writer) error {
	start, progress := time.Now(), newProgress(out)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		r, err := report(ctx)
		switch waited := time.Since(start); {
		case err == nil && (!hasTargets(r.Router) || inState(r.Router.Connections, api.ConnDirect, api.ConnRelayed) > 0):
			progress.done()
			return nil
		case ctx.Err() != nil:
			progress.done()
			return &api.Error{Code: api.CodeNotReady, Message: "interrupted: the agent is ready and keeps running, but no tunnel works yet: " + lookAgain}
		case waited >= tunnelWait:
			progress.done()
			return gaveUp(r, err)
		case err == nil && waited >= quietWait:
			progress.line("%4.1f s  waiting for a first tunnel: %s", waited.Seconds(), strings.Join(first(waitsFor(r.Router)), "; "))
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// gaveUp ends the wait, and says why no tunnel works.
func gaveUp(r api.Report, err error) error {
	if err != nil { // the agent has ended meanwhile
		return err
	}
	causes := blocked(r)
	if len(causes) == 0 {
		for _, one := range waitsFor(r.Router) {
			causes = append(causes, one+": launch Weft there, or open TCP and UDP "+strconv.Itoa(r.Router.GossipPort)+" between the two hosts, or `weft forget` a host that is gone for good")
		}
	}
	return &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("the agent is ready and keeps running, but no tunnel works after %v (%s):\n  %s",
		tunnelWait, lookAgain, strings.Join(first(causes), "\n  "))}
}

// hasTargets reports whether a host is to join another host than itself. A target that answers, while no other host is
// known, is this host under another name.
func hasTargets(r api.Router) bool {
	alone := !slices.ContainsFunc(r.Peers, func(p api.Peer) bool { return !p.Self })
	return slices.ContainsFunc(r.Targets, func(t api.Target) bool {
		host, _, err := net.SplitHostPort(t.Host)
		if err != nil {
			host = t.Host
		}
		addr, err := netip.ParseAddr(host)
		return host != r.Nickname && !(alone && t.State == "connected") && (err != nil || !slices.Contains(r.Underlay, addr.Unmap()))
	})
}

// waitsFor lists what a host without a tunnel waits for: the tunnels to hosts that gossip reaches, else the
// targets.
func waitsFor(r api.Router) (out []string) {
	for _, c := range r.Connections {
		switch {
		case c.Gossip && hasRing(r, c.Peer):
			out = append(out, fmt.Sprintf("the tunnel to %s is %s", nameOf(c), c.State))
		case c.Gossip:
			out = append(out, fmt.Sprintf("%s waits for the ring", nameOf(c)))
		}
	}
	if out != nil {
		return out
	}
	for _, t := range r.Targets {
		out = append(out, fmt.Sprintf("target %s: %s", t.Host, cmp.Or(t.Error, t.State)))
	}
	return out
}

// hasRing reports whether a peer has a ring. Without a ring it has no tunnel yet.
func hasRing(r api.Router, id string) bool {
	return slices.ContainsFunc(r.Peers, func(p api.Peer) bool { return p.ID == id && p.Ring != "" })
}

// blocked says for each host that gossip reaches, and that has a ring, why its tunnel does not work, and what to do. The agent's
// own warnings come first, since they know most.
func blocked(r api.Report) (out []string) {
	for _, c := range r.Router.Connections {
		if !c.Gossip || !hasRing(r.Router, c.Peer) {
			continue
		}
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

// first returns the first few texts, and how many more there are.
func first(texts []string) []string {
	const few = 5
	if len(texts) <= few {
		return texts
	}
	return append(texts[:few:few], fmt.Sprintf("and %d more", len(texts)-few))
}

func nameOf(c api.Connection) string { return fmt.Sprintf("%s(%s)", c.Peer, c.Nickname) }

// awaitTunnel waits for a first tunnel after launch. Under Kubernetes the Nodes are the targets, and
// come when they come.
func (a *app) awaitTunnel(ctx context.Context, client *api.Client, f *launchFlags) error {
	if f.wait == 0 || f.Kubernetes.On {
		return nil
	}
	return firstTunnel(ctx, client.Report, a.err)
}
