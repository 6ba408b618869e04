// Package pairs owns the pre-shared keys of tunnels of which one end does not hold the cluster's secret.
// Two holders derive their key from the secret. Any other pair agrees on a random key over its session: the
// peer with the lower id makes it and sends it, and both store it, so that it survives restarts.
//
// A key is used once both ends have it. The all-zero key is never used. Pairs is safe for concurrent use.
package pairs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh/peer"
)

// Mesh carries the keys; it seals them on the session of the two peers.
type Mesh interface {
	HoldsSecret(peer.ID) bool
	Others() []peer.ID
	Reachable(peer.ID) bool
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
	Name(peer.ID) string
}

// Store keeps the keys over a restart.
type Store interface {
	Pairs() (map[string][]byte, error)
	SavePairs(map[string][]byte) error
}

// Config configures Pairs.
type Config struct {
	Self  peer.ID
	Holds bool // whether this host holds the cluster's secret
	// Shared returns the key that this host and another holder of the secret derive from it.
	Shared func(peer.ID) [32]byte
	Mesh   Mesh
	Store  Store
	Random io.Reader
	Log    *slog.Logger
	// Changed is called after a key has changed. It must not block.
	Changed func()
}

// Pairs has the pre-shared keys.
type Pairs struct {
	cfg Config

	mu      sync.Mutex
	keys    map[peer.ID][32]byte
	offered map[peer.ID]bool // peers that have confirmed the key in this run, or that gave it to us
}

const requestPair = "pair"

// maxKeys is the number of keys above which those of unknown peers are dropped: as many as there can be peers.
const maxKeys = 1 << 12

// New returns Pairs with the stored keys.
func New(cfg Config) (*Pairs, error) {
	p := &Pairs{cfg: cfg, keys: map[peer.ID][32]byte{}, offered: map[peer.ID]bool{}}
	stored, err := cfg.Store.Pairs()
	if err != nil {
		return nil, err
	}
	for name, key := range stored {
		id, err := peer.ParseID(name)
		if err != nil || len(key) != 32 {
			cfg.Log.Warn("ignoring an unreadable stored pre-shared key: the two hosts agree on another one", "peer", name)
			continue
		}
		p.keys[id] = [32]byte(key)
	}
	return p, nil
}

// Key returns the pre-shared key of this host and another; zero if they have none yet.
func (p *Pairs) Key(id peer.ID) [32]byte {
	if p.cfg.Holds && p.cfg.Mesh.HoldsSecret(id) {
		return p.cfg.Shared(id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[id]
}

// Handlers returns the handler of other peers' requests.
func (p *Pairs) Handlers() map[string]func(context.Context, peer.ID, []byte) ([]byte, error) {
	return map[string]func(context.Context, peer.ID, []byte) ([]byte, error){requestPair: p.serve}
}

// serve takes the key of a peer with a lower id.
func (p *Pairs) serve(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
	switch {
	case bytes.Compare(from[:], p.cfg.Self[:]) >= 0:
		return nil, errors.New("the peer with the lower id makes the pre-shared key")
	case len(payload) != 32 || [32]byte(payload) == [32]byte{}:
		return nil, errors.New("want a pre-shared key of 32 bytes that are not all zero")
	}
	return nil, p.set(from, [32]byte(payload))
}

// set stores a key that both ends have.
func (p *Pairs) set(id peer.ID, key [32]byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.keys[id]; ok && old == key {
		return nil
	}
	next := maps.Clone(p.keys)
	if len(next) >= maxKeys { // peers that were forgotten; one that returns gets another key
		others := map[peer.ID]bool{}
		for _, other := range p.cfg.Mesh.Others() {
			others[other] = true
		}
		maps.DeleteFunc(next, func(other peer.ID, _ [32]byte) bool { return !others[other] })
	}
	next[id] = key
	stored := map[string][]byte{}
	for id, key := range next {
		stored[id.String()] = key[:]
	}
	if err := p.cfg.Store.SavePairs(stored); err != nil {
		return fmt.Errorf("pairs: storing a pre-shared key: %w", err)
	}
	p.keys = next
	p.cfg.Changed()
	return nil
}

const (
	interval = time.Second
	atOnce   = 8
	deadline = 5 * time.Second
)

// Run offers keys to peers until ctx ends.
func (p *Pairs) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		var group errgroup.Group
		group.SetLimit(atOnce)
		for _, id := range p.due() {
			group.Go(func() error {
				if err := p.offer(ctx, id); err != nil && ctx.Err() == nil {
					p.cfg.Log.Debug("could not agree on a pre-shared key: trying again", "peer", p.cfg.Mesh.Name(id), "err", err)
				}
				return nil
			})
		}
		_ = group.Wait()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// due lists the reachable peers that this host must offer a key to. A peer that was away may have lost it.
func (p *Pairs) due() (out []peer.ID) {
	for _, id := range p.cfg.Mesh.Others() {
		mine := bytes.Compare(p.cfg.Self[:], id[:]) < 0 && !(p.cfg.Holds && p.cfg.Mesh.HoldsSecret(id))
		reachable := p.cfg.Mesh.Reachable(id)
		p.mu.Lock()
		if !reachable {
			delete(p.offered, id)
		}
		if mine && reachable && !p.offered[id] {
			out = append(out, id)
		}
		p.mu.Unlock()
	}
	return out
}

func (p *Pairs) offer(ctx context.Context, id peer.ID) error {
	p.mu.Lock()
	key, known := p.keys[id]
	p.mu.Unlock()
	if !known {
		if _, err := io.ReadFull(p.cfg.Random, key[:]); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	if _, err := p.cfg.Mesh.Request(ctx, id, requestPair, key[:]); err != nil {
		return err
	}
	if err := p.set(id, key); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offered[id] = true
	return nil
}
