package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/prog/agent/config"
	"weft/prog/agent/statedir"
	"weft/prog/api"
	"weft/prog/words"
)

// agentUnit is the agent's unit of systemd.
const agentUnit = "weft.service"

// unitInstalled reports whether this host's agent is systemd's to run.
func (f *launchFlags) unitInstalled() bool {
	return f.StateDir == config.DefaultStateDir && f.RunDir == config.DefaultRunDir && !f.Kubernetes.On && unitLoaded()
}

// unitLoaded reports whether systemd runs this host and has the agent's unit.
func unitLoaded() bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	out, err := exec.Command("systemctl", "show", "--property=LoadState", "--value", agentUnit).Output()
	return err == nil && strings.TrimSpace(string(out)) == "loaded"
}

// launchUnit leaves what launch was told where a supervisor's agent reads it, and starts that
// agent unless it waits for just this. Where it fails, all is as before.
func (a *app) launchUnit(cmd *cobra.Command, f *launchFlags, client *api.Client, l launching) error {
	before, err := readSettings(f.settings)
	if err != nil {
		return err
	}
	if l.given != nil || !l.founds { // else the agent makes one, unless it has its own
		_, err = statedir.EstablishSecret(f.StateDir, l.given, l.founds)
	}
	if err == nil {
		err = saveSettings(f.settings, givenSettings(cmd.Flags(), f.from))
	}
	if err == nil && len(f.Targets) > 0 {
		err = statedir.KeepTargets(f.StateDir, f.Targets)
	}
	if err == nil {
		err = statedir.MarkLaunched(f.StateDir, l.founds)
	}
	if err == nil {
		err = a.startUnit(cmd.Context(), f, client, l)
	}
	if _, runs := errors.AsType[*api.Error](err); err == nil || runs {
		return err
	}
	if l.unit {
		systemctl("stop")
	}
	err = errors.Join(err, before.restore(), l.undo())
	if l.unit && l.waits != 0 { // it waits again
		systemctl("start", "--no-block")
	}
	return err
}

// systemctl does something to the unit, as far as that is possible.
func systemctl(args ...string) { _ = exec.Command("systemctl", append(args, agentUnit)...).Run() }

// calmUnit ends a unit that fails again and again: it would be started with what is only half told,
// and its last failure taken for that of the next start.
func calmUnit() {
	systemctl("stop")
	systemctl("reset-failed") // an error: it never failed
}

// startUnit starts the unit, or watches the agent that waits, until it is ready.
func (a *app) startUnit(ctx context.Context, f *launchFlags, client *api.Client, l launching) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gone := make(chan error, 1)
	if l.waits != 0 {
		go watchProcess(ctx, l.waits, gone)
	} else {
		if out, err := exec.Command("systemctl", "start", "--no-block", agentUnit).CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl start %s: %w: %s", agentUnit, err, strings.TrimSpace(string(out)))
		}
		go watchUnit(ctx, gone)
	}
	return a.waitReady(ctx, client, f, gone)
}

// reachesUnit refuses settings that an agent would not hear of that a supervisor runs.
func (f *launchFlags) reachesUnit() error {
	for _, name := range slices.Sorted(maps.Keys(f.from)) {
		if f.from[name] == api.FromEnvironment {
			return words.Misused(fmt.Errorf("%s does not reach the agent, which a supervisor runs: give --%s, which is saved in %s", variable(name), name, settingsFile))
		}
	}
	if f.settings != settingsFile {
		return words.Misused(fmt.Errorf("--settings %s does not reach the agent, which a supervisor runs: write into %s", f.settings, settingsFile))
	}
	return nil
}

// watchProcess tells when an agent that another supervisor runs ended.
func watchProcess(ctx context.Context, pid int, gone chan<- error) {
	for ctx.Err() == nil {
		if unix.Kill(pid, 0) != nil {
			gone <- fmt.Errorf("the agent (pid %d) ended: %s", pid, unitError())
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// watchUnit tells when the unit failed.
func watchUnit(ctx context.Context, gone chan<- error) {
	for ctx.Err() == nil {
		out, _ := exec.CommandContext(ctx, "systemctl", "show", "--property=ActiveState,Result,NRestarts", agentUnit).Output()
		text := string(out)
		if strings.Contains(text, "ActiveState=failed") || strings.Contains(text, "NRestarts=") && !strings.Contains(text, "NRestarts=0") && strings.Contains(text, "ActiveState=activating") {
			gone <- fmt.Errorf("the agent ended: %s", unitError())
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// unitError is what the unit's agent said last in the journal.
func unitError() string {
	out, _ := exec.Command("journalctl", "--unit", agentUnit, "--lines=50", "--output=cat", "--no-pager").Output()
	if last := lastWord(string(out)); last != "" {
		return last
	}
	return "see the log of its supervisor (journalctl -u " + agentUnit + ")"
}
