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

// environmentPrefix begins the variables that settings can be given in.
const environmentPrefix = "WEFT_"

// variable is where a flag can be given: --ipalloc-range is WEFT_IPALLOC_RANGE.
func variable(flag string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// environmentHelp tells of it in the help of the commands that read it.
const environmentHelp = `

Every flag but --token can be given in the environment too, as WEFT_ and its name in capitals:
WEFT_IPALLOC_RANGE, WEFT_MTU. The flag wins, and an empty variable counts as not set. Below both is
/etc/weft/weft.yaml, where launch saves its flags (` + "`weft config view`" + ` shows all).`

// noVariable are flags that are not settings, or that must not be in the environment: a token
// would be read there by whoever lists processes.
var noVariable = []string{"help", "json", "socket", "token", "wait", "found"}

// otherVariables are ours too, but no flags.
var otherVariables = []string{"WEFT_PASSWORD"}

// serviceLink is how Kubernetes tells a pod of a service in its namespace, such as one that is
// called weft: that is no setting of ours.
var serviceLink = regexp.MustCompile(`_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)`)

func isServiceLink(name, value string) bool {
	return serviceLink.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// fromEnvironment sets the flags that were not given from the environment, and returns the
// names of the flags that it set, and of the variables that nobody knows.
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

// blame names the variable, or the line of the settings file, in an error about a flag that was
// set there: who set it does not know the flag.
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

// configure completes the options of an agent from its flags, the environment and the settings
// file, in this order.
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
		slog.New(slog.NewTextHandler(a.err, nil)).Warn("this variable of the environment is no setting of Weft's: is it mistyped? (`weft agent --help` lists them)", "variable", name)
	}
	return err
}

// checkKubernetes refuses what the cluster's Secret decides.
func (f *launchFlags) checkKubernetes() error {
	if !f.Kubernetes.On {
		return nil
	}
	for _, x := range []struct {
		given bool
		name  string
	}{{f.tokenSrc != "", "--token"}, {os.Getenv("WEFT_PASSWORD") != "", "WEFT_PASSWORD"}, {len(f.Targets) > 0, "PEER"}, {f.init != "", "--ipalloc-init"}} {
		if x.given {
			return words.Misused(fmt.Errorf("%s does not go with --kubernetes: peers are the cluster's Nodes, and its Secret holds the token and names the founder. To give a token, make that Secret before: kubectl -n weft create secret generic weft --from-file=token=FILE", x.name))
		}
	}
	return nil
}
