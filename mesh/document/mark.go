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

// Mark says how far a writer's numbers have come, by its own signature. Who holds one has had
// every document of that writer up to the number: what is not here any more was replaced, or
// deleted. So marks are what is left of a deletion once its tombstone is forgotten.
//
// It holds because a writer numbers on from all that it knows, so that no later document of
// its own has a lower number; and because a mark is taken over only from a peer all of whose
// documents are here.
type Mark struct {
	Writer    ed25519.PublicKey `cbor:"1,keyasint"`
	Version   uint64            `cbor:"2,keyasint"`
	Signature []byte            `cbor:"3,keyasint"`
}

// MaxWriters bounds the marks: as many as there can be peers. Of more, the documents may
// return from a host that was away while they were deleted and forgotten.
const MaxWriters = 1 << 12

// markContext keeps a mark's signature from being good for anything else.
const markContext = "weft documents written v1\x00"

func signedMark(version uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(markContext), version)
}

// NewMark is the word of the holder of key that it has come to a number.
func NewMark(version uint64, key ed25519.PrivateKey) Mark {
	return Mark{key.Public().(ed25519.PublicKey), version, ed25519.Sign(key, signedMark(version))}
}

func (m Mark) check() error {
	if len(m.Writer) != ed25519.PublicKeySize || m.Version == 0 || m.Version > maxCounted || !ed25519.Verify(m.Writer, signedMark(m.Version), m.Signature) {
		return fmt.Errorf("document: a mark at %d is not its writer's", m.Version)
	}
	return nil
}

// Marks are all marks, in the order of the writers' ids.
func (s *Set) Marks() []Mark {
	ids := slices.SortedFunc(maps.Keys(s.marks), func(a, b peer.ID) int { return bytes.Compare(a[:], b[:]) })
	out := make([]Mark, len(ids))
	for i, id := range ids {
		out[i] = s.marks[id]
	}
	return out
}

// Written is the highest number of a writer's documents here, as far as numbers are counted.
func (s *Set) Written(writer peer.ID) (highest uint64) {
	for _, h := range s.held {
		if h.Version <= maxCounted && h.Version > highest && h.WriterID() == writer {
			highest = h.Version
		}
	}
	return highest
}

// See takes over the marks of a peer all of whose documents are here, and reports whether any
// was news. It ends with the first one that is forged.
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

// Ended reports whether a document is known to have been deleted, though its tombstone is
// forgotten: it was here, and is not. Who offers it was away meanwhile.
func (s *Set) Ended(d *Document) bool {
	_, here := s.held[d.Key()]
	return !here && !d.Deleted && d.Version <= s.marks[d.WriterID()].Version
}
