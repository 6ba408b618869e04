// Package labtest runs a lab for a test, with programs built from the tree under test. It owns the
// built programs of the process. Its functions are safe for concurrent tests. It never changes the
// machine's own network.
package labtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/prog/lab"
)

// New makes a lab and removes it at the end of the test. It runs the tree's weft and weft-cni unless
// o.Bin is set, and is named after the test unless o.Name is set. If the test fails, it logs each
// host's agent log. If the lab does not start, or the machine cannot run labs, the test fails: a
// skipped suite would prove nothing.
func New(t testing.TB, o lab.Options) *lab.Lab {
	t.Helper()
	if o.Bin == "" {
		o.Bin = Bin(t)
	}
	if o.Name == "" {
		o.Name = name(t)
	}
	if o.Progress == nil {
		o.Progress = func(line string) { t.Log(line) }
	}
	if detecting() {
		watchRaces(t) // called first, since its check must run after the lab is removed
	}
	l, err := lab.Up(t.Context(), o)
	if l != nil {
		t.Cleanup(func() {
			if t.Failed() {
				dump(t, l)
			}
			// The test's own context has already ended.
			if err := l.Down(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Waits lets a test run in parallel with other tests that call Waits: they mostly wait and hardly use a
// processor. They run after all other tests. (t.Parallel is impossible with LAB_RACE, which sets an environment
// variable.)
func Waits(t *testing.T) {
	if !detecting() {
		t.Parallel()
	}
}

// name returns a name that is unique among concurrent tests.
func name(t testing.TB) string {
	sum := sha256.Sum256([]byte(t.Name()))
	return fmt.Sprintf("test-%d-%x", os.Getpid(), sum[:4])
}

// dumpLimit limits a log to its end, where the failure is.
const dumpLimit = 16 << 10

// Need installs a program if it is missing. If that fails, it skips the test with a message that says
// how to install it.
func Need(t testing.TB, program, pkg string) {
	t.Helper()
	if err := lab.Install(program, pkg); err != nil {
		t.Skip(err)
	}
}

func dump(t testing.TB, l *lab.Lab) {
	for _, host := range l.Hosts() {
		data, err := os.ReadFile(filepath.Join(l.StateDir(host), "agent.log"))
		if err != nil {
			continue // there is no log: the lab is bare, or the host's agent never started
		}
		if len(data) > dumpLimit {
			data = data[len(data)-dumpLimit:]
		}
		t.Logf("agent.log of %s:\n%s", host, data)
		// A missing packet was dropped somewhere, and the kernel has counted it.
		counters, err := l.Exec(context.Background(), host, nil, "cat", "/proc/net/dev", "/proc/net/snmp6")
		if err == nil {
			t.Logf("drops on %s since its start:\n%s", host, drops(counters))
		}
	}
}

// drops selects the non-zero counters of losses: links with errors or drops in /proc/net/dev, and the
// counters with such names in /proc/net/snmp6.
func drops(counters string) string {
	var out strings.Builder
	for line := range strings.Lines(counters) {
		f := strings.Fields(line)
		switch {
		case len(f) == 17 && (f[3] != "0" || f[4] != "0" || f[11] != "0" || f[12] != "0"):
			fmt.Fprintf(&out, "%s received %s errors, %s dropped; sent %s errors, %s dropped\n", f[0], f[3], f[4], f[11], f[12])
		case len(f) == 2 && f[1] != "0" && (strings.Contains(f[0], "Err") || strings.Contains(f[0], "Discards") || strings.Contains(f[0], "NoRoutes")):
			out.WriteString(line)
		}
	}
	return out.String()
}

// Bin returns a directory with static weft and weft-cni, built once per process. WEFT_BIN names a
// directory with finished programs instead.
func Bin(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("WEFT_BIN"); dir != "" {
		return dir
	}
	return Release(t, "dev")
}

// Release returns a directory with programs of another version, for upgrades.
func Release(t testing.TB, version string) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	if built[version] == "" {
		dir, err := build(version)
		if err != nil {
			t.Fatal(err)
		}
		built[version] = dir
	}
	return built[version]
}

var (
	building sync.Mutex
	built    = map[string]string{} // directories of built programs, by version
)

// build stores each version of the programs in a directory named by its hash. So processes that build
// at the same time neither overwrite a running program nor leave several copies.
func build(version string) (string, error) {
	base := fmt.Sprintf("/tmp/weft-labtest-%d", os.Geteuid())
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", err
	}
	prune(base)
	tmp, err := os.MkdirTemp(base, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) // after the rename, there is nothing to remove
	cgo := "CGO_ENABLED=0"
	args := []string{"build", "-ldflags", "-X weft/prog/cli.Version=" + version, "-o", tmp + "/"}
	if detecting() {
		cgo, args = "CGO_ENABLED=1", append(args, "-race") // -race needs cgo
	}
	cmd := exec.Command("go", append(args, "weft/cmd/weft", "weft/cmd/weft-cni")...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("labtest: build the programs: %w\n%s", err, out)
	}
	hash := sha256.New()
	for _, program := range []string{"weft", "weft-cni"} {
		data, err := os.ReadFile(filepath.Join(tmp, program))
		if err != nil {
			return "", err
		}
		hash.Write(data)
	}
	dir := filepath.Join(base, fmt.Sprintf("%x", hash.Sum(nil)[:8]))
	err = os.Rename(tmp, dir)
	if errors.Is(err, os.ErrExist) { // another process has built the same version
		now := time.Now()
		err = os.Chtimes(dir, now, now)
	}
	return dir, err
}

// prune removes versions that no test has used for a day.
func prune(base string) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			_ = os.RemoveAll(filepath.Join(base, e.Name()))
		}
	}
}
