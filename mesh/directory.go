package mesh

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
)

// DirectoryName is the name of the endpoints as a replicated state.
const DirectoryName = "directory"

// Messenger is the directory's access to the mesh.
type Messenger interface {
	// Broadcast sends a delta to all peers. It does not block.
	Broadcast(replica string, delta []byte)
	// Request sends a request to one peer and waits for its answer.
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
	// Reachable reports whether requests reach a peer at present.
	Reachable(peer.ID) bool
	// Others lists all other known peers, reachable or not, without peers that have left or belong
	// to another ring.
	Others() []peer.ID
	// Name returns a peer's name for messages: its id, and its nickname if known.
	Name(peer.ID) string
}

// DirectoryStore persists the sets of endpoints.
type DirectoryStore interface {
	// SaveSets stores sets by owner. A nil value deletes the owner's set.
	SaveSets(sets map[peer.ID][]byte) error
}

// DirectoryConfig configures a Directory.
type DirectoryConfig struct {
	Identity ed25519.PrivateKey
	Mesh     Messenger
	Store    DirectoryStore
	Sets     [][]byte // the sets that an earlier run stored
	// Wanted reports whether a peer's endpoints can be valid: it owns a part of the ring, or it is
	// reachable. It must not block.
	Wanted func(peer.ID) bool
	Log    *slog.Logger
	// Changed is called after every change. It must not block.
	Changed func()
	// Settle returns once this host has applied everything that depends on the directory, such as
	// policies. Only then this peer confirms that it has dropped a freed slot. Settle is nil if
	// nothing depends on the directory.
	Settle func() error
}

// Directory replicates the endpoints of all peers. Each peer's endpoints are one versioned, signed
// set. Small changes travel as deltas by gossip. A peer that lacks a delta's base version, or
// learns of a newer set, fetches that set. Push/pull exchanges only versions.
//
// A Directory is safe for concurrent use. Only Run blocks on the network.
type Directory struct {
	cfg  DirectoryConfig
	self peer.ID
	wake chan struct{} // wakes Run to fetch sets

	saving sync.Mutex // held while the store is written

	mu        sync.RWMutex
	dir       *directory.Directory
	published bool                       // our set was published in this run, not restored from disk
	dirty     map[peer.ID]bool           // sets that are not stored yet
	wanted    map[peer.ID]want           // sets to fetch; key: the owner
	asked     map[peer.ID]directory.Held // sets that are being fetched
	busy      map[peer.ID]bool           // peers that are being asked for sets
	left      map[slot.Slot]uint64       // freed slots that other peers may still map to our endpoints, with the version of our set that first lacks them
	stuck     error                      // why the last round of confirmations failed
	stuckFrom time.Time                  // when confirmations began to fail
}

// want is a set to fetch, and the peer that has it.
type want struct {
	from peer.ID
	held directory.Held
}

// maxDirectoryFull is the largest size of Full, in bytes.
const maxDirectoryFull = 64 + 32*directory.MaxOwners

// news is a gossip message: one delta, or the versions of the sender's sets.
type news struct {
	From  peer.ID          `cbor:"1,keyasint"`
	Held  []directory.Held `cbor:"2,keyasint,omitempty"`
	Delta []byte           `cbor:"3,keyasint,omitempty"`
}

// NewDirectory returns a directory; Run starts it. Stored endpoints can be looked up at once.
func NewDirectory(cfg DirectoryConfig) (*Directory, error) {
	if len(cfg.Identity) != ed25519.PrivateKeySize {
		return nil, errors.New("mesh: directory: no identity given")
	}
	d := &Directory{
		cfg: cfg, self: peer.IDOf(cfg.Identity.Public().(ed25519.PublicKey)), wake: make(chan struct{}, 1), dir: directory.New(),
		dirty: map[peer.ID]bool{}, wanted: map[peer.ID]want{}, asked: map[peer.ID]directory.Held{}, busy: map[peer.ID]bool{},
		left: map[slot.Slot]uint64{},
	}
	for _, data := range cfg.Sets {
		k := kept{Set: data}
		_ = restoring.Unmarshal(data, &k) // most entries are plain sets
		s, err := directory.Decode(k.Set)
		if err != nil { // written by a newer version; it is fetched again
			cfg.Log.Warn("ignoring unreadable stored endpoints: fetching them again", "err", err)
			continue
		}
		if s.Owner != d.self && !d.dir.Room(s.Owner) { // an earlier release had no bound on owners
			d.dirty[s.Owner] = true
			continue
		}
		d.dir.Put(s)
		for _, slot := range k.Left {
			d.left[slot] = s.Version
		}
	}
	return d, nil
}

