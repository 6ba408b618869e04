package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"weft/prog/agent/config"
	"weft/prog/api"
	"weft/prog/words"
)

// logsPeriod is how often --follow asks for new lines.
const logsPeriod = 500 * time.Millisecond

func (a *app) logs() *cobra.Command {
	var follow bool
	var lines int
	cmd := &cobra.Command{
		Use: "logs [-f] [-n LINES]", Short: "show the agent's last log lines", Args: cobra.NoArgs,
		Long: `Shows the last lines that the running agent logged, up to 512 KiB, whatever supervises the agent.
Lines of earlier runs are in the file agent.log of the state folder (after weft launch), in the
journal (journalctl -u weft) or in the pod's log (kubectl logs).` + exitHelp,
		Example: "  weft logs\n  weft logs -f\n  weft logs -n 20",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if lines < 0 {
				return words.Misused(fmt.Errorf("--lines %d: want 0 for all lines, or more", lines))
			}
			return a.printLogs(cmd.Context(), follow, lines)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines, until interrupted")
	cmd.Flags().IntVarP(&lines, "lines", "n", 0, "show only the newest lines (0: all)")
	return cmd
}

// printLogs prints lines. With follow it goes on until ctx ends, also while the agent is started again.
func (a *app) printLogs(ctx context.Context, follow bool, most int) error {
	client, req := a.client(), api.LogsRequest{Most: most}
	a.oneLine = follow // each piece of the log is one JSON document
	for first := true; ; first = false {
		r, err := client.Logs(ctx, req)
		if err != nil && first {
			return fmt.Errorf("%w. The log of an agent that ended is in %s, in the journal (journalctl -u weft), or in the pod's log", err, filepath.Join(config.DefaultStateDir, agentLog))
		}
		if err == nil && (first || len(r.Lines) > 0) {
			if err := a.show(r, func() {
				for _, line := range r.Lines {
					fmt.Fprintln(a.out, words.Printable(line, len(line)))
				}
			}); err != nil {
				return err
			}
			req = api.LogsRequest{After: r.Next}
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(logsPeriod):
		}
	}
}
