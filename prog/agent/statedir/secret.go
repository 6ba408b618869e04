package statedir

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"weft/mesh/secret"
	"weft/prog/state"
)

// SecretFile holds the cluster's token, below the state folder, mode 0600.
const SecretFile = "secret"

// errNoToken reports that this host has nothing to join with.
var errNoToken = errors.New("to join a mesh this host needs a token: on a host of the mesh run `weft token create`, here `weft launch --token - HOST` with the token on standard input (or set WEFT_PASSWORD on all hosts)")

// EstablishSecret keeps the secret of this host: the one that is given, or the one kept from before, or a
// new one if this host founds. A host without the secret keeps its membership, or the token by which it
// shall become a member. If the host belongs to a cluster, what is of another cluster is refused.
func EstablishSecret(dir string, given Given, founds bool) error {
	path := filepath.Join(dir, SecretFile)
	kept, err := Secret(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case given.Secret != nil && given.Secret.Secret != kept.Secret, given.Invitation != nil && !given.Invitation.Proves(rootOf(kept)):
		return fmt.Errorf("this host has the secret of another cluster already (%s): run `weft reset` first if this host shall leave that cluster", path)
	default:
		return nil
	}
	m, noMembership := ReadMembership(dir)
	switch {
	case given.Secret != nil && noMembership == nil && !m.Root.Equal(rootOf(*given.Secret)):
		return errors.New("this host is a member of another network than the one of the secret: run `weft reset` first if this host shall leave its network")
	case given.Secret != nil:
		return WriteSecret(dir, *given.Secret)
	case given.Invitation != nil || !founds || noMembership == nil:
		return establishMembership(dir, given, founds)
	}
	t, err := secret.New(rand.Reader)
	if err != nil {
		return err
	}
	return WriteSecret(dir, t)
}

func rootOf(t secret.Token) ed25519.PublicKey { return t.Secret.Root().Public().(ed25519.PublicKey) }

// Secret reads this host's token.
func Secret(dir string) (secret.Token, error) {
	path := filepath.Join(dir, SecretFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return secret.Token{}, err
	}
	t, err := secret.Parse(string(data))
	if err != nil {
		return t, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// WriteSecret writes a token to the state folder.
func WriteSecret(dir string, t secret.Token) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	if err := state.WriteFile(filepath.Join(dir, SecretFile), []byte(t.Reveal()+"\n"), 0o600); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	return nil
}
