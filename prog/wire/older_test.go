package wire

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/fxamacker/cbor/v2"
)

// This file contains the wire format of version 1, written out independently of the current code. It
// stands for the code of deployed agents, and is never changed. Unknown fields are skipped.
//
// Like those agents the file relies on the CBOR library. It shows that bytes are valid for version
// 1, not that an older agent makes the same decisions.

type v1Hello struct {
	Version uint         `cbor:"1,keyasint"`
	Cluster [16]byte     `cbor:"2,keyasint"`
	V4      netip.Prefix `cbor:"3,keyasint"`
}

type v1Envelope struct {
	Kind    uint   `cbor:"1,keyasint"`
	Replica string `cbor:"2,keyasint,omitempty"`
	Payload []byte `cbor:"3,keyasint,omitempty"`
}

const (
	v1Delta   = 1
	v1Request = 2
	v1Reply   = 3
)

type v1Message struct {
	ID      uint64  `cbor:"1,keyasint"`
	From    [8]byte `cbor:"2,keyasint"`
	To      [8]byte `cbor:"3,keyasint"`
	Kind    string  `cbor:"4,keyasint,omitempty"`
	Payload []byte  `cbor:"5,keyasint,omitempty"`
	Error   string  `cbor:"6,keyasint,omitempty"`
	IsReply bool    `cbor:"7,keyasint,omitempty"`
	Run     string  `cbor:"8,keyasint,omitempty"`
}

type v1Sealed struct {
	Message   []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
	Record    []byte `cbor:"3,keyasint,omitempty"`
}

