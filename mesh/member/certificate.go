package member

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"weft/mesh/peer"
)

// MaxCertificate bounds an encoded certificate, in bytes. The root key's certificates have 70 bytes at
// most, or 105 if they name a token; those of a member have 246 at most.
const MaxCertificate = 512

// Certificate says that an identity is a member. It does not contain the identity, which the verifier
// knows. It is signed by the root key, or by a member whose own certificate, from the root key, it
// contains.
type Certificate struct {
	rights    Rights
	token     TokenID
	signature []byte
	issuer    ed25519.PublicKey // nil if the root key signed
	issued    []byte            // the issuer's certificate, encoded; nil if the root key signed
}

// certificateWire is the encoding of a certificate, on the network, on disk and in documents.
type certificateWire struct {
	Rights    Rights `cbor:"1,keyasint,omitempty"`
	Signature []byte `cbor:"2,keyasint"`
	Token     []byte `cbor:"3,keyasint,omitempty"`
	Issuer    []byte `cbor:"4,keyasint,omitempty"`
	Issued    []byte `cbor:"5,keyasint,omitempty"`
}

// memberContext makes a certificate's signature invalid for anything else.
const memberContext = "weft member v1\x00"

// signed returns the bytes that the signature of an identity's certificate covers. All parts but the
// last have a fixed length. The last one binds a member's signature to one cluster, though an identity
// may be a member of several.
func (c Certificate) signed(identity ed25519.PublicKey) []byte {
	b := append([]byte(memberContext), identity...)
	b = append(b, byte(c.rights))
	b = append(b, c.token[:]...)
	return append(b, c.issued...)
}

// Certify returns the certificate of an identity by the root key.
func Certify(root ed25519.PrivateKey, identity ed25519.PublicKey, r Rights) Certificate {
	return CertifyByToken(root, identity, r, TokenID{})
}

// CertifyByToken is Certify for an identity that a token admitted. Verify refuses what was certified
// with rights that do not exist.
func CertifyByToken(root ed25519.PrivateKey, identity ed25519.PublicKey, r Rights, token TokenID) Certificate {
	c := Certificate{rights: r, token: token}
	c.signature = ed25519.Sign(root, c.signed(identity))
	return c
}

// Admit returns the certificate of an identity by the member self, whose identity key is key, and whose
// certificate is c. A member gives no rights: r is 0.
func (c Certificate) Admit(key ed25519.PrivateKey, self, identity ed25519.PublicKey, r Rights) (Certificate, error) {
	return c.AdmitByToken(key, self, identity, r, TokenID{})
}

// AdmitByToken is Admit for an identity that a token admitted.
func (c Certificate) AdmitByToken(key ed25519.PrivateKey, self, identity ed25519.PublicKey, r Rights, token TokenID) (Certificate, error) {
	switch {
	case len(key) != ed25519.PrivateKeySize || !bytes.Equal(key[ed25519.SeedSize:], self):
		return Certificate{}, errors.New("admit: the key is not that of the admitting member")
	case len(identity) != ed25519.PublicKeySize:
		return Certificate{}, errors.New("admit: the host has no identity key")
	case c.issuer != nil || !c.rights.Has(Admits):
		return Certificate{}, errors.New("admit: this host may not admit others: join at a host that may, such as the first host of the network")
	case r != 0:
		return Certificate{}, fmt.Errorf("admit: only a holder of the cluster's secret gives the rights of a %v: join at such a host, such as the first host of the network", r)
	}
	admitted := Certificate{rights: r, token: token, issuer: bytes.Clone(self), issued: c.Encode()}
	admitted.signature = ed25519.Sign(key, admitted.signed(identity))
	return admitted, nil
}

// Encode encodes c for DecodeCertificate and Verify.
func (c Certificate) Encode() []byte {
	w := certificateWire{Rights: c.rights, Signature: c.signature, Issuer: c.issuer, Issued: c.issued}
	if !c.token.IsZero() {
		w.Token = c.token[:]
	}
	return must(encoding.Marshal(w))
}

