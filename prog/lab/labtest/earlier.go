package labtest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
)

// BeforeSessions is the last commit whose agents use protocol version 1.
const BeforeSessions = "e96962582470ea5f30ca7d0c4ab444ff1f4b5f6f"

// Earlier builds the programs of a commit, and returns their folder. It skips the test if the repository's
// history lacks the commit.
func Earlier(t *testing.T, commit string) string {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "git", "cat-file", "-e", commit+"^{commit}").CombinedOutput(); err != nil {
		t.Skipf("the repository's history lacks the commit %s, whose agents this test upgrades: fetch the whole history (git fetch --unshallow): %v %s", commit, err, out)
	}
	dir := t.TempDir()
	for _, command := range []string{
		fmt.Sprintf("cd \"$(git rev-parse --show-toplevel)\" && git archive %s | tar -x -C %s", commit, dir),
		fmt.Sprintf("cd %s && CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/weft ./cmd/weft-cni", dir),
	} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-ec", command).CombinedOutput(); err != nil {
			t.Fatalf("building the programs of commit %s failed, want success: %v\n%s", commit, err, out)
		}
	}
	return filepath.Join(dir, "bin")
}
