package directory

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// MaxEndpoints bounds the endpoints of one peer.
const MaxEndpoints = 1 << 14

// maxEndpoint bounds one of them, encoded.
const maxEndpoint = 64 << 10

// item is one endpoint of a set. The bytes are kept as they came, so that fields of a
// newer version survive being passed on.
type item struct {
	Endpoint
	raw []byte
	sum [sha256.Size]byte // of raw
}

// Digest tells two sets of one owner apart.
type Digest [sha256.Size]byte

// Set is all endpoints of one peer at one time. It is immutable, and verified: whoever
// has one knows that the owner said so.
type Set struct {
	Owner     peer.ID
	Version   uint64
	Digest    Digest
	identity  ed25519.PublicKey
	items     []item // by ID
	signature []byte
}

// Delta turns one version of a set into a later one.
type Delta struct {
	Owner     peer.ID  `cbor:"1,keyasint"`
	From      uint64   `cbor:"2,keyasint"`
	To        uint64   `cbor:"3,keyasint"`
	Put       [][]byte `cbor:"4,keyasint,omitempty"` // endpoints, encoded
	Gone      []string `cbor:"5,keyasint,omitempty"` // their ids
	Signature []byte   `cbor:"6,keyasint"`           // over the set that comes out
}

// wireSet is a set on the network and on disk.
type wireSet struct {
	Identity  []byte   `cbor:"1,keyasint"`
	Version   uint64   `cbor:"2,keyasint"`
	Endpoints [][]byte `cbor:"3,keyasint,omitempty"`
	Signature []byte   `cbor:"4,keyasint"`
}

// context keeps a set's signature from being good for anything else.
const context = "weft endpoints v1\x00"

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 17, MaxMapPairs: 2 * maxLabels, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options, or our own types
	}
	return v
}

// ErrGap says that a delta builds on a version that is not here: the set is to be fetched.
var ErrGap = errors.New("directory: the delta builds on another version of the set")

// Supersedes reports whether s replaces old, both of one owner. The order is total, so
// that all peers choose alike also between two sets with one number, which an owner makes
// whose disk was restored from a copy.
func (s *Set) Supersedes(old *Set) bool {
	return old == nil || cmp.Or(cmp.Compare(s.Version, old.Version), bytes.Compare(s.Digest[:], old.Digest[:])) > 0
}

// Len is the number of endpoints.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.items)
}

// Endpoints lists the endpoints, in the order of their ids.
func (s *Set) Endpoints() []Endpoint {
	if s == nil {
		return nil
	}
	out := make([]Endpoint, len(s.items))
	for i := range s.items {
		out[i] = s.items[i].Endpoint
	}
	return out
}

// Slots are all slots of the endpoints.
func (s *Set) Slots() []slot.Slot {
	if s == nil {
		return nil
	}
	var out []slot.Slot
	for i := range s.items {
		out = append(out, s.items[i].Slots...)
	}
	return out
}

func (s *Set) find(id string) (int, bool) {
	return slices.BinarySearchFunc(s.items, id, func(i item, id string) int { return cmp.Compare(i.ID, id) })
}

// digest is that of a set with these items, which are sorted.
func digest(items []item) Digest {
	h := sha256.New()
	for i := range items {
		h.Write(items[i].sum[:])
	}
	return Digest(h.Sum(nil))
}

// signed is what the signature covers.
func (s *Set) signed() []byte {
	b := append([]byte(context), s.Owner[:]...)
	b = binary.BigEndian.AppendUint64(b, s.Version)
	return append(b, s.Digest[:]...)
}

func (s *Set) verify() error {
	if !ed25519.Verify(s.identity, s.signed(), s.signature) {
		return fmt.Errorf("directory: version %d of the endpoints of %v is not signed by it", s.Version, s.Owner)
	}
	return nil
}

// readItem decodes one endpoint of another peer.
func readItem(raw []byte) (item, error) {
	if len(raw) > maxEndpoint {
		return item{}, fmt.Errorf("directory: an endpoint of %d bytes, at most %d are allowed", len(raw), maxEndpoint)
	}
	i := item{raw: raw, sum: sha256.Sum256(raw)}
	if err := decoding.Unmarshal(raw, &i.Endpoint); err != nil {
		return item{}, fmt.Errorf("directory: %w", err)
	}
	if err := i.Check(slot.Universe{}); err != nil {
		return item{}, fmt.Errorf("directory: %w", err)
	}
	return i, nil
}

