package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/prog/lab/labtest"
)

const units = "../../../site/deploy/systemd"

// systemd-analyze rates the units as hardened.
func TestSystemdUnitsAreHardened(t *testing.T) {
	labtest.Need(t, "systemd-analyze", "systemd")
	for _, unit := range []string{"weft.service", "weft-datapath.service"} {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=39", "--no-pager", filepath.Join(units, unit)).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze rates %s as too open, want a score of at most 3.9: %v\n%s", unit, err, out)
		}
	}
}

// A real systemd runs the agent. The agent waits until weft launch. systemd does not start it again after
// weft stop and weft reset, but after a crash. After a reset, the agent founds no new network.
func TestSystemdRestartsTheAgentOnlyAfterACrash(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("systemd as process 1 of a namespace needs root")
	}
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		t.Skip("systemd is not installed: ", err)
	}
	out := t.TempDir()
	where, err := filepath.Abs(units)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "-p", "-f", "--kill-child", "-m", "-n", "-u", "-i", "-C", "bash", "testdata/systemd.sh", out, labtest.Bin(t), where)
	console, _ := cmd.CombinedOutput() // the error is ignored: at power-off, systemd is killed
	said, err := os.ReadFile(filepath.Join(out, "said"))
	if err != nil {
		t.Skipf("systemd does not run in a namespace here: %v\n%s", err, console)
	}
	rest := string(said)
	for _, want := range []string{
		"started: active\n", "Not ready: this host belongs to no network", "launched: active\n", "ready: true 1300\n", "stopped: inactive\n",
		"launched again: active\n", "again: true 1300\n", "after a panic: active\n", "upgraded: active\n", "one network all the time\n", "reset: inactive\n",
		"started after reset: active\n", "belongs to no network", "state:\n", "198.51.100.1:1", "launch refused\n", "waits again with: /var/lib/weft: state.db\n", "WEFT_MTU does not reach the agent", "variable: 2\n", "the end\n",
	} {
		_, after, ok := strings.Cut(rest, want)
		if !ok {
			t.Fatalf("the log lacks %q, which should come next:\n%s\n%s", want, said, console)
		}
		rest = after
	}
}
