package meshtest

import (
	"maps"
	"slices"
	"sync"
	"time"

	"weft/mesh/peer"
)

// Disk is what survives when a host crashes. It implements the stores of package mesh; a test that
// stores more data embeds a Disk, and uses Write and Read. The zero value is an empty disk. A
// Disk is safe for concurrent use.
type Disk struct {
	// Delay is how long each write takes. Set it before the first write.
	Delay time.Duration

	mu        sync.Mutex
	peers     map[peer.ID][]byte
	targets   []string
	sets      map[peer.ID][]byte
	documents map[string][]byte
	synced    bool
	failure   error
	writes    int
}

// Copy returns a disk with the present content, like a backup or the disk of a cloned machine. The
// copy neither fails nor delays writes.
func (d *Disk) Copy() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Disk{
		peers: maps.Clone(d.peers), targets: slices.Clone(d.targets), sets: maps.Clone(d.sets),
		documents: maps.Clone(d.documents), synced: d.synced,
	}
}

// Fail makes all later writes fail with err, without any effect. If err is nil, writes succeed
// again.
func (d *Disk) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failure = err
}

// Writes counts the writes that succeeded.
func (d *Disk) Writes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

// Write makes a change as one write, unless the disk fails. change is called with the lock held.
func (d *Disk) Write(change func()) error {
	time.Sleep(d.Delay)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failure != nil {
		return d.failure
	}
	d.writes++
	change()
	return nil
}

// Read calls read with the lock held.
func (d *Disk) Read(read func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	read()
}

// SavePeers implements mesh.Store.
func (d *Disk) SavePeers(records map[peer.ID][]byte) error {
	return d.Write(func() { save(&d.peers, records) })
}

// SaveTargets implements mesh.Store.
func (d *Disk) SaveTargets(targets []string) error {
	return d.Write(func() { d.targets = slices.Clone(targets) })
}

// SaveSets implements mesh.DirectoryStore.
func (d *Disk) SaveSets(sets map[peer.ID][]byte) error {
	return d.Write(func() { save(&d.sets, sets) })
}

// SaveDocuments implements mesh.DocumentStore.
func (d *Disk) SaveDocuments(documents map[string][]byte) error {
	return d.Write(func() { save(&d.documents, documents) })
}

// SaveSynced implements mesh.DocumentStore.
func (d *Disk) SaveSynced() error { return d.Write(func() { d.synced = true }) }

// save stores values by their keys. A key without a value is deleted.
func save[K comparable](in *map[K][]byte, values map[K][]byte) {
	if *in == nil {
		*in = map[K][]byte{}
	}
	for key, value := range values {
		if (*in)[key] = value; value == nil {
			delete(*in, key)
		}
	}
}

// Peers returns the stored records.
func (d *Disk) Peers() (out map[peer.ID][]byte) {
	d.Read(func() { out = maps.Clone(d.peers) })
	return out
}

// Targets returns the stored targets.
func (d *Disk) Targets() (out []string) {
	d.Read(func() { out = slices.Clone(d.targets) })
	return out
}

// Sets returns the stored sets of endpoints, by their owner.
func (d *Disk) Sets() (out map[peer.ID][]byte) {
	d.Read(func() { out = maps.Clone(d.sets) })
	return out
}

// Documents returns the stored documents, by their key.
func (d *Disk) Documents() (out map[string][]byte) {
	d.Read(func() { out = maps.Clone(d.documents) })
	return out
}

// Synced reports whether SaveSynced was called.
func (d *Disk) Synced() (out bool) {
	d.Read(func() { out = d.synced })
	return out
}
