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

// DirectoryName is the endpoints', in gossip.
const DirectoryName = "directory"

// Messenger is what the directory needs of the mesh.
type Messenger interface {
	// Broadcast passes a delta on to all peers. It does not block.
	Broadcast(replica string, delta []byte)
	// Request asks one peer and waits for its answer.
	Request(ctx context.Context, to peer.ID, kind string, payload []byte) ([]byte, error)
	// Reachable reports whether a peer can be asked at all.
	Reachable(peer.ID) bool
	// Others lists all other peers that are known, reachable or not, but for those that have
	// left and those of another ring.
	Others() []peer.ID
	// Name is what people call a peer: its id, and its nickname where that is known.
	Name(peer.ID) string
}

// DirectoryStore keeps the sets over a restart.
type DirectoryStore interface {
	// SaveSets keeps sets of endpoints, by owner; nil forgets one.
	SaveSets(sets map[peer.ID][]byte) error
}

// DirectoryConfig is what a Directory is made of.
type DirectoryConfig struct {
	Identity ed25519.PrivateKey
	Mesh     Messenger
	Store    DirectoryStore
	Sets     [][]byte // known from the last run
	// Wanted reports whether a peer's endpoints can count at all: it owns a part of the ring, or
	// it can be reached. It must not block.
	Wanted func(peer.ID) bool
	Log    *slog.Logger
	// Changed is called after every change. It must not block.
	Changed func()
	// Settle returns once all that follows from the directory is in force here, such as who may
	// reach whom; until then a slot that was freed is not said to be forgotten. nil: nothing does.
	Settle func() error
}

// Directory replicates the endpoints of all peers. Small changes travel as deltas by
// gossip; whoever lacks what a delta builds on, or hears that another peer has a newer
// set, fetches the set. Push/pull exchanges only which versions there are.
//
// It is safe for concurrent use. Nothing blocks on the network but Run.
type Directory struct {
	cfg  DirectoryConfig
	self peer.ID
	wake chan struct{} // there is something to fetch

	saving sync.Mutex // held while the store is written

	mu        sync.RWMutex
	dir       *directory.Directory
	published bool                       // our set is what this run says, not what is left of the last one
	dirty     map[peer.ID]bool           // not yet in the store
	wanted    map[peer.ID]want           // sets to fetch, by owner
	asked     map[peer.ID]directory.Held // those that are being fetched
	busy      map[peer.ID]bool           // who is being asked for sets
	left      map[slot.Slot]uint64       // slots that others may still know by a name of ours, and the version without them
	stuck     error                      // why the last round of confirmations did not free them
	stuckFrom time.Time                  // since when no round did
}

// want is a set to fetch, and who has it.
type want struct {
	from peer.ID
	held directory.Held
}

// maxDirectoryFull is how large Full is at most.
const maxDirectoryFull = 64 + 32*directory.MaxOwners

// news is what travels by gossip: one delta, or which sets the sender has.
type news struct {
	From  peer.ID          `cbor:"1,keyasint"`
	Held  []directory.Held `cbor:"2,keyasint,omitempty"`
	Delta []byte           `cbor:"3,keyasint,omitempty"`
}

// NewDirectory makes a directory; Run starts it. What it knew in the last run can be
// looked up at once.
func NewDirectory(cfg DirectoryConfig) (*Directory, error) {
	if len(cfg.Identity) != ed25519.PrivateKeySize {
		return nil, errors.New("mesh: a directory without an identity")
	}
	d := &Directory{
		cfg: cfg, self: peer.IDOf(cfg.Identity.Public().(ed25519.PublicKey)), wake: make(chan struct{}, 1), dir: directory.New(),
		dirty: map[peer.ID]bool{}, wanted: map[peer.ID]want{}, asked: map[peer.ID]directory.Held{}, busy: map[peer.ID]bool{},
		left: map[slot.Slot]uint64{},
	}
	for _, data := range cfg.Sets {
		k := kept{Set: data}
		_ = restoring.Unmarshal(data, &k) // most are sets as they are
		s, err := directory.Decode(k.Set)
		if err != nil { // of a newer version that allowed more; it is fetched again
			cfg.Log.Warn("stored endpoints are not readable", "err", err)
			continue
		}
		if s.Owner != d.self && !d.dir.Room(s.Owner) { // an earlier release had no bound
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

// kept is our own set on disk.
type kept struct {
	Set  []byte      `cbor:"10,keyasint"` // no field of a set has this number
	Left []slot.Slot `cbor:"11,keyasint,omitempty"`
}

// restoring reads what this host has written itself: there can be more freed slots than others
// may send of anything.
var restoring = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: math.MaxInt32, MaxNestedLevels: 16}.DecMode())

// Name is the directory's name as a replicated state.
func (d *Directory) Name() string { return DirectoryName }

// Full says which sets are here; who lacks one fetches it.
func (d *Directory) Full() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return encode(news{From: d.self, Held: d.dir.Held()})
}

