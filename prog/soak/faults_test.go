package soak

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The linker sets variables that bring back three bugs of Weave Net. The simulation detects
// each.
func TestInjectedFaultsAreDetected(t *testing.T) {
	if os.Getenv("SEED") != "" || os.Getenv("SOAK") != "" {
		t.Skip("this test does not run if SEED or SOAK is set")
	}
	if testing.Short() {
		t.Skip("the programs that this test builds have no race detector: it runs without -short")
	}
	for _, f := range []struct {
		name, variable string
		found          []string // texts, one of which must be found; which one depends on the history
	}{
		{"a tie that is not broken", "weft/ipam/ring.fault=tie", []string{"different rings", "two live holders"}},
		{"a quorum without self", "weft/ipam/paxos.fault=quorum", []string{"founds a second ring"}},
		{"a take-over that does not fence", "weft/ipam.fault=unfenced", []string{"does not report", "two live holders"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			binary := filepath.Join(t.TempDir(), "soak.test")
			if out, err := exec.Command("go", "test", "-c", "-o", binary, "-ldflags", "-X "+f.variable, "weft/prog/soak").CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			run := exec.Command(binary, "-test.run=^TestSoakAllocatesNoAddressTwice$")
			run.Env = append(os.Environ(), "SOAK=100", "GOMAXPROCS=1")
			out, err := run.CombinedOutput()
			says := func(what string) bool { return strings.Contains(string(out), what) }
			if _, failed := errors.AsType[*exec.ExitError](err); !failed || !slices.ContainsFunc(f.found, says) {
				t.Errorf("the simulation did not detect the fault, want one of %q: %v\n%.2000s", f.found, err, out)
			}
			t.Logf("%s", strings.TrimSpace(string(out[max(0, len(out)-250):])))
		})
	}
}
