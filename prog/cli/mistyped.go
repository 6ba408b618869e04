package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft/prog/words"
)

// printing are the groups of commands that print something themselves.
var printing = []string{"status", "token"}

// checkWords refuses an argument that names no command, at any level and among any flags. Cobra
// itself would print the group's help and succeed.
func checkWords(root *cobra.Command, args []string) error {
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() {
		return nil // cobra's Execute reports the same error later
	}
	if word := firstWord(cmd, rest); word != "" && !strings.HasPrefix(word, "__") { // cobra reserves names that begin with __, for completion
		return unknownCommand(cmd, word)
	}
	helps := func(arg string) bool { return arg == "--help" || arg == "-h" || arg == "--version" }
	if slices.Contains(args, "--json") && !slices.Contains(printing, cmd.Name()) && !slices.ContainsFunc(args, helps) {
		return words.Misused(fmt.Errorf("`%s` itself prints no JSON: use one of its commands (see `%s --help`)", cmd.CommandPath(), cmd.CommandPath()))
	}
	return nil
}

// firstWord returns the first argument that is neither a flag nor a flag's value.
func firstWord(cmd *cobra.Command, args []string) string {
	for i := 0; i < len(args); i++ {
		name, long := strings.CutPrefix(args[i], "--")
		switch {
		case args[i] == "--":
			return ""
		case long && !strings.Contains(name, "="):
			f := cmd.Flag(name)
			switch {
			case f == nil && name != "help":
				return "" // cobra refuses the flag, and the next argument may be its value
			case f != nil && f.NoOptDefVal == "":
				i++
			}
		case !long && len(args[i]) > 1 && args[i][0] == '-' && args[i] != "-h":
			return "" // command groups have no short flags: cobra refuses it
		case !strings.HasPrefix(args[i], "-"):
			return args[i]
		}
	}
	return ""
}

// unknownCommand returns the error for an unknown command. It names Weft's equivalent of a Weave command,
// or similar commands.
func unknownCommand(cmd *cobra.Command, word string) error {
	text := fmt.Sprintf("unknown command %q for %q", word, cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if instead := weaveCommands[word]; instead != "" && !cmd.HasParent() {
		text += ": " + instead
	} else if near := cmd.SuggestionsFor(word); word != "" && len(near) > 0 { // without this check, "" would be similar to all commands, as their beginning
		text += ": did you mean " + strings.Join(near, " or ") + "?"
	}
	return words.Misused(fmt.Errorf("%s (see `%s --help`)", text, cmd.CommandPath()))
}

// flagError rewords pflag's errors about flags.
func flagError(cmd *cobra.Command, err error) error {
	text := err.Error()
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		text = unknownFlag(cmd, e)
	} else if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		text = badValue(e.GetFlag(), e.GetValue()).Error()
	}
	return words.Misused(fmt.Errorf("%s (see `%s --help`)", text, cmd.CommandPath()))
}

func unknownFlag(cmd *cobra.Command, e *pflag.NotExistError) string {
	name, text := e.GetSpecifiedName(), e.Error()
	if short := e.GetSpecifiedShortnames(); short != "" { // the user typed a long flag with one dash, such as -nickname in Weave 1.0
		name, _, _ = strings.Cut(short, "=")
		if len(name) > 1 && cmd.Flag(name) != nil {
			return fmt.Sprintf("unknown flag -%s: did you mean --%[1]s?", name)
		}
	}
	of := weaveFlags[strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")]
	for _, flag := range []string{name, e.GetSpecifiedName()} { // of -Hvalue, name is Hvalue and the specified name is the letter H
		if instead := of[flag]; instead != "" {
			return fmt.Sprintf("unknown flag %s%s: %s", "--"[:min(len(flag), 2)], flag, instead)
		}
	}
	// Cobra finds similar commands, so make a command of each flag.
	flags := &cobra.Command{SuggestionsMinimumDistance: 2}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		}
	})
	if near := flags.SuggestionsFor(name); len(near) > 0 && len(name) > 1 {
		return fmt.Sprintf("unknown flag --%s: did you mean --%s?", name, strings.Join(near, " or --"))
	}
	return text
}

// wanted describes valid values of a flag, by pflag's name of its type.
var wanted = map[string]string{
	"bool": "true or false", "int": "a whole number", "uint16": "a number from 0 to 65535",
	"duration": "a time such as 1s, 500ms or 2m", "float64": "a number", "uint": "a whole number from 0", "uint32": "a whole number from 0 to 4294967295",
}

// badValue describes the values that a flag accepts, instead of the Go parser's error.
func badValue(f *pflag.Flag, value string) error {
	want := wanted[f.Value.Type()]
	if want == "" {
		want = "another value"
	}
	return fmt.Errorf("--%s %s: want %s", f.Name, value, want)
}

// checkArgs makes wrong arguments a usage error in every command, and refuses --json for commands
// that would ignore it.
func (a *app) checkArgs(c *cobra.Command) {
	check := c.Args
	if check == nil {
		check = cobra.ArbitraryArgs
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		switch {
		case err != nil:
			err = argsError(cmd, args, err)
		case a.json && noJSON[cmd.CommandPath()]:
			err = fmt.Errorf("`%s` prints no JSON: omit --json", cmd.CommandPath())
		default:
			return nil
		}
		return words.Misused(fmt.Errorf("%w (see `%s --help`)", err, cmd.CommandPath()))
	}
	for _, sub := range c.Commands() {
		a.checkArgs(sub)
	}
}

// argsError rewords the errors of cobra's argument checks.
func argsError(cmd *cobra.Command, args []string, err error) error {
	text := err.Error()
	switch instead := weaveArguments[cmd.Name()]; {
	case strings.HasPrefix(text, "unknown command"): // cobra.NoArgs calls an argument an unknown command
		text = fmt.Sprintf("`%s` takes no arguments, but got %q", cmd.CommandPath(), args)
		if instead != "" {
			text += ": " + instead
		}
	case strings.HasPrefix(text, "requires ") || strings.HasPrefix(text, "accepts "):
		text = fmt.Sprintf("got %s: want `%s`", words.Count(len(args), "argument"), cmd.UseLine())
		if instead != "" && len(args) > 0 {
			text += "; " + instead
		}
	default:
		return err
	}
	return errors.New(text)
}

// help prints a command's help, and refuses unknown commands.
func help(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "show the help of a command",
		ValidArgsFunction: func(_ *cobra.Command, args []string, begin string) (out []string, _ cobra.ShellCompDirective) {
			if cmd, _, err := root.Find(args); err == nil {
				for _, sub := range cmd.Commands() {
					if sub.IsAvailableCommand() && strings.HasPrefix(sub.Name(), begin) {
						out = append(out, sub.Name())
					}
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return unknownCommand(cmd, strings.Join(rest, " "))
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}
