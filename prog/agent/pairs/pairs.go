// Package pairs owns the pre-shared keys of tunnels of which one end does not hold the cluster's secret.
// Two holders derive their key from the secret. Any other pair agrees on a random key over its session: the
// peer with the lower id makes it and sends it, and both store it, so that it survives restarts. If that peer cannot reach
// the other one, which may be behind NAT, the other one asks for the key.
//
// A key is used once both ends have it. The all-zero key is never used. Pairs is safe for concurrent use.
package pairs

import (
	"bytes"
	"context"
	"crypto/subtle"
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
	made    map[peer.ID][32]byte  // keys that this host made, which the other peers do not have yet
	lacks   map[peer.ID]time.Time // since when a reachable peer with a lower id has not given its key
	offered map[peer.ID]bool      // peers that have confirmed the key in this run, or that gave it to us
}

const requestPair = "pair"

// maxKeys is the number of keys above which those of unknown peers are dropped: as many as there can be peers.
const maxKeys = 1 << 12

// New returns Pairs with the stored keys.
func New(cfg Config) (*Pairs, error) {
	p := &Pairs{cfg: cfg, keys: map[peer.ID][32]byte{}, made: map[peer.ID][32]byte{}, lacks: map[peer.ID]time.Time{}, offered: map[peer.ID]bool{}}
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

// serve takes the key of a peer with a lower id. A peer with a higher id may ask for this host's key with an empty
// payload, and confirms that it has stored the key by sending it back.
func (p *Pairs) serve(_ context.Context, from peer.ID, payload []byte) ([]byte, error) {
	lower := bytes.Compare(from[:], p.cfg.Self[:]) < 0
	switch {
	case len(payload) == 0 && !lower:
		key, err := p.own(from)
		return key[:], err
	case !lower:
		key, err := p.own(from)
		if err == nil && subtle.ConstantTimeCompare(key[:], payload) != 1 {
			err = errors.New("the peer with the lower id makes the pre-shared key")
		}
		if err == nil {
			err = p.set(from, key)
		}
		return nil, err
	}
	key, err := parse(payload)
	if err != nil {
		return nil, err
	}
	if err := p.set(from, key); err != nil {
		return nil, err
	}
	p.agreed(from)
	return nil, nil
}

func parse(b []byte) ([32]byte, error) {
	if len(b) != 32 || [32]byte(b) == [32]byte{} {
		return [32]byte{}, errors.New("want a pre-shared key of 32 bytes that are not all zero")
	}
	return [32]byte(b), nil
}

// own returns this host's key for a peer with a higher id. It makes one if there is none, and the same one until the
// peer has it.
func (p *Pairs) own(id peer.ID) ([32]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if key, ok := p.keys[id]; ok {
		return key, nil
	}
	key, ok := p.made[id]
	if !ok {
		if _, err := io.ReadFull(p.cfg.Random, key[:]); err != nil {
			return key, err
		}
		if len(p.made) >= maxKeys {
			clear(p.made)
		}
		p.made[id] = key
	}
	return key, nil
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
	delete(p.made, id)
	p.cfg.Changed()
	return nil
}

const (
	interval = time.Second
	atOnce   = 8
	deadline = 15 * time.Second // a request over another member takes a while
)

// Run offers keys to peers until ctx ends.
func (p *Pairs) Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var group errgroup.Group
	group.SetLimit(atOnce)
	defer func() { _ = group.Wait() }()
	var asking sync.Map // the peers that are asked now: a silent one keeps no others waiting
	for {
		for _, id := range p.due() {
			if _, already := asking.LoadOrStore(id, true); already {
				continue
			}
			group.Go(func() error {
				defer asking.Delete(id)
				if err := p.agree(ctx, id); err != nil && ctx.Err() == nil {
					p.cfg.Log.Debug("could not agree on a pre-shared key: trying again", "peer", p.cfg.Mesh.Name(id), "err", err)
				}
				return nil
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// askAfter is how long a peer with a lower id has to offer its key, before this host asks for it.
const askAfter = 3 * time.Second

// due lists the reachable peers that this host must offer a key to, or ask for one. A peer that was away may have lost it.
func (p *Pairs) due() (out []peer.ID) {
	now, lacks := time.Now(), map[peer.ID]time.Time{}
	for _, id := range p.cfg.Mesh.Others() {
		if p.cfg.Holds && p.cfg.Mesh.HoldsSecret(id) {
			continue
		}
		mine, reachable := bytes.Compare(p.cfg.Self[:], id[:]) < 0, p.cfg.Mesh.Reachable(id)
		p.mu.Lock()
		agreed := p.offered[id]
		since, lacked := p.lacks[id]
		switch {
		case !reachable:
			delete(p.offered, id)
		case mine && !agreed, !mine && !agreed && lacked && now.Sub(since) >= askAfter:
			out = append(out, id)
		case !agreed && !lacked:
			since = now
		}
		if !mine && !agreed && reachable {
			lacks[id] = since
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	p.lacks = lacks
	p.mu.Unlock()
	return out
}

// agree offers a key to a peer with a higher id, or asks one with a lower id.
func (p *Pairs) agree(ctx context.Context, id peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	if bytes.Compare(p.cfg.Self[:], id[:]) > 0 {
		answer, err := p.cfg.Mesh.Request(ctx, id, requestPair, nil)
		if err != nil {
			return err
		}
		key, err := parse(answer)
		if err != nil {
			return err
		}
		if err := p.set(id, key); err != nil {
			return err
		}
		if _, err := p.cfg.Mesh.Request(ctx, id, requestPair, key[:]); err != nil {
			return err
		}
		p.agreed(id)
		return nil
	}
	key, err := p.own(id)
	if err != nil {
		return err
	}
	if _, err := p.cfg.Mesh.Request(ctx, id, requestPair, key[:]); err != nil {
		return err
	}
	if err := p.set(id, key); err != nil {
		return err
	}
	p.agreed(id)
	return nil
}

// agreed notes that both ends have the key.
func (p *Pairs) agreed(id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offered[id] = true
}
