package document

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"weft/mesh/peer"
)

// Mark is the high-water mark of one writer, signed by it. A peer that holds a mark has had every
// document of that writer up to Version. If one of these documents is missing here, it was
// replaced or deleted. So marks preserve deletions after their tombstones have expired.
//
// This is correct for two reasons. A writer numbers above everything it knows, so none of its later
// documents has a lower version. And marks are only taken over from a peer all of whose documents
// are here.
type Mark struct {
	Writer    ed25519.PublicKey `cbor:"1,keyasint"`
	Version   uint64            `cbor:"2,keyasint"`
	Signature []byte            `cbor:"3,keyasint"`
}

// MaxWriters bounds the number of marks. It is the largest number of peers. Deleted documents of
// further writers may return from a host that was away until their tombstones had expired.
const MaxWriters = 1 << 12

// markContext makes a mark's signature invalid for anything else.
const markContext = "weft documents written v1\x00"

func signedMark(version uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(markContext), version)
}

// NewMark returns a mark at a version, signed with key.
func NewMark(version uint64, key ed25519.PrivateKey) Mark {
	return Mark{key.Public().(ed25519.PublicKey), version, ed25519.Sign(key, signedMark(version))}
}

func (m Mark) check() error {
	if len(m.Writer) != ed25519.PublicKeySize || m.Version == 0 || m.Version > maxCounted || !ed25519.Verify(m.Writer, signedMark(m.Version), m.Signature) {
		return fmt.Errorf("document: invalid mark at version %d: the signature is not its writer's", m.Version)
	}
	return nil
}

// Marks returns all marks, sorted by writer id.
func (s *Set) Marks() []Mark {
	ids := slices.SortedFunc(maps.Keys(s.marks), func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
	out := make([]Mark, len(ids))
	for i, id := range ids {
		out[i] = s.marks[id]
	}
	return out
}

// Written returns the highest version of a writer's documents here. Malicious versions do not
// count.
func (s *Set) Written(writer peer.ID) (highest uint64) {
	for _, h := range s.held {
		if h.Version <= maxCounted && h.Version > highest && h.WriterID() == writer {
			highest = h.Version
		}
	}
	return highest
}

// See merges the marks of a peer all of whose documents are here, and reports whether any was news.
// It stops at the first invalid mark.
func (s *Set) See(marks []Mark) (news bool, err error) {
	for _, m := range marks {
		id := peer.IDOf(m.Writer)
		old, known := s.marks[id]
		if m.Version <= old.Version || !known && len(s.marks) >= MaxWriters {
			continue
		}
		if err := m.check(); err != nil {
			return news, err
		}
		s.marks[id], s.top, news = m, max(s.top, m.Version), true
	}
	return news, nil
}

// Ended reports whether a document was deleted and its tombstone has expired: it is missing, and
// its version is not above its writer's mark. A host that still offers the document was away while
// the tombstone existed.
func (s *Set) Ended(d *Document) bool {
	_, here := s.held[d.Key()]
	return !here && !d.Deleted && d.Version <= s.marks[d.WriterID()].Version
}
