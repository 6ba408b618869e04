package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"weft/prog/api"
	"weft/prog/words"
)

// errFailed ends a command with exit code 1, after it has printed what failed.
var errFailed = errors.New("a check failed")

func (a *app) check() *cobra.Command {
	var all, containers bool
	cmd := &cobra.Command{
		Use: "check [--all-hosts] [--containers]", Short: "check whether this host and its network work", Args: cobra.NoArgs,
		Long: `Checks this host: whether it is ready, its tunnels, gossip, the MTU, both address families, DNS,
policies, firewalls of other programs, sysctls, the disk and the CNI files. It sends packets through
every tunnel. Each line is PASS, WARN (something is wrong, and containers can communicate) or FAIL,
with what to do.

With --all-hosts every host checks itself, and the hosts are compared. With --containers every
host also starts a test container for some seconds, and all of these talk to each other.

The exit code is 1 if a check fails.` + exitHelp,
		Example: "  weft check\n  weft check --all-hosts\n  weft check --containers --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.client().Check(cmd.Context(), api.CheckRequest{AllHosts: all, Containers: containers})
			if err != nil {
				return err
			}
			if err := a.show(r, func() { a.printChecks(a.out, r) }); err != nil {
				return err
			}
			if r.Result == api.CheckFail {
				return errFailed
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all-hosts", false, "check every host, and compare them")
	cmd.Flags().BoolVar(&containers, "containers", false, "also start a test container on every host, and have all of these talk to each other")
	return cmd
}

// printChecks prints each host with its checks, and the sum.
func (a *app) printChecks(w io.Writer, r api.CheckReply) {
	counts := map[string]int{}
	print := func(list []api.Check) {
		for _, c := range list {
			counts[c.Result]++
			fmt.Fprintf(w, "  %s  %-10s  %s\n", a.coloured(c.Result), c.Area, c.What)
			for _, more := range [][2]string{{"effect: ", c.Effect}, {"fix: ", c.Fix}} {
				if more[1] != "" {
					fmt.Fprintf(w, "%20s%s%s\n", "", more[0], more[1])
				}
			}
		}
	}
	for _, h := range r.Hosts {
		if h.Error == "" {
			fmt.Fprintf(w, "%s(%s)\n", h.Peer, h.Nickname)
			print(h.Checks)
		}
	}
	if len(r.Between) > 0 {
		fmt.Fprintln(w, "all hosts")
		print(r.Between)
	}
	fmt.Fprintf(w, "%s: %d passed, %s, %d failed\n", a.coloured(r.Result), counts[api.CheckPass], words.Count(counts[api.CheckWarn], "warning"), counts[api.CheckFail])
}
