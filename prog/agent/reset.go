package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"weft/prog/agent/config"
	"weft/prog/agent/privilege"
	"weft/prog/agent/statedir"
	"weft/prog/cni/install"
	"weft/prog/kube"
	"weft/prog/kube/node"
	"weft/prog/state"
	"weft/router"
	"weft/router/link"
)

// Reset removes everything that Weft made on this host: first the CNI configuration, so that no
// more containers are attached, then the data path, then state and secret. It restores the sysctls
// that Weft changed; on a Node only those that no other program needs. kept lists the sysctls that
// could not be restored. It renames a state file that cannot be read. The agent must not be
// running.
func Reset(ctx context.Context, opts config.Options) (kept []string, err error) {
	if err := privilege.CheckNetAdmin(); err != nil {
		return nil, err
	}
	if opts.SysctlDir != "" {
		link.SetSysctlRoot(opts.SysctlDir)
	}
	if err := install.Remove(opts.CNIConfDir, opts.CNIBinDir); err != nil {
		return nil, err
	}
	var sysctls []state.Sysctl
	s, err := state.Open(opts.StateDir)
	switch unusable, ok := errors.AsType[*state.UnusableError](err); {
	case ok:
		aside := unusable.Path + ".aside-" + time.Now().UTC().Format("20060102T150405")
		if err := os.Rename(unusable.Path, aside); err != nil {
			return kept, fmt.Errorf("reset: set the state aside: %w", err)
		}
	case err != nil:
		return kept, fmt.Errorf("reset: %w", err)
	default:
		if sysctls, err = s.Sysctls(); err != nil {
			sysctls = nil // a state that cannot be read must not keep this host in the network
		}
		s.Close()
	}
	if err := router.Remove(ctx); err != nil {
		return kept, fmt.Errorf("reset: %w", err)
	}
	if opts.Kubernetes.On { // other programs need the others
		sysctls = slices.DeleteFunc(sysctls, func(c state.Sysctl) bool { return c.Name != link.CountConnections })
	}
	kept = statedir.RestoreSysctls(sysctls)
	for _, name := range []string{state.File, statedir.SecretFile, statedir.InvitationFile, statedir.MembershipFile, statedir.ReleaseDir, statedir.LaunchedFile, "agent.log", "agent.log.1", "datapath.log", "datapath.log.1"} {
		if err := os.RemoveAll(filepath.Join(opts.StateDir, name)); err != nil {
			return kept, fmt.Errorf("reset: %w", err)
		}
	}
	if err := os.RemoveAll(opts.Socket()); err != nil {
		return kept, fmt.Errorf("reset: %w", err)
	}
	if !opts.Kubernetes.On {
		return kept, nil
	}
	report, err := reporter(opts)
	if err == nil {
		err = report.TakeBack(ctx)
	}
	if err != nil {
		return kept, fmt.Errorf("reset: this host is clean, but its Node still has the condition that Weft is up, which prevents founding a new network: fix the cause and run `weft reset` again: %w", err)
	}
	return kept, nil
}

// WarnInvalid reports on this host's Node that the agent does not start with its settings. It only
// tries for a short time.
func WarnInvalid(ctx context.Context, opts config.Options, why error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	report, err := reporter(opts)
	if err != nil {
		return err
	}
	return report.WarnNow(ctx, kube.ReasonInvalidSetting, "Weft does not start: "+why.Error())
}

// reporter returns the Reporter of this host's Node while no agent runs.
func reporter(opts config.Options) (*kube.Reporter, error) {
	config, err := kube.Connect(opts.Kubernetes.Config)
	if err != nil {
		return nil, err
	}
	client, err := kube.NewClient(config)
	if err != nil {
		return nil, err
	}
	return kube.NewReporter(client, node.Name(opts.Kubernetes.Node), opts.Log), nil
}
