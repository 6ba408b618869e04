package admission

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"weft/mesh/member"
	"weft/mesh/meshtest"
	"weft/prog/agent/statedir"
)

// An agent ended after it had stored its membership, and before it removed the token. It asks nobody again:
// the token may have expired since.
func TestAMemberAsksNobodyAgain(t *testing.T) {
	dir, identity := t.TempDir(), meshtest.Identity(1)
	root := identity.Public().(ed25519.PublicKey)
	token, err := member.New(rand.Reader, root)
	if err != nil {
		t.Fatal(err)
	}
	if err := statedir.WriteMembership(dir, statedir.Membership{Root: root, Certificate: []byte("certificate")}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, statedir.InvitationFile)
	if err := os.WriteFile(path, []byte(token.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = Join(ctx, Config{Dir: dir, Identity: identity, Targets: func() ([]string, bool) { return []string{"127.0.0.1:1"}, true }, Log: slog.New(slog.DiscardHandler), Waiting: func(string) {}})
	if err != nil {
		t.Errorf("a host that is a member already joins with the error %v; want none", err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the token is still there (%v), want it removed", err)
	}
}
