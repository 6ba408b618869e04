package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"weft/prog/api"
)

func (a *app) config() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "show this host's settings", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.configView())
	return cmd
}

// configReply is the JSON output of config view.
type configReply struct {
	Running  bool          `json:"running"` // whether an agent runs; then Settings holds the values that it uses
	File     string        `json:"file"`
	Settings []api.Setting `json:"settings"`
	// Next holds the settings that will have another value when the agent is started again.
	Next []api.Setting `json:"next,omitempty"`
}

func (a *app) configView() *cobra.Command {
	path := settingsFile
	cmd := &cobra.Command{
		Use: "view", Short: "show each setting with its value and origin", Args: cobra.NoArgs,
		Long: `Shows the settings of the running agent, each with its origin: default, file
(/etc/weft/weft.yaml), environment or flag; and which of them would change at the next launch.
If no agent runs, it shows the settings that a new one would get.` + exitHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			next, err := settingsNow(path)
			if err != nil {
				return err
			}
			reply := configReply{File: path, Settings: next}
			r, err := api.NewClient(a.socket).Report(cmd.Context())
			if _, down := errors.AsType[*api.NotRunningError](err); err != nil && (!down || errors.Is(err, fs.ErrPermission)) {
				return err
			}
			if err == nil && len(r.Settings) > 0 {
				reply.Running, reply.Settings = true, r.Settings
				reply.Next = changing(r.Settings, next, unitLoaded())
			}
			return a.show(reply, func() { a.printConfig(reply) })
		},
	}
	cmd.Flags().StringVar(&path, "settings", settingsFile, "the file with this host's settings")
	return cmd
}

// settingsNow returns the settings of an agent that is launched without flags. It ignores the
// environment, since this command's environment can differ from that of the agent's unit.
func settingsNow(path string) ([]api.Setting, error) {
	f := &launchFlags{from: origins{}}
	cmd := &cobra.Command{}
	f.add(cmd)
	file, err := readSettings(path)
	if err == nil {
		err = file.apply(cmd.Flags(), f.from)
	}
	return listSettings(cmd.Flags(), f.from), err
}

// changing returns the settings that the next launch takes from the file, and that differ from those
// of the running agent.
func changing(have, next []api.Setting, unit bool) (list []api.Setting) {
	running := map[string]api.Setting{}
	for _, s := range have {
		running[s.Name] = s
	}
	for _, s := range next {
		r := running[s.Name]
		// launch saves its flags in the file, where they can change. A unit passes its flags at
		// every start.
		byFile := r.Origin == api.FromDefault || r.Origin == api.FromFile || r.Origin == api.FromFlag && !unit
		if r.Value != s.Value && byFile {
			list = append(list, s)
		}
	}
	return list
}

func (a *app) printConfig(c configReply) {
	t := newTable(a.out)
	t.row("SETTING", "VALUE", "FROM")
	for _, s := range c.Settings {
		from := s.Origin
		if from == api.FromFile {
			from = filepath.Clean(c.File)
		}
		t.row(s.Name, orDash(s.Value), from)
	}
	t.flush()
	for _, s := range c.Next {
		fmt.Fprintf(a.out, "From the next launch on: %s: %s (%s)\n", s.Name, orDash(s.Value), c.File)
	}
}