// v1Signed is a signed record or document: the signed bytes and their signature.
type v1Signed struct {
	Content   []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

type v1Record struct {
	Identity  []byte       `cbor:"1,keyasint"`
	WireGuard [32]byte     `cbor:"2,keyasint"`
	Nickname  string       `cbor:"3,keyasint"`
	Underlay  []netip.Addr `cbor:"4,keyasint"`
	Port      uint16       `cbor:"5,keyasint"`
	Gossip    uint16       `cbor:"10,keyasint"`
	Node      uint32       `cbor:"6,keyasint,omitempty"`
	Sequence  uint64       `cbor:"7,keyasint"`
	State     uint8        `cbor:"8,keyasint,omitempty"`
	Ring      []byte       `cbor:"9,keyasint,omitempty"`
	Host      string       `cbor:"11,keyasint,omitempty"`
}

type v1Ring struct {
	ID       [16]byte            `cbor:"1,keyasint"`
	Cluster  [16]byte            `cbor:"2,keyasint"`
	V4       netip.Prefix        `cbor:"3,keyasint"`
	V6       netip.Prefix        `cbor:"4,keyasint"`
	Segments [][]cbor.RawMessage `cbor:"5,keyasint"` // start, end, generation, version, owner, and unknown elements
}

type v1Set struct {
	Identity  []byte   `cbor:"1,keyasint"`
	Version   uint64   `cbor:"2,keyasint"`
	Endpoints [][]byte `cbor:"3,keyasint,omitempty"`
	Signature []byte   `cbor:"4,keyasint"`
}

type v1Endpoint struct {
	ID         string            `cbor:"1,keyasint"`
	Slots      []uint32          `cbor:"2,keyasint,omitempty"`
	Name       string            `cbor:"3,keyasint,omitempty"`
	Namespace  string            `cbor:"4,keyasint,omitempty"`
	Labels     map[string]string `cbor:"5,keyasint,omitempty"`
	Aliases    []string          `cbor:"6,keyasint,omitempty"`
	Ports      []v1Port          `cbor:"7,keyasint,omitempty"`
	Generation uint64            `cbor:"8,keyasint,omitempty"`
	IPv4Only   bool              `cbor:"9,keyasint,omitempty"`
	Outside    []netip.Addr      `cbor:"10,keyasint,omitempty"`
}

type v1Port struct {
	Name     string `cbor:"1,keyasint"`
	Protocol string `cbor:"2,keyasint"`
	Number   uint16 `cbor:"3,keyasint"`
}

type v1SetDelta struct {
	Owner     [8]byte  `cbor:"1,keyasint"`
	From      uint64   `cbor:"2,keyasint"`
	To        uint64   `cbor:"3,keyasint"`
	Put       [][]byte `cbor:"4,keyasint,omitempty"`
	Gone      []string `cbor:"5,keyasint,omitempty"`
	Signature []byte   `cbor:"6,keyasint"`
}

type v1SetHeld struct {
	Owner   [8]byte `cbor:"1,keyasint"`
	Version uint64  `cbor:"2,keyasint"`
	Digest  []byte  `cbor:"3,keyasint"`
}

type v1SetNews struct {
	From  [8]byte     `cbor:"1,keyasint"`
	Held  []v1SetHeld `cbor:"2,keyasint,omitempty"`
	Delta []byte      `cbor:"3,keyasint,omitempty"`
}

type v1Content struct {
	Kind    string `cbor:"1,keyasint"`
	Name    string `cbor:"2,keyasint"`
	Version uint64 `cbor:"3,keyasint"`
	Writer  []byte `cbor:"4,keyasint"`
	Written int64  `cbor:"5,keyasint"`
	Deleted bool   `cbor:"6,keyasint,omitempty"`
	Body    []byte `cbor:"7,keyasint,omitempty"`
}

type v1DocumentHeld struct {
	Kind    string  `cbor:"1,keyasint"`
	Name    string  `cbor:"2,keyasint"`
	Version uint64  `cbor:"3,keyasint"`
	Writer  [8]byte `cbor:"4,keyasint"`
	Digest  [8]byte `cbor:"5,keyasint"`
}

type v1DocumentNews struct {
	From      [8]byte          `cbor:"1,keyasint"`
	Documents [][]byte         `cbor:"2,keyasint,omitempty"`
	Held      []v1DocumentHeld `cbor:"3,keyasint,omitempty"`
	Digest    []byte           `cbor:"4,keyasint,omitempty"`
	Synced    bool             `cbor:"5,keyasint,omitempty"`
}

type v1DocumentAnswer struct {
	Documents [][]byte `cbor:"1,keyasint,omitempty"`
	More      bool     `cbor:"2,keyasint,omitempty"`
	Synced    bool     `cbor:"3,keyasint,omitempty"`
}

type v1Usage struct {
	Active  uint64 `cbor:"1,keyasint"`
	Free    uint64 `cbor:"2,keyasint"`
	Resting uint64 `cbor:"3,keyasint"`
}

type v1Votes struct {
	Self    [8]byte   `cbor:"1,keyasint"`
	Terms   v1Terms   `cbor:"2,keyasint"`
	Votes   []v1Vote  `cbor:"3,keyasint"`
	Values  []v1Value `cbor:"4,keyasint,omitempty"`
	Decided uint16    `cbor:"5,keyasint,omitempty"`
}

type v1Terms struct {
	Expect int          `cbor:"1,keyasint"`
	V4     netip.Prefix `cbor:"2,keyasint,omitzero"`
	V6     netip.Prefix `cbor:"3,keyasint,omitzero"`
}

type v1Vote struct {
	Voter    [8]byte  `cbor:"1,keyasint"`
	Promise  v1Ballot `cbor:"2,keyasint,omitzero"`
	Accepted v1Ballot `cbor:"3,keyasint,omitzero"`
	Value    uint16   `cbor:"4,keyasint,omitempty"`
}

type v1Ballot struct {
	Round    uint32  `cbor:"1,keyasint"`
	Proposer [8]byte `cbor:"2,keyasint"`
}

type v1Value struct {
	Ring     [16]byte     `cbor:"1,keyasint"`
	Cluster  [16]byte     `cbor:"2,keyasint"`
	V4       netip.Prefix `cbor:"3,keyasint"`
	V6       netip.Prefix `cbor:"4,keyasint"`
	Founders [][8]byte    `cbor:"5,keyasint"`
}

// In version 1 each signature covers one of these contexts, followed by the signed data.
const (
	v1ForRecord   = "weft peer record v1\x00"
	v1ForSet      = "weft endpoints v1\x00"
	v1ForDocument = "weft document v1\x00"
	v1ForMessage  = "weft message v1\x00"
)

var (
	encoding1 = must(cbor.CoreDetEncOptions().EncMode())
	decoding1 = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF}.DecMode())
)

