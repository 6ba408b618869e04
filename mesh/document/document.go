// Package document is what the mesh agrees on and anybody may write: policies, and whatever
// else is one value under a name for all peers.
//
// A Document is signed by its writer and numbered: who writes takes one more than the highest
// number that it knows (Lamport's clock). Of two with one number, the writer's id decides, then
// the digest: the order is total, so all peers end with the same one, whatever they heard
// first. Clocks have no part in it.
//
// A deleted document leaves a tombstone: its key, number and signature. It is kept for 30
// days. What was deleted stays so for longer: of every writer there is a Mark, which says up to
// which number its documents were here, and what a peer that was away offers below it is
// deleted anew. What a wrong clock dates into the past or the future is as good as any other:
// only the end of a tombstone depends on the time, and one that is out of time does its work
// all the same (see Set).
//
// Everything here is a value or belongs to one goroutine at a time; nothing reads a clock,
// the network or the disk.
package document

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"weft/mesh/peer"
)

// Bounds, so that a peer cannot make others hold what it likes. A NetworkPolicy's name has
// at most 253 bytes in Kubernetes; a body of 64 KiB is a policy of hundreds of rules, and with
// it the largest possible document still is a small part of one answer between two peers.
const (
	MaxKind = 32
	MaxName = 256
	MaxBody = 64 << 10

	maxEncoded = MaxBody + 8<<10 // with what a newer version may add
	maxVersion = 1 << 62         // at the last number, what is deleted beats what is not (see Supersedes)
	maxCounted = 1 << 48         // no mesh writes so often: who is above lies, and nobody counts on from there
	maxWritten = 1 << 40         // the year 36812: sums of times cannot overflow
)

// Digest tells two documents, or two sets of them, apart.
type Digest [sha256.Size]byte

// Document is one version of what has a name. It is immutable, and verified: whoever has one
// knows that its writer said so.
type Document struct {
	Kind    string // what it is: policy
	Name    string
	Version uint64
	Writer  ed25519.PublicKey
	Written int64 // Unix seconds, as the writer's clock said
	Deleted bool  // it is a tombstone, without a body
	Body    []byte
	Digest  Digest // of what is signed

	// raw is what was signed, as it came, so that fields of a newer version survive being passed
	// on; nil where it is what we would write ourselves.
	raw       []byte
	signature []byte
}

// content is what is signed.
type content struct {
	Kind    string `cbor:"1,keyasint"`
	Name    string `cbor:"2,keyasint"`
	Version uint64 `cbor:"3,keyasint"`
	Writer  []byte `cbor:"4,keyasint"`
	Written int64  `cbor:"5,keyasint"`
	Deleted bool   `cbor:"6,keyasint,omitempty"`
	Body    []byte `cbor:"7,keyasint,omitempty"`
}

// wire is a document on the network and on disk.
type wire struct {
	Content   []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

// context keeps a document's signature from being good for anything else.
const context = "weft document v1\x00"

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 10, MaxMapPairs: 64, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options, or our own types
	}
	return v
}

// Next is what a writer makes of old, the newest version that it knows; nil if it knows none.
func Next(old *Document, kind, name string, body []byte, deleted bool, written int64, key ed25519.PrivateKey) (*Document, error) {
	d := &Document{Kind: kind, Name: name, Written: written, Deleted: deleted, Body: body}
	if old != nil {
		if old.Key() != d.Key() {
			return nil, fmt.Errorf("%s does not follow %s", d, old)
		}
		d.Version = old.Version
		if deleted && d.Version == maxVersion {
			d.Version--
		}
	}
	return d.sign(key)
}

// sign makes d the word of the holder of key, with the number after the one in d.
func (d *Document) sign(key ed25519.PrivateKey) (*Document, error) {
	d.Version++
	d.Writer, d.Written, d.Body = key.Public().(ed25519.PublicKey), max(d.Written, 0), bytes.Clone(d.Body)
	if err := d.check(); err != nil {
		return nil, err
	}
	signed := d.content()
	d.Digest = sha256.Sum256(signed)
	d.signature = ed25519.Sign(key, append([]byte(context), signed...))
	return d, nil
}

// CheckKey reports why there can be no document of a kind and name.
func CheckKey(kind, name string) error {
	bad := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' }
	switch {
	case kind == "" || len(kind) > MaxKind || strings.ContainsFunc(kind, bad):
		return fmt.Errorf("kind of document %.40q: want 1 to %d lower-case letters, digits and hyphens", kind, MaxKind)
	case name == "" || len(name) > MaxName:
		return fmt.Errorf("%s %.40q: its name has %d bytes, 1 to %d are allowed", kind, name, len(name), MaxName)
	case !peer.Printable(name):
		return fmt.Errorf("%s %q: control characters are not allowed", kind, name)
	}
	return nil
}