// kept is the stored form of our own set, with its freed slots.
type kept struct {
	Set  []byte      `cbor:"10,keyasint"` // an encoded set has no field 10, so the two forms can be told apart
	Left []slot.Slot `cbor:"11,keyasint,omitempty"`
}

// restoring decodes data that this host stored itself. The number of freed slots can exceed the
// bounds for received messages.
var restoring = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: math.MaxInt32, MaxNestedLevels: 16}.DecMode())

// Name returns the name of the directory as a replicated state.
func (d *Directory) Name() string { return DirectoryName }

// Full returns the versions of all sets; peers fetch the sets that they lack.
func (d *Directory) Full() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return encode(news{From: d.self, Held: d.dir.Held()})
}

// Merge merges a delta, or another peer's versions. Only an applied delta is passed on: a peer that
// fetched a set announces that set itself.
func (d *Directory) Merge(data []byte) ([]byte, error) {
	var n news
	if err := decoding.Unmarshal(data, &n); err != nil {
		return nil, fmt.Errorf("directory: decoding a broadcast: %w", err)
	}
	if len(n.Held) > directory.MaxOwners {
		return nil, fmt.Errorf("directory: refused a message with endpoints of %d peers, at most %d are allowed", len(n.Held), directory.MaxOwners)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range n.Held {
		d.want(n.From, h)
	}
	if n.Delta == nil {
		return nil, nil
	}
	delta, err := directory.DecodeDelta(n.Delta)
	if err != nil || !d.counts(delta.Owner) {
		return nil, err
	}
	old := d.dir.Set(delta.Owner)
	if old != nil && delta.To <= old.Version {
		return nil, nil
	}
	next, err := old.Apply(delta)
	switch {
	case errors.Is(err, directory.ErrGap):
		d.want(delta.Owner, directory.Held{Owner: delta.Owner, Version: delta.To})
		return nil, nil
	case err != nil:
		return nil, err
	case delta.Owner == d.self:
		return nil, d.refute(next)
	}
	d.put(next)
	if len(n.Delta) > maxDelta {
		return encode(news{From: d.self, Held: []directory.Held{next.Held()}}), nil
	}
	return encode(news{From: n.From, Delta: n.Delta}), nil // pass on only what the owner signed
}

// counts reports whether a peer's set is stored here.
func (d *Directory) counts(owner peer.ID) bool { return owner == d.self || d.cfg.Wanted(owner) }

// put stores a newer set, if there is room. The caller holds the lock.
func (d *Directory) put(s *directory.Set) bool {
	if s.Owner != d.self && !d.dir.Room(s.Owner) || !d.dir.Put(s) {
		return false
	}
	d.dirty[s.Owner] = true
	d.cfg.Changed()
	return true
}

func (d *Directory) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// want schedules a fetch of a set from another peer, if that set is newer than ours and not being
// fetched already. The caller holds the lock.
func (d *Directory) want(from peer.ID, h directory.Held) {
	asked, ok := d.asked[h.Owner]
	if from == d.self || !d.dir.Lacks(h) || !d.counts(h.Owner) || ok && asked.Compare(h) == 0 {
		return
	}
	if _, noted := d.wanted[h.Owner]; !noted && (len(d.wanted) >= directory.MaxOwners || !d.dir.Room(h.Owner)) {
		return
	}
	d.wanted[h.Owner] = want{from, h}
	d.wakeUp()
}

// Publish replaces this peer's endpoints, and announces the change. Endpoints that cannot be
// published are left out and named in the error.
func (d *Directory) Publish(endpoints []directory.Endpoint) error {
	var unusable error
	good := make([]directory.Endpoint, 0, len(endpoints))
	for _, e := range endpoints {
		if err := e.Check(); err != nil {
			unusable = errors.Join(unusable, fmt.Errorf("mesh: an endpoint is not published, so other hosts do not know its names: %w", err))
			continue
		}
		good = append(good, e)
	}
	d.mu.Lock()
	n, err := d.publish(d.dir.Set(d.self), good, 0)
	if errors.Is(err, directory.ErrTooLarge) {
		fits, left := directory.FitSet(good)
		unusable = errors.Join(unusable, left)
		n, err = d.publish(d.dir.Set(d.self), fits, 0)
	}
	d.published = d.published || err == nil
	d.mu.Unlock()
	if n != nil {
		err = d.flush(d.self) // store first, so that a restart does not forget an announced change
		d.cfg.Mesh.Broadcast(DirectoryName, n)
	}
	return errors.Join(unusable, err)
}

// publish makes endpoints the set after old, and returns the message to broadcast; nil if nothing
// changed. The caller holds the lock.
func (d *Directory) publish(old *directory.Set, endpoints []directory.Endpoint, atLeast uint64) ([]byte, error) {
	next, delta, err := directory.Next(old, endpoints, atLeast, d.cfg.Identity)
	if err != nil || delta == nil {
		return nil, err
	}
	d.follow(next, old)
	n := news{From: d.self, Delta: delta.Encode()}
	if len(n.Delta) > maxDelta || delta.From == 0 {
		n = news{From: d.self, Held: []directory.Held{next.Held()}}
	}
	return encode(n), nil
}

// follow makes next our own set. Slots of the previous set, and of another version that peers
// have, stay taken until all peers have dropped them. The caller holds the lock.
func (d *Directory) follow(next, other *directory.Set) {
	for _, s := range slices.Concat(other.Slots(), d.dir.Listed(d.self)) {
		d.left[s] = next.Version
	}
	d.put(next)
	for _, s := range next.Slots() {
		delete(d.left, s)
	}
}

// maxDelta is the largest delta that is sent: such a delta fits into one gossip packet. For a
// larger change only the version is sent, and peers fetch the set.
const maxDelta = maxGossip - 100

// refute handles a version of our own set that is newer than ours: our state was restored from an
// older copy. If this run has published endpoints, they are published again with a higher version.
// Otherwise we continue from the newer set. The caller holds the lock.
func (d *Directory) refute(theirs *directory.Set) error {
	own := d.dir.Set(d.self)
	switch {
	case !theirs.Supersedes(own):
		return nil
	case !d.published:
		d.follow(theirs, nil)
		return nil
	}
	n, err := d.publish(theirs, own.Endpoints(), theirs.Version+1)
	if n != nil {
		d.cfg.Mesh.Broadcast(DirectoryName, n)
	}
	return err
}

// Taken reports whether other peers map a slot to one of our endpoints, or may still do so. As long
// as Taken returns true, the slot must not be allocated.
func (d *Directory) Taken(s slot.Slot) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, left := d.left[s]
	return left || d.dir.Lists(d.self, s)
}

