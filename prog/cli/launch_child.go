package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"weft/prog/agent"
	"weft/prog/agent/statedir"
	"weft/prog/api"
)

// launchChild starts the agent as a child process, and saves its settings once it runs.
func (a *app) launchChild(cmd *cobra.Command, f *launchFlags, client *api.Client, l launching) error {
	if !f.Kubernetes.On {
		err := statedir.EstablishSecret(f.StateDir, l.given, l.founds)
		if err == nil {
			err = statedir.MarkLaunched(f.StateDir, l.founds)
		}
		if err != nil {
			return errors.Join(err, l.undo())
		}
	}
	said := int64(0) // size of the log that earlier agents wrote
	if info, err := os.Stat(filepath.Join(f.StateDir, agentLog)); err == nil {
		said = info.Size()
	}
	child, err := startAgent(cmd, f, f.Targets)
	if err != nil {
		return errors.Join(err, l.undo())
	}
	gone := make(chan error, 1)
	go func() {
		_ = child.Wait() // the exit code is ignored: the reason is in the agent's log
		err := fmt.Errorf("the agent ended: %s", lastError(f.StateDir, said))
		if child.ProcessState.ExitCode() == ExitCopy {
			err = endedError{err, agent.ErrTwin}
		}
		gone <- err
	}()
	err = a.waitReady(cmd.Context(), client, f, gone)
	_, runs := errors.AsType[*api.Error](err)
	switch {
	case f.Kubernetes.On:
	case err != nil && !runs:
		err = errors.Join(err, l.undo())
	default:
		if err := saveSettings(f.settings, givenSettings(cmd.Flags(), f.from)); err != nil {
			fmt.Fprintf(a.err, "weft: the agent runs, but its flags were not saved: give them again at the next launch: %v\n", err)
		}
	}
	return err
}

// startAgent starts the agent in its own session, with its log in the state folder.
func startAgent(cmd *cobra.Command, f *launchFlags, targets []string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(f.StateDir, agentLog)
	if err := rotateLog(path); err != nil {
		return nil, fmt.Errorf("agent's log: %w", err)
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("agent's log: %w", err)
	}
	defer log.Close()
	args := []string{"agent"}
	for _, flag := range changedFlags(cmd) { // the agent reads the environment and the settings file itself
		name, _, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
		if f.from[name] == api.FromFlag && name != "token" && name != "wait" && name != "json" {
			args = append(args, flag)
		}
	}
	child := exec.Command(exe, append(append(args, "--"), targets...)...)
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return child, child.Start()
}
