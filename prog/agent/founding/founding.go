// Package founding decides how an agent gets a ring when it starts: it has one, founds one, votes
// with others, or waits until it receives one. Found runs once, before any component. It owns no
// state, and never writes to the store.
//
// Plain is for hosts without Kubernetes, Kubernetes for a Node, where the API server decides which
// Node founds.
package founding

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"

	"weft/ipam"
	"weft/ipam/ring"
	"weft/ipam/slot"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/agent/config"
	"weft/prog/agent/statedir"
	"weft/prog/agent/trust"
	"weft/prog/kube"
	"weft/prog/state"
)

// Founding is the decision.
type Founding struct {
	Trust    trust.Trust
	Targets  []string      // hosts to join
	Universe config.Ranges // requested, or founded
	// Ring is the ring that this host founds; nil if it does not.
	Ring *ring.Ring
	// Election configures this host's vote; nil if it does not vote. The caller sets Elsewhere.
	Election *ipam.Election
	// Kubernetes is the content of the cluster's Secret when this host made its ring.
	Kubernetes kube.Founding
}

// Founder decides how this host gets a ring.
type Founder interface {
	Found(context.Context) (Founding, error)
}

func newRingID() (id ring.ID) {
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// stored completes f from the state on the disk, and reports whether there is a ring.
func stored(store *state.Store, opts config.Options, f *Founding) (hasRing bool, err error) {
	if f.Targets, err = statedir.AddTargets(store, opts.Targets); err != nil {
		return false, err
	}
	if f.Trust, err = trust.Load(store, opts.StateDir); err != nil {
		return false, err
	}
	st, err := store.Load()
	if err != nil || len(st.Ring) == 0 {
		return false, err
	}
	return true, statedir.ForgetLaunched(opts.StateDir)
}

// seeded returns the ring of the given founders. All hosts compute the same.
func seeded(cluster secret.ClusterID, u slot.Universe, given []peer.ID) (*ring.Ring, error) {
	if cluster.IsZero() {
		return nil, fmt.Errorf("--ipalloc-init seed: all hosts need the same token, since it has the cluster's id; a password has no cluster id; run `weft token new` once, and give all hosts that token")
	}
	seeds := slices.Clone(given)
	slices.SortFunc(seeds, func(x, y peer.ID) int { return slices.Compare(x[:], y[:]) })
	seeds = slices.Compact(seeds)
	h := sha256.New()
	fmt.Fprintf(h, "weft seeds\x00%x\x00%v\x00%v", cluster, u, seeds)
	r := ring.Found(ring.ID(h.Sum(nil)), cluster, u, seeds...)
	return &r, nil
}
