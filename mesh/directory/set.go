package directory

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unique"

	"github.com/fxamacker/cbor/v2"

	"weft/ipam/slot"
	"weft/mesh/peer"
)

// MaxEndpoints bounds the endpoints of one peer.
const MaxEndpoints = 1 << 14

// maxEndpoint bounds the encoding of one endpoint.
const maxEndpoint = 64 << 10

// maxSet bounds the encoding of all endpoints of one peer. A set travels in one message, and peers
// read messages of up to 8 MiB.
const maxSet = 6 << 20

// ErrTooLarge reports that the endpoints of one peer exceed maxSet.
var ErrTooLarge = errors.New("directory: the endpoints of one peer are too large together")

// item is one endpoint of a set.
type item struct {
	Endpoint
	// raw is the encoding as received, so that fields of a newer version are passed on; nil if our
	// own encoding is the same.
	raw  []byte
	size int               // bytes of the encoding
	sum  [sha256.Size]byte // hash of the encoding
}

// encoded returns the encoding that the owner signed.
func (i *item) encoded() []byte {
	if i.raw != nil {
		return i.raw
	}
	return must(encoding.Marshal(i.Endpoint))
}

// place maps a slot to an item of a set.
type place struct {
	slot slot.Slot
	item int32
}

// Digest identifies the content of a set.
type Digest [sha256.Size]byte

// Set is all endpoints of one peer at one time. It is immutable, and its signature was verified.
type Set struct {
	Owner     peer.ID
	Version   uint64
	Digest    Digest
	identity  ed25519.PublicKey
	items     []item  // sorted by ID
	places    []place // sorted by slot
	signature []byte
}

// Delta changes one version of a set into a later one.
type Delta struct {
	Owner     peer.ID  `cbor:"1,keyasint"`
	From      uint64   `cbor:"2,keyasint"`
	To        uint64   `cbor:"3,keyasint"`
	Put       [][]byte `cbor:"4,keyasint,omitempty"` // encoded new and changed endpoints
	Gone      []string `cbor:"5,keyasint,omitempty"` // ids of removed endpoints
	Signature []byte   `cbor:"6,keyasint"`           // signs the set that results from this delta
}

// wireSet is the encoding of a set, on the network and on disk.
type wireSet struct {
	Identity  []byte   `cbor:"1,keyasint"`
	Version   uint64   `cbor:"2,keyasint"`
	Endpoints [][]byte `cbor:"3,keyasint,omitempty"`
	Signature []byte   `cbor:"4,keyasint"`
}

// context makes a set's signature invalid for anything else.
const context = "weft endpoints v1\x00"

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 17, MaxMapPairs: 2 * maxLabels, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only constant options and our own types reach this
	}
	return v
}

// ErrGap reports that a delta has another base version: the whole set must be fetched.
var ErrGap = errors.New("directory: the delta is for another version of the set")

// Supersedes reports whether s replaces old, a set of the same owner. The order is total, so all
// peers choose the same set. This also holds for two sets with one version, which an owner signs if
// its disk was restored from a copy.
func (s *Set) Supersedes(old *Set) bool {
	return old == nil || cmp.Or(cmp.Compare(s.Version, old.Version), bytes.Compare(s.Digest[:], old.Digest[:])) > 0
}

// Len returns the number of endpoints; a nil set has none.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.items)
}

// Endpoints returns the endpoints, sorted by id. Their maps and slices belong to the set and must
// not be changed.
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

// Slots returns the distinct slots of all endpoints, sorted.
func (s *Set) Slots() []slot.Slot {
	if s == nil {
		return nil
	}
	out := make([]slot.Slot, len(s.places))
	for i, p := range s.places {
		out[i] = p.slot
	}
	return out
}

// at returns the endpoint of a slot. If the owner assigned the slot to several endpoints by
// mistake, at returns the first of them.
func (s *Set) at(n slot.Slot) (*item, bool) {
	if s == nil {
		return nil, false
	}
	i, ok := slices.BinarySearchFunc(s.places, n, func(p place, n slot.Slot) int { return cmp.Compare(p.slot, n) })
	if !ok {
		return nil, false
	}
	return &s.items[s.places[i].item], true
}

