package document

import (
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"weft/mesh/peer"
)

// MaxDocuments is the number of documents, including tombstones, above which a writer makes no new
// document. Writers behind a partition can exceed it together, so a set accepts up to MaxHeld. Only
// malicious writers exceed that. Then the documents that are held stay, and can be changed and
// deleted, but new ones are refused. Which documents are held then depends on the order of
// arrival, until some tombstones expire. Dropping a held document would end a policy that is in force.
const (
	MaxDocuments = 4096
	MaxHeld      = MaxDocuments + MaxDocuments/4
)

// FullError reports that there is no room for a new document.
type FullError struct{ Have int }

func (e *FullError) Error() string {
	return fmt.Sprintf("the mesh holds %d documents, including those deleted in the last 30 days, but at most %d are allowed: "+
		"change existing documents instead of adding new ones, or combine several into one", e.Have, MaxDocuments)
}

// Set holds the newest version of every document. Within its bound it depends only on the documents
// that were put into it, not on their order or repetition.
//
// A tombstone is dropped 30 days after it was written. A tombstone whose time is too far from
// the time of its arrival, because its writer's clock is wrong, is kept for 30 days after its
// arrival. It is left out of digests, so that peers need not agree on it, and is only sent to peers
// that hold the deleted document.
type Set struct {
	held   map[string]held // by Document.Key
	marks  map[peer.ID]Mark
	top    uint64 // the highest version that was ever here, except malicious ones
	digest Digest // the set's digest at the time in at; zero if it must be computed again
	at     int64
}

// held is a document and the time of its arrival, in Unix seconds.
type held struct {
	*Document
	since int64
}

// NewSet returns an empty set.
func NewSet() *Set { return &Set{held: map[string]held{}, marks: map[peer.ID]Mark{}} }

// Put stores a document if it supersedes the present document of the same key, and reports whether
// it does. It returns a FullError if there is no room for a new key.
func (s *Set) Put(d *Document, now int64) (news bool, err error) {
	old, known := s.held[d.Key()]
	switch {
	case known && !d.Supersedes(old.Document):
		return false, nil
	case !known && len(s.held) >= MaxHeld:
		return false, &FullError{len(s.held)}
	}
	s.held[d.Key()], s.digest = held{d, now}, Digest{}
	if d.Version <= maxCounted {
		s.top = max(s.top, d.Version)
	}
	return true, nil
}

// Next returns the document with which a writer replaces the present one. Its version is higher
// than all versions that were ever here. The reason is that another peer may still have a tombstone
// of that name which has expired here. Marks rely on that order too.
func (s *Set) Next(kind, name string, body []byte, deleted bool, written int64, key ed25519.PrivateKey) (*Document, error) {
	old, _ := s.Last(Key(kind, name))
	if old == nil || old.Version < s.top {
		return (&Document{Kind: kind, Name: name, Version: s.top, Written: written, Deleted: deleted, Body: body}).sign(key)
	}
	return Next(old, kind, name, body, deleted, written, key)
}

// Expire drops the expired tombstones and returns their keys.
func (s *Set) Expire(now int64) (keys []string) {
	for key, h := range s.held {
		late := !within(h.Written, h.since) && within(h.since, now)
		if !h.Current(now) && !late {
			delete(s.held, key)
			s.digest = Digest{}
			keys = append(keys, key)
		}
	}
	return keys
}

// Len returns the number of documents, including tombstones.
func (s *Set) Len() int { return len(s.held) }

// Last returns the newest version of a document, which may be a tombstone, and the time of its
// arrival; nil if there is none.
func (s *Set) Last(key string) (d *Document, since int64) {
	h := s.held[key]
	return h.Document, h.since
}

// Get returns a document; nil if there is none or it is deleted.
func (s *Set) Get(kind, name string) *Document {
	if d := s.held[Key(kind, name)].Document; d != nil && !d.Deleted {
		return d
	}
	return nil
}

// List returns the documents of a kind, without deleted documents, sorted by name.
func (s *Set) List(kind string) (out []*Document) {
	for _, h := range s.held {
		if h.Kind == kind && !h.Deleted {
			out = append(out, h.Document)
		}
	}
	slices.SortFunc(out, func(a, b *Document) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// keys returns the keys of all documents, sorted.
func (s *Set) keys() []string { return slices.Sorted(maps.Keys(s.held)) }

// Digest returns the digest of all current documents. Peers with the same digest have the same
// documents.
func (s *Set) Digest(now int64) Digest {
	if s.digest != (Digest{}) && s.at == now {
		return s.digest
	}
	h := sha256.New()
	for _, key := range s.keys() {
		if d := s.held[key]; d.Current(now) {
			h.Write(d.Digest[:])
		}
	}
	s.digest, s.at = Digest(h.Sum(nil)), now
	return s.digest
}

// Generation returns a fingerprint of the documents of a kind, without deleted documents: the start
// of a digest in hexadecimal. People compare it to see whether two peers have the same documents.
func (s *Set) Generation(kind string) string {
	h := sha256.New()
	for _, d := range s.List(kind) {
		h.Write(d.Digest[:])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Held returns the versions of all documents, sorted by key. A peer sends it to request missing
// documents.
func (s *Set) Held(now int64) []Held {
	out := make([]Held, 0, len(s.held))
	for _, key := range s.keys() {
		d := s.held[key]
		h := d.Held()
		h.Old = !d.Current(now)
		out = append(out, h)
	}
	return out
}

// Lacks reports whether another peer's version of a document is newer than the version here, and
// whether there is room for it.
func (s *Set) Lacks(theirs Held) bool {
	ours, known := s.held[Key(theirs.Kind, theirs.Name)]
	if !known {
		return len(s.held) < MaxHeld && !theirs.Old
	}
	return theirs.Compare(ours.Held()) > 0
}

// Missing returns the documents that are newer here than in theirs, sorted by key. A tombstone that
// is not current is only returned if theirs contains an older version of the document.
func (s *Set) Missing(theirs []Held, now int64) (out []*Document) {
	have := make(map[string]Held, len(theirs))
	for _, h := range theirs {
		have[Key(h.Kind, h.Name)] = h
	}
	for _, key := range s.keys() {
		ours := s.held[key]
		h, known := have[key]
		if !known && ours.Current(now) || known && ours.Held().Compare(h) > 0 {
			out = append(out, ours.Document)
		}
	}
	return out
}