func encode(v any) []byte { return must(encoding1.Marshal(v)) }

func decode[T any](data []byte) (v T, err error) {
	err = decoding1.Unmarshal(data, &v)
	return v, err
}

func idOf(identity []byte) [8]byte {
	sum := sha256.Sum256(identity)
	return [8]byte(sum[:8])
}

func sign(n int, context string, content []byte) []byte {
	return ed25519.Sign(key(n), append([]byte(context), content...))
}

func verify(identity []byte, context string, content, signature []byte) error {
	if len(identity) != ed25519.PublicKeySize || !ed25519.Verify(identity, append([]byte(context), content...), signature) {
		return errors.New("version 1: the signature does not verify")
	}
	return nil
}

func openRecord(data []byte) (r v1Record, err error) {
	w, err := decode[v1Signed](data)
	if err != nil {
		return r, err
	}
	if r, err = decode[v1Record](w.Content); err != nil {
		return r, err
	}
	return r, verify(r.Identity, v1ForRecord, w.Content, w.Signature)
}

func openDocument(data []byte) (c v1Content, err error) {
	w, err := decode[v1Signed](data)
	if err != nil {
		return c, err
	}
	if c, err = decode[v1Content](w.Content); err != nil {
		return c, err
	}
	return c, verify(c.Writer, v1ForDocument, w.Content, w.Signature)
}

// setContent returns what the owner of a set signs: its id, the version of the set, and a SHA-256
// over the digests of the endpoints. The endpoints are in the order of their ids.
func setContent(owner [8]byte, version uint64, endpoints [][]byte) []byte {
	h := sha256.New()
	for _, e := range endpoints {
		sum := sha256.Sum256(e)
		h.Write(sum[:])
	}
	return h.Sum(binary.BigEndian.AppendUint64(bytes.Clone(owner[:]), version))
}

func openSet(data []byte) (s v1Set, endpoints []v1Endpoint, err error) {
	if s, err = decode[v1Set](data); err != nil {
		return s, nil, err
	}
	for _, raw := range s.Endpoints {
		e, err := decode[v1Endpoint](raw)
		if err != nil {
			return s, nil, err
		}
		endpoints = append(endpoints, e)
	}
	return s, endpoints, verify(s.Identity, v1ForSet, setContent(idOf(s.Identity), s.Version, s.Endpoints), s.Signature)
}

// v1Owner returns the owner of a slot in a ring of version 1.
func (r v1Ring) v1Owner(slot uint32) (owner [8]byte, err error) {
	for _, s := range r.Segments {
		if len(s) < 5 {
			return owner, fmt.Errorf("version 1: a segment has %d elements", len(s))
		}
		start, err1 := decode[uint32](s[0])
		end, err2 := decode[uint64](s[1])
		_, err3 := decode[uint32](s[2])
		_, err4 := decode[uint32](s[3])
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return owner, err
		}
		if slot >= start && uint64(slot) < end {
			return decode[[8]byte](s[4])
		}
	}
	return owner, fmt.Errorf("version 1: slot %d has no owner", slot)
}

// openMessage decodes a request or reply addressed to a peer of the corpus.
func openMessage(payload []byte) (m v1Message, r v1Record, err error) {
	s, err := decode[v1Sealed](payload)
	if err != nil {
		return m, r, err
	}
	if m, err = decode[v1Message](s.Message); err != nil {
		return m, r, err
	}
	if r, err = openRecord(s.Record); err != nil {
		return m, r, err
	}
	if idOf(r.Identity) != m.From {
		return m, r, errors.New("version 1: the message contains a record of another peer than its sender")
	}
	return m, r, verify(r.Identity, v1ForMessage, s.Message, s.Signature)
}

// seal makes the envelope of a request or reply from a peer of the corpus.
func seal(n int, kind uint, m any, record []byte) []byte {
	data := encode(m)
	return encode(v1Envelope{Kind: kind, Payload: encode(v1Sealed{data, sign(n, v1ForMessage, data), record})})
}
