// Package founding decides what this host does about the ring when its agent starts: it has one,
// founds one, votes with others, or waits to hear of one. Found runs once, before any component.
//
// Plain is for a host by itself, Kubernetes for a Node, where the API server decides who founds.
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

// Founding is what was decided.
type Founding struct {
	Trust    trust.Trust
	Targets  []string      // hosts to join
	Universe config.Ranges // as asked for, or as it was founded
	// Ring is what this host founds, if it does.
	Ring *ring.Ring
	// Election is how this host votes, if it does. Its Elsewhere is for the caller to fill.
	Election *ipam.Election
	// Kubernetes is what the cluster's Secret said when this host made its ring.
	Kubernetes kube.Founding
}

// Founder decides.
type Founder interface {
	Found(context.Context) (Founding, error)
}

func newRingID() (id ring.ID) {
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// stored completes a founding by what is on the disk, and reports whether there is a ring.
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

// seeded returns the ring of founders that all hosts were told: all of them make the same.
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