// Next is the set that follows old, nil for none, with other endpoints, and the delta
// that leads there. An endpoint whose id is new gets its generation. Next returns old, and
// no delta, if nothing changed. The version is old's and one more, or atLeast.
func Next(old *Set, endpoints []Endpoint, atLeast uint64, key ed25519.PrivateKey) (*Set, *Delta, error) {
	identity := key.Public().(ed25519.PublicKey)
	s := &Set{Owner: peer.IDOf(identity), Version: max(atLeast, 1), identity: identity}
	d := &Delta{Owner: s.Owner}
	before := map[string]item{}
	if old != nil {
		s.Version, d.From = max(atLeast, old.Version+1), old.Version
		for _, i := range old.items {
			before[i.ID] = i
		}
	}
	for _, e := range endpoints {
		was, known := before[e.ID]
		delete(before, e.ID)
		e.Generation = s.Version
		if known {
			e.Generation = was.Generation
		}
		if known && was.Same(e) {
			s.items = append(s.items, was)
			continue
		}
		if err := e.Check(slot.Universe{}); err != nil {
			return nil, nil, fmt.Errorf("directory: %w", err)
		}
		raw := must(encoding.Marshal(e))
		s.items = append(s.items, item{Endpoint: e, raw: raw, sum: sha256.Sum256(raw)})
		d.Put = append(d.Put, raw)
	}
	d.Gone = slices.Sorted(maps.Keys(before))
	if old != nil && len(d.Put)+len(d.Gone) == 0 && atLeast <= old.Version {
		return old, nil, nil
	}
	slices.SortFunc(s.items, byID)
	if err := s.whole(); err != nil {
		return nil, nil, err
	}
	s.Digest = digest(s.items)
	s.signature = ed25519.Sign(key, s.signed())
	d.To, d.Signature = s.Version, s.signature
	return s, d, nil
}

func byID(a, b item) int { return cmp.Compare(a.ID, b.ID) }

// whole reports what the items are together that each one may not show.
func (s *Set) whole() error {
	if len(s.items) > MaxEndpoints {
		return fmt.Errorf("directory: %v has %d endpoints, at most %d are allowed", s.Owner, len(s.items), MaxEndpoints)
	}
	for i := 1; i < len(s.items); i++ {
		if s.items[i-1].ID >= s.items[i].ID {
			return fmt.Errorf("directory: %v has endpoint %s twice, or out of order", s.Owner, s.items[i].ID)
		}
	}
	return nil
}

// Apply is the set that a delta makes of s: ErrGap if it builds on another version.
func (s *Set) Apply(d Delta) (*Set, error) {
	if s == nil || d.Owner != s.Owner || d.From != s.Version || d.To <= d.From {
		return nil, ErrGap
	}
	next := &Set{Owner: s.Owner, Version: d.To, identity: s.identity, signature: d.Signature}
	put, gone := map[string]item{}, map[string]bool{}
	for _, id := range d.Gone {
		gone[id] = true
	}
	for _, raw := range d.Put {
		i, err := readItem(raw)
		if err != nil {
			return nil, err
		}
		put[i.ID] = i
	}
	for _, i := range s.items {
		if _, replaced := put[i.ID]; !replaced && !gone[i.ID] {
			next.items = append(next.items, i)
		}
	}
	next.items = slices.AppendSeq(next.items, maps.Values(put))
	slices.SortFunc(next.items, byID)
	next.Digest = digest(next.items)
	if err := cmp.Or(next.whole(), next.verify()); err != nil {
		return nil, err
	}
	return next, nil
}

// Encode writes s so that Decode reads it.
func (s *Set) Encode() []byte {
	w := wireSet{Identity: s.identity, Version: s.Version, Signature: s.signature}
	for i := range s.items {
		w.Endpoints = append(w.Endpoints, s.items[i].raw)
	}
	return must(encoding.Marshal(w))
}

// Decode reads a set and refuses one that its owner has not signed.
func Decode(data []byte) (*Set, error) {
	var w wireSet
	if err := decoding.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	if len(w.Identity) != ed25519.PublicKeySize || len(w.Endpoints) > MaxEndpoints {
		return nil, fmt.Errorf("directory: a set with a key of %d bytes and %d endpoints", len(w.Identity), len(w.Endpoints))
	}
	s := &Set{Owner: peer.IDOf(w.Identity), Version: w.Version, identity: w.Identity, signature: w.Signature}
	s.items = make([]item, 0, len(w.Endpoints))
	for _, raw := range w.Endpoints {
		i, err := readItem(raw)
		if err != nil {
			return nil, err
		}
		s.items = append(s.items, i)
	}
	s.Digest = digest(s.items)
	if err := cmp.Or(s.whole(), s.verify()); err != nil {
		return nil, err
	}
	return s, nil
}

// Encode writes d so that DecodeDelta reads it.
func (d Delta) Encode() []byte { return must(encoding.Marshal(d)) }

// DecodeDelta reads a delta; only Apply tells whether it is true.
func DecodeDelta(data []byte) (d Delta, err error) {
	if err := decoding.Unmarshal(data, &d); err != nil {
		return d, fmt.Errorf("directory: %w", err)
	}
	return d, nil
}
