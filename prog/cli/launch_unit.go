package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"weft/prog/agent"
	"weft/prog/api"
)

// agentUnit is the agent's unit of systemd.
const agentUnit = "weft.service"

// unitInstalled reports whether this host's agent is systemd's to run.
func (f *launchFlags) unitInstalled() bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil || f.StateDir != agent.DefaultStateDir || f.RunDir != agent.DefaultRunDir || f.Kubernetes.On {
		return false
	}
	out, err := exec.Command("systemctl", "show", "--property=LoadState", "--value", agentUnit).Output()
	return err == nil && strings.TrimSpace(string(out)) == "loaded"
}

// launchUnit leaves what launch was told where a supervisor's agent reads it, and starts that
// agent unless it waits for just this.
func (a *app) launchUnit(cmd *cobra.Command, f *launchFlags, client *api.Client, waits int) error {
	before, err := readSettings(f.settings)
	if err != nil {
		return err
	}
	if err := saveSettings(f.settings, givenSettings(cmd.Flags(), f.from)); err != nil {
		return err
	}
	founds, err := agent.Founds(f.StateDir, f.Targets)
	if err == nil && len(f.Targets) > 0 {
		err = agent.KeepTargets(f.StateDir, f.Targets)
	}
	if err == nil {
		err = agent.MarkLaunched(f.StateDir, founds)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	gone := make(chan error, 1)
	switch {
	case err != nil:
	case waits != 0:
		go watchProcess(ctx, waits, gone)
	default:
		if out, e := exec.Command("systemctl", "start", "--no-block", agentUnit).CombinedOutput(); e != nil {
			err = fmt.Errorf("systemctl start %s: %w: %s", agentUnit, e, strings.TrimSpace(string(out)))
		} else {
			go watchUnit(ctx, gone)
		}
	}
	if err == nil {
		err = a.waitReady(ctx, client, f, gone)
	}
	if _, runs := errors.AsType[*api.Error](err); err != nil && !runs { // it did not start with these
		err = errors.Join(err, before.restore())
	}
	return err
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