// Stuck returns the number of freed slots that other peers have not yet dropped. If confirmations
// fail, Stuck also returns since when and why.
func (d *Directory) Stuck() (slots int, since time.Time, why error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.left), d.stuckFrom, d.stuck
}

// flushEvery is how often the sets of other peers are stored. What a crash loses is fetched again.
const flushEvery = time.Second

// Run fetches, stores and confirms sets until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { d.confirmAll(ctx) })
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return d.flush()
		case <-d.wake:
			d.fetch(ctx, &group)
		case <-tick.C:
			d.forget()
			if err := d.flush(); err != nil {
				d.cfg.Log.Warn("cannot store the directory: trying again", "err", err)
			}
		}
	}
}

// forget drops the sets of peers that are no longer wanted.
func (d *Directory) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, owner := range d.dir.Owners() {
		if owner != d.self && !d.cfg.Wanted(owner) {
			d.dir.Forget(owner)
			d.dirty[owner] = true
			d.cfg.Changed()
		}
	}
}

// flush stores the changed sets of the given owners, or of all owners if none are given.
func (d *Directory) flush(owners ...peer.ID) error {
	d.saving.Lock()
	defer d.saving.Unlock()
	d.mu.Lock()
	sets, left := map[peer.ID]*directory.Set{}, slices.Collect(maps.Keys(d.left))
	for owner := range d.dirty {
		if len(owners) == 0 || slices.Contains(owners, owner) {
			sets[owner] = d.dir.Set(owner)
			delete(d.dirty, owner)
		}
	}
	d.mu.Unlock()
	if len(sets) == 0 {
		return nil
	}
	data := map[peer.ID][]byte{}
	for owner, s := range sets {
		switch {
		case s == nil:
			data[owner] = nil
		case owner == d.self:
			data[owner] = encode(kept{s.Encode(), left})
		default:
			data[owner] = s.Encode()
		}
	}
	err := d.cfg.Store.SaveSets(data)
	if err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		for owner := range sets {
			d.dirty[owner] = true
		}
	}
	return err
}
