package mesh

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh/directory"
	"weft/mesh/peer"
)

// Requests of the directory.
const (
	requestSets = "directory/sets" // owners → their sets, as many as fit
	requestHeld = "directory/held" // which set the asker has of itself → which one the asked has, once that is not older
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
	for _, owner := range owners[:min(len(owners), maxOwners)] {
		s := d.set(owner)
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

// set is what is here of a peer.
func (d *Directory) set(owner peer.ID) *directory.Set {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Set(owner)
}

func (d *Directory) lacks(h directory.Held) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Lacks(h)
}

// serveHeld answers once we have the version of the asker's set that it names: who has none
// at all could still get an older one from a third. The answer is empty where the asker's
// set is not kept.
func (d *Directory) serveHeld(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	var h directory.Held
	if err := decoding.Unmarshal(payload, &h); err != nil {
		return nil, err
	}
	h.Owner = from
	switch {
	case from == d.self:
		return nil, errors.New("it is our own")
	case !d.counts(from):
		d.forget()
	case d.lacks(h):
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		if err := d.fetchFrom(ctx, from, []peer.ID{from}); err != nil {
			return nil, err
		}
	}
	s := d.set(from)
	if s != nil && d.lacks(h) || s == nil && d.counts(from) {
		return nil, fmt.Errorf("version %d of the endpoints of %v did not arrive", h.Version, from)
	}
	if d.cfg.Settle != nil {
		if err := d.cfg.Settle(); err != nil {
			return nil, err
		}
	}
	if err := d.flush(from); err != nil || s == nil { // a restart must not bring back what we say is gone
		return nil, err
	}
	return encode(s.Held()), nil
}

// fetch asks for all sets that are wanted: every peer for what it has, at once.
func (d *Directory) fetch(ctx context.Context, group *sync.WaitGroup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	lists := map[peer.ID][]directory.Held{}
	for owner, w := range d.wanted {
		switch {
		case !d.dir.Lacks(w.held):
			delete(d.wanted, owner)
		case !d.busy[w.from] && len(lists[w.from]) < maxOwners:
			delete(d.wanted, owner)
			d.asked[owner] = w.held
			lists[w.from] = append(lists[w.from], w.held)
		}
	}
	for source, list := range lists {
		d.busy[source] = true
		group.Go(func() {
			var owners []peer.ID
			for _, h := range list {
				owners = append(owners, h.Owner)
			}
			ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
			defer cancel()
			err := d.fetchFrom(ctx, source, owners)
			if err != nil && ctx.Err() == nil {
				d.cfg.Log.Debug("endpoints not fetched", "peer", d.cfg.Mesh.Name(source), "err", err)
			}
			d.fetched(source, list, err)
		})
	}
}

// fetched notes that a source was asked. What did not fit into its answer is asked for
// again; what it does not have, of the owner itself. Who cannot be asked now says what it
// has at the next push/pull.
func (d *Directory) fetched(source peer.ID, list []directory.Held, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, source)
	var missing []directory.Held
	for _, h := range list {
		if asked, ok := d.asked[h.Owner]; ok && asked.Compare(h) == 0 {
			delete(d.asked, h.Owner)
		}
		if _, again := d.wanted[h.Owner]; !again && d.dir.Lacks(h) {
			missing = append(missing, h)
		}
	}
	more := err == nil && len(missing) < len(list)
	for _, h := range missing {
		if more {
			d.want(source, h)
		} else if h.Owner != source && d.cfg.Mesh.Reachable(h.Owner) {
			d.want(h.Owner, h)
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
	if len(list) > len(owners) {
		return fmt.Errorf("directory: %d sets, asked for %d", len(list), len(owners))
	}
	var sets []*directory.Set
	for _, data := range list {
		s, err := directory.Decode(data)
		if err != nil {
			return err
		}
		sets = append(sets, s)
	}
	return d.takeIn(sets)
}

// takeIn keeps the sets that are news, and says that they are here.
func (d *Directory) takeIn(sets []*directory.Set) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var fresh []directory.Held
	for _, s := range sets {
		switch {
		case s.Owner == d.self:
			err = errors.Join(err, d.insist(s))
		case d.counts(s.Owner) && d.put(s):
			fresh = append(fresh, s.Held())
		}
	}
	if len(fresh) > 0 {
		d.cfg.Mesh.Broadcast(DirectoryName, encode(news{From: d.self, Held: fresh}))
	}
	return err
}

// confirmPause is how long one round of confirmations waits for the next, for each other
// peer; confirmLeast in a small mesh. The first waits until it is known again who can be
// reached: at the start, that is nobody.
const (
	confirmPause = 20 * time.Millisecond
	confirmLeast = 500 * time.Millisecond
	confirmFirst = 10 * time.Second
	confirmAsk   = 16 // peers at once
)

// confirmAll asks all peers, while slots of ours may still be known by an old name.
func (d *Directory) confirmAll(ctx context.Context) {
	pause := confirmFirst
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = max(confirmLeast, time.Duration(len(d.cfg.Mesh.Others()))*confirmPause)
			d.note(d.confirm(ctx))
		}
	}
}

// note remembers how a round ended, for people.
func (d *Directory) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && d.stuck == nil {
		d.stuckFrom = time.Now()
	}
	d.stuck = err
}

// confirm makes sure that every peer that can be reached has dropped what is not in our
// set any more.
func (d *Directory) confirm(ctx context.Context) error {
	d.mu.RLock()
	own, waiting := d.dir.Set(d.self), len(d.left)
	d.mu.RUnlock()
	if waiting == 0 {
		return nil
	}
	var dropped sync.Map
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(confirmAsk)
	for _, id := range d.cfg.Mesh.Others() {
		if !d.cfg.Mesh.Reachable(id) {
			continue
		}
		group.Go(func() error {
			err := d.confirmOne(groupCtx, id, own.Held())
			if err != nil && d.cfg.Mesh.Reachable(id) {
				return fmt.Errorf("%v: %w", id, err)
			}
			dropped.Store(id, err == nil)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, id := range d.cfg.Mesh.Others() { // who came in the meantime may have it from somebody who had not dropped it
		if ok, _ := dropped.Load(id); ok != true && d.cfg.Mesh.Reachable(id) {
			return fmt.Errorf("%v has just come", id)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for s, version := range d.left {
		if version <= own.Version {
			delete(d.left, s)
			d.dirty[d.self] = true
		}
	}
	return nil
}

// confirmOne asks one peer to have our set. What it has may be a later one of this run, but
// not one of before our state was restored.
func (d *Directory) confirmOne(ctx context.Context, id peer.ID, own directory.Held) error {
	ctx, cancel := context.WithTimeout(ctx, 2*fetchTimeout)
	defer cancel()
	answer, err := d.cfg.Mesh.Request(ctx, id, requestHeld, encode(own))
	if err != nil || len(answer) == 0 {
		return err
	}
	var theirs directory.Held
	if err := decoding.Unmarshal(answer, &theirs); err != nil {
		return err
	}
	theirs.Owner = d.self
	d.mu.Lock()
	defer d.mu.Unlock()
	d.want(id, theirs)
	if theirs.Compare(own) < 0 || d.dir.Lacks(theirs) {
		return fmt.Errorf("it has version %d, not %d", theirs.Version, own.Version)
	}
	return nil
}
