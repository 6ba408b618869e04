// Package trust holds what proves that this host is itself and belongs to the network: its
// identity, its WireGuard key, the cluster's token, and the pre-shared keys that follow from it.
// A Trust is a value; it never changes while the agent runs.
package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/mesh/member"
	"weft/mesh/peer"
	"weft/mesh/secret"
	"weft/prog/agent/statedir"
	"weft/prog/state"
)

// Trust has the keys and the token of this host.
type Trust struct {
	Self   peer.ID
	Keys   state.Keys
	Public wgtypes.Key // this host's WireGuard key
	Token  secret.Token
	// Root is the public key that certifies the members of the cluster, Certificate is this host's own.
	Root        ed25519.PublicKey
	Certificate []byte
}

// Store keeps the keys over a restart, and makes them the first time.
type Store interface {
	Keys(random io.Reader) (state.Keys, error)
}

// Self returns the peer id that the keys of a store give this host.
func Self(store Store) (peer.ID, error) {
	keys, err := store.Keys(rand.Reader)
	if err != nil {
		return peer.ID{}, err
	}
	return keys.ID(), nil
}

// Load reads the keys from the store, and the token from the state folder.
func Load(store Store, dir string) (t Trust, err error) {
	if t.Keys, err = store.Keys(rand.Reader); err != nil {
		return t, err
	}
	t.Self = t.Keys.ID()
	private, err := wgtypes.NewKey(t.Keys.WireGuard[:])
	if err != nil {
		return t, fmt.Errorf("trust: WireGuard key: %w", err)
	}
	t.Public = private.PublicKey()
	if t.Token, err = statedir.Secret(dir); err != nil {
		return t, fmt.Errorf("secret: %w", err)
	}
	root := t.Token.Secret.Root()
	t.Root = root.Public().(ed25519.PublicKey)
	t.Certificate = member.Certify(root, t.Keys.Identity.Public().(ed25519.PublicKey), member.Holder).Encode()
	return t, nil
}

// GossipKey returns the key of older versions' gossip.
func (t Trust) GossipKey() []byte { return t.Token.Secret.GossipKey() }

// PresharedKey returns WireGuard's pre-shared key for the tunnel to a peer.
func (t Trust) PresharedKey(other peer.ID) [32]byte {
	return t.Token.Secret.PresharedKey(t.Self, other)
}
