package labtest

import (
	"os"
	"path/filepath"
	"testing"
)

// raceVar makes labs run programs built with the race detector: agents, the userspace WireGuard, the
// plugin and all commands. Any race fails its test. (It does not begin with WEFT_, since agents warn
// of unknown variables with that prefix.)
const raceVar = "LAB_RACE"

func detecting() bool { return os.Getenv(raceVar) != "" }

// watchRaces makes all programs of a new lab write their race reports to files, and fails the test at
// its end if there are any. Otherwise an agent's report would stay unseen in its log.
func watchRaces(t testing.TB) {
	dir := t.TempDir()
	// By default each program would sleep for a second before it exits, and there are many.
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
			t.Errorf("a program of the lab reported a data race (%s), want none:\n%s", filepath.Base(report), data[:min(len(data), dumpLimit)])
		}
	})
}
