package mesh

import (
	"weft/ipam/slot"
	"weft/mesh/directory"
	"weft/mesh/peer"
)

// Lookup lists the entries that count and have a name, lower case and relative to the
// domain, and reports whether anything has that name or one below it.
func (d *Directory) Lookup(name string, ring directory.Ring) ([]directory.Entry, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Lookup(name, ring)
}

// At is the entry that counts and has a slot.
func (d *Directory) At(s slot.Slot, ring directory.Ring) (directory.Entry, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.At(s, ring)
}

// Entries lists all entries that count.
func (d *Directory) Entries(ring directory.Ring) []directory.Entry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Entries(ring)
}

// Of lists the entries of one peer that count.
func (d *Directory) Of(owner peer.ID, ring directory.Ring) []directory.Entry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Of(owner, ring)
}

// Named counts the entries that count and have a name.
func (d *Directory) Named(ring directory.Ring) int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Named(ring)
}

// Listed are the slots that a peer says are in use.
func (d *Directory) Listed(owner peer.ID) []slot.Slot {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Listed(owner)
}

// Held describes the set of every peer: two peers that hold the same know the same.
func (d *Directory) Held() []directory.Held {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.dir.Held()
}
