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

// configReply is what config view prints with --json.
type configReply struct {
	Running  bool          `json:"running"` // the settings are those of the agent that runs
	File     string        `json:"file"`
	Settings []api.Setting `json:"settings"`
	// Next are settings that an agent would have that is started now, where they differ.
	Next []api.Setting `json:"next,omitempty"`
}

func (a *app) configView() *cobra.Command {
	path := settingsFile
	cmd := &cobra.Command{
		Use: "view", Short: "show each setting with its value and where that came from", Args: cobra.NoArgs,
		Long: `Shows the settings of the agent that runs, each with where its value came from: default, file
(/etc/weft/weft.yaml), environment or flag; and which of them another launch would change. Where
no agent runs, the settings that one would be started with.` + exitHelp,
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

// settingsNow are the settings of an agent that would be launched without flags; the environment
// is the command's own, which a unit's need not be, so it is left out.
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

// changing are the settings of the file that are not those of the agent, which was given others since.
func changing(have, next []api.Setting, unit bool) (list []api.Setting) {
	running := map[string]api.Setting{}
	for _, s := range have {
		running[s.Name] = s
	}
	for _, s := range next {
		r := running[s.Name]
		byFile := r.Origin == api.FromDefault || r.Origin == api.FromFile || r.Origin == api.FromFlag && !unit // launch's own flags are in the file too
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
