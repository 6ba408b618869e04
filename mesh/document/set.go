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

// How many documents there are, tombstones among them. A writer that has MaxDocuments makes no
// new one. Others may have made some at the same time, behind a partition: so a set takes in
// what comes, up to MaxHeld. Beyond that, which nobody reaches who keeps to the first bound,
// what is held stays and can be changed and deleted, and new ones are refused: which of them
// are held then depends on what came first, until some are deleted and their tombstones gone.
// The alternative, to give up one that is held, would end a policy that is in force.
const (
	MaxDocuments = 4096
	MaxHeld      = MaxDocuments + MaxDocuments/4
)

// FullError says that there is no room for one more document.
type FullError struct{ Have int }

func (e *FullError) Error() string {
	return fmt.Sprintf("the mesh holds %d documents, and at most %d are allowed, those among them that were deleted in the last 30 days: "+
		"change documents instead of making new ones, or put what belongs together into one", e.Have, MaxDocuments)
}

// Set is the newest version of every document. Below its bound a set is a function of the
// documents that were put into it, in whatever order, and however often.
//
// A tombstone is dropped 30 days after it was written. One that is out of time when it comes,
// since its writer's clock is wrong, is kept for 30 days from then. It counts in no digest, so
// that peers need not agree on it, and it is given only to who holds what it deletes.
type Set struct {
	held   map[string]held // by key
	marks  map[peer.ID]Mark
	top    uint64 // the highest number that ever was here, but for those that nobody comes to
	digest Digest // at a time; zero if it has changed
	at     int64
}

// held is a document, and since when it is here, in Unix seconds.
type held struct {
	*Document
	since int64
}

// NewSet makes an empty set.
func NewSet() *Set { return &Set{held: map[string]held{}, marks: map[peer.ID]Mark{}} }

// Put keeps a document, if it supersedes the one that is there, and reports whether it does.
// It is a FullError if there is no room for one with a new name.
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

// Next is what a writer makes of what is here. Its number is above all that were ever here:
// somebody may still have a tombstone of that name, which is dropped here, and marks count on it.
func (s *Set) Next(kind, name string, body []byte, deleted bool, written int64, key ed25519.PrivateKey) (*Document, error) {
	old, _ := s.Last(Key(kind, name))
	if old == nil || old.Version < s.top {
		return (&Document{Kind: kind, Name: name, Version: s.top, Written: written, Deleted: deleted, Body: body}).sign(key)
	}
	return Next(old, kind, name, body, deleted, written, key)
}

// Expire drops the tombstones that have done their work, and lists their keys.
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

// Len is the number of documents, tombstones among them.
func (s *Set) Len() int { return len(s.held) }

// Last is the newest version of a document, which may be a tombstone, and since when it is
// here; nil if there is none.
func (s *Set) Last(key string) (d *Document, since int64) {
	h := s.held[key]
	return h.Document, h.since
}

// Get is a document; nil if there is none, or it is deleted.
func (s *Set) Get(kind, name string) *Document {
	if d := s.held[Key(kind, name)].Document; d != nil && !d.Deleted {
		return d
	}
	return nil
}

// List are the documents of a kind, but for the deleted ones, by name.
func (s *Set) List(kind string) (out []*Document) {
	for _, h := range s.held {
		if h.Kind == kind && !h.Deleted {
			out = append(out, h.Document)
		}
	}
	slices.SortFunc(out, func(a, b *Document) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// keys are those of all documents, in order.
func (s *Set) keys() []string { return slices.Sorted(maps.Keys(s.held)) }

// Digest is one over all documents that all peers are to have: two peers with the same digest
// have the same documents.
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

// Generation tells people whether two peers have the same documents of a kind: the begin of a
// digest over those that are not deleted, in hexadecimal.
func (s *Set) Generation(kind string) string {
	h := sha256.New()
	for _, d := range s.List(kind) {
		h.Write(d.Digest[:])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Held describes all documents, by key: what a peer shows to another to hear what it lacks.
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

// Lacks reports whether what somebody has is newer than what is here, and there is room for it.
func (s *Set) Lacks(theirs Held) bool {
	ours, known := s.held[Key(theirs.Kind, theirs.Name)]
	if !known {
		return len(s.held) < MaxHeld && !theirs.Old
	}
	return theirs.Compare(ours.Held()) > 0
}

// Missing are the documents here that somebody lacks, by key. Of what is deleted and out of
// time, only those that hold an older version hear.
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