// check reports why a document cannot be one.
func (d *Document) check() error {
	if err := CheckKey(d.Kind, d.Name); err != nil {
		return fmt.Errorf("document: %w", err)
	}
	switch {
	case len(d.Writer) != ed25519.PublicKeySize:
		return fmt.Errorf("document: %s: no key of its writer", d)
	case d.Version == 0 || d.Version > maxVersion:
		return fmt.Errorf("document: %s: there is no version %d: give it another name", d, d.Version)
	case d.Written < 0 || d.Written > maxWritten:
		return fmt.Errorf("document: %s: it was written at no time: %d", d, d.Written)
	case len(d.Body) > MaxBody:
		return fmt.Errorf("document: %s has %d bytes, at most %d are allowed: make several of it", d, len(d.Body), MaxBody)
	case d.Deleted && len(d.Body) > 0:
		return fmt.Errorf("document: %s is deleted, and has a body", d)
	}
	return nil
}

// String is how people see the document's name.
func (d *Document) String() string { return fmt.Sprintf("%.32s %.256q", d.Kind, d.Name) }

// Key is the kind and the name: no two keys are the same bytes.
func (d *Document) Key() string { return Key(d.Kind, d.Name) }

// Key is that of a document with a kind and name.
func Key(kind, name string) string { return kind + "\x00" + name }

// WriterID is the peer that wrote the document.
func (d *Document) WriterID() peer.ID { return peer.IDOf(d.Writer) }

// content is what is signed.
func (d *Document) content() []byte {
	if d.raw != nil {
		return d.raw
	}
	return must(encoding.Marshal(content{d.Kind, d.Name, d.Version, d.Writer, d.Written, d.Deleted, d.Body}))
}

// Encode writes d so that Decode reads it.
func (d *Document) Encode() []byte { return must(encoding.Marshal(wire{d.content(), d.signature})) }

// Decode reads a document and refuses one that its writer has not signed.
func Decode(data []byte) (*Document, error) {
	if len(data) > maxEncoded {
		return nil, fmt.Errorf("document: %d bytes, at most %d are allowed", len(data), maxEncoded)
	}
	var w wire
	var c content
	if err := decoding.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("document: %w", err)
	}
	if err := decoding.Unmarshal(w.Content, &c); err != nil {
		return nil, fmt.Errorf("document: %w", err)
	}
	d := &Document{
		Kind: c.Kind, Name: c.Name, Version: c.Version, Writer: c.Writer, Written: c.Written, Deleted: c.Deleted, Body: c.Body,
		Digest: sha256.Sum256(w.Content), signature: w.Signature,
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	if !ed25519.Verify(d.Writer, append([]byte(context), w.Content...), w.Signature) {
		return nil, fmt.Errorf("document: %s is not signed by %v, who should have written it", d, d.WriterID())
	}
	if !bytes.Equal(d.content(), w.Content) {
		d.raw = w.Content
	}
	return d, nil
}

// Supersedes reports whether d replaces old, both of one key. The order is total, so that
// all peers choose alike. Its greatest are tombstones: whatever number somebody chose, it can
// be deleted.
func (d *Document) Supersedes(old *Document) bool {
	if old == nil {
		return true
	}
	a, b := d.WriterID(), old.WriterID()
	return cmp.Or(cmp.Compare(d.Version, old.Version), last(d.ended(), old.ended()), bytes.Compare(a[:], b[:]), bytes.Compare(d.Digest[:], old.Digest[:])) > 0
}

// ended reports whether d is a tombstone that nothing with a body replaces.
func (d *Document) ended() bool { return d.Deleted && d.Version == maxVersion }

// last orders what is the end before what is not.
func last(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Same reports whether a document says nothing but that: a body, or that there is none any
// more. A nil document is none.
func (d *Document) Same(body []byte, deleted bool) bool {
	if d == nil || d.Deleted || deleted {
		return deleted && (d == nil || d.Deleted)
	}
	return bytes.Equal(d.Body, body)
}

// How long a tombstone is in time: that long after it was written, and so much before, since
// clocks differ.
const (
	keepFor = 30 * 24 * 3600
	skew    = 24 * 3600
)

// within reports whether a time is one at which a tombstone that matters now was written.
func within(t, now int64) bool { return now-keepFor < t && t < now+skew }

// Current reports whether all peers are to have the document: each one but tombstones that
// are out of time.
func (d *Document) Current(now int64) bool { return !d.Deleted || within(d.Written, now) }

// Held says which version of a document a peer has.
type Held struct {
	Kind    string  `cbor:"1,keyasint"`
	Name    string  `cbor:"2,keyasint"`
	Version uint64  `cbor:"3,keyasint"`
	Writer  peer.ID `cbor:"4,keyasint"`
	Digest  [8]byte `cbor:"5,keyasint"`           // its begin: enough to see that two differ
	Ended   bool    `cbor:"6,keyasint,omitempty"` // it is a tombstone that nothing replaces
	// Old says that it is a tombstone out of time: only who has what it deletes is given it.
	Old bool `cbor:"7,keyasint,omitempty"`
}

// Held describes the document.
func (d *Document) Held() Held {
	return Held{d.Kind, d.Name, d.Version, d.WriterID(), [8]byte(d.Digest[:8]), d.ended(), false}
}

// Compare orders two versions of one document, as Supersedes does; 0 means that they are the
// same.
func (h Held) Compare(o Held) int {
	return cmp.Or(cmp.Compare(h.Version, o.Version), last(h.Ended, o.Ended), bytes.Compare(h.Writer[:], o.Writer[:]), bytes.Compare(h.Digest[:], o.Digest[:]))
}
