package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

const (
	// watchPeriod is how often --watch shows the state anew.
	watchPeriod = 2 * time.Second
	// clearScreen moves a terminal's cursor to the top, and erases what is below.
	clearScreen = "\x1b[H\x1b[J"
)

// addWatch gives a command and its subcommands the flag --watch.
func (a *app) addWatch(cmd *cobra.Command) {
	watch := false
	cmd.PersistentFlags().BoolVar(&watch, "watch", false, fmt.Sprintf("show the state every %.0f s, until interrupted", watchPeriod.Seconds()))
	for _, c := range slices.Concat([]*cobra.Command{cmd}, cmd.Commands()) {
		once := c.RunE
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if !watch {
				return once(cmd, args)
			}
			return a.repeat(cmd.Context(), func() error { return once(cmd, args) })
		}
	}
}

// repeat runs a command again and again until ctx ends. It fails only if the first run fails: later ones
// show the error, since an agent that is restarted comes back.
func (a *app) repeat(ctx context.Context, once func() error) error {
	out, terminal := a.out, isTerminal(a.out)
	defer func() { a.out = out }()
	for first := true; ; first = false {
		var text bytes.Buffer // one write per picture, so that a terminal does not flicker
		a.out, a.oneLine = &text, true
		if !a.json {
			if terminal {
				text.WriteString(clearScreen)
			}
			fmt.Fprintf(&text, "--- %s\n", time.Now().Format(time.TimeOnly))
		}
		err := once()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && errors.Is(err, errNotReady): // the picture says so
		case err != nil && first:
			return err
		case err != nil && a.json:
			fmt.Fprintln(a.err, "weft:", err)
		case err != nil:
			fmt.Fprintln(&text, "weft:", err)
		}
		if _, err := out.Write(text.Bytes()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(a.watchPeriod):
		}
	}
}
