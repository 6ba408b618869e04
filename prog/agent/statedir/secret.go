package statedir

import (
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

// EstablishSecret keeps the secret of this host: the one that is given, or the one kept from
// before, or a new one if this host founds. If the host belongs to a cluster, a secret of
// another cluster is refused.
func EstablishSecret(dir string, given *secret.Token, founds bool) (t secret.Token, err error) {
	path := filepath.Join(dir, SecretFile)
	kept, err := Secret(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return t, err
	case given != nil && given.Secret != kept.Secret:
		return t, fmt.Errorf("this host has the secret of another cluster already (%s): run `weft reset` first if this host shall leave that cluster", path)
	default:
		return kept, nil
	}
	switch {
	case given != nil:
		t = *given
	case founds:
		if t, err = secret.New(rand.Reader); err != nil {
			return t, err
		}
	default:
		return t, errors.New("to join a mesh this host needs its token: on the first host `cat /var/lib/weft/secret`, here `weft launch --token - HOST` with the token on standard input (or set WEFT_PASSWORD on all hosts)")
	}
	return t, WriteSecret(dir, t)
}

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
