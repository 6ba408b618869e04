package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh/directory"
	"weft/mesh/peer"
)

// Requests of the directory.
const (
	requestSets = "directory/sets" // owners → their sets, as many as fit
	requestHeld = "directory/held" // version of the asker's set → nothing, once the asked has it
)

// Bounds of an answer with sets, and of the time that it may take.
const (
	maxAnswer    = 1 << 20 // bytes, but one set goes in any case
	maxOwners    = 1 << 10
	fetchTimeout = 3 * time.Second
)

// Handlers answer the directory's requests of other peers.
func (d *Directory) Handlers() map[string]Handler {
	return map[string]Handler{requestSets: d.serveSets, requestHeld: d.serveHeld}
}

func (d *Directory) serveSets(_ context.Context, _ peer.ID, payload []byte) ([]byte, error) {
	var owners []peer.ID
	if err := decoding.Unmarshal(payload, &owners); err != nil {
		return nil, err
	}
	var sets [][]byte
	size := 0
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, owner := range owners[:min(len(owners), maxOwners)] {
		s := d.dir.Set(owner)
		if s == nil {
			continue
		}
		data := s.Encode()
		if size += len(data); size > maxAnswer && len(sets) > 0 {
			break
		}
		sets = append(sets, data)
	}
	return encode(sets), nil
}

// serveHeld answers once we have the version of the asker's set that it names.
func (d *Directory) serveHeld(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	if len(payload) != 8 {
		return nil, fmt.Errorf("a version has %d bytes, want 8", len(payload))
	}
	version := binary.BigEndian.Uint64(payload)
	if !d.holds(from, version) {
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		if err := d.fetchFrom(ctx, from, []peer.ID{from}); err != nil {
			return nil, err
		}
	}
	if !d.holds(from, version) {
		return nil, fmt.Errorf("version %d of the endpoints of %v did not arrive", version, from)
	}
	return nil, d.flush() // a restart must not bring back what we say is gone
}

// holds reports that nothing older than a version of a peer's set is here.
func (d *Directory) holds(owner peer.ID, version uint64) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.dir.Set(owner)
	return s == nil || s.Version >= version
}

// fetch asks for all sets that are wanted: every peer for what it has, at once.
func (d *Directory) fetch(ctx context.Context, group *sync.WaitGroup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	from := map[peer.ID][]peer.ID{}
	for owner, source := range d.wanted {
		if !d.fetches[source] {
			from[source] = append(from[source], owner)
		}
	}
	for source, owners := range from {
		owners = owners[:min(len(owners), maxOwners)]
		d.fetches[source] = true
		group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
			defer cancel()
			err := d.fetchFrom(ctx, source, owners)
			if err != nil && ctx.Err() == nil {
				d.cfg.Log.Debug("endpoints not fetched", "peer", source, "err", err)
			}
			d.fetched(source, owners, err)
		})
	}
}

// fetched notes that a source was asked. What it did not give is asked of the owner
// itself; who cannot be asked now says what it has at the next push/pull.
func (d *Directory) fetched(source peer.ID, asked []peer.ID, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.fetches, source)
	still := slices.DeleteFunc(slices.Clone(asked), func(owner peer.ID) bool { return d.wanted[owner] != source })
	if err == nil && len(still) < len(asked) {
		still = nil // they did not fit, and are asked for again
	}
	for _, owner := range still {
		delete(d.wanted, owner)
		if owner != source && owner != d.self && d.cfg.Mesh.Reachable(owner) {
			d.wanted[owner] = owner
		}
	}
	if len(d.wanted) > 0 {
		d.kick()
	}
}

// fetchFrom gets sets from one peer and takes them in.
func (d *Directory) fetchFrom(ctx context.Context, source peer.ID, owners []peer.ID) error {
	answer, err := d.cfg.Mesh.Request(ctx, source, requestSets, encode(owners))
	if err != nil {
		return err
	}
	var list [][]byte
	if err := decoding.Unmarshal(answer, &list); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	var sets []*directory.Set
	for _, data := range list {
		s, err := directory.Decode(data)
		if err != nil {
			return err
		}
		sets = append(sets, s)
	}
	return d.takeIn(owners, sets)
}

// takeIn keeps the sets that are news, and says that they are here. An owner that was
// asked for, and of which nothing newer came, is wanted no more.
func (d *Directory) takeIn(asked []peer.ID, sets []*directory.Set) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var fresh []directory.Held
	for _, s := range sets {
		switch {
		case s.Owner == d.self:
			err = errors.Join(err, d.insist(s))
		case d.cfg.Wanted(s.Owner) && d.put(s):
			fresh = append(fresh, s.Held())
		}
		delete(d.wanted, s.Owner)
	}
	if len(sets) == 0 { // the source has none of them any more
		for _, owner := range asked {
			delete(d.wanted, owner)
		}
	}
	if len(fresh) > 0 {
		d.cfg.Mesh.Broadcast(DirectoryName, encode(news{From: d.self, Held: fresh}))
	}
	return err
}

// confirmPause is how long one round of confirmations waits for the next, for each other
// peer; confirmLeast in a small mesh.
const (
	confirmPause = 20 * time.Millisecond
	confirmLeast = 500 * time.Millisecond
	confirmAsk   = 16 // peers at once
)

// confirmAll asks all peers, while slots of ours may still be known by an old name.
func (d *Directory) confirmAll(ctx context.Context) {
	for ctx.Err() == nil {
		others := d.cfg.Mesh.Others()
		select {
		case <-ctx.Done():
		case <-time.After(max(confirmLeast, time.Duration(len(others))*confirmPause)):
			d.confirm(ctx, others)
		}
	}
}

// confirm makes sure that every peer that can be reached has dropped what is not in our
// set any more.
func (d *Directory) confirm(ctx context.Context, others []peer.ID) {
	d.mu.RLock()
	own, waiting := d.dir.Set(d.self), len(d.left)
	d.mu.RUnlock()
	if waiting == 0 {
		return
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(confirmAsk)
	for _, id := range others {
		group.Go(func() error {
			if !d.cfg.Mesh.Reachable(id) {
				return nil
			}
			ctx, cancel := context.WithTimeout(ctx, 2*fetchTimeout)
			defer cancel()
			_, err := d.cfg.Mesh.Request(ctx, id, requestHeld, binary.BigEndian.AppendUint64(nil, own.Version))
			if err != nil && d.cfg.Mesh.Reachable(id) {
				return fmt.Errorf("%v: %w", id, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		d.cfg.Log.Debug("not all peers have dropped old endpoints yet", "err", err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for s, version := range d.left {
		if version <= own.Version {
			delete(d.left, s)
		}
	}
}
