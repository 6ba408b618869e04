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

// These are the kinds of the directory's requests.
const (
	requestSets = "directory/sets" // payload: owners; reply: their sets, as many as fit
	requestHeld = "directory/held" // payload: version of the requester's set; reply: the version here, once it is not older
)

// These bounds limit a reply with sets, and the time that it may take.
const (
	maxAnswer    = 1 << 20 // bytes; the first set of an answer is sent whatever its size
	maxOwners    = 1 << 10
	fetchTimeout = 3 * time.Second
)

// Handlers returns the handlers of other peers' requests to the directory.
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

// set returns the stored set of a peer, or nil.
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

// serveHeld waits until this peer has at least the given version of the requester's set, and then
// confirms that version. If the requester is a peer whose set is not stored here, an error says so:
// a third peer could still send an older set. If the requester's endpoints do not count here, the
// reply is empty.
func (d *Directory) serveHeld(ctx context.Context, from peer.ID, payload []byte) ([]byte, error) {
	var h directory.Held
	if err := decoding.Unmarshal(payload, &h); err != nil {
		return nil, err
	}
	h.Owner = from
	switch {
	case from == d.self:
		return nil, errors.New("a peer cannot confirm its own endpoints")
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
		return nil, fmt.Errorf("could not fetch version %d of the endpoints of %v", h.Version, from)
	}
	if d.cfg.Settle != nil {
		if err := d.cfg.Settle(); err != nil {
			return nil, err
		}
	}
	if err := d.flush(from); err != nil || s == nil { // store first: a restart must not bring back the endpoints that we confirm as gone
		return nil, err
	}
	return encode(s.Held()), nil
}

// fetch requests all wanted sets, in parallel from the peers that have them.
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
				d.cfg.Log.Debug("could not fetch endpoints from a peer", "peer", d.cfg.Mesh.Name(source), "err", err)
			}
			d.fetched(source, list, err)
		})
	}
}

// fetched handles the end of a request for sets. Sets that did not fit into the reply are requested
// again; sets that the peer lacks are requested from their owner. The next push/pull covers peers
// that are not reachable now.
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
		d.wakeUp()
	}
}

// fetchFrom fetches sets from one peer and stores them.
func (d *Directory) fetchFrom(ctx context.Context, source peer.ID, owners []peer.ID) error {
	answer, err := d.cfg.Mesh.Request(ctx, source, requestSets, encode(owners))
	if err != nil {
		return err
	}
	var list [][]byte
	if err := decoding.Unmarshal(answer, &list); err != nil {
		return fmt.Errorf("directory: decoding a reply: %w", err)
	}
	if len(list) > len(owners) {
		return fmt.Errorf("directory: refused a reply with %d sets, %d were requested", len(list), len(owners))
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

// takeIn stores the sets that are newer, and announces them.
func (d *Directory) takeIn(sets []*directory.Set) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var fresh []directory.Held
	for _, s := range sets {
		switch {
		case s.Owner == d.self:
			err = errors.Join(err, d.refute(s))
		case d.counts(s.Owner) && d.put(s):
			fresh = append(fresh, s.Held())
		}
	}
	if len(fresh) > 0 {
		d.cfg.Mesh.Broadcast(DirectoryName, encode(news{From: d.self, Held: fresh}))
	}
	return err
}

// The pause between two rounds of confirmations is confirmPause times the number of other peers, but
// at least confirmLeast. The first round waits longer, since no peer is reachable right after the
// start.
const (
	confirmPause = 20 * time.Millisecond
	confirmLeast = 500 * time.Millisecond
	confirmFirst = 10 * time.Second
	confirmAsk   = 16 // number of peers asked at once
)

// confirmAll asks all peers to confirm our set, as long as they may still list freed slots.
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

// note stores the result of a round in which this host asked the other peers to confirm that they
// dropped its old endpoints. The status shows it.
func (d *Directory) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && d.stuck == nil {
		d.stuckFrom = time.Now()
	}
	d.stuck = err
}

// confirm makes sure that every reachable peer has dropped the freed slots.
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
				return fmt.Errorf("peer %v has not confirmed the published endpoints: %w", id, err)
			}
			dropped.Store(id, err == nil)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, id := range d.cfg.Mesh.Others() { // a peer that joined meanwhile may have received the old set
		if ok, _ := dropped.Load(id); ok != true && d.cfg.Mesh.Reachable(id) {
			return fmt.Errorf("peer %v has just joined, and must confirm the published endpoints too", id)
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

// confirmOne asks one peer to confirm our set. The peer may have a later version that this run
// published, but not a version from before our state was restored.
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
		return fmt.Errorf("the peer has version %d of this host's endpoints, want version %d or newer", theirs.Version, own.Version)
	}
	return nil
}
