// Package document holds named values that all peers share and that any peer may write, for example
// policies.
//
// A Document is signed by its writer and numbered. The new version is one more than the highest
// version that the writer knows, as in Lamport's logical clock. Of two documents with the same
// version, the greater writer's id wins, then the greater digest. That order is total and
// independent of clocks, so all peers end with the same document, whatever the order of arrival.
//
// A deleted document leaves a tombstone with its key, version and signature, which is kept for 30
// days. High-water marks protect deletions for longer: a Mark says up to which version all
// documents of one writer were present. A document that is missing here, and has a version below
// the mark, was deleted. If a peer that was away sends it, it is deleted again. Only the end of a
// tombstone depends on clocks; Set says what happens if a clock is wrong.
//
// All types are values, or belong to one goroutine at a time. The package reads no clock, network
// or disk.
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

// These bounds limit the data that a peer can make others store. A NetworkPolicy's name has at most
// 253 bytes in Kubernetes. A body of 64 KiB holds a policy of hundreds of rules, and is still a
// small part of one reply between two peers.
const (
	MaxKind = 32
	MaxName = 256
	MaxBody = 64 << 10

	maxEncoded = MaxBody + 8<<10 // leaves room for fields of newer versions
	maxVersion = 1 << 62         // at this version, tombstones win over other documents (see Supersedes)
	maxCounted = 1 << 48         // no mesh writes so often: a higher version is malicious, and is not counted when the next version is chosen
	maxWritten = 1 << 40         // the year 36812: sums of times cannot overflow
)

// Digest identifies the content of a document or of a set of documents.
type Digest [sha256.Size]byte

// Document is one version of a named value. It is immutable, and its signature was verified.
type Document struct {
	Kind    string // for example "policy"
	Name    string
	Version uint64
	Writer  ed25519.PublicKey
	Written int64 // Unix seconds, by the writer's clock
	Deleted bool  // whether it is a tombstone, which has no body
	Body    []byte
	Digest  Digest // hash of the signed content

	// raw is the signed content as received, so that fields of a newer version are passed on; nil
	// if our own encoding is the same.
	raw       []byte
	signature []byte
}

// content is the signed part of a document.
type content struct {
	Kind    string `cbor:"1,keyasint"`
	Name    string `cbor:"2,keyasint"`
	Version uint64 `cbor:"3,keyasint"`
	Writer  []byte `cbor:"4,keyasint"`
	Written int64  `cbor:"5,keyasint"`
	Deleted bool   `cbor:"6,keyasint,omitempty"`
	Body    []byte `cbor:"7,keyasint,omitempty"`
}

// wire is the encoding of a document, on the network and on disk.
type wire struct {
	Content   []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

// context makes a document's signature invalid for anything else.
const context = "weft document v1\x00"

var (
	encoding = must(cbor.CoreDetEncOptions().EncMode())
	decoding = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 10, MaxMapPairs: 64, MaxNestedLevels: 8,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only constant options and our own types reach this
	}
	return v
}

// Next returns the version after old. old is the newest version known to the writer; nil if there
// is none.
func Next(old *Document, kind, name string, body []byte, deleted bool, written int64, key ed25519.PrivateKey) (*Document, error) {
	d := &Document{Kind: kind, Name: name, Written: written, Deleted: deleted, Body: body}
	if old != nil {
		if old.Key() != d.Key() {
			return nil, fmt.Errorf("%s cannot follow %s: the keys differ", d, old)
		}
		d.Version = old.Version
		if deleted && d.Version == maxVersion {
			d.Version--
		}
	}
	return d.sign(key)
}

// sign signs d with key, under the version after the one in d.
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

// CheckKey returns an error if no document can have that kind and name.
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

// check returns an error if d is invalid.
func (d *Document) check() error {
	if err := CheckKey(d.Kind, d.Name); err != nil {
		return fmt.Errorf("document: %w", err)
	}
	switch {
	case len(d.Writer) != ed25519.PublicKeySize:
		return fmt.Errorf("document: %s: its writer's key is missing", d)
	case d.Version == 0 || d.Version > maxVersion:
		return fmt.Errorf("document: %s: version %d is impossible: use another name", d, d.Version)
	case d.Written < 0 || d.Written > maxWritten:
		return fmt.Errorf("document: %s: invalid time %d", d, d.Written)
	case len(d.Body) > MaxBody:
		return fmt.Errorf("document: %s has %d bytes, at most %d are allowed: split it into several", d, len(d.Body), MaxBody)
	case d.Deleted && len(d.Body) > 0:
		return fmt.Errorf("document: %s is deleted, but has a body", d)
	}
	return nil
}

