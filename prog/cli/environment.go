package cli

import (
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft/prog/api"
	"weft/prog/words"
)

// environmentPrefix is the prefix of environment variables that hold settings.
const environmentPrefix = "WEFT_"

// variable returns the environment variable of a flag: --ipalloc-range is WEFT_IPALLOC_RANGE.
func variable(flag string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// environmentHelp describes the environment in the help of the commands that read it.
const environmentHelp = `

Every flag but --token can also be given in the environment, as WEFT_ and the flag's name in capitals:
WEFT_IPALLOC_RANGE, WEFT_MTU. A flag wins over its variable, and an empty variable counts as not set.
Flags and variables win over /etc/weft/weft.yaml, where launch saves its flags (` + "`weft config view`" + `
shows all settings).`

// noVariable lists flags that are no settings, or that must not be in the environment: child
// processes would inherit a token there, and `docker inspect` would show it.
var noVariable = []string{"help", "json", "socket", "token", "wait", "found"}

// otherVariables lists Weft's environment variables that set no flag.
var otherVariables = []string{"WEFT_PASSWORD"}

// serviceLink matches variables that Kubernetes sets in a pod for each service of its namespace. For
// a service with the name weft, they look like settings.
var serviceLink = regexp.MustCompile(`_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)`)

func isServiceLink(name, value string) bool {
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// fromEnvironment sets flags from the environment unless the command line has them. It returns the names of the
// flags that it set, and of unknown variables.
func fromEnvironment(flags *pflag.FlagSet, environ []string) (used, unknown []string, err error) {
	values := map[string]string{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, environmentPrefix) && !slices.Contains(otherVariables, name) && !isServiceLink(name, value) {
			values[name] = value
		}
	}
	flags.VisitAll(func(f *pflag.Flag) {
		name := variable(f.Name)
		value, ok := values[name]
		if !ok || slices.Contains(noVariable, f.Name) {
			return
		}
		delete(values, name)
		if value == "" || f.Changed || err != nil {
			return
		}
		if e := flags.Set(f.Name, value); e != nil {
			err = words.Misused(fmt.Errorf("%s in the environment: %w", name, badValue(f, value)))
		}
		used = append(used, f.Name)
	})
	for name := range values {
		unknown = append(unknown, name)
	}
	slices.Sort(unknown)
	return used, unknown, err
}

// blame names the environment variable or the line of the settings file in an error about a flag. The
// operator did not set it as a flag, and may not know the flag.
func blame(err error, from origins, file settings) error {
	if err == nil {
		return nil
	}
	for name, origin := range from {
		if origin == api.FromFlag || !regexp.MustCompile(`(^|\s)--`+name+`($|[\s:=])`).MatchString(err.Error()) {
			continue
		}
		if origin == api.FromFile {
			return words.Misused(fmt.Errorf("%s: %w", file.at(name), err))
		}
		return words.Misused(fmt.Errorf("%s in the environment: %w", variable(name), err))
	}
	return err
}

// configure completes the options of an agent from its flags, the environment and the settings file.
// The first of them that sets a value wins.
func (a *app) configure(cmd *cobra.Command, f *launchFlags, targets []string) error {
	f.from = origins{}
	cmd.Flags().Visit(func(flag *pflag.Flag) { f.from[flag.Name] = api.FromFlag })
	used, unknown, err := fromEnvironment(cmd.Flags(), os.Environ())
	for _, flag := range used {
		f.from[flag] = api.FromEnvironment
	}
	var file settings
	if err == nil {
		file, err = readSettings(f.settings)
	}
	if err == nil {
		err = file.apply(cmd.Flags(), f.from)
	}
	if err == nil {
		f.Settings = listSettings(cmd.Flags(), f.from)
		err = blame(f.complete(targets, a.err), f.from, file)
	}
	if err == nil {
		err = f.checkKubernetes()
	}
	for _, name := range unknown {
		slog.New(slog.NewTextHandler(a.err, nil)).Warn("unknown setting in the environment: is it mistyped? (`weft agent --help` lists all)", "variable", name)
	}
	return err
}

// checkKubernetes refuses settings that the cluster's Secret determines.
func (f *launchFlags) checkKubernetes() error {
	if !f.Kubernetes.On {
		return nil
	}
	for _, x := range []struct {
		given bool
		name  string
	}{{f.tokenSrc != "", "--token"}, {os.Getenv("WEFT_PASSWORD") != "", "WEFT_PASSWORD"}, {f.cluster != "", "--cluster"}, {len(f.Targets) > 0, "PEER"}, {f.init != "", "--ipalloc-init"}} {
		if x.given {
			return words.Misused(fmt.Errorf("%s does not go with --kubernetes: peers are the cluster's Nodes, and its Secret holds the token and names the founder. To give a token, create that Secret first: kubectl -n weft create secret generic weft --from-file=token=FILE", x.name))
		}
	}
	return nil
}