func (s *Set) find(id string) (int, bool) {
	if s == nil {
		return 0, false
	}
	return slices.BinarySearchFunc(s.items, id, func(i item, id string) int { return cmp.Compare(i.ID, id) })
}

// signed returns the data that the signature covers.
func (s *Set) signed() []byte {
	b := append([]byte(context), s.Owner[:]...)
	b = binary.BigEndian.AppendUint64(b, s.Version)
	return append(b, s.Digest[:]...)
}

func (s *Set) verify() error {
	if !ed25519.Verify(s.identity, s.signed(), s.signature) {
		return fmt.Errorf("directory: version %d of the endpoints of %v: invalid signature", s.Version, s.Owner)
	}
	return nil
}

// readItem decodes one endpoint.
func readItem(raw []byte) (item, error) {
	if len(raw) > maxEndpoint {
		return item{}, fmt.Errorf("directory: refused an endpoint of %d bytes, at most %d are allowed", len(raw), maxEndpoint)
	}
	i := item{size: len(raw), sum: sha256.Sum256(raw)}
	if err := decoding.Unmarshal(raw, &i.Endpoint); err != nil {
		return item{}, fmt.Errorf("directory: decoding an endpoint: %w", err)
	}
	if err := i.Check(); err != nil {
		return item{}, fmt.Errorf("directory: refused an invalid endpoint: %w", err)
	}
	i.share()
	if !bytes.Equal(i.encoded(), raw) {
		i.raw = raw
	}
	return i, nil
}

// share deduplicates strings in memory that many endpoints have in common.
func (e *Endpoint) share() {
	one := func(s string) string { return unique.Make(s).Value() }
	e.Namespace = one(e.Namespace)
	if len(e.Labels) > 0 {
		labels := make(map[string]string, len(e.Labels))
		for k, v := range e.Labels {
			labels[one(k)] = one(v)
		}
		e.Labels = labels
	}
	for i := range e.Ports {
		e.Ports[i].Name, e.Ports[i].Protocol = one(e.Ports[i].Name), one(e.Ports[i].Protocol)
	}
}

// Next returns the set after old, which can be nil, with other endpoints, and the delta between
// them. An endpoint with a new id gets its generation. The version is one more than that of old, or
// atLeast if that is higher. If nothing changed, Next returns old and no delta.
func Next(old *Set, endpoints []Endpoint, atLeast uint64, key ed25519.PrivateKey) (*Set, *Delta, error) {
	identity := key.Public().(ed25519.PublicKey)
	s := &Set{Owner: peer.IDOf(identity), Version: max(atLeast, 1), identity: identity}
	d := &Delta{Owner: s.Owner}
	if old != nil {
		s.Version, d.From = max(atLeast, old.Version+1), old.Version
	}
	for _, e := range endpoints {
		n, known := old.find(e.ID)
		e.Generation = s.Version
		if known {
			e.Generation = old.items[n].Generation
			if old.items[n].Same(e) {
				s.items = append(s.items, old.items[n])
				continue
			}
		}
		raw := must(encoding.Marshal(e))
		i, err := readItem(raw) // decode as other peers will, which also copies the caller's data
		if err != nil {
			return nil, nil, err
		}
		s.items = append(s.items, i)
		d.Put = append(d.Put, raw)
	}
	if err := s.complete(); err != nil {
		return nil, nil, err
	}
	if old != nil && s.Digest == old.Digest && atLeast <= old.Version {
		return old, nil, nil
	}
	for i := range old.Len() {
		if _, still := s.find(old.items[i].ID); !still {
			d.Gone = append(d.Gone, old.items[i].ID)
		}
	}
	s.signature = ed25519.Sign(key, s.signed())
	d.To, d.Signature = s.Version, s.signature
	return s, d, nil
}

