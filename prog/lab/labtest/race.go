package labtest

import (
	"os"
	"path/filepath"
	"testing"
)

// raceVar makes labs run programs that are built with the race detector: agents, the userspace
// WireGuard, the plugin and each command. Any race fails its test. (Of variables that begin with
// WEFT_ and are no setting, agents warn.)
const raceVar = "LAB_RACE"

func detecting() bool { return os.Getenv(raceVar) != "" }

// watchRaces has all programs of a lab that is not up yet report their races, and fails the test
// if there are any when it ends: what an agent prints is seen by nobody else.
func watchRaces(t testing.TB) {
	dir := t.TempDir()
	// Each program would sleep for a second before it exits, and there are many here.
	t.Setenv("GORACE", "atexit_sleep_ms=0 log_path="+filepath.Join(dir, "race"))
	t.Cleanup(func() {
		reports, err := filepath.Glob(filepath.Join(dir, "race.*"))
		if err != nil {
			t.Error(err)
		}
		for _, report := range reports {
			data, err := os.ReadFile(report)
			if err != nil {
				t.Error(err)
			}
			t.Errorf("a race on some host (%s):\n%s", filepath.Base(report), data[:min(len(data), dumpLimit)])
		}
	})
}
