package wire

import (
	"crypto/ed25519"
	"errors"
	"net/netip"
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// This file contains what version 3 added to the wire format, written out independently of the
// current code. Version 3 is the first one of protocol version 2. It stands for the code of deployed
// agents, and is never changed. Unknown fields are skipped.

// protocol1 has the recorded versions whose agents use protocol version 1. Agents of later versions
// refuse them on the network, but read what they stored.
var protocol1 = map[string]bool{"v1": true, "v2": true}

// v3Signed is memberlist's metadata of a peer: field 1 is still the version of the protocol.
type v3Signed struct {
	Version   uint   `cbor:"1,keyasint"`
	Content   []byte `cbor:"4,keyasint"`
	Signature []byte `cbor:"5,keyasint"`
}

type v3Hello struct {
	V4          netip.Prefix `cbor:"3,keyasint"`
	Identity    []byte       `cbor:"4,keyasint"`
	Certificate []byte       `cbor:"5,keyasint"`
	Ceiling     uint32       `cbor:"6,keyasint"`
}

// v3Certificate says that an identity is a member. It has no room for unknown fields.
type v3Certificate struct {
	Rights    uint8  `cbor:"1,keyasint,omitempty"`
	Signature []byte `cbor:"2,keyasint"`
	Token     []byte `cbor:"3,keyasint,omitempty"`
	Issuer    []byte `cbor:"4,keyasint,omitempty"`
	Issued    []byte `cbor:"5,keyasint,omitempty"`
}

// v3Greeting is what both ends of a stream say after TLS's handshake.
type v3Greeting struct {
	Run    string `cbor:"1,keyasint,omitempty"`
	Use    uint8  `cbor:"2,keyasint,omitempty"`
	Index  uint32 `cbor:"3,keyasint,omitempty"`
	Body   []byte `cbor:"4,keyasint,omitempty"`
	Refuse string `cbor:"5,keyasint,omitempty"`
}

// The bodies of documents about members follow.

type v3TokenBody struct {
	Created     int64  `cbor:"1,keyasint"`
	TTL         int64  `cbor:"2,keyasint"`
	Uses        uint32 `cbor:"3,keyasint"`
	Name        string `cbor:"4,keyasint,omitempty"`
	Rights      uint8  `cbor:"5,keyasint,omitempty"`
	Revoked     bool   `cbor:"6,keyasint,omitempty"`
	Certificate []byte `cbor:"7,keyasint"`
}

type v3JoinBody struct {
	Token       [32]byte       `cbor:"1,keyasint"`
	Peer        []byte         `cbor:"2,keyasint"`
	Nickname    string         `cbor:"3,keyasint,omitempty"`
	From        netip.AddrPort `cbor:"4,keyasint"`
	At          int64          `cbor:"5,keyasint"`
	Certificate []byte         `cbor:"6,keyasint"`
}

type v3BanBody struct {
	Banned      bool   `cbor:"1,keyasint,omitempty"`
	Reason      string `cbor:"2,keyasint,omitempty"`
	At          int64  `cbor:"3,keyasint"`
	Certificate []byte `cbor:"4,keyasint"`
}

// These are the uses of a stream.
const (
	v3Gossip  = 2
	v3Request = 3
)

const (
	v3Protocol       = 2
	v3ForHello       = "weft hello v2\x00"
	v3ForCertificate = "weft member v1\x00"
	v3Holder         = 3 // the rights of a holder of the secret
	v3RecordField    = 14
)

// rootKey certifies the members of the corpus.
var rootKey = joinToken.Secret.Root()

// certificate returns the certificate of a peer of the corpus, which holds the secret.
func certificate(n int) []byte {
	c := v3Certificate{Rights: v3Holder}
	c.Signature = ed25519.Sign(rootKey, c.signed(public(n)))
	return encode(c)
}

// signed returns what the signature of an identity's certificate covers.
func (c v3Certificate) signed(identity []byte) []byte {
	token := make([]byte, 32)
	copy(token, c.Token)
	return slices.Concat([]byte(v3ForCertificate), identity, []byte{c.Rights}, token, c.Issued)
}

// openCertificate verifies the certificate of an identity.
func openCertificate(identity, data []byte) (c v3Certificate, err error) {
	if c, err = decode[v3Certificate](data); err != nil {
		return c, err
	}
	signer := rootPublic()
	if c.Issuer != nil {
		signer = c.Issuer
		if _, err := openCertificate(c.Issuer, c.Issued); err != nil {
			return c, err
		}
	}
	if !ed25519.Verify(signer, c.signed(identity), c.Signature) {
		return c, errors.New("version 3: the signature of the certificate does not verify")
	}
	return c, nil
}

// helloSigned returns what the signature of a greeting covers.
func helloSigned(name string, at netip.AddrPort, content []byte) []byte {
	return encode([]any{name, at.String(), content})
}

// signHello signs the content of a greeting for the run and address of a peer of the corpus.
func signHello(n int, content []byte) []byte {
	return encode(v3Signed{v3Protocol, content, sign(n, v3ForHello, helloSigned(nameInMemberlist(n), address(n), content))})
}

// greeting returns the greeting of a peer of the corpus.
func greeting(n int) []byte { return greetingOf(n, universe.V4) }

func greetingOf(n int, v4 netip.Prefix) []byte {
	return signHello(n, encode(v3Hello{v4, public(n), certificate(n), 1024}))
}

// openHello verifies a greeting.
func openHello(data []byte, name string, at netip.AddrPort) (h v3Hello, content []byte, err error) {
	w, err := decode[v3Signed](data)
	if err != nil {
		return h, nil, err
	}
	if h, err = decode[v3Hello](w.Content); err != nil {
		return h, nil, err
	}
	if w.Version != v3Protocol {
		err = errors.New("version 3: another version of the protocol")
	}
	return h, w.Content, errors.Join(err, verify(h.Identity, v3ForHello, helloSigned(name, at, w.Content), w.Signature))
}

// certified returns a record with a certificate, signed again. It changes no record that has one.
func certified(data []byte) []byte {
	w := must(decode[v1Signed](data))
	if _, has := must(decode[map[any]cbor.RawMessage](w.Content))[uint64(v3RecordField)]; has {
		return data
	}
	n := holder(must(decode[v1Record](w.Content)).Identity)
	w.Content = within(w.Content, v3RecordField, func([]byte) []byte { return encode(certificate(n)) })
	return encode(v1Signed{w.Content, sign(n, v1ForRecord, w.Content)})
}
