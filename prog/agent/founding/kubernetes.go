package founding

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/agent/config"
	"weft/prog/agent/settings"
	"weft/prog/agent/statedir"
	"weft/prog/agent/trust"
	"weft/prog/kube"
	"weft/prog/kube/node"
	"weft/prog/state"
	"weft/router/link"
	"weft/router/problem"
)

// Kubernetes decides for a Node, by the cluster's Secret. With a ring on its disk the host needs
// neither the API server nor the Secret to start.
type Kubernetes struct {
	Options  config.Options
	Store    *state.Store
	Settings *settings.Settings
	Node     *node.Node
	// Waiting is called with a message about what the host waits for.
	Waiting func(ctx context.Context, why string)
	Log     *slog.Logger
}

// Found waits for the cluster's Secret, or makes it, unless this host has a ring.
func (k Kubernetes) Found(ctx context.Context) (f Founding, err error) {
	st, err := k.Store.Load()
	if err != nil {
		return f, err
	}
	if len(st.Ring) == 0 {
		if err := k.join(ctx); err != nil {
			return f, err
		}
		if st, err = k.Store.Load(); err != nil {
			return f, err
		}
	}
	r, err := ring.Restore(st.Ring)
	if err != nil {
		return f, fmt.Errorf("agent: stored ring: %w", err)
	}
	// The universe cannot change: it was decided when the ring was founded.
	if asked := k.Options.Universe.Asked(); asked.V4.IsValid() && asked.V4 != r.Universe.V4 || asked.V6.IsValid() && asked.V6 != r.Universe.V6 {
		k.Node.Warn(problem.Problem{
			Reason: kube.ReasonUniverseFixed, What: fmt.Sprintf("the network's addresses are %v since it was founded", r.Universe),
			Effect: "WEFT_IPALLOC_RANGE (--ipalloc-range) has no effect any more",
			Fix:    "restore the setting's previous value, or remove Weft from all nodes (`weft reset`) and install it again",
		})
	}
	f.Universe = config.Ranges{V4: r.Universe.V4, V6: r.Universe.V6}
	if founding := k.Settings.Get().Founding; founding != nil {
		f.Kubernetes = *founding
	}
	_, err = stored(k.Store, k.Options, &f)
	f.Kubernetes.Token = f.Trust.Token
	return f, err
}

// join waits for the cluster's Secret, or makes it, and makes the ring that follows from it.
func (k Kubernetes) join(ctx context.Context) error {
	self, err := trust.Self(k.Store)
	if err != nil {
		return err
	}
	f, mine, err := (&kube.Bootstrap{
		Client: k.Node.Client, Namespace: k.Node.Namespace(), Node: k.Node.Name(), Self: self, Random: rand.Reader, Log: k.Log,
		Universe: k.universe, Answers: k.answers, Waiting: k.Waiting,
	}).Run(ctx)
	if _, refused := errors.AsType[*kube.RefusedError](err); refused {
		k.Node.LastWord(ctx, kube.ReasonInvalidSetting, err)
	}
	if err != nil {
		return err
	}
	dir := k.Options.StateDir
	kept, err := statedir.Secret(dir)
	switch {
	case err == nil && kept != f.Token:
		err := fmt.Errorf("this host has the secret of another cluster already (%s): empty that folder, if this host shall leave that cluster", dir)
		k.Node.LastWord(ctx, kube.ReasonSecret, err)
		return err
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if f.Founder == self && !mine {
		// The Secret names this host as the founder, but an earlier agent ended before it wrote the
		// ring to its disk. Others may have taken over the founder's addresses since then: this host
		// joins as a new peer.
		k.Log.Warn("this host founded the ring and has lost its state: it joins as a new peer", "was", fmt.Sprintf("%v(%s)", self, k.Node.Nickname()))
		if err := k.Store.Renew(); err != nil {
			return err
		}
	}
	if err := statedir.WriteSecret(dir, f.Token); err != nil {
		return err
	}
	if err := k.Settings.Change(func(v *settings.Values) error { v.Founding = &f; return nil }); err != nil {
		return err
	}
	r, err := seeded(f.Token.Cluster, f.Universe, []peer.ID{f.Founder})
	if err != nil {
		return err
	}
	k.Log.Info("the cluster's ring", "ring", r.ID, "universe", f.Universe, "founder", f.Node, "mine", mine)
	if err := k.Store.Update(ipam.Change{Ring: r.Encode()}); err != nil {
		return err
	}
	if err := k.Node.Ask(ctx); err != nil {
		k.Log.Warn("cannot read this host's Node", "err", err) // the watch of Nodes reads it later
	}
	return nil
}

// universe returns the universe with which this host would found.
func (k Kubernetes) universe(ctx context.Context, cluster secret.ClusterID) (slot.Universe, error) {
	u, err := k.Node.Client.Universe(ctx, k.Options.Universe.Asked(), cluster)
	if err != nil {
		return u, err
	}
	if err := link.Overlap(u); err != nil {
		return u, &kube.RefusedError{Err: err}
	}
	return u, checkGossipPort(k.Options.GossipPort)
}

// answers reports whether an agent listens on the gossip port at an address. An agent accepts a
// connection and sends nothing. checkGossipPort of a host that is about to found closes connections
// at once.
func (k Kubernetes) answers(ctx context.Context, addr netip.Addr) bool {
	dialer := net.Dialer{Timeout: time.Second}
	c, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, uint16(k.Options.GossipPort)).String())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = c.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// checkGossipPort reports why other hosts could not reach the gossip port of this host. A host that
// cannot be reached must not found: all others would wait for its addresses.
func checkGossipPort(port int) error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return fmt.Errorf("this host does not found the ring while its gossip port is taken: find the program with `ss -lntup sport = :%d`, or choose another port on all hosts with WEFT_PORT (--port): %w", port, err)
	}
	return l.Close()
}
