package mesh

import (
	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
)

// Lookup returns the valid entries with a name, lower case and relative to the domain. It also
// reports whether that name or a name below it exists.
func (d *Directory) Lookup(name string, ring directory.Ring) ([]directory.Entry, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Lookup(name, ring)
}

// At returns the valid entry of a slot.
func (d *Directory) At(s slot.Slot, ring directory.Ring) (directory.Entry, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.At(s, ring)
}

// Entries lists all valid entries.
func (d *Directory) Entries(ring directory.Ring) []directory.Entry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Entries(ring)
}

// Of lists the valid entries of one peer.
func (d *Directory) Of(owner peer.ID, ring directory.Ring) []directory.Entry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Of(owner, ring)
}

// Named returns the number of valid entries that have a name.
func (d *Directory) Named(ring directory.Ring) int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Named(ring)
}

// Listed returns the slots that a peer announces as used.
func (d *Directory) Listed(owner peer.ID) []slot.Slot {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Listed(owner)
}

// Held returns the version of every peer's set. Two peers with equal versions have equal sets.
func (d *Directory) Held() []directory.Held {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Held()
}
