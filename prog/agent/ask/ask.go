// Package ask sends one request to all other peers at once.
package ask

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh/peer"
)

const (
	// Timeout bounds how long a peer may take to answer.
	Timeout = 5 * time.Second
	// atOnce bounds how many peers are asked at once.
	atOnce = 16
)

// ErrUnreachable means that a peer was not asked, since it is unreachable.
var ErrUnreachable = errors.New("the peer is unreachable at present")

// Mesh is the part of the mesh that requests use.
type Mesh interface {
	Others() []peer.ID
	Reachable(peer.ID) bool
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
}

// All sends a request to all other peers that can be reached, and calls f with each answer, one at
// a time. It returns when every peer has answered, or did not answer within Timeout.
func All(ctx context.Context, mesh Mesh, kind string, payload []byte, f func(id peer.ID, answer []byte, err error)) {
	var mu sync.Mutex
	group := errgroup.Group{}
	group.SetLimit(atOnce)
	for _, id := range mesh.Others() {
		group.Go(func() error {
			answer, err := one(ctx, mesh, id, kind, payload)
			mu.Lock()
			defer mu.Unlock()
			f(id, answer, err)
			return nil
		})
	}
	_ = group.Wait() // the functions of the group never return an error
}

func one(ctx context.Context, mesh Mesh, id peer.ID, kind string, payload []byte) ([]byte, error) {
	if !mesh.Reachable(id) {
		return nil, ErrUnreachable
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	return mesh.Request(ctx, id, kind, payload)
}
