package directory

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// MaxOwners bounds the number of peers with endpoints in a directory: twice the number of peers
// that there can be.
const MaxOwners = 1 << 13

// Directory holds the newest set of every peer, and an index of the endpoints' names. Whether an
// entry is valid is decided on each read, with the current ring.
type Directory struct {
	sets  map[peer.ID]*Set
	names map[string][]at // endpoints by name; a name is in lower case and relative to the domain
	below map[string]int  // number of names below each parent name
}

// at identifies an endpoint.
type at struct {
	owner peer.ID
	id    string
}

func (a at) compare(b at) int {
	return cmp.Or(bytes.Compare(a.owner[:], b.owner[:]), cmp.Compare(a.id, b.id))
}

// New returns an empty directory.
func New() *Directory {
	return &Directory{sets: map[peer.ID]*Set{}, names: map[string][]at{}, below: map[string]int{}}
}

// Set returns the newest set of a peer, or nil.
func (d *Directory) Set(owner peer.ID) *Set { return d.sets[owner] }

// Room reports whether there is room for the set of a peer.
func (d *Directory) Room(owner peer.ID) bool {
	return d.sets[owner] != nil || len(d.sets) < MaxOwners
}

// Owners returns the peers that have a set, sorted by id.
func (d *Directory) Owners() []peer.ID {
	return slices.SortedFunc(maps.Keys(d.sets), func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
}

// Put stores a set if it supersedes the present set of the same owner, and reports whether it does.
func (d *Directory) Put(s *Set) bool {
	old := d.sets[s.Owner]
	if !s.Supersedes(old) {
		return false
	}
	d.exchange(s.Owner, old, s)
	d.sets[s.Owner] = s
	return true
}

// Forget deletes the set of a peer.
func (d *Directory) Forget(owner peer.ID) {
	d.exchange(owner, d.sets[owner], nil)
	delete(d.sets, owner)
}

// exchange updates the index with the differences between two sets of one owner.
func (d *Directory) exchange(owner peer.ID, old, next *Set) {
	for i, j := 0, 0; i < old.Len() || j < next.Len(); {
		var order int
		switch {
		case i == old.Len():
			order = 1
		case j == next.Len():
			order = -1
		default:
			order = cmp.Compare(old.items[i].ID, next.items[j].ID)
		}
		same := order == 0 && old.items[i].sum == next.items[j].sum
		if order <= 0 {
			if !same {
				d.index(owner, &old.items[i], false)
			}
			i++
		}
		if order >= 0 {
			if !same {
				d.index(owner, &next.items[j], true)
			}
			j++
		}
	}
}

// index adds the names of an endpoint to the index, or removes them.
func (d *Directory) index(owner peer.ID, i *item, add bool) {
	where := at{owner, i.ID}
	for _, name := range i.Names() {
		list := d.names[name]
		switch n, there := slices.BinarySearchFunc(list, where, at.compare); {
		case add:
			d.names[name] = slices.Insert(list, n, where)
		case there && len(list) == 1:
			delete(d.names, name)
		case there:
			d.names[name] = slices.Delete(list, n, n+1)
		}
		for _, parent, more := strings.Cut(name, "."); more; _, parent, more = strings.Cut(parent, ".") {
			if add {
				d.below[parent]++
			} else if d.below[parent]--; d.below[parent] == 0 {
				delete(d.below, parent)
			}
		}
	}
}

// Ring is the part of the ring that the directory uses.
type Ring interface {
	Owner(s slot.Slot) (peer.ID, bool)
}

// counts reports whether the entry is valid: its peer owns all its slots.
func (e Entry) counts(ring Ring) bool { return owns(ring, e.Owner, e.Slots) }

func owns(ring Ring, id peer.ID, slots []slot.Slot) bool {
	for _, s := range slots {
		if owner, ok := ring.Owner(s); !ok || owner != id {
			return false
		}
	}
	return true
}

// Lookup returns the valid entries with a name, sorted by owner and id. exists reports whether any
// entry has this name or a name below it, valid or not.
func (d *Directory) Lookup(name string, ring Ring) (entries []Entry, exists bool) {
	for _, where := range d.names[name] {
		s := d.sets[where.owner]
		if n, ok := s.find(where.id); ok {
			if e := (Entry{s.items[n].Endpoint, where.owner}); e.counts(ring) {
				entries = append(entries, e)
			}
		}
	}
	return entries, len(entries) > 0 || d.below[name] > 0
}

// At returns the valid entry of a slot.
func (d *Directory) At(s slot.Slot, ring Ring) (Entry, bool) {
	owner, _ := ring.Owner(s)
	i, ok := d.sets[owner].at(s)
	if !ok {
		return Entry{}, false
	}
	e := Entry{i.Endpoint, owner}
	return e, e.counts(ring)
}

// Entries returns all valid entries, sorted by owner and id.
func (d *Directory) Entries(ring Ring) []Entry {
	n := 0
	for _, s := range d.sets {
		n += s.Len()
	}
	out := make([]Entry, 0, n)
	for _, owner := range d.Owners() {
		out = append(out, d.Of(owner, ring)...)
	}
	return out
}

// Of returns the valid entries of one peer, sorted by id.
func (d *Directory) Of(owner peer.ID, ring Ring) (out []Entry) {
	s := d.sets[owner]
	if s == nil {
		return nil
	}
	for i := range s.items {
		if e := (Entry{s.items[i].Endpoint, owner}); e.counts(ring) {
			out = append(out, e)
		}
	}
	return out
}

// Named returns the number of valid entries that have a name.
func (d *Directory) Named(ring Ring) (n int) {
	for owner, s := range d.sets {
		for i := range s.items {
			e := &s.items[i].Endpoint
			if (e.Name != "" || len(e.Aliases) > 0) && owns(ring, owner, e.Slots) {
				n++
			}
		}
	}
	return n
}

// Listed returns the slots that a peer announces as used.
func (d *Directory) Listed(owner peer.ID) []slot.Slot { return d.sets[owner].Slots() }

// Held describes the version of a peer's set.
type Held struct {
	Owner   peer.ID `cbor:"1,keyasint"`
	Version uint64  `cbor:"2,keyasint"`
	Digest  []byte  `cbor:"3,keyasint"` // the first 8 bytes, enough to detect a difference
}

// Compare orders two versions of the set of one owner; 0 means that they are the same.
func (h Held) Compare(o Held) int {
	return cmp.Or(cmp.Compare(h.Version, o.Version), bytes.Compare(h.Digest, o.Digest))
}

// heldBytes is the length of Held.Digest.
const heldBytes = 8

// Held returns the description of the set.
func (s *Set) Held() Held { return Held{s.Owner, s.Version, s.Digest[:heldBytes]} }

// Held returns the descriptions of all sets, which two peers compare before they exchange any.
func (d *Directory) Held() []Held {
	out := make([]Held, 0, len(d.sets))
	for _, owner := range d.Owners() {
		out = append(out, d.sets[owner].Held())
	}
	return out
}

// Lacks reports whether another peer's version of a set is newer than the one here.
func (d *Directory) Lacks(h Held) bool {
	s := d.sets[h.Owner]
	return len(h.Digest) <= heldBytes && (s == nil || h.Compare(s.Held()) > 0)
}

// Lists reports whether a peer announces a slot as used.
func (d *Directory) Lists(owner peer.ID, s slot.Slot) bool {
	_, ok := d.sets[owner].at(s)
	return ok
}
