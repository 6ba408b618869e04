package member

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"weft/mesh/secret"
)

// Token admits hosts to a cluster while its document says so. It holds the start of the hash of the
// root key, by which a host recognises the cluster, and the seed of a key, by which the cluster
// recognises the token. Only Reveal returns it.
type Token struct {
	cluster [16]byte
	seed    [16]byte
}

const redacted = "[token]"

func (Token) String() string { return redacted }

// GoString keeps the token out of the output of %#v.
func (Token) GoString() string { return redacted }

// Format keeps the token out of the output of all verbs, such as %d.
func (Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText keeps the token out of JSON and logs.
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ClusterOf returns the Cluster of the tokens of the network with that root key.
func ClusterOf(root ed25519.PublicKey) [16]byte {
	sum := sha256.Sum256(root)
	return [16]byte(sum[:])
}

// New returns a new token of the cluster with that root key, read from a source of randomness.
func New(random io.Reader, root ed25519.PublicKey) (Token, error) {
	t := Token{cluster: ClusterOf(root)}
	if len(root) != ed25519.PublicKeySize {
		return Token{}, errors.New("token: the cluster's root key is missing")
	}
	if _, err := io.ReadFull(random, t.seed[:]); err != nil {
		return Token{}, fmt.Errorf("token: reading random bytes: %w", err)
	}
	return t, nil
}

// armour is the format of a token: the payload is the start of the root key's hash, then the seed.
var armour = secret.Armour{Prefix: secret.MemberPrefix, Context: "weft token v2\x00", Length: len(Token{}.cluster) + len(Token{}.seed)}

// Reveal returns the token as one word, for the host that joins.
func (t Token) Reveal() string { return armour.Encode(append(bytes.Clone(t.cluster[:]), t.seed[:]...)) }

// These are the errors of ParseToken. They contain no part of the token.
var (
	ErrNoToken  = errors.New("this is not a token that admits hosts: such tokens start with " + secret.MemberPrefix + "; `weft token create` prints one")
	ErrMistyped = errors.New("the token's checksum does not match: it was mistyped or truncated: copy the whole token again, or create another with `weft token create`")
	ErrSecret   = errors.New("this token (weft1-…) is the cluster's secret itself, which is more than the right to join: keep it, and give a token of `weft token create`, which starts with " + secret.MemberPrefix)
)

// ParseToken parses the format of Reveal. Case and surrounding white space are ignored.
func ParseToken(s string) (Token, error) {
	payload, err := armour.Decode(s)
	switch {
	case secret.IsToken(s):
		return Token{}, ErrSecret
	case errors.Is(err, secret.ErrPrefix):
		return Token{}, ErrNoToken
	case err != nil:
		return Token{}, ErrMistyped
	}
	var t Token
	copy(t.cluster[:], payload)
	copy(t.seed[:], payload[len(t.cluster):])
	return t, nil
}

func (t Token) key() ed25519.PrivateKey {
	seed, err := hkdf.Key(sha256.New, t.seed[:], nil, "weft token key v1", ed25519.SeedSize)
	if err != nil {
		panic(err) // this only happens for an invalid key length
	}
	return ed25519.NewKeyFromSeed(seed)
}

// ID returns the id of the token.
func (t Token) ID() TokenID { return sha256.Sum256(t.key().Public().(ed25519.PublicKey)) }

// Cluster returns what a host with the token shows to a member before the member shows anything: half of
// the hash of the root key. A member that showed its root key to strangers would let them try passwords.
func (t Token) Cluster() []byte { return bytes.Clone(t.cluster[:]) }

// IsCluster reports whether a host showed the Cluster of a token of this root key's network.
func IsCluster(shown []byte, root ed25519.PublicKey) bool {
	want := ClusterOf(root)
	return subtle.ConstantTimeCompare(shown, want[:]) == 1
}

// Proves reports whether the token is of the cluster with that root key. The host that joins calls it
// before it trusts a certificate.
func (t Token) Proves(root ed25519.PublicKey) bool {
	cluster := ClusterOf(root)
	return subtle.ConstantTimeCompare(t.cluster[:], cluster[:]) == 1
}

// proofContext makes the signature of a proof invalid for anything else.
const proofContext = "weft token proof v1\x00"

// minBinding is the shortest binding that VerifyProof accepts, so that a caller without a session
// cannot accept a proof that is valid everywhere.
const minBinding = 16

// Prove returns a proof that this host holds the token, for one session. binding is a value that only
// the two ends of the session know to be its own, such as an exporter value of TLS (RFC 9266). The
// proof does not reveal the token.
func (t Token) Prove(binding []byte) []byte {
	key := t.key()
	return append(bytes.Clone(key.Public().(ed25519.PublicKey)), ed25519.Sign(key, append([]byte(proofContext), binding...))...)
}

// VerifyProof returns the id of the token that a proof of this session was made with. Whether that
// token admits hosts is for Ledger.Redeem to say.
func VerifyProof(proof, binding []byte) (TokenID, error) {
	switch {
	case len(proof) != ed25519.PublicKeySize+ed25519.SignatureSize:
		return TokenID{}, fmt.Errorf("proof of a token: invalid length %d, want %d", len(proof), ed25519.PublicKeySize+ed25519.SignatureSize)
	case len(binding) < minBinding:
		return TokenID{}, fmt.Errorf("proof of a token: the session's binding has length %d, want at least %d", len(binding), minBinding)
	}
	key := ed25519.PublicKey(proof[:ed25519.PublicKeySize])
	if !ed25519.Verify(key, append([]byte(proofContext), binding...), proof[ed25519.PublicKeySize:]) {
		return TokenID{}, errors.New("proof of a token: the signature is invalid: it was made for another session")
	}
	return sha256.Sum256(key), nil
}