// Rights returns the rights of the identity.
func (c Certificate) Rights() Rights { return c.rights }

// DecodeCertificate decodes a certificate without verifying it, for example this host's own one.
func DecodeCertificate(data []byte) (Certificate, error) {
	c, _, err := decodeChain(data)
	return c, err
}

// decodeChain also returns the decoded certificate of the issuer, if there is one.
func decodeChain(data []byte) (c, issued Certificate, err error) {
	if c, err = decodeOne(data); err != nil || c.issuer == nil {
		return c, issued, err
	}
	issued, err = decodeOne(c.issued)
	switch {
	case err != nil:
		return Certificate{}, Certificate{}, fmt.Errorf("its issuer's certificate: %w", err)
	case issued.issuer != nil:
		return Certificate{}, Certificate{}, errors.New("certificate: its issuer is not certified by the root key")
	case !issued.rights.Has(Admits):
		return Certificate{}, Certificate{}, errors.New("certificate: its issuer may not admit others")
	case c.rights != 0:
		return Certificate{}, Certificate{}, errors.New("certificate: it gives rights, which only the root key may give")
	}
	return c, issued, nil
}

func decodeOne(data []byte) (Certificate, error) {
	if len(data) > MaxCertificate {
		return Certificate{}, fmt.Errorf("certificate: refused: it has %d bytes, at most %d are allowed", len(data), MaxCertificate)
	}
	var w certificateWire
	if err := decoding.Unmarshal(data, &w); err != nil {
		return Certificate{}, fmt.Errorf("certificate: decoding: %w", err)
	}
	c := Certificate{rights: w.Rights, signature: w.Signature}
	switch {
	case !w.Rights.valid():
		return Certificate{}, fmt.Errorf("certificate: unknown %v", w.Rights)
	case len(w.Signature) != ed25519.SignatureSize:
		return Certificate{}, errors.New("certificate: no signature")
	case len(w.Token) != 0 && len(w.Token) != len(c.token):
		return Certificate{}, errors.New("certificate: invalid id of a token")
	case len(w.Issuer) != 0 && len(w.Issuer) != ed25519.PublicKeySize || (len(w.Issuer) == 0) != (len(w.Issued) == 0):
		return Certificate{}, errors.New("certificate: invalid issuer")
	}
	copy(c.token[:], w.Token)
	if len(w.Issuer) != 0 {
		c.issuer, c.issued = w.Issuer, w.Issued
	}
	// Each certificate has one encoding, so that a changed byte always makes it invalid.
	if !bytes.Equal(c.Encode(), data) {
		return Certificate{}, errors.New("certificate: it is not encoded in the only way that is allowed")
	}
	return c, nil
}

// Verify returns what an encoded certificate says about an identity, in the cluster with that root key.
// It returns an error unless the certificate is this identity's, and signed by the root key or by a
// member that may admit others.
func Verify(root, identity ed25519.PublicKey, data []byte) (Member, error) {
	if len(root) != ed25519.PublicKeySize || len(identity) != ed25519.PublicKeySize {
		return Member{}, errors.New("certificate: the root key or the identity key is missing")
	}
	c, issued, err := decodeChain(data)
	if err != nil {
		return Member{}, err
	}
	m := Member{Identity: identity, Rights: c.rights, Token: c.token}
	signer := root
	if c.issuer != nil {
		if !ed25519.Verify(root, issued.signed(c.issuer), issued.signature) {
			return Member{}, fmt.Errorf("certificate of %v: its issuer %v is no member of this cluster", m.ID(), peer.IDOf(c.issuer))
		}
		signer, m.By = c.issuer, peer.IDOf(c.issuer)
	}
	if !ed25519.Verify(signer, c.signed(identity), c.signature) {
		return Member{}, fmt.Errorf("certificate of %v: its signature is invalid: it is another identity's, or of another cluster", m.ID())
	}
	return m, nil
}