// String returns kind and name for messages.
func (d *Document) String() string { return fmt.Sprintf("%.32s %.256q", d.Kind, d.Name) }

// Key returns kind and name as a unique key.
func (d *Document) Key() string { return Key(d.Kind, d.Name) }

// Key returns the key of a document with a kind and name.
func Key(kind, name string) string { return kind + "\x00" + name }

// WriterID returns the peer that wrote the document.
func (d *Document) WriterID() peer.ID { return peer.IDOf(d.Writer) }

// content returns the signed content.
func (d *Document) content() []byte {
	if d.raw != nil {
		return d.raw
	}
	return must(encoding.Marshal(content{d.Kind, d.Name, d.Version, d.Writer, d.Written, d.Deleted, d.Body}))
}

// Encode encodes d for Decode.
func (d *Document) Encode() []byte { return must(encoding.Marshal(wire{d.content(), d.signature})) }

// Decode decodes a document, and refuses a document with an invalid signature.
func Decode(data []byte) (*Document, error) {
	if len(data) > maxEncoded {
		return nil, fmt.Errorf("document: refused: it has %d bytes, at most %d are allowed", len(data), maxEncoded)
	}
	var w wire
	var c content
	if err := decoding.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("document: decoding: %w", err)
	}
	if err := decoding.Unmarshal(w.Content, &c); err != nil {
		return nil, fmt.Errorf("document: decoding its content: %w", err)
	}
	d := &Document{
		Kind: c.Kind, Name: c.Name, Version: c.Version, Writer: c.Writer, Written: c.Written, Deleted: c.Deleted, Body: c.Body,
		Digest: sha256.Sum256(w.Content), signature: w.Signature,
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	if !ed25519.Verify(d.Writer, append([]byte(context), w.Content...), w.Signature) {
		return nil, fmt.Errorf("document: %s: the signature of its writer %v is invalid", d, d.WriterID())
	}
	if !bytes.Equal(d.content(), w.Content) {
		d.raw = w.Content
	}
	return d, nil
}

// Supersedes reports whether d replaces old, a document with the same key. The order is total, so
// all peers choose the same document. The greatest documents in that order are tombstones, so that
// a document with any version can be deleted.
func (d *Document) Supersedes(old *Document) bool {
	if old == nil {
		return true
	}
	a, b := d.WriterID(), old.WriterID()
	return cmp.Or(cmp.Compare(d.Version, old.Version), last(d.ended(), old.ended()), bytes.Compare(a[:], b[:]), bytes.Compare(d.Digest[:], old.Digest[:])) > 0
}

// ended reports whether d is a tombstone that only tombstones can replace.
func (d *Document) ended() bool { return d.Deleted && d.Version == maxVersion }

// last orders true after false.
func last(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Same reports whether d has the given body, or is deleted if deleted is set. A nil document counts
// as deleted.
func (d *Document) Same(body []byte, deleted bool) bool {
	if d == nil || d.Deleted || deleted {
		return deleted && (d == nil || d.Deleted)
	}
	return bytes.Equal(d.Body, body)
}

// A tombstone is current from one day before its time, since clocks differ, to 30 days after it.
const (
	keepFor = 30 * 24 * 3600
	skew    = 24 * 3600
)

// within reports whether a tombstone written at t is current at now.
func within(t, now int64) bool { return now-keepFor < t && t < now+skew }

// Current reports whether all peers should have the document: all documents except tombstones that
// are not current.
func (d *Document) Current(now int64) bool { return !d.Deleted || within(d.Written, now) }

// Held describes the version of a document that a peer has.
type Held struct {
	Kind    string  `cbor:"1,keyasint"`
	Name    string  `cbor:"2,keyasint"`
	Version uint64  `cbor:"3,keyasint"`
	Writer  peer.ID `cbor:"4,keyasint"`
	Digest  [8]byte `cbor:"5,keyasint"`           // the start of the digest, enough to detect a difference
	Ended   bool    `cbor:"6,keyasint,omitempty"` // whether it is a tombstone that only tombstones can replace
	// Old marks a tombstone that is not current: it is only sent to peers that have the document.
	Old bool `cbor:"7,keyasint,omitempty"`
}

// Held returns the description of the document.
func (d *Document) Held() Held {
	return Held{d.Kind, d.Name, d.Version, d.WriterID(), [8]byte(d.Digest[:8]), d.ended(), false}
}

// Compare orders two versions of one document as Supersedes does; 0 means that they are the same.
func (h Held) Compare(o Held) int {
	return cmp.Or(cmp.Compare(h.Version, o.Version), last(h.Ended, o.Ended), bytes.Compare(h.Writer[:], o.Writer[:]), bytes.Compare(h.Digest[:], o.Digest[:]))
}