// Merge takes in a delta, or what another peer has. Only a delta that was applied is
// passed on: who has fetched a set says so itself.
func (d *Directory) Merge(data []byte) ([]byte, error) {
	var n news
	if err := decoding.Unmarshal(data, &n); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	if len(n.Held) > directory.MaxOwners {
		return nil, fmt.Errorf("directory: endpoints of %d peers in one message, at most %d are allowed", len(n.Held), directory.MaxOwners)
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
		return nil, d.insist(next)
	}
	d.put(next)
	if len(n.Delta) > maxDelta {
		return encode(news{From: d.self, Held: []directory.Held{next.Held()}}), nil
	}
	return encode(news{From: n.From, Delta: n.Delta}), nil // without what else was in it, which nobody signed
}

// counts reports whether a peer's set is kept here.
func (d *Directory) counts(owner peer.ID) bool { return owner == d.self || d.cfg.Wanted(owner) }

// put keeps a set that is newer, if there is room. The caller holds the lock.
func (d *Directory) put(s *directory.Set) bool {
	if s.Owner != d.self && !d.dir.Room(s.Owner) || !d.dir.Put(s) {
		return false
	}
	d.dirty[s.Owner] = true
	d.cfg.Changed()
	return true
}

func (d *Directory) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// want notes that another peer has a set, if it is newer than ours and nobody is being
// asked for it yet. The caller holds the lock.
func (d *Directory) want(from peer.ID, h directory.Held) {
	asked, ok := d.asked[h.Owner]
	if from == d.self || !d.dir.Lacks(h) || !d.counts(h.Owner) || ok && asked.Compare(h) == 0 {
		return
	}
	if _, noted := d.wanted[h.Owner]; !noted && (len(d.wanted) >= directory.MaxOwners || !d.dir.Room(h.Owner)) {
		return
	}
	d.wanted[h.Owner] = want{from, h}
	d.kick()
}

// Publish makes these the endpoints of this peer, and tells the mesh if that changes any.
// Those that cannot be published are left out, and are in the error.
func (d *Directory) Publish(endpoints []directory.Endpoint) error {
	var unusable error
	good := make([]directory.Endpoint, 0, len(endpoints))
	for _, e := range endpoints {
		if err := e.Check(); err != nil {
			unusable = errors.Join(unusable, fmt.Errorf("mesh: not published: %w", err))
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
		err = d.flush(d.self) // first, so that no restart forgets what was said
		d.cfg.Mesh.Broadcast(DirectoryName, n)
	}
	return errors.Join(unusable, err)
}

// publish makes endpoints the set that follows old, and returns what to tell the mesh; nil
// if nothing changed. The caller holds the lock.
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

// follow makes next our own set. A slot of the one before, or of another one that the mesh
// knows, is taken until it is forgotten everywhere. The caller holds the lock.
func (d *Directory) follow(next, other *directory.Set) {
	for _, s := range slices.Concat(other.Slots(), d.dir.Listed(d.self)) {
		d.left[s] = next.Version
	}
	d.put(next)
	for _, s := range next.Slots() {
		delete(d.left, s)
	}
}

// maxDelta is the largest delta that travels: one that fits into a packet of gossip. Of a
// larger change only the version travels, and the set is fetched.
const maxDelta = maxGossip - 100

// insist answers a later word of ours than we remember, since our state was restored from
// an older copy. What this run said counts, and is said again, louder; before it said
// anything, it goes on from there. The caller holds the lock.
func (d *Directory) insist(theirs *directory.Set) error {
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

// Taken reports whether a slot is known in the mesh as one of our endpoints, or may still
// be: it cannot be another one's before that is over.
func (d *Directory) Taken(s slot.Slot) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, left := d.left[s]
	return left || d.dir.Lists(d.self, s)
}

// Stuck is how many freed slots wait until others have dropped their old names, since when
// no round of asking them succeeded, and why; nil if the last one did.
func (d *Directory) Stuck() (slots int, since time.Time, why error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.left), d.stuckFrom, d.stuck
}

// flushEvery is how often what others say goes to disk. What a crash loses of it is fetched
// again.
const flushEvery = time.Second

// Run fetches, keeps and confirms until ctx ends.
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
				d.cfg.Log.Warn("cannot keep the directory", "err", err)
			}
		}
	}
}

// forget drops the sets of peers that are gone for good.
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

// flush writes what changed of some owners; of all, if none are named.
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
