package trust

import (
	"crypto/ed25519"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"weft/mesh/secret"
	"weft/prog/agent/statedir"
	"weft/prog/state"
)

// disk is a Store.
type disk struct {
	keys state.Keys
	fail error
}

func (d disk) Keys(io.Reader) (state.Keys, error) { return d.keys, d.fail }

// newDisk returns the store of the nth host.
func newDisk(n byte) disk {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return disk{keys: state.Keys{Identity: ed25519.NewKeyFromSeed(seed), WireGuard: [32]byte{8, n}}}
}

// folder makes a state folder that has a token.
func folder(t *testing.T, password string) string {
	t.Helper()
	dir := t.TempDir()
	token, err := secret.FromPassword(password, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := statedir.WriteSecret(dir, token); err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t *testing.T, d disk, dir string) Trust {
	t.Helper()
	loaded, err := Load(d, dir)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestAHostIsTheSameAfterARestart(t *testing.T) {
	dir := folder(t, "a long password")
	first := load(t, newDisk(1), dir)
	if again := load(t, newDisk(1), dir); again.Self != first.Self || again.Public != first.Public || again.Token != first.Token {
		t.Errorf("after a restart the peer is %v, want %v with the same key and token", again.Self, first.Self)
	}
	if self, err := Self(newDisk(1)); err != nil || self != first.Self {
		t.Errorf("Self returned %v, error %v; want the peer id of Load", self, err)
	}
	other := load(t, newDisk(2), dir)
	if other.Self == first.Self || other.Public == first.Public {
		t.Error("two hosts have the same identity or key, want different ones")
	}
	if first.Public == first.Keys.WireGuard {
		t.Error("the public key equals the private key, want its public part")
	}
}

// Both ends of a tunnel have the same pre-shared key, and no other tunnel and no other cluster has it.
func TestBothEndsOfATunnelHaveItsPresharedKey(t *testing.T) {
	dir := folder(t, "a long password")
	one, two, three := load(t, newDisk(1), dir), load(t, newDisk(2), dir), load(t, newDisk(3), dir)
	key := one.PresharedKey(two.Self)
	if key != two.PresharedKey(one.Self) || key == [32]byte{} {
		t.Error("the two ends of a tunnel have different keys, or none; want the same key")
	}
	if key == one.PresharedKey(three.Self) || key == two.PresharedKey(three.Self) {
		t.Error("another tunnel has the same key, want another key")
	}
	if key == load(t, newDisk(1), folder(t, "another password")).PresharedKey(two.Self) {
		t.Error("another cluster has the same key, want another key")
	}
}

func TestErrorsNameTheKeyOrTokenThatCannotBeRead(t *testing.T) {
	if _, err := Load(newDisk(1), t.TempDir()); !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "secret: ") {
		t.Errorf("without a token: error %v, want one about the secret", err)
	}
	broken := errors.New("the disk is broken")
	if _, err := Load(disk{fail: broken}, t.TempDir()); !errors.Is(err, broken) {
		t.Error(err)
	}
}
