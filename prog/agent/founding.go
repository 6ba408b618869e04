package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/ipam"
	"weft/ipam/paxos"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/router/link"
)

// Init is who founds the address ring. The zero Init is: this peer, if it was launched
// without targets; else it votes with them, where none of them has a ring already.
type Init struct {
	Expect   int       // voters; 0: the targets, and this peer
	Seeds    []peer.ID // the founders, without a vote
	Observer bool      // this peer waits for a ring and never votes
}

// ParseInit reads consensus=N, seed=ID,… or observer, as in Weave Net.
func ParseInit(s string) (i Init, err error) {
	kind, value, _ := strings.Cut(s, "=")
	switch {
	case s == "":
		return i, nil
	case kind == "consensus":
		if i.Expect, err = strconv.Atoi(value); err != nil || i.Expect < 1 || i.Expect > paxos.MaxVoters {
			err = fmt.Errorf("want a number of peers from 1 to %d", paxos.MaxVoters)
		}
	case kind == "seed":
		for _, text := range strings.Split(value, ",") {
			id, e := peer.ParseID(text)
			if e != nil {
				return i, fmt.Errorf("--ipalloc-init %s: %w (`weft id` prints a host's)", s, e)
			}
			i.Seeds = append(i.Seeds, id)
		}
	case s == "observer":
		i.Observer = true
	default:
		err = fmt.Errorf("want consensus=N, seed=ID,ID… or observer")
	}
	if err != nil {
		return i, fmt.Errorf("--ipalloc-init %s: %w", s, err)
	}
	return i, nil
}

// founding is what this peer does about a ring if it has none: it founds one, or votes
// with others, or neither and waits to hear of one.
func (a *Agent) founding(ctx context.Context, targets []string) (*ring.Ring, *ipam.Election, error) {
	st, err := a.store.Load()
	if err == nil && len(st.Ring) > 0 {
		err = a.forgetLaunched()
	}
	if err != nil || len(st.Ring) > 0 || a.opts.Init.Observer {
		return nil, nil, err
	}
	alone := len(targets) == 0 && a.opts.Init.Expect == 0
	if alone && len(a.opts.Init.Seeds) == 0 && a.token.Cluster.IsZero() { // the secret came from a password
		if _, err := rand.Read(a.token.Cluster[:]); err != nil {
			return nil, nil, fmt.Errorf("agent: %w", err)
		}
		if err := writeSecret(filepath.Join(a.opts.StateDir, SecretFile), a.token); err != nil {
			return nil, nil, err
		}
	}
	u := a.opts.Universe.complete(a.token.Cluster)
	if err := u.Validate(); err != nil {
		return nil, nil, err
	}
	if err := link.Overlap(u); err != nil {
		return nil, nil, err
	}
	switch {
	case len(a.opts.Init.Seeds) > 0:
		r, err := seeded(a.token.Cluster, u, a.opts.Init.Seeds)
		return r, nil, err
	case alone:
		r := ring.Found(newRingID(), a.token.Cluster, u, a.self())
		return &r, nil, nil
	}
	return nil, a.election(ctx, targets), nil
}

func newRingID() (id ring.ID) {
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// seeded is the ring of founders that everybody was told: all of them make the same.
func seeded(cluster secret.ClusterID, u slot.Universe, given []peer.ID) (*ring.Ring, error) {
	if cluster.IsZero() {
		return nil, fmt.Errorf("--ipalloc-init seed: all hosts need one token, which says which cluster it is; WEFT_PASSWORD does not: make one with `weft token`")
	}
	seeds := slices.Clone(given)
	slices.SortFunc(seeds, func(x, y peer.ID) int { return slices.Compare(x[:], y[:]) })
	seeds = slices.Compact(seeds)
	h := sha256.New()
	fmt.Fprintf(h, "weft seeds\x00%x\x00%v\x00%v", cluster, u, seeds)
	r := ring.Found(ring.ID(h.Sum(nil)), cluster, u, seeds...)
	return &r, nil
}

// election is how this peer votes.
func (a *Agent) election(ctx context.Context, targets []string) *ipam.Election {
	expect := a.opts.Init.Expect
	if expect == 0 {
		expect = 1 + a.countOthers(ctx, targets)
	}
	asked := a.opts.Universe.asked()
	return &ipam.Election{
		Terms: paxos.Terms{Expect: expect, V4: asked.V4, V6: asked.V6},
		Candidate: func() (ring.ID, [16]byte, slot.Universe) {
			cluster := a.token.Cluster
			if cluster.IsZero() {
				_, _ = rand.Read(cluster[:]) // never fails (crypto/rand)
			}
			return newRingID(), cluster, a.opts.Universe.complete(cluster)
		},
		Elsewhere: func() bool {
			for _, p := range a.mesh.Peers() {
				if p.Record.Identity != nil && p.Record.ID() != a.self() && p.Record.State != peer.Left && len(p.Record.Ring) > 0 {
					return true
				}
			}
			return false
		},
	}
}

// countOthers counts the targets that are not this host itself: operators like to give
// all hosts one list.
func (a *Agent) countOthers(ctx context.Context, targets []string) (n int) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	own, err := a.underlay()
	if err != nil {
		return len(targets)
	}
	name, _ := os.Hostname() // without a name no target is it
	for _, t := range targets {
		host := t
		if h, _, err := net.SplitHostPort(t); err == nil {
			host = h
		}
		addrs, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host) // who cannot be found is another host
		self := host == name || slices.ContainsFunc(addrs, func(addr netip.Addr) bool {
			return addr.IsLoopback() || slices.Contains(own, addr.Unmap())
		})
		if !self {
			n++
		}
	}
	return n
}
