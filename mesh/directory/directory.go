package directory

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// Directory is the newest set of every peer, and which names and slots are in them.
// Whether an entry counts is decided when it is read, by what the ring says then.
type Directory struct {
	sets  map[peer.ID]*Set
	names map[string][]at    // lower case, relative to the domain
	below map[string]int     // how many names lie below a name that may be none itself
	slots map[slot.Slot][]at // who says to have an endpoint there
}

// at is where an endpoint is kept.
type at struct {
	owner peer.ID
	id    string
}

// New makes an empty directory.
func New() *Directory {
	return &Directory{sets: map[peer.ID]*Set{}, names: map[string][]at{}, below: map[string]int{}, slots: map[slot.Slot][]at{}}
}

// Set is the newest set of a peer; nil if there is none.
func (d *Directory) Set(owner peer.ID) *Set { return d.sets[owner] }

// Owners lists who has a set, in the order of ids.
func (d *Directory) Owners() []peer.ID {
	return slices.SortedFunc(maps.Keys(d.sets), func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
}

// Put keeps a set, if it supersedes the one that is there, and reports whether it does.
func (d *Directory) Put(s *Set) bool {
	old := d.sets[s.Owner]
	if !s.Supersedes(old) {
		return false
	}
	d.exchange(s.Owner, old, s)
	d.sets[s.Owner] = s
	return true
}

// Forget drops the set of a peer.
func (d *Directory) Forget(owner peer.ID) {
	d.exchange(owner, d.sets[owner], nil)
	delete(d.sets, owner)
}

// exchange updates the indexes with what differs between two sets of one owner.
func (d *Directory) exchange(owner peer.ID, old, next *Set) {
	if old != nil {
		for i := range old.items {
			if !next.has(&old.items[i]) {
				d.index(owner, &old.items[i], false)
			}
		}
	}
	if next != nil {
		for i := range next.items {
			if !old.has(&next.items[i]) {
				d.index(owner, &next.items[i], true)
			}
		}
	}
}

// has reports whether the same item is in the set.
func (s *Set) has(i *item) bool {
	if s == nil {
		return false
	}
	n, ok := s.find(i.ID)
	return ok && s.items[n].sum == i.sum
}

func (d *Directory) index(owner peer.ID, i *item, add bool) {
	where := at{owner, i.ID}
	for _, name := range i.Names() {
		change(d.names, name, where, add)
		for _, parent, more := strings.Cut(name, "."); more; _, parent, more = strings.Cut(parent, ".") {
			if add {
				d.below[parent]++
			} else if d.below[parent]--; d.below[parent] == 0 {
				delete(d.below, parent)
			}
		}
	}
	for _, s := range i.Slots {
		change(d.slots, s, where, add)
	}
}

func change[K comparable](m map[K][]at, key K, where at, add bool) {
	list := m[key]
	n := slices.Index(list, where)
	switch {
	case add && n < 0:
		m[key] = append(list, where)
	case !add && n >= 0:
		if len(list) == 1 {
			delete(m, key)
			return
		}
		m[key] = slices.Delete(slices.Clone(list), n, n+1)
	}
}

// Ring is what of the ring the directory asks.
type Ring interface {
	Owner(s slot.Slot) (peer.ID, bool)
}

// entry is what is kept at a place, and whether it counts: whether the ring says that its
// peer owns all its slots.
func (d *Directory) entry(where at, ring Ring) (Entry, bool) {
	s := d.sets[where.owner]
	n, ok := s.find(where.id)
	if !ok {
		return Entry{}, false
	}
	e := Entry{s.items[n].Endpoint, where.owner}
	return e, e.counts(ring)
}

func (e Entry) counts(ring Ring) bool {
	for _, s := range e.Slots {
		if owner, ok := ring.Owner(s); !ok || owner != e.Owner {
			return false
		}
	}
	return true
}

// Lookup lists the entries that count and have a name, and reports whether anything has
// that name or one below it.
func (d *Directory) Lookup(name string, ring Ring) (entries []Entry, exists bool) {
	for _, where := range d.names[name] {
		if e, ok := d.entry(where, ring); ok {
			entries = append(entries, e)
		}
	}
	return entries, len(entries) > 0 || d.below[name] > 0
}

// At is the entry that counts and has a slot.
func (d *Directory) At(s slot.Slot, ring Ring) (Entry, bool) {
	for _, where := range d.slots[s] {
		if e, ok := d.entry(where, ring); ok {
			return e, true
		}
	}
	return Entry{}, false
}

// Entries lists all entries that count, by owner and id.
func (d *Directory) Entries(ring Ring) []Entry {
	var out []Entry
	for _, owner := range d.Owners() {
		for _, e := range d.sets[owner].Endpoints() {
			if entry := (Entry{e, owner}); entry.counts(ring) {
				out = append(out, entry)
			}
		}
	}
	return out
}

// Listed are the slots that a peer says are in use.
func (d *Directory) Listed(owner peer.ID) []slot.Slot { return d.sets[owner].Slots() }

// Held says which version of whose set a peer has.
type Held struct {
	Owner   peer.ID `cbor:"1,keyasint"`
	Version uint64  `cbor:"2,keyasint"`
	Digest  []byte  `cbor:"3,keyasint"` // the first 8 bytes: enough to see that two differ
}

// heldBytes is how much of a digest tells two sets of one version apart.
const heldBytes = 8

// Held describes the set.
func (s *Set) Held() Held { return Held{s.Owner, s.Version, s.Digest[:heldBytes]} }

// Held describes all sets: what two peers compare before they exchange any.
func (d *Directory) Held() []Held {
	out := make([]Held, 0, len(d.sets))
	for _, owner := range d.Owners() {
		out = append(out, d.sets[owner].Held())
	}
	return out
}

// Behind lists whose sets somebody has newer.
func (d *Directory) Behind(theirs []Held) []peer.ID {
	var out []peer.ID
	for _, h := range theirs {
		s := d.sets[h.Owner]
		if s == nil || h.Version > s.Version || h.Version == s.Version && bytes.Compare(h.Digest, s.Digest[:heldBytes]) > 0 {
			out = append(out, h.Owner)
		}
	}
	return out
}

// Lists reports whether a peer says that a slot is in use.
func (d *Directory) Lists(owner peer.ID, s slot.Slot) bool {
	return slices.ContainsFunc(d.slots[s], func(where at) bool { return where.owner == owner })
}
