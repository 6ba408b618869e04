// Package discovery decides what hosts of one LAN tell each other by multicast, and which of them founds
// the network if none of them has one yet.
//
// It owns the format of an announcement, the rule by which one of several starting hosts founds
// (Seeker), and the bounded list of the hosts found (Hosts). It never sends a secret or a token. The
// package is pure: callers pass the packets and the time.
package discovery

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"weft/mesh/member"
	"weft/mesh/peer"
)

// Kind is what the sender of an announcement is about to do.
type Kind uint8

const (
	// Waiting is a host without a ring, which founds none by itself.
	Waiting Kind = iota + 1
	// Seeking is a host that founds a ring unless it finds another host.
	Seeking
	// Deciding is a host that founds a ring or votes about one.
	Deciding
	// HasRing is a host of a network: other hosts join it.
	HasRing
)

func (k Kind) valid() bool { return k >= Waiting && k <= HasRing }

// Network recognises the announcements of one network. It is a hash of what a token of the network has
// of its root key. So hosts with the secret, with a token or with a certificate know it. Nobody can
// compute the root key or a token's part from it. Of a password it would let others try guesses: see
// site/docs/security.md.
type Network [16]byte

// NetworkOf returns the Network of a token (member.Token.Cluster), or of a root key
// (member.ClusterOf).
func NetworkOf(cluster []byte) Network {
	sum := sha256.Sum256(append([]byte("weft discovery network v1\x00"), cluster...))
	return Network(sum[:])
}

// Announcement is one packet.
type Announcement struct {
	Kind        Kind
	Network     Network
	Gossip      uint16 // the sender's gossip port; its address is the source of the packet
	Identity    ed25519.PublicKey
	Certificate []byte // of the identity, by the network's root key (package member)

	signed, signature []byte // set by Parse
}

const (
	magic   = "weft\x01"
	context = "weft announcement v1\x00" // makes the signature invalid for anything else
	fixed   = len(magic) + 1 + len(Network{}) + 2 + ed25519.PublicKeySize
	// MaxSize bounds a packet: a larger one is no announcement.
	MaxSize = fixed + member.MaxCertificate + ed25519.SignatureSize
)

// Sign returns the packet, signed by the key of its identity.
func (a Announcement) Sign(key ed25519.PrivateKey) []byte {
	out := make([]byte, 0, MaxSize)
	out = append(append(out, magic...), byte(a.Kind))
	out = binary.BigEndian.AppendUint16(append(out, a.Network[:]...), a.Gossip)
	out = append(append(out, a.Identity...), a.Certificate...)
	return append(out, ed25519.Sign(key, append([]byte(context), out...))...)
}

// Parse reads a packet without verifying it.
func Parse(data []byte) (a Announcement, err error) {
	if len(data) <= fixed+ed25519.SignatureSize || len(data) > MaxSize || !bytes.HasPrefix(data, []byte(magic)) {
		return a, errors.New("announcement: this is no packet of this version")
	}
	data = bytes.Clone(data)
	end := len(data) - ed25519.SignatureSize
	a.signed, a.signature = data[:end], data[end:]
	rest := a.signed[len(magic):]
	a.Kind, rest = Kind(rest[0]), rest[1:]
	rest = rest[copy(a.Network[:], rest):]
	a.Gossip, rest = binary.BigEndian.Uint16(rest), rest[2:]
	a.Identity, a.Certificate = ed25519.PublicKey(rest[:ed25519.PublicKeySize]), rest[ed25519.PublicKeySize:]
	if !a.Kind.valid() || a.Gossip == 0 {
		return a, fmt.Errorf("announcement: kind %d or port %d is invalid", a.Kind, a.Gossip)
	}
	return a, nil
}

// Verify returns the sender of a parsed announcement, a member of the network with that root key. It
// returns an error if a host that is no member wrote or changed the packet.
func (a Announcement) Verify(root ed25519.PublicKey) (member.Member, error) {
	m, err := member.Verify(root, a.Identity, a.Certificate)
	if err != nil {
		return m, err
	}
	if !ed25519.Verify(a.Identity, append([]byte(context), a.signed...), a.signature) {
		return m, fmt.Errorf("announcement of %v: the signature is invalid", peer.IDOf(a.Identity))
	}
	return m, nil
}