// complete sorts the items, checks them as a whole, and computes digest and index.
func (s *Set) complete() error {
	slices.SortFunc(s.items, func(a, b item) int { return cmp.Compare(a.ID, b.ID) })
	if len(s.items) > MaxEndpoints {
		return fmt.Errorf("directory: %v has %d endpoints, at most %d are allowed", s.Owner, len(s.items), MaxEndpoints)
	}
	h, slots, size := sha256.New(), 0, 0
	for i := range s.items {
		if i > 0 && s.items[i-1].ID == s.items[i].ID {
			return fmt.Errorf("directory: %v has endpoint %s twice", s.Owner, s.items[i].ID)
		}
		h.Write(s.items[i].sum[:])
		slots += len(s.items[i].Slots)
		size += s.items[i].size
	}
	if size > maxSet {
		return fmt.Errorf("%w: those of %v have %d bytes, at most %d are allowed", ErrTooLarge, s.Owner, size, maxSet)
	}
	s.Digest = Digest(h.Sum(nil))
	s.places = make([]place, 0, slots)
	for i := range s.items {
		for _, n := range s.items[i].Slots {
			s.places = append(s.places, place{n, int32(i)})
		}
	}
	slices.SortFunc(s.places, func(a, b place) int { return cmp.Or(cmp.Compare(a.slot, b.slot), cmp.Compare(a.item, b.item)) })
	s.places = slices.CompactFunc(s.places, func(a, b place) bool { return a.slot == b.slot })
	return nil
}

// Apply returns the result of applying a delta to s, or ErrGap if the delta has another base.
func (s *Set) Apply(d Delta) (*Set, error) {
	if s == nil || d.Owner != s.Owner || d.From != s.Version || d.To <= d.From {
		return nil, ErrGap
	}
	next := &Set{Owner: s.Owner, Version: d.To, identity: s.identity, signature: d.Signature}
	replaced := map[string]bool{}
	for _, raw := range d.Put {
		i, err := readItem(raw)
		if err != nil {
			return nil, err
		}
		next.items = append(next.items, i)
		replaced[i.ID] = true
	}
	for _, id := range d.Gone {
		replaced[id] = true
	}
	for i := range s.items {
		if !replaced[s.items[i].ID] {
			next.items = append(next.items, s.items[i])
		}
	}
	if err := next.complete(); err != nil {
		return nil, err
	}
	if next.verify() != nil {
		// The delta is forged, or its base is another set with the version of ours: an owner whose
		// disk was restored makes such sets. Fetching the whole set resolves both.
		return nil, fmt.Errorf("%w, or its signature is not that of %v", ErrGap, d.Owner)
	}
	return next, nil
}

// Encode encodes s for Decode.
func (s *Set) Encode() []byte {
	w := wireSet{Identity: s.identity, Version: s.Version, Signature: s.signature}
	for i := range s.items {
		w.Endpoints = append(w.Endpoints, s.items[i].encoded())
	}
	return must(encoding.Marshal(w))
}

// Decode decodes a set, and refuses a set with an invalid signature.
func Decode(data []byte) (*Set, error) {
	var w wireSet
	if err := decoding.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("directory: decoding a set: %w", err)
	}
	if len(w.Identity) != ed25519.PublicKeySize || len(w.Endpoints) > MaxEndpoints {
		return nil, fmt.Errorf("directory: invalid set: a key of %d bytes and %d endpoints", len(w.Identity), len(w.Endpoints))
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
	if err := cmp.Or(s.complete(), s.verify()); err != nil {
		return nil, err
	}
	return s, nil
}

// Encode encodes d for DecodeDelta.
func (d Delta) Encode() []byte { return must(encoding.Marshal(d)) }

// DecodeDelta decodes a delta; Apply verifies its signature.
func DecodeDelta(data []byte) (d Delta, err error) {
	if err := decoding.Unmarshal(data, &d); err != nil {
		return d, fmt.Errorf("directory: decoding a delta: %w", err)
	}
	return d, nil
}
