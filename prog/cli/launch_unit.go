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

// agentUnit is the name of the agent's systemd unit.
const agentUnit = "weft.service"

// unitInstalled reports whether systemd runs this host's agent.
func (f *launchFlags) unitInstalled() bool {
	return f.StateDir == config.DefaultStateDir && f.RunDir == config.DefaultRunDir && !f.Kubernetes.On && unitLoaded()
}

// unitLoaded reports whether this host runs systemd with the agent's unit.
func unitLoaded() bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	out, err := exec.Command("systemctl", "show", "--property=LoadState", "--value", agentUnit).Output()
	return err == nil && strings.TrimSpace(string(out)) == "loaded"
}

// launchUnit saves the settings of launch where a supervised agent reads them. It starts that agent,
// unless it runs and waits for launch. If it fails, it reverts all changes.
func (a *app) launchUnit(cmd *cobra.Command, f *launchFlags, client *api.Client, l launching) error {
	before, err := readSettings(f.settings)
	if err != nil {
		return err
	}
	if !l.given.None() || !l.founds { // a host that founds a network makes its own token if none is given
		err = statedir.EstablishSecret(f.StateDir, l.given, l.founds)
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
	if l.unit && l.waits != 0 { // before this launch the agent waited: start it, so that it waits again
		systemctl("start", "--no-block")
	}
	return err
}

// systemctl runs a systemctl command on the unit, and ignores errors.
func systemctl(args ...string) { _ = exec.Command("systemctl", append(args, agentUnit)...).Run() }

// calmUnit stops a unit in a restart loop. Otherwise systemd could restart the agent with half-written
// settings, and the agent's last failure would be taken for a failure of the new start.
func calmUnit() {
	systemctl("stop")
	systemctl("reset-failed") // the command fails if the unit never failed
}

// startUnit starts the unit, or watches the waiting agent, until the agent is ready.
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

// reachesUnit refuses settings that a supervised agent would not see.
func (f *launchFlags) reachesUnit() error {
	for _, name := range slices.Sorted(maps.Keys(f.from)) {
		// launch itself uses the cluster's name, as it uses WEFT_PASSWORD.
		if f.from[name] == api.FromEnvironment && name != "cluster" {
			return words.Misused(fmt.Errorf("%s does not reach the agent, since a supervisor starts it: give --%s, which is saved in %s", variable(name), name, settingsFile))
		}
	}
	if f.settings != settingsFile {
		return words.Misused(fmt.Errorf("--settings %s does not reach the agent, since a supervisor starts it: edit %s", f.settings, settingsFile))
	}
	return nil
}

// watchProcess sends an error when the agent that waited for launch ends.
func watchProcess(ctx context.Context, pid int, gone chan<- error) {
	for ctx.Err() == nil {
		if unix.Kill(pid, 0) != nil {
			gone <- fmt.Errorf("the agent (pid %d) ended: %s", pid, unitError())
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// watchUnit sends an error when the unit fails.
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

// unitError returns the last error of the unit's agent in the journal.
func unitError() string {
	out, _ := exec.Command("journalctl", "--unit", agentUnit, "--lines=50", "--output=cat", "--no-pager").Output()
	if last := lastWord(string(out)); last != "" {
		return last
	}
	return "see the log of its supervisor (journalctl -u " + agentUnit + ")"
}
