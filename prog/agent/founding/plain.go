package founding

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"weft/ipam"
	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/prog/agent/config"
	"weft/prog/agent/statedir"
	"weft/prog/agent/trust"
	"weft/prog/state"
	"weft/router/link"
)

// Plain is the Founder of a host outside Kubernetes.
type Plain struct {
	Options config.Options
	Store   *state.Store
	// Seek decides, with --discover, whether a host without targets founds a ring or joins a host that it
	// finds.
	Seek func(context.Context, trust.Trust) (found bool, err error)
}

// Found decides from the stored state, the operator's settings and the hosts to join.
func (p Plain) Found(ctx context.Context) (f Founding, err error) {
	o := p.Options
	f.Universe = o.Universe
	hasRing, err := stored(p.Store, o, &f)
	if err != nil || hasRing || o.Init.Observer {
		return f, err
	}
	alone := len(f.Targets) == 0 && o.Init.Expect == 0
	if alone && len(o.Init.Seeds) == 0 && o.Discover {
		if found, err := p.seek(ctx, f.Trust); err != nil || !found {
			return f, err
		}
	}
	if alone && len(o.Init.Seeds) == 0 && f.Trust.Token.Cluster.IsZero() { // a token from a password has no cluster id
		if _, err := rand.Read(f.Trust.Token.Cluster[:]); err != nil {
			return f, fmt.Errorf("agent: %w", err)
		}
		if err := statedir.WriteSecret(o.StateDir, f.Trust.Token); err != nil {
			return f, err
		}
	}
	cluster := f.Trust.Token.Cluster
	u := o.Universe.Complete(cluster)
	if err := u.Validate(); err != nil {
		return f, err
	}
	if err := link.Overlap(u); err != nil {
		return f, err
	}
	switch {
	case len(o.Init.Seeds) > 0:
		f.Ring, err = seeded(cluster, u, o.Init.Seeds)
	case alone:
		r := ring.Found(newRingID(), cluster, u, f.Trust.Self)
		f.Ring = &r
	default:
		f.Election = p.election(ctx, f.Trust, f.Targets)
	}
	return f, err
}

// seek reports whether this host founds the ring. It checks first that it could.
func (p Plain) seek(ctx context.Context, t trust.Trust) (found bool, err error) {
	if !t.Holds() { // its network exists, and only waits to be found
		return false, nil
	}
	u := p.Options.Universe.Complete(t.Token.Cluster)
	if err := errors.Join(u.Validate(), link.Overlap(u), checkGossipPort(p.Options.GossipPort)); err != nil {
		return false, err
	}
	return p.Seek(ctx, t)
}

// election returns how this peer votes.
func (p Plain) election(ctx context.Context, t trust.Trust, targets []string) *ipam.Election {
	expect := p.Options.Init.Expect
	if expect == 0 {
		expect = 1 + p.countOthers(ctx, targets)
	}
	universe := p.Options.Universe
	asked := universe.Asked()
	return &ipam.Election{
		Terms: paxos.Terms{Expect: expect, V4: asked.V4, V6: asked.V6},
		Candidate: func() (ring.ID, [16]byte, slot.Universe) {
			cluster := t.Token.Cluster
			if cluster.IsZero() {
				_, _ = rand.Read(cluster[:]) // never fails (crypto/rand)
			}
			return newRingID(), cluster, universe.Complete(cluster)
		},
	}
}

// countOthers counts the targets other than this host: operators often give all hosts the same list.
func (p Plain) countOthers(ctx context.Context, targets []string) (n int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	own, err := p.ownAddrs()
	if err != nil {
		return len(targets)
	}
	name, _ := os.Hostname() // without a name, no target can be this host
	for _, t := range targets {
		host := t
		if h, _, err := net.SplitHostPort(t); err == nil {
			host = h
		}
		addrs, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // a name that cannot be resolved counts as another host
		self := host == name || slices.ContainsFunc(addrs, func(addr netip.Addr) bool {
			return addr.IsLoopback() || slices.Contains(own, addr.Unmap())
		})
		if !self {
			n++
		}
	}
	return n
}

// ownAddrs returns the addresses of this host that are announced to others.
func (p Plain) ownAddrs() (out []netip.Addr, err error) {
	if len(p.Options.Advertise) > 0 {
		return p.Options.Advertise, nil
	}
	addrs, err := link.Underlay(p.Options.Universe.Asked())
	for _, a := range addrs {
		out = append(out, a.Addr)
	}
	return out, err
}
